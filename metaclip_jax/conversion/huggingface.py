"""Hugging Face's model folders: weights and config.json.

The `model_type` of MetaCLIP 1 and OpenAI's CLIP is "clip", that of the worldwide models
"metaclip_2"; their tensors have the same names. That of SigLIP is "siglip".
"""

from collections.abc import Mapping
from typing import Any

from metaclip_jax.cli.ranges import Range
from metaclip_jax.conversion import fields
from metaclip_jax.conversion.fields import Row
from metaclip_jax.conversion.table import (
    FUSED_BIAS,
    FUSED_KERNEL,
    LAYER,
    LINEAR,
    OUT_KERNEL,
    PATCHES,
    PROBE,
    QKV_BIAS,
    QKV_KERNEL,
    SAME,
    SCALAR,
    SINGLE,
    Rule,
    blocks,
    inside,
    linear,
    norm,
)
from metaclip_jax.models import siglip, vit
from metaclip_jax.models.clip import Architecture

_IMAGE, _TEXT = "vision_model.embeddings", "text_model.embeddings"
_IMAGE_BLOCKS, _TEXT_BLOCKS = "vision_model.encoder.layers", "text_model.encoder.layers"
_BLOCK = (
    *norm("ln_1", "layer_norm1"),
    Rule(
        "attn/qkv/kernel",
        tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
        QKV_KERNEL,
    ),
    Rule(
        "attn/qkv/bias",
        tuple(f"self_attn.{part}_proj.bias" for part in "qkv"),
        QKV_BIAS,
    ),
    *linear("attn/out", "self_attn.out_proj", OUT_KERNEL),
    *norm("ln_2", "layer_norm2"),
    *linear("mlp/fc1", "mlp.fc1"),
    *linear("mlp/fc2", "mlp.fc2"),
)
_PATCHES = Rule(
    "image/patch_embed/kernel", (f"{_IMAGE}.patch_embedding.weight",), PATCHES
)
_POSITIONS = Rule(
    "image/position_embedding", (f"{_IMAGE}.position_embedding.weight",), SAME
)
_TEXT_TOWER = (
    Rule("text/token_embedding", (f"{_TEXT}.token_embedding.weight",), SAME),
    Rule("text/position_embedding", (f"{_TEXT}.position_embedding.weight",), SAME),
    *blocks("text", _TEXT_BLOCKS, _BLOCK),
    *norm("text/ln_final", "text_model.final_layer_norm"),
)
_CLIP_RULES: tuple[Rule, ...] = (
    Rule("image/class_embedding", (f"{_IMAGE}.class_embedding",), SAME),
    _PATCHES,
    _POSITIONS,
    *norm("image/ln_pre", "vision_model.pre_layrnorm"),  # sic
    *blocks("image", _IMAGE_BLOCKS, _BLOCK),
    *norm("image/ln_post", "vision_model.post_layernorm"),
    Rule("image/projection", ("visual_projection.weight",), LINEAR),
    *_TEXT_TOWER,
    Rule("text/projection", ("text_projection.weight",), LINEAR),
    Rule("log_logit_scale", ("logit_scale",), SCALAR),
)
_SIGLIP_HEAD = (
    Rule("probe", ("probe",), PROBE),
    Rule("attn/qkv/kernel", ("attention.in_proj_weight",), FUSED_KERNEL),
    Rule("attn/qkv/bias", ("attention.in_proj_bias",), FUSED_BIAS),
    *linear("attn/out", "attention.out_proj", OUT_KERNEL),
    *norm("ln_2", "layernorm"),
    *linear("mlp/fc1", "mlp.fc1"),
    *linear("mlp/fc2", "mlp.fc2"),
)
_SIGLIP_RULES: tuple[Rule, ...] = (
    _PATCHES,
    Rule("image/patch_bias", (f"{_IMAGE}.patch_embedding.bias",), SAME),
    _POSITIONS,
    # Our stack includes the last block of SigLIP's image tower.
    *inside("image/blocks", f"{_IMAGE_BLOCKS}.{LAYER}", _BLOCK),
    *norm("image/ln_post", "vision_model.post_layernorm"),
    *inside("image/head", "vision_model.head", _SIGLIP_HEAD),
    *_TEXT_TOWER,
    Rule("text/projection", ("text_model.head.weight",), LINEAR),
    Rule("text/projection_bias", ("text_model.head.bias",), SAME),
    Rule("log_logit_scale", ("logit_scale",), SINGLE),
    Rule("logit_bias", ("logit_bias",), SINGLE),
)

