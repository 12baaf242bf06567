"""Hugging Face's folders: weights and config.

`model_type` "clip" is MetaCLIP 1 and OpenAI's CLIP, "metaclip_2" the worldwide models;
their tensors have the same names. "siglip" is in siglip.py.
"""

from collections.abc import Mapping
from typing import Any

from metaclip_jax.conversion import siglip
from metaclip_jax.conversion.table import (
    HUGGINGFACE_BLOCK,
    LINEAR,
    PATCHES,
    SAME,
    SCALAR,
    Rule,
    block_rules,
)
from metaclip_jax.models.clip import Architecture
from metaclip_jax.models.vit import LAYER_NORM_EPSILON

_IMAGE, _TEXT = "vision_model", "text_model"
_RULES: tuple[Rule, ...] = (
    Rule("image/class_embedding", (f"{_IMAGE}.embeddings.class_embedding",), SAME),
    Rule(
        "image/patch_embed/kernel",
        (f"{_IMAGE}.embeddings.patch_embedding.weight",),
        PATCHES,
    ),
    Rule(
        "image/position_embedding",
        (f"{_IMAGE}.embeddings.position_embedding.weight",),
        SAME,
    ),
    Rule("image/ln_pre/scale", (f"{_IMAGE}.pre_layrnorm.weight",), SAME),  # sic
    Rule("image/ln_pre/bias", (f"{_IMAGE}.pre_layrnorm.bias",), SAME),
    *block_rules("image", f"{_IMAGE}.encoder.layers", HUGGINGFACE_BLOCK),
    Rule("image/ln_post/scale", (f"{_IMAGE}.post_layernorm.weight",), SAME),
    Rule("image/ln_post/bias", (f"{_IMAGE}.post_layernorm.bias",), SAME),
    Rule("image/projection", ("visual_projection.weight",), LINEAR),
    Rule("text/token_embedding", (f"{_TEXT}.embeddings.token_embedding.weight",), SAME),
    Rule(
        "text/position_embedding",
        (f"{_TEXT}.embeddings.position_embedding.weight",),
        SAME,
    ),
    *block_rules("text", f"{_TEXT}.encoder.layers", HUGGINGFACE_BLOCK),
    Rule("text/ln_final/scale", (f"{_TEXT}.final_layer_norm.weight",), SAME),
    Rule("text/ln_final/bias", (f"{_TEXT}.final_layer_norm.bias",), SAME),
    Rule("text/projection", ("text_projection.weight",), LINEAR),
    Rule("log_logit_scale", ("logit_scale",), SCALAR),
)

MODEL_TYPES = ("clip", "metaclip_2", "siglip")
# What transformers takes where a config leaves a value out (its class defaults).
_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49_408,
    "hidden_size": 512,
    "intermediate_size": 2_048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49_407,
    "pad_token_id": 1,
}
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3_072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# transformers reads the text at the largest id where a CLIP config has this end mark:
# early configs had it by mistake (its pull request 24773). MetaCLIP 2 means it.
_LEGACY_EOS = 2


def rules(architecture: Architecture) -> tuple[Rule, ...]:
    """The rules of all weights of a model."""
    return siglip.RULES if architecture.family == "siglip" else _RULES


def is_ignored(name: str) -> bool:
    """Constants that older files save along."""
    return name.endswith(".position_ids")


def read_architecture(written: Mapping[str, Any]) -> Architecture:
    """Returns the architecture of a config.json.

    Raises:
      ValueError: it is of another kind of model, or has a value that ours do not.
    """
    kind = written.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"config.json: wanted model_type {' or '.join(MODEL_TYPES)}, got {kind!r}"
        )
    if kind == "siglip":
        return siglip.read_architecture(written)
    text = _TEXT_DEFAULTS | _given(written, "text")
    vision = _VISION_DEFAULTS | _given(written, "vision")
    for part, values in (("text", text), ("vision", vision)):
        if values["layer_norm_eps"] != LAYER_NORM_EPSILON:
            raise ValueError(
                f"config.json: {part} layer_norm_eps must be {LAYER_NORM_EPSILON}, got "
                f"{values['layer_norm_eps']}"
            )
    if text["hidden_act"] != vision["hidden_act"]:
        raise ValueError(
            "config.json: both towers must have one activation, got "
            f"{text['hidden_act']} and {vision['hidden_act']}"
        )
    legacy = kind == "clip" and text["eos_token_id"] == _LEGACY_EOS
    return Architecture(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision_width=vision["hidden_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"],
        vision_mlp_width=vision["intermediate_size"],
        text_width=text["hidden_size"],
        text_layers=text["num_hidden_layers"],
        text_heads=text["num_attention_heads"],
        text_mlp_width=text["intermediate_size"],
        context_length=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        # The sub-configs' own projection_dim is often left at a wrong default.
        embed_dim=written.get("projection_dim", 512),
        activation=text["hidden_act"],
        text_pool="argmax" if legacy else "eos",
        eos_id=text["vocab_size"] - 1 if legacy else text["eos_token_id"],
        pad_id=text["pad_token_id"],
    )


def write_config(architecture: Architecture, *, bos_id: int | None) -> dict[str, Any]:
    """Returns config.json for an architecture.

    Raises:
      ValueError: transformers would read its texts at another place.
    """
    a = architecture
    if a.family == "siglip":
        return siglip.write_config(a, bos_id=bos_id)
    worldwide = a.eos_id == _LEGACY_EOS
    if a.text_pool == "argmax" and a.eos_id != a.vocab_size - 1:
        raise ValueError(
            f"transformers reads a text at its end mark, but this model at its largest "
            f"id, and the end mark {a.eos_id} is not the largest of {a.vocab_size}"
        )
    kind = "metaclip_2" if worldwide else "clip"
    return {
        "architectures": ["MetaClip2Model" if worldwide else "CLIPModel"],
        "model_type": kind,
        "dtype": "float32",
        "projection_dim": a.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            "model_type": f"{kind}_text_model",
            "vocab_size": a.vocab_size,
            "hidden_size": a.text_width,
            "intermediate_size": a.text_mlp_width,
            "num_hidden_layers": a.text_layers,
            "num_attention_heads": a.text_heads,
            "max_position_embeddings": a.context_length,
            "hidden_act": a.activation,
            "layer_norm_eps": LAYER_NORM_EPSILON,
            "projection_dim": a.embed_dim,
            "bos_token_id": bos_id,
            "eos_token_id": a.eos_id,
            "pad_token_id": a.pad_id,
        },
        "vision_config": {
            "model_type": f"{kind}_vision_model",
            "hidden_size": a.vision_width,
            "intermediate_size": a.vision_mlp_width,
            "num_hidden_layers": a.vision_layers,
            "num_attention_heads": a.vision_heads,
            "image_size": a.image_size,
            "patch_size": a.patch_size,
            "hidden_act": a.activation,
            "layer_norm_eps": LAYER_NORM_EPSILON,
            "projection_dim": a.embed_dim,
        },
    }


def _given(written: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Values of a sub-config; very old files hold them under `<part>_config_dict`."""
    values = dict(written.get(f"{part}_config_dict") or {})
    values |= written.get(f"{part}_config") or {}
    return {key: value for key, value in values.items() if value is not None}
