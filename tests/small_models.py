"""A small architecture for tests, of which each says what differs."""

from typing import Any

from metaclip_jax.data.tokenizer import Tokenizer
from metaclip_jax.models import clip


def architecture(tokenizer: Tokenizer, **changes: Any) -> clip.Architecture:
    """Towers of two layers and 32 channels, for pictures of 16 pixels."""
    sizes: dict[str, Any] = {
        "image_size": 16,
        "patch_size": 8,
        "vision_width": 32,
        "vision_layers": 2,
        "vision_heads": 2,
        "vision_mlp_width": 64,
        "text_width": 32,
        "text_layers": 2,
        "text_heads": 2,
        "text_mlp_width": 64,
        "context_length": 16,
        "vocab_size": tokenizer.vocab_size,
        "embed_dim": 16,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
    }
    return clip.Architecture(**sizes | changes)
