"""The architectures of the released checkpoints, by name.

Sizes are those of the public configurations; test_presets compares the parameter counts
with the published numbers. Recipes name a preset instead of repeating sizes.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # reading a recipe must not import jax
    from metaclip_jax.models.clip import Architecture


class Towers(NamedTuple):
    """The sizes of both towers; `vision` and `text` are (width, layers, heads)."""

    patch: int  # pixels
    vision: tuple[int, int, int]
    vision_mlp: int
    text: tuple[int, int, int]
    embed_dim: int


class Vocabulary(NamedTuple):
    """The properties of a tokenizer that the model depends on."""

    size: int
    eos_id: int
    pad_id: int


TOWERS = {
    "s16": Towers(16, (384, 12, 6), 1_536, (384, 12, 6), 384),
    "m16": Towers(16, (512, 12, 8), 2_048, (512, 12, 8), 512),
    "b32": Towers(32, (768, 12, 12), 3_072, (512, 12, 8), 512),
    "b16": Towers(16, (768, 12, 12), 3_072, (512, 12, 8), 512),
    "l14": Towers(14, (1_024, 24, 16), 4_096, (768, 12, 12), 768),
    "h14": Towers(14, (1_280, 32, 16), 5_120, (1_024, 24, 16), 1_024),
    "bigg14": Towers(14, (1_664, 48, 16), 8_192, (1_280, 32, 20), 1_280),
    "siglip_b16": Towers(16, (768, 12, 12), 3_072, (768, 12, 12), 768),
}
VOCABULARIES = {
    "clip": Vocabulary(49_408, 49_407, 0),
    "xlm_v": Vocabulary(901_629, 2, 1),
    "mt5": Vocabulary(250_000, 1, 0),
    "siglip": Vocabulary(32_000, 1, 1),  # Google's, not MetaCLIP's
}


class Preset(NamedTuple):
    """A released model: keys of TOWERS and VOCABULARIES, and what else differs."""

    towers: str
    vocabulary: str = "clip"
    image_size: int = 224
    activation: str = "quick_gelu"
    family: str = "clip"
    text_pool: str = "eos"
    context_length: int = 77


PRESETS = {
    # MetaCLIP 1 and OpenAI's CLIP.
    **{f"vit_{name}": Preset(name) for name in ("b32", "b16", "l14", "h14", "bigg14")},
    "vit_l14_336": Preset("l14", image_size=336),  # OpenAI's
    # MetaCLIP 1.2 (Altogether).
    "vit_h14_altogether": Preset("h14", activation="gelu"),
    # MetaCLIP 2; all but the first H/14 use exact GELU.
    "vit_h14_worldwide": Preset("h14", "xlm_v"),
    "vit_h14_378_worldwide": Preset("h14", "xlm_v", 378, "gelu"),
    "vit_bigg14_worldwide": Preset("bigg14", "xlm_v", 224, "gelu"),
    "vit_bigg14_378_worldwide": Preset("bigg14", "xlm_v", 378, "gelu"),
    **{
        f"vit_{name}_worldwide": Preset(name, "xlm_v", 224, "gelu")
        for name in ("s16", "m16", "b32", "b16", "l14")
    },
    **{
        f"vit_{name}_384_worldwide": Preset(name, "xlm_v", 384, "gelu")
        for name in ("s16", "m16", "b32", "b16")
    },
    **{
        f"vit_{name}_mt5_worldwide": Preset(name, "mt5", 224, "gelu")
        for name in ("s16", "m16", "b32")
    },
    # google/siglip-base-patch16-224, not a MetaCLIP model.
    "siglip_b16": Preset(
        "siglip_b16", "siglip", 224, "gelu_tanh", "siglip", "last", context_length=64
    ),
}


def vocabulary(name: str) -> Vocabulary:
    """Returns the row of VOCABULARIES with this name.

    Raises:
      ValueError: there is no such vocabulary; the message lists the names.
    """
    if name not in VOCABULARIES:
        raise ValueError(
            f"vocabulary must be one of {', '.join(VOCABULARIES)}, got {name!r}"
        )
    return VOCABULARIES[name]


def check_vocabulary(name: str, *, size: int, tokenizer: str) -> None:
    """Checks that the tokenizer in the file `tokenizer` has the vocabulary's size.

    The name "" allows every size. Comparing sizes is enough: no two vocabularies have
    the same one.

    Raises:
      ValueError: the sizes differ, or the vocabulary is unknown.
    """
    if name and vocabulary(name).size != size:
        raise ValueError(
            f"config.vocabulary={name!r} needs a tokenizer of"
            f" {vocabulary(name).size:,} tokens, but {tokenizer!r} has {size:,}."
            " Set config.tokenizer to that vocabulary's tokenizer, or use"
            " --config.vocabulary= to train another model with any tokenizer"
        )


def config_values(name: str) -> dict[str, Any]:
    """Returns the config values, by dotted key, that describe a released model.

    Raises:
      ValueError: there is no such preset; the message lists the names.
    """
    shape = _shape(name)
    sigmoid = shape.pop("logit_bias")
    if shape["vision_mlp_width"] == 4 * shape["vision_width"]:
        shape["vision_mlp_width"] = 0  # in the config, 0 means 4 * vision_width
    return {
        "vocabulary": PRESETS[name].vocabulary,
        "image_size": shape.pop("image_size"),
        "loss": "sigmoid" if sigmoid else "softmax",
        **{f"model.{key}": value for key, value in shape.items()},
    }


def architecture(name: str) -> "Architecture":
    """Returns the architecture of a released model.

    Raises:
      ValueError: there is no such preset; the message lists the names.
    """
    from metaclip_jax.models.clip import Architecture

    shape = _shape(name)
    ids = VOCABULARIES[PRESETS[name].vocabulary]
    return Architecture(
        **shape,
        text_mlp_width=4 * shape["text_width"],
        vocab_size=ids.size,
        eos_id=ids.eos_id,
        pad_id=ids.pad_id,
    )


def _shape(name: str) -> dict[str, Any]:
    """Returns the fields of Architecture without those of the vocabulary."""
    if name not in PRESETS:
        raise ValueError(
            f"preset must be one of {', '.join(sorted(PRESETS))}, got {name!r}"
        )
    preset = PRESETS[name]
    towers = TOWERS[preset.towers]
    vision_width, vision_layers, vision_heads = towers.vision
    text_width, text_layers, text_heads = towers.text
    return {
        "family": preset.family,
        "logit_bias": preset.family == "siglip",
        "image_size": preset.image_size,
        "patch_size": towers.patch,
        "vision_width": vision_width,
        "vision_layers": vision_layers,
        "vision_heads": vision_heads,
        "vision_mlp_width": towers.vision_mlp,
        "text_width": text_width,
        "text_layers": text_layers,
        "text_heads": text_heads,
        "context_length": preset.context_length,
        "embed_dim": towers.embed_dim,
        "activation": preset.activation,
        "text_pool": preset.text_pool,
    }
