"""Hugging Face's model folders: weights and config.json.

The `model_type` of MetaCLIP 1 and OpenAI's CLIP is "clip", that of the worldwide models
"metaclip_2"; their tensors have the same names. siglip.py converts "siglip".
"""

from collections.abc import Mapping
from typing import Any

from metaclip_jax.cli.ranges import Range
from metaclip_jax.conversion import fields, siglip
from metaclip_jax.conversion.fields import Row
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
# By our field: transformers' name, and its default for a config without the field.
_ROWS: fields.Rows = {
    "image_size": Row("vision_config.image_size", 224),
    "patch_size": Row("vision_config.patch_size", 32),
    "vision_width": Row("vision_config.hidden_size", 768),
    "vision_layers": Row("vision_config.num_hidden_layers", 12),
    "vision_heads": Row("vision_config.num_attention_heads", 12),
    "vision_mlp_width": Row("vision_config.intermediate_size", 3_072),
    "text_width": Row("text_config.hidden_size", 512),
    "text_layers": Row("text_config.num_hidden_layers", 12),
    "text_heads": Row("text_config.num_attention_heads", 8),
    "text_mlp_width": Row("text_config.intermediate_size", 2_048),
    "context_length": Row("text_config.max_position_embeddings", 77),
    "vocab_size": Row("text_config.vocab_size", 49_408),
    "eos_id": Row("text_config.eos_token_id", 49_407),
    "pad_id": Row("text_config.pad_token_id", 1),
    # The sub-configs' own projection_dim is often left at a wrong default.
    "embed_dim": Row("projection_dim", 512),
}
_ACTIVATION = Range(str, choices=("quick_gelu", "gelu"))
# Early CLIP configs have this wrong eos_token_id, and for them transformers pools the
# text at the largest id (its pull request 24773). For MetaCLIP 2 it is the right id.
_LEGACY_EOS = 2


def rules(architecture: Architecture) -> tuple[Rule, ...]:
    """Returns the rules for all weights of a model."""
    return siglip.RULES if architecture.family == "siglip" else _RULES


def is_ignored(name: str) -> bool:
    """Whether the name is that of a constant, which older files contain."""
    return name.endswith(".position_ids")


def read_architecture(
    written: dict[str, Any], *, file: str = "config.json"
) -> Architecture:
    """Returns the architecture of a config.json.

    Args:
      written: the file's object.
      file: for messages.

    Raises:
      ValueError: the model is of another type, or a field has a value that we do not
        support; the message names the field.
    """
    kind = written.get("model_type")
    if kind not in MODEL_TYPES:
        fields.refuse(file, "model_type", " or ".join(MODEL_TYPES), kind)
    if kind == "siglip":
        return siglip.read_architecture(written, file=file)
    # Very old files have text_config_dict and vision_config_dict.
    written = written | {
        tower: fields.section(file, written, f"{tower}_dict")
        | _given(fields.section(file, written, tower))
        for tower in ("text_config", "vision_config")
    }
    values = fields.read(file, written, _ROWS)
    fields.same_in_both(
        file,
        written,
        "layer_norm_eps",
        default=LAYER_NORM_EPSILON,
        allowed=Range(float, least=LAYER_NORM_EPSILON, most=LAYER_NORM_EPSILON),
    )
    activation = fields.same_in_both(
        file, written, "hidden_act", default="quick_gelu", allowed=_ACTIVATION
    )
    legacy = kind == "clip" and values["eos_id"] == _LEGACY_EOS
    if legacy:
        values["eos_id"] = values["vocab_size"] - 1
    return fields.build(
        file,
        _ROWS,
        **values,
        activation=activation,
        text_pool="argmax" if legacy else "eos",
    )


def write_config(architecture: Architecture, *, bos_id: int | None) -> dict[str, Any]:
    """Returns config.json for an architecture.

    Raises:
      ValueError: transformers would pool the texts at another position.
    """
    a = architecture
    if a.family == "siglip":
        return siglip.write_config(a, bos_id=bos_id)
    worldwide = a.eos_id == _LEGACY_EOS
    if a.text_pool == "argmax" and a.eos_id != a.vocab_size - 1:
        raise ValueError(
            "transformers pools texts at the end mark, but this model pools at the "
            f"largest id. These are the same only if eos_id is {a.vocab_size - 1}, the "
            f"last of the vocabulary; got {a.eos_id}"
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


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
