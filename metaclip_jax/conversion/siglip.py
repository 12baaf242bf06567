"""Hugging Face's SigLIP folders (`model_type` "siglip"): weights and config.json."""

from typing import Any

from metaclip_jax.cli.ranges import Range
from metaclip_jax.conversion import fields
from metaclip_jax.conversion.fields import Row
from metaclip_jax.conversion.table import (
    FUSED_BIAS,
    FUSED_KERNEL,
    HUGGINGFACE_BLOCK,
    LINEAR,
    OUT_KERNEL,
    PATCHES,
    PROBE,
    SAME,
    SINGLE,
    Rule,
    block_rules,
)
from metaclip_jax.models.clip import Architecture
from metaclip_jax.models.siglip import LAYER_NORM_EPSILON

_IMAGE, _TEXT = "vision_model", "text_model"
_HEAD = f"{_IMAGE}.head"
RULES: tuple[Rule, ...] = (
    Rule(
        "image/patch_embed/kernel",
        (f"{_IMAGE}.embeddings.patch_embedding.weight",),
        PATCHES,
    ),
    Rule("image/patch_bias", (f"{_IMAGE}.embeddings.patch_embedding.bias",), SAME),
    Rule(
        "image/position_embedding",
        (f"{_IMAGE}.embeddings.position_embedding.weight",),
        SAME,
    ),
    *block_rules(
        "image", f"{_IMAGE}.encoder.layers", HUGGINGFACE_BLOCK, all_stacked=True
    ),
    Rule("image/ln_post/scale", (f"{_IMAGE}.post_layernorm.weight",), SAME),
    Rule("image/ln_post/bias", (f"{_IMAGE}.post_layernorm.bias",), SAME),
    Rule("image/head/probe", (f"{_HEAD}.probe",), PROBE),
    Rule(
        "image/head/attn/qkv/kernel",
        (f"{_HEAD}.attention.in_proj_weight",),
        FUSED_KERNEL,
    ),
    Rule("image/head/attn/qkv/bias", (f"{_HEAD}.attention.in_proj_bias",), FUSED_BIAS),
    Rule(
        "image/head/attn/out/kernel",
        (f"{_HEAD}.attention.out_proj.weight",),
        OUT_KERNEL,
    ),
    Rule("image/head/attn/out/bias", (f"{_HEAD}.attention.out_proj.bias",), SAME),
    Rule("image/head/ln_2/scale", (f"{_HEAD}.layernorm.weight",), SAME),
    Rule("image/head/ln_2/bias", (f"{_HEAD}.layernorm.bias",), SAME),
    Rule("image/head/mlp/fc1/kernel", (f"{_HEAD}.mlp.fc1.weight",), LINEAR),
    Rule("image/head/mlp/fc1/bias", (f"{_HEAD}.mlp.fc1.bias",), SAME),
    Rule("image/head/mlp/fc2/kernel", (f"{_HEAD}.mlp.fc2.weight",), LINEAR),
    Rule("image/head/mlp/fc2/bias", (f"{_HEAD}.mlp.fc2.bias",), SAME),
    Rule("text/token_embedding", (f"{_TEXT}.embeddings.token_embedding.weight",), SAME),
    Rule(
        "text/position_embedding",
        (f"{_TEXT}.embeddings.position_embedding.weight",),
        SAME,
    ),
    *block_rules("text", f"{_TEXT}.encoder.layers", HUGGINGFACE_BLOCK),
    Rule("text/ln_final/scale", (f"{_TEXT}.final_layer_norm.weight",), SAME),
    Rule("text/ln_final/bias", (f"{_TEXT}.final_layer_norm.bias",), SAME),
    Rule("text/projection", (f"{_TEXT}.head.weight",), LINEAR),
    Rule("text/projection_bias", (f"{_TEXT}.head.bias",), SAME),
    Rule("log_logit_scale", ("logit_scale",), SINGLE),
    Rule("logit_bias", ("logit_bias",), SINGLE),
)

