"""open_clip's model folders and state dicts: weights and open_clip_config.json."""

from collections.abc import Mapping
from typing import Any

from metaclip_jax.cli.ranges import Range
from metaclip_jax.conversion import fields
from metaclip_jax.conversion.fields import Row
from metaclip_jax.conversion.table import (
    FUSED_BIAS,
    FUSED_KERNEL,
    OUT_KERNEL,
    PATCHES,
    SAME,
    SCALAR,
    Rule,
    blocks,
    linear,
    norm,
)
from metaclip_jax.models import presets
from metaclip_jax.models.clip import Architecture

_BLOCK = (
    *norm("ln_1", "ln_1"),
    Rule("attn/qkv/kernel", ("attn.in_proj_weight",), FUSED_KERNEL),
    Rule("attn/qkv/bias", ("attn.in_proj_bias",), FUSED_BIAS),
    *linear("attn/out", "attn.out_proj", OUT_KERNEL),
    *norm("ln_2", "ln_2"),
    *linear("mlp/fc1", "mlp.c_fc"),
    *linear("mlp/fc2", "mlp.c_proj"),
)
# In open_clip, as in our models, a projection P is applied as x @ P.
_RULES: tuple[Rule, ...] = (
    Rule("image/class_embedding", ("visual.class_embedding",), SAME),
    Rule("image/patch_embed/kernel", ("visual.conv1.weight",), PATCHES),
    Rule("image/position_embedding", ("visual.positional_embedding",), SAME),
    *norm("image/ln_pre", "visual.ln_pre"),
    *blocks("image", "visual.transformer.resblocks", _BLOCK),
    *norm("image/ln_post", "visual.ln_post"),
    Rule("image/projection", ("visual.proj",), SAME),
    Rule("text/token_embedding", ("token_embedding.weight",), SAME),
    Rule("text/position_embedding", ("positional_embedding",), SAME),
    *blocks("text", "transformer.resblocks", _BLOCK),
    *norm("text/ln_final", "ln_final"),
    Rule("text/projection", ("text_projection",), SAME),
    Rule("log_logit_scale", ("logit_scale",), SCALAR),
)

CLIP_VOCABULARY = presets.VOCABULARIES["clip"].size
# (eos, pad) by vocabulary size, of the models that have open_clip's format.
_END_AND_PAD = {
    vocabulary.size: (vocabulary.eos_id, vocabulary.pad_id)
    for vocabulary in map(presets.vocabulary, ("clip", "xlm_v", "mt5"))
}


def rules(architecture: Architecture) -> tuple[Rule, ...]:
    """Returns the rules for all weights of a model.

    Raises:
      ValueError: open_clip builds models of this family from timm's modules.
    """
    if architecture.family != "clip":
        raise ValueError(
            "open_clip's format must have a model of the family clip, got"
            f" {architecture.family}, whose image tower is timm's there; use Hugging"
            " Face's format"
        )
    return _RULES


def is_ignored(name: str) -> bool:
    """Whether the name is that of a constant, which older files contain."""
    return name in ("attn_mask", "input_resolution", "context_length", "vocab_size")


_RATIO = Range(float, above=0, most=1_024)
_POOL = Range(str, choices=("argmax", "eos"))
# By our field: open_clip's name, and its default for a config without the field.
_ROWS: fields.Rows = {
    "image_size": Row("vision_cfg.image_size", 224),
    "patch_size": Row("vision_cfg.patch_size"),
    "vision_width": Row("vision_cfg.width"),
    "vision_layers": Row("vision_cfg.layers"),
    "text_width": Row("text_cfg.width"),
    "text_layers": Row("text_cfg.layers"),
    "text_heads": Row("text_cfg.heads"),
    "context_length": Row("text_cfg.context_length", 77),
    "vocab_size": Row("text_cfg.vocab_size", CLIP_VOCABULARY),
    "embed_dim": Row("embed_dim"),
}
# Fields whose values must be converted to ours.
_CONVERTED: fields.Rows = {
    "head_width": Row("vision_cfg.head_width", 64, Range(int, least=1, most=2**20)),
    "vision_ratio": Row("vision_cfg.mlp_ratio", 4.0, _RATIO),
    "text_ratio": Row("text_cfg.mlp_ratio", 4.0, _RATIO),
    "text_pool": Row("text_cfg.pool_type", "argmax", _POOL),
    "eos_id": Row("text_cfg.eos_id", 2),
    "pad_id": Row("text_cfg.pad_id", 0),
    "quick_gelu": Row("quick_gelu", False, Range(bool)),
}
# Fields that say how the tokenizer is loaded, which we do not read.
_OF_TOKENIZER = ("text_cfg.hf_tokenizer_name", "text_cfg.tokenizer_kwargs")


