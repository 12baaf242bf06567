"""CLIP: an image tower and a text tower that share one embedding space.

The towers are Flax NNX modules. Other modules call pure functions of the parameters, a
nested dict of f32 arrays with paths such as `image/blocks/attn/qkv/kernel` (with a
leading layer axis inside `blocks`) and `image/last/attn/qkv/kernel`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from metaclip_jax.models import attention, layers, norm, siglip, stack, text, vit

Params = dict[str, Any]

INITIAL_LOG_LOGIT_SCALE = math.log(1 / 0.07)
# SigLIP's values for the sigmoid loss: only 1 in B of a batch's B² pairs is positive,
# and the bias keeps the negatives from dominating the first steps.
SIGLIP_LOG_LOGIT_SCALE, SIGLIP_LOGIT_BIAS = math.log(10), -10.0
DTYPES = ("float32", "bfloat16")
FAMILIES = ("clip", "siglip")
TEXT_POOLS = ("eos", "argmax", "last")
# Fields of an architecture that change how it is computed, not what it computes.
EXECUTION_FIELDS = ("attention", "layer_norm", "remat", "unroll", "chunk")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """The model's hyperparameters, as plain values.

    Widths are in channels, sizes in pixels, context_length in tokens. The family
    "siglip" has the towers of models/siglip.py: texts are pooled at the "last"
    position, and the embedding is as wide as the image tower. `logit_bias` adds a
    learned bias to the logits, for the sigmoid loss.
    """

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp_width: int
    text_width: int
    text_layers: int
    text_heads: int
    text_mlp_width: int
    context_length: int
    vocab_size: int
    embed_dim: int
    eos_id: int
    pad_id: int
    family: str = "clip"
    logit_bias: bool = False
    activation: str = "quick_gelu"
    text_pool: str = "eos"
    dtype: str = "float32"
    attention: str = "xla"
    layer_norm: str = "xla"
    remat: str = "none"
    unroll: bool = False
    chunk: int = -1

    @property
    def patches(self) -> int:
        """The number of patches in an image."""
        return (self.image_size // self.patch_size) ** 2

    def __post_init__(self) -> None:
        """Raises ValueError for values that cannot be compiled to a model."""
        for name, value, choices in (
            ("family", self.family, FAMILIES),
            ("activation", self.activation, tuple(layers.ACTIVATIONS)),
            ("text_pool", self.text_pool, TEXT_POOLS),
            ("dtype", self.dtype, DTYPES),
            ("attention", self.attention, attention.IMPLEMENTATIONS),
            ("layer_norm", self.layer_norm, norm.GRADIENTS),
            ("remat", self.remat, tuple(layers.REMAT_POLICIES)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {value!r}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of "
                f"patch_size={self.patch_size}; nearest: "
                f"{max(self.image_size // self.patch_size, 1) * self.patch_size}"
            )
        for tower, width, heads, count in (
            ("vision", self.vision_width, self.vision_heads, self.vision_layers),
            ("text", self.text_width, self.text_heads, self.text_layers),
        ):
            if count < 2:  # the last block is outside the stack, which needs one too
                raise ValueError(f"{tower}_layers must be at least 2, got {count}")
            if width % heads:
                raise ValueError(
                    f"{tower}_width={width} must be a multiple of "
                    f"{tower}_heads={heads}; CLIP uses heads of 64 channels"
                )
        siglip_like = self.family == "siglip"
        if siglip_like != (self.text_pool == "last"):
            raise ValueError(
                'text_pool must be "last" if and only if family is "siglip", got '
                f"text_pool={self.text_pool!r} and family={self.family!r}"
            )
        if siglip_like and self.embed_dim != self.vision_width:
            raise ValueError(
                f"embed_dim={self.embed_dim} must equal "
                f"vision_width={self.vision_width}: SigLIP's image tower has no "
                "projection"
            )
        if not 0 <= self.eos_id < self.vocab_size:
            raise ValueError(
                f"eos_id={self.eos_id} must be in [0, vocab_size={self.vocab_size}); "
                "take both from one tokenizer"
            )


def init(architecture: Architecture, key: jax.Array) -> Params:
    """Returns new f32 parameters, initialised as in the reference."""
    image_key, text_key = jax.random.split(key)
    params = {
        "image": _values(_image_tower(architecture, nnx.Rngs(image_key))),
        "text": _values(_text_tower(architecture, nnx.Rngs(text_key))),
        "log_logit_scale": jnp.float32(INITIAL_LOG_LOGIT_SCALE),
    }
    if architecture.logit_bias:
        params["log_logit_scale"] = jnp.float32(SIGLIP_LOG_LOGIT_SCALE)
        params["logit_bias"] = jnp.float32(SIGLIP_LOGIT_BIAS)
    return params


def param_shapes(architecture: Architecture) -> Params:
    """Returns the shapes and dtypes of `init`'s parameters, without tracing it again.

    Each leaf is a jax.ShapeDtypeStruct.
    """
    shapes = {
        name: _values(tower)
        for name, tower in zip(("image", "text"), _towers(architecture), strict=True)
    }
    scalars = ["log_logit_scale"] + ["logit_bias"] * architecture.logit_bias
    return shapes | dict.fromkeys(scalars, jax.ShapeDtypeStruct((), jnp.float32))


def encode_image(
    architecture: Architecture,
    params: Params,
    images: jax.Array,
    patches: jax.Array | None = None,
    *,
    rows: stack.Rows = stack.ANYWHERE,
) -> jax.Array:
    """Returns f32[B, E] of unit norm for images [B, H, W, 3].

    uint8 images are normalised on the device; f32 images must be normalised already.
    `patches`, int32[B, n], are those that the tower sees; None = all.
    `rows` says how the images are spread over devices.
    """
    size = architecture.image_size
    if images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(f"images must be [B, {size}, {size}, 3], got {images.shape}")
    graph = nnx.graphdef(_towers(architecture)[0])  # what `nnx.merge` needs
    tower = nnx.merge(graph, params["image"])
    return _unit_norm(tower(images, patches, rows=rows))


def encode_text(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    *,
    rows: stack.Rows = stack.ANYWHERE,
) -> jax.Array:
    """Returns f32[B, E] of unit norm for tokens int32[B, T], T <= context_length.

    `rows` says how the tokens are spread over devices.
    """
    longest = architecture.context_length
    if tokens.ndim != 2 or tokens.shape[1] > longest:
        raise ValueError(f"tokens must be [B, at most {longest}], got {tokens.shape}")
    if architecture.text_pool == "last" and tokens.shape[1] != longest:
        raise ValueError(f"tokens must be padded to [B, {longest}], got {tokens.shape}")
    graph = nnx.graphdef(_towers(architecture)[1])
    tower = nnx.merge(graph, params["text"])
    return _unit_norm(tower(tokens, rows=rows))


def parameter_count(architecture: Architecture) -> dict[str, int]:
    """Returns the parameter counts of "image", "text" and "total", without padding."""
    shapes = param_shapes(architecture)
    count = {
        tower: sum(leaf.size for leaf in jax.tree.leaves(shapes[tower]))
        for tower in ("image", "text")
    }
    padding = text.stored_rows(architecture.vocab_size) - architecture.vocab_size
    count["text"] -= padding * architecture.text_width
    scalars = len(shapes) - len(count)
    return count | {"total": count["image"] + count["text"] + scalars}


def image_statistics(architecture: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and deviation f32[3] that normalise pixels in [0, 1]."""
    if architecture.family == "siglip":
        return siglip.IMAGE_MEAN, siglip.IMAGE_STD
    return vit.IMAGE_MEAN, vit.IMAGE_STD


