"""A small architecture for tests, which name only what differs; random models."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from metaclip_jax.data.images import Preprocess
from metaclip_jax.data.tokenizer import Tokenizer
from metaclip_jax.evaluation.encoder import Encoder, make_encoder
from metaclip_jax.models import clip
from metaclip_jax.training import sharding


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


def random_params(wanted: clip.Architecture) -> clip.Params:
    """Random weights, just large enough that images get different answers."""
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda leaf: np.asarray(rng.normal(scale=0.4, size=leaf.shape), np.float32),
        clip.init(wanted, jax.random.key(0)),
    )


def random_encoder(tokenizer: Tokenizer, **changes: Any) -> Encoder:
    """An encoder of `random_params` on one device."""
    wanted = architecture(tokenizer, **changes)
    return make_encoder(
        architecture=wanted,
        tokenizer=tokenizer,
        preprocess=Preprocess(16),
        mesh=sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]),
        batch=64,
        params=random_params(wanted),
    )


def with_different_answers(
    encoder: Encoder, images: Sequence[bytes], texts: Sequence[str]
) -> Encoder:
    """The encoder after the mean of all images, and of all texts, is projected out."""
    params = jax.device_get(encoder.params)
    seen = {
        "image": encoder.encode_images(
            lambda rows: [images[row] for row in rows], names=str, total=len(images)
        ),
        "text": encoder.encode_texts(texts),
    }
    for tower, embeddings in seen.items():
        mean = embeddings.mean(axis=0)
        mean /= np.linalg.norm(mean)
        kept = np.eye(len(mean), dtype=np.float32) - np.outer(mean, mean)
        params[tower]["projection"] = params[tower]["projection"] @ kept
    return encoder.with_params(params)
