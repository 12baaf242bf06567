"""Hugging Face's SigLIP folders (`model_type` "siglip"): weights and config."""

from collections.abc import Mapping
from typing import Any

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
from metaclip_jax.models.clip import Architecture, layer_norm_epsilon

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
        "image", f"{_IMAGE}.encoder.layers", HUGGINGFACE_BLOCK, last_apart=False
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

# What transformers takes where a config leaves a value out (its class defaults).
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3_072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_TEXT_DEFAULTS = _DEFAULTS | {
    "vocab_size": 32_000,
    "max_position_embeddings": 64,
    "eos_token_id": 49_407,
    "pad_token_id": 1,
    "projection_size": None,
}
_VISION_DEFAULTS = _DEFAULTS | {
    "image_size": 224,
    "patch_size": 16,
    "vision_use_head": True,
}
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def read_architecture(written: Mapping[str, Any]) -> Architecture:
    """Returns the architecture of a config.json.

    Raises:
      ValueError: it has a value that ours do not.
    """
    text = _TEXT_DEFAULTS | dict(written.get("text_config") or {})
    vision = _VISION_DEFAULTS | dict(written.get("vision_config") or {})
    activation = text["hidden_act"]
    if activation != vision["hidden_act"] or activation not in _ACTIVATIONS:
        raise ValueError(
            f"config.json: wanted one hidden_act of {', '.join(_ACTIVATIONS)} in both"
            f" towers, got {activation} and {vision['hidden_act']}"
        )
    if not vision["vision_use_head"]:
        raise ValueError("config.json: wanted vision_use_head, the pooling of SigLIP")
    # Early configs have the end mark of CLIP's vocabulary; texts end with the padding.
    eos = text["eos_token_id"]
    architecture = Architecture(
        family="siglip",
        logit_bias=True,
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
        embed_dim=text["projection_size"] or text["hidden_size"],
        activation=_ACTIVATIONS[activation],
        text_pool="last",
        eos_id=eos if eos < text["vocab_size"] else text["pad_token_id"],
        pad_id=text["pad_token_id"],
    )
    wanted = layer_norm_epsilon(architecture)
    for part, values in (("text", text), ("vision", vision)):
        if values["layer_norm_eps"] != wanted:
            raise ValueError(
                f"config.json: {part} layer_norm_eps must be {wanted}, got"
                f" {values['layer_norm_eps']}"
            )
    return architecture


def write_config(architecture: Architecture, *, bos_id: int | None) -> dict[str, Any]:
    """Returns config.json for an architecture."""
    a = architecture
    written = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    if a.activation not in written:
        raise ValueError(
            f"transformers' SigLIP knows {', '.join(written)}, not {a.activation}"
        )
    common = {
        "hidden_act": written[a.activation],
        "layer_norm_eps": layer_norm_epsilon(a),
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
