"""open_clip's folders and state dicts: weights and open_clip_config.json."""

from collections.abc import Mapping
from typing import Any

from metaclip_jax.conversion.table import (
    FUSED_BIAS,
    FUSED_KERNEL,
    LINEAR,
    OUT_KERNEL,
    PATCHES,
    SAME,
    SCALAR,
    Rule,
    block_rules,
)
from metaclip_jax.models.clip import Architecture

_BLOCK = (
    ("ln_1/scale", ("ln_1.weight",), SAME),
    ("ln_1/bias", ("ln_1.bias",), SAME),
    ("attn/qkv/kernel", ("attn.in_proj_weight",), FUSED_KERNEL),
    ("attn/qkv/bias", ("attn.in_proj_bias",), FUSED_BIAS),
    ("attn/out/kernel", ("attn.out_proj.weight",), OUT_KERNEL),
    ("attn/out/bias", ("attn.out_proj.bias",), SAME),
    ("ln_2/scale", ("ln_2.weight",), SAME),
    ("ln_2/bias", ("ln_2.bias",), SAME),
    ("mlp/fc1/kernel", ("mlp.c_fc.weight",), LINEAR),
    ("mlp/fc1/bias", ("mlp.c_fc.bias",), SAME),
    ("mlp/fc2/kernel", ("mlp.c_proj.weight",), LINEAR),
    ("mlp/fc2/bias", ("mlp.c_proj.bias",), SAME),
)
# Projections are parameters x @ P here, and so they are in ours.
_RULES: tuple[Rule, ...] = (
    Rule("image/class_embedding", ("visual.class_embedding",), SAME),
    Rule("image/patch_embed/kernel", ("visual.conv1.weight",), PATCHES),
    Rule("image/position_embedding", ("visual.positional_embedding",), SAME),
    Rule("image/ln_pre/scale", ("visual.ln_pre.weight",), SAME),
    Rule("image/ln_pre/bias", ("visual.ln_pre.bias",), SAME),
    *block_rules("image", "visual.transformer.resblocks", _BLOCK),
    Rule("image/ln_post/scale", ("visual.ln_post.weight",), SAME),
    Rule("image/ln_post/bias", ("visual.ln_post.bias",), SAME),
    Rule("image/projection", ("visual.proj",), SAME),
    Rule("text/token_embedding", ("token_embedding.weight",), SAME),
    Rule("text/position_embedding", ("positional_embedding",), SAME),
    *block_rules("text", "transformer.resblocks", _BLOCK),
    Rule("text/ln_final/scale", ("ln_final.weight",), SAME),
    Rule("text/ln_final/bias", ("ln_final.bias",), SAME),
    Rule("text/projection", ("text_projection",), SAME),
    Rule("log_logit_scale", ("logit_scale",), SCALAR),
)

CLIP_VOCABULARY = 49_408
# (eos, pad) by vocabulary: CLIP's BPE, XLM-V, mT5 as the worldwide models use it.
_END_AND_PAD = {CLIP_VOCABULARY: (49_407, 0), 901_629: (2, 1), 250_000: (1, 0)}


def rules(architecture: Architecture) -> tuple[Rule, ...]:
    """The rules of all weights of a model.

    Raises:
      ValueError: open_clip builds such a model of another library's parts.
    """
    if architecture.family != "clip":
        raise ValueError(
            f"open_clip's {architecture.family} has timm's image tower, which is not"
            " converted; use Hugging Face's format"
        )
    return _RULES


def is_ignored(name: str) -> bool:
    """Constants that older files save along."""
    return name in ("attn_mask", "input_resolution", "context_length", "vocab_size")


def read_architecture(written: Mapping[str, Any]) -> Architecture:
    """Returns the architecture of an open_clip_config.json (its `model_cfg`).

    Raises:
      ValueError: the model has parts that ours do not.
    """
    model = written.get("model_cfg", written)
    vision: dict[str, Any] = dict(model["vision_cfg"])
    text: dict[str, Any] = dict(model["text_cfg"])
    for part, values, known in (
        ("vision_cfg", vision, _VISION_KEYS),
        ("text_cfg", text, _TEXT_KEYS),
    ):
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"open_clip's {part} has {unknown}, which no MetaCLIP model has; ours "
                "are plain ViTs with a causal text tower"
            )
    width = vision["width"]
    vocab_size = text.get("vocab_size", CLIP_VOCABULARY)
    pool = text.get("pool_type", "argmax")
    eos_id, pad_id = _END_AND_PAD.get(vocab_size, (vocab_size - 1, 0))
    if pool == "eos":  # the defaults of open_clip
        eos_id, pad_id = text.get("eos_id", 2), text.get("pad_id", pad_id)
    return Architecture(
        image_size=vision.get("image_size", 224),
        patch_size=vision["patch_size"],
        vision_width=width,
        vision_layers=vision["layers"],
        vision_heads=width // vision.get("head_width", 64),
        vision_mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
        text_width=text["width"],
        text_layers=text["layers"],
        text_heads=text["heads"],
        text_mlp_width=int(text["width"] * text.get("mlp_ratio", 4.0)),
        context_length=text.get("context_length", 77),
        vocab_size=vocab_size,
        embed_dim=model["embed_dim"],
        activation="quick_gelu" if model.get("quick_gelu", False) else "gelu",
        text_pool="eos" if pool == "eos" else "argmax",
        eos_id=eos_id,
        pad_id=pad_id,
    )


_VISION_KEYS = frozenset(
    {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}
)
_TEXT_KEYS = frozenset(
    {
        "context_length",
        "vocab_size",
        "width",
        "heads",
        "layers",
        "mlp_ratio",
        "pool_type",
        "eos_id",
        "pad_id",
        "hf_tokenizer_name",
        "tokenizer_kwargs",
    }
)


def write_config(
    architecture: Architecture, *, preprocess: Mapping[str, Any], tokenizer: str | None
) -> dict[str, Any]:
    """Returns open_clip_config.json.

    Args:
      architecture: of the model.
      preprocess: its `preprocess_cfg`.
      tokenizer: folder or hub name for its HFTokenizer; None for CLIP's own BPE.
    """
    a = architecture
    text: dict[str, Any] = {
        "context_length": a.context_length,
        "vocab_size": a.vocab_size,
        "width": a.text_width,
        "heads": a.text_heads,
        "layers": a.text_layers,
        "mlp_ratio": a.text_mlp_width / a.text_width,
    }
    if a.text_pool == "eos" and a.eos_id != a.vocab_size - 1:
        text |= {"pool_type": "eos", "eos_id": a.eos_id, "pad_id": a.pad_id}
    if tokenizer is not None:
        text |= {
            "hf_tokenizer_name": tokenizer,
            "tokenizer_kwargs": {"clean": "lower"},
        }
    return {
        "model_cfg": {
            "embed_dim": a.embed_dim,
            "quick_gelu": a.activation == "quick_gelu",
            "vision_cfg": {
                "image_size": a.image_size,
                "layers": a.vision_layers,
                "width": a.vision_width,
                "head_width": a.vision_width // a.vision_heads,
                "patch_size": a.patch_size,
                "mlp_ratio": a.vision_mlp_width / a.vision_width,
            },
            "text_cfg": text,
        },
        "preprocess_cfg": dict(preprocess),
    }