# By our field: transformers' name, and its default for a config without the field.
_ROWS: fields.Rows = {
    "image_size": Row("vision_config.image_size", 224),
    "patch_size": Row("vision_config.patch_size", 16),
    "vision_width": Row("vision_config.hidden_size", 768),
    "vision_layers": Row("vision_config.num_hidden_layers", 12),
    "vision_heads": Row("vision_config.num_attention_heads", 12),
    "vision_mlp_width": Row("vision_config.intermediate_size", 3_072),
    "text_width": Row("text_config.hidden_size", 768),
    "text_layers": Row("text_config.num_hidden_layers", 12),
    "text_heads": Row("text_config.num_attention_heads", 12),
    "text_mlp_width": Row("text_config.intermediate_size", 3_072),
    "context_length": Row("text_config.max_position_embeddings", 64),
    "vocab_size": Row("text_config.vocab_size", 32_000),
    "eos_id": Row("text_config.eos_token_id", 49_407),
    "pad_id": Row("text_config.pad_token_id", 1),
}
# Its default is the text tower's width.
_PROJECTION = "text_config.projection_size"
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def read_architecture(written: dict[str, Any], *, file: str) -> Architecture:
    """Returns the architecture of a config.json.

    Raises:
      ValueError: a field has a value that we do not support; the message names it.
    """
    values = fields.read(file, written, _ROWS)
    rows = _ROWS | {"embed_dim": Row(_PROJECTION, values["text_width"])}
    values = fields.read(file, written, rows)
    fields.same_in_both(
        file,
        written,
        "layer_norm_eps",
        default=LAYER_NORM_EPSILON,
        allowed=Range(float, least=LAYER_NORM_EPSILON, most=LAYER_NORM_EPSILON),
    )
    activation = fields.same_in_both(
        file,
        written,
        "hidden_act",
        default="gelu_pytorch_tanh",
        allowed=Range(str, choices=tuple(_ACTIVATIONS)),
    )
    head = fields.section(file, written, "vision_config").get("vision_use_head")
    if head not in (None, True):
        fields.refuse(file, "vision_config.vision_use_head", True, head)
    # Early configs have the end mark of CLIP's vocabulary, 49,407. The end mark is the
    # padding token.
    if values["eos_id"] >= values["vocab_size"]:
        values["eos_id"] = values["pad_id"]
    return fields.build(
        file,
        rows,
        **values,
        family="siglip",
        logit_bias=True,
        activation=_ACTIVATIONS[activation],
        text_pool="last",
    )


def write_config(architecture: Architecture, *, bos_id: int | None) -> dict[str, Any]:
    """Returns config.json for an architecture.

    Raises:
      ValueError: transformers' SigLIP does not support the activation.
    """
    a = architecture
    written = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    if a.activation not in written:
        raise ValueError(
            "the activation of transformers' SigLIP must be one of"
            f" {', '.join(written)}, got {a.activation}; write --to=checkpoint"
        )
    common = {
        "hidden_act": written[a.activation],
        "layer_norm_eps": LAYER_NORM_EPSILON,
    }
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": "float32",
        "text_config": common
        | {
            "model_type": "siglip_text_model",
            "vocab_size": a.vocab_size,
            "hidden_size": a.text_width,
            "intermediate_size": a.text_mlp_width,
            "num_hidden_layers": a.text_layers,
            "num_attention_heads": a.text_heads,
            "max_position_embeddings": a.context_length,
            "projection_size": a.embed_dim,
            "bos_token_id": bos_id,
            "eos_token_id": a.eos_id,
            "pad_token_id": a.pad_id,
        },
        "vision_config": common
        | {
            "model_type": "siglip_vision_model",
            "hidden_size": a.vision_width,
            "intermediate_size": a.vision_mlp_width,
            "num_hidden_layers": a.vision_layers,
            "num_attention_heads": a.vision_heads,
            "image_size": a.image_size,
            "patch_size": a.patch_size,
        },
    }