MODEL_TYPES = ("clip", "metaclip_2", "siglip")
# By our field: transformers' name, and its default for a config without the field.
_CLIP_ROWS: fields.Rows = {
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
_SIGLIP_ROWS: fields.Rows = _CLIP_ROWS | {
    "patch_size": Row("vision_config.patch_size", 16),
    "text_width": Row("text_config.hidden_size", 768),
    "text_heads": Row("text_config.num_attention_heads", 12),
    "text_mlp_width": Row("text_config.intermediate_size", 3_072),
    "context_length": Row("text_config.max_position_embeddings", 64),
    "vocab_size": Row("text_config.vocab_size", 32_000),
    "embed_dim": Row("text_config.projection_size"),  # default: the text tower's width
}
# By family: our name of each of transformers' activations; the first is its default.
_ACTIVATIONS = {
    "clip": {"quick_gelu": "quick_gelu", "gelu": "gelu"},
    "siglip": {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"},
}
_EPSILONS = {"clip": vit.LAYER_NORM_EPSILON, "siglip": siglip.LAYER_NORM_EPSILON}
# Early CLIP configs have this wrong eos_token_id, and for them transformers pools the
# text at the largest id (its pull request 24773). For MetaCLIP 2 it is the right id.
_LEGACY_EOS = 2


def rules(architecture: Architecture) -> tuple[Rule, ...]:
    """Returns the rules for all weights of a model."""
    return _SIGLIP_RULES if architecture.family == "siglip" else _CLIP_RULES


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
        family, rows = "siglip", _SIGLIP_ROWS
        read = fields.read(file, written, {"text_width": rows["text_width"]})
        width = Row("text_config.projection_size", read["text_width"])
        rows = rows | {"embed_dim": width}
    else:
        family, rows = "clip", _CLIP_ROWS
        # Very old files have text_config_dict and vision_config_dict.
        written = written | {
            tower: fields.section(file, written, f"{tower}_dict")
            | _given(fields.section(file, written, tower))
            for tower in ("text_config", "vision_config")
        }
    values = fields.read(file, written, rows)
    epsilon, activations = _EPSILONS[family], _ACTIVATIONS[family]
    fields.same_in_both(
        file,
        written,
        "layer_norm_eps",
        default=epsilon,
        allowed=Range(float, least=epsilon, most=epsilon),
    )
    activation = fields.same_in_both(
        file,
        written,
        "hidden_act",
        default=next(iter(activations)),
        allowed=Range(str, choices=tuple(activations)),
    )
    pool = "last" if family == "siglip" else "eos"
    if family == "siglip":
        head = fields.section(file, written, "vision_config").get("vision_use_head")
        if head not in (None, True):
            fields.refuse(file, "vision_config.vision_use_head", True, head)
        # Early configs have the end mark of CLIP's vocabulary, 49,407. The end mark is
        # the padding token.
        if values["eos_id"] >= values["vocab_size"]:
            values["eos_id"] = values["pad_id"]
    elif kind == "clip" and values["eos_id"] == _LEGACY_EOS:
        values["eos_id"], pool = values["vocab_size"] - 1, "argmax"
    return fields.build(
        file,
        rows,
        **values,
        family=family,
        logit_bias=family == "siglip",
        activation=activations[activation],
        text_pool=pool,
    )


def write_config(architecture: Architecture, *, bos_id: int | None) -> dict[str, Any]:
    """Returns config.json for an architecture.

    Raises:
      ValueError: transformers would pool the texts at another position, or does not
        support the activation.
    """
    a = architecture
    if a.text_pool == "argmax" and a.eos_id != a.vocab_size - 1:
        raise ValueError(
            "transformers pools texts at the end mark, but this model pools at the "
            f"largest id. These are the same only if eos_id is {a.vocab_size - 1}, the "
            f"last of the vocabulary; got {a.eos_id}"
        )
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS[a.family].items()}
    if a.activation not in activations:
        raise ValueError(
            f"the activation of transformers' {a.family} must be one of"
            f" {', '.join(activations)}, got {a.activation}; write --to=checkpoint"
        )
    common = {
        "hidden_act": activations[a.activation],
        "layer_norm_eps": _EPSILONS[a.family],
    }
    if a.family == "siglip":
        kind, name = "siglip", "SiglipModel"
        written = fields.write(_SIGLIP_ROWS, a)
    else:
        kind, name = "clip", "CLIPModel"
        if a.eos_id == _LEGACY_EOS:
            kind, name = "metaclip_2", "MetaClip2Model"
        written = fields.write(_CLIP_ROWS, a) | {"logit_scale_init_value": 2.6592}
        common["projection_dim"] = a.embed_dim
    written["text_config"] |= common | {
        "model_type": f"{kind}_text_model",
        "bos_token_id": bos_id,
    }
    written["vision_config"] |= common | {"model_type": f"{kind}_vision_model"}
    return written | {"architectures": [name], "model_type": kind, "dtype": "float32"}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