def read_architecture(
    written: dict[str, Any], *, file: str = "open_clip_config.json"
) -> Architecture:
    """Returns the architecture of an open_clip_config.json (its `model_cfg`).

    Args:
      written: the file's object.
      file: for messages.

    Raises:
      ValueError: a field is unknown or has a value that we do not support; the message
        names it.
    """
    model = fields.section(file, written, "model_cfg") or written
    file = f"{file}, model_cfg" if model is not written else file
    rows = _ROWS | _CONVERTED
    names = [*(row.theirs for row in rows.values()), *_OF_TOKENIZER]
    for tower in ("vision_cfg", "text_cfg"):
        known = {n.removeprefix(f"{tower}.") for n in names if n.startswith(tower)}
        unknown = sorted(fields.section(file, model, tower).keys() - known)
        if unknown:
            raise ValueError(
                f"{file}: wanted {tower} with {', '.join(sorted(known))} only, got"
                f" {unknown}; only plain ViTs with a causal text tower are converted"
            )
    values = fields.read(file, model, _ROWS)
    width, size = values["vision_width"], values["vocab_size"]
    end, pad = _END_AND_PAD.get(size, (size - 1, 0))
    theirs = fields.read(
        file, model, _CONVERTED | {"pad_id": Row("text_cfg.pad_id", pad)}
    )
    if width % theirs["head_width"]:
        wanted = f"a divisor of vision_cfg.width={width}"
        fields.refuse(file, "vision_cfg.head_width", wanted, theirs["head_width"])
    at_end = theirs["text_pool"] == "eos"
    return fields.build(
        file,
        rows,
        **values,
        vision_heads=width // theirs["head_width"],
        vision_mlp_width=int(width * theirs["vision_ratio"]),
        text_mlp_width=int(values["text_width"] * theirs["text_ratio"]),
        activation="quick_gelu" if theirs["quick_gelu"] else "gelu",
        text_pool=theirs["text_pool"],
        eos_id=theirs["eos_id"] if at_end else end,
        pad_id=theirs["pad_id"] if at_end else pad,
    )


# open_clip's name of each of our clean-ups. Each of them also fixes mojibake and
# white space.
_CLEAN_UPS = {"clip": "lower", "canonical": "canonicalize", "none": "whitespace"}


def write_config(
    architecture: Architecture, *, preprocess: Mapping[str, Any], clean_up: str | None
) -> dict[str, Any]:
    """Returns open_clip_config.json.

    Args:
      architecture: of the model.
      preprocess: the `preprocess_cfg`.
      clean_up: of the folder's tokenizer; None for CLIP's BPE, which open_clip
        contains.
    """
    a = architecture
    model = fields.write(_ROWS, a)
    model["quick_gelu"] = a.activation == "quick_gelu"
    model["vision_cfg"] |= {
        "head_width": a.vision_width // a.vision_heads,
        "mlp_ratio": a.vision_mlp_width / a.vision_width,
    }
    text = model["text_cfg"]
    text["mlp_ratio"] = a.text_mlp_width / a.text_width
    if a.text_pool == "eos" and a.eos_id != a.vocab_size - 1:
        text |= {"pool_type": "eos", "eos_id": a.eos_id, "pad_id": a.pad_id}
    if clean_up is not None:
        text |= {
            "hf_tokenizer_name": ".",  # the folder itself, wherever it is moved
            "tokenizer_kwargs": {"clean": _CLEAN_UPS[clean_up]},
        }
    return {"model_cfg": model, "preprocess_cfg": dict(preprocess)}