def layer_norm_epsilon(architecture: Architecture) -> float:
    """Returns what LayerNorm adds to the variance."""
    if architecture.family == "siglip":
        return siglip.LAYER_NORM_EPSILON
    return vit.LAYER_NORM_EPSILON


def _unit_norm(x: jax.Array) -> jax.Array:
    """Divides each row of f32[B, E] by its norm; a zero row stays zero."""
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


@functools.lru_cache(maxsize=16)
def _towers(architecture: Architecture) -> tuple[nnx.Module, nnx.Module]:
    """Returns both towers with shapes as their parameters."""
    return (
        nnx.eval_shape(lambda: _image_tower(architecture, nnx.Rngs(0))),
        nnx.eval_shape(lambda: _text_tower(architecture, nnx.Rngs(0))),
    )


def _values(tower: nnx.Module) -> Params:
    """Returns a tower's parameters, or their shapes, as a nested dict."""
    return nnx.to_pure_dict(nnx.state(tower, nnx.Param))


def _block_shape(
    architecture: Architecture, *, width: int, heads: int, mlp_width: int, causal: bool
) -> layers.BlockShape:
    return layers.BlockShape(
        width=width,
        heads=heads,
        mlp_width=mlp_width,
        activation=architecture.activation,
        causal=causal,
        attention=architecture.attention,
        dtype=architecture.dtype,
        epsilon=layer_norm_epsilon(architecture),
        norm_gradient=architecture.layer_norm,
        unroll=architecture.unroll,
    )


def _image_tower(
    architecture: Architecture, rngs: nnx.Rngs
) -> vit.ImageTower | siglip.ImageTower:
    block = _block_shape(
        architecture,
        width=architecture.vision_width,
        heads=architecture.vision_heads,
        mlp_width=architecture.vision_mlp_width,
        causal=False,
    )
    if architecture.family == "siglip":
        return siglip.ImageTower(
            image_size=architecture.image_size,
            patch_size=architecture.patch_size,
            num_layers=architecture.vision_layers,
            block=block,
            remat=architecture.remat,
            rngs=rngs,
        )
    return vit.ImageTower(
        image_size=architecture.image_size,
        patch_size=architecture.patch_size,
        num_layers=architecture.vision_layers,
        embed_dim=architecture.embed_dim,
        block=block,
        remat=architecture.remat,
        rngs=rngs,
    )


def _text_tower(
    architecture: Architecture, rngs: nnx.Rngs
) -> text.TextTower | siglip.TextTower:
    block = _block_shape(
        architecture,
        width=architecture.text_width,
        heads=architecture.text_heads,
        mlp_width=architecture.text_mlp_width,
        causal=architecture.family == "clip",
    )
    if architecture.family == "siglip":
        return siglip.TextTower(
            context_length=architecture.context_length,
            vocab_size=architecture.vocab_size,
            num_layers=architecture.text_layers,
            embed_dim=architecture.embed_dim,
            block=block,
            remat=architecture.remat,
            rngs=rngs,
        )
    return text.TextTower(
        context_length=architecture.context_length,
        vocab_size=architecture.vocab_size,
        pool=architecture.text_pool,
        eos_id=architecture.eos_id,
        num_layers=architecture.text_layers,
        embed_dim=architecture.embed_dim,
        block=block,
        remat=architecture.remat,
        rngs=rngs,
    )
