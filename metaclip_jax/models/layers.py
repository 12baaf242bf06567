"""The transformer block that both towers are made of, and its initialisation.

A tower keeps its blocks in one stack: every leaf has a leading layer axis and
`run_blocks` scans over it, so that compile time does not grow with depth. Where a tower
is read out at one position, its last block is apart, and `read_block` does no more of
it than that takes. Parameters are f32; matrix products run in the tower's dtype,
LayerNorm and softmax in f32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers
from jax.extend.core import Primitive

from metaclip_jax.models import attention, norm, product

Activation = Callable[[jax.Array], jax.Array]
# [B, T, D] of all positions, or [B, N, D] of each part of them.
Parts = jax.Array | tuple[jax.Array, ...]
# Says how [B, ...] lies on the devices, which the compiler must keep; training gives
# one so that parameters come to the batch, and not the batch to them.
Constrain = Callable[[jax.Array], jax.Array]

# TPUs compute in tiles of so many positions: one more costs as much as a tile more.
TILE = 128


def unconstrained(x: jax.Array) -> jax.Array:
    """Leaves the layout of `x` to the compiler."""
    return x


class BlockShape(NamedTuple):
    """What distinguishes one tower's blocks from another's."""

    width: int
    heads: int
    mlp_width: int
    activation: str
    causal: bool
    attention: str
    dtype: str
    epsilon: float  # of LayerNorm
    unroll: bool = False  # compile each block by itself, and no loop over them


class BlockInit(NamedTuple):
    """Initial distributions of a block's kernels and of its MLP's biases."""

    qkv: nnx.Initializer
    out: nnx.Initializer
    fc1: nnx.Initializer
    fc2: nnx.Initializer
    fc1_bias: nnx.Initializer
    fc2_bias: nnx.Initializer


def image_init(*, width: int, mlp_width: int) -> BlockInit:
    """The reference's image blocks: what torch's own layers start from."""
    return BlockInit(
        qkv=symmetric_uniform((6 / (width + 3 * width)) ** 0.5),
        out=symmetric_uniform(width**-0.5),
        fc1=symmetric_uniform(width**-0.5),
        fc2=symmetric_uniform(mlp_width**-0.5),
        fc1_bias=symmetric_uniform(width**-0.5),
        fc2_bias=symmetric_uniform(mlp_width**-0.5),
    )


def text_init(*, width: int, mlp_width: int, layers: int) -> BlockInit:
    """The reference's text blocks: normal, residual branches scaled by depth."""
    residual = initializers.normal(width**-0.5 * (2 * layers) ** -0.5)
    return BlockInit(
        qkv=initializers.normal(width**-0.5),
        out=residual,
        fc1=initializers.normal((2 * width) ** -0.5),
        fc2=residual,
        fc1_bias=symmetric_uniform(width**-0.5),
        fc2_bias=symmetric_uniform(mlp_width**-0.5),
    )


def siglip_init(*, width: int, mlp_width: int) -> BlockInit:
    """SigLIP's blocks, in both towers: Xavier's uniform, query, key and value apart."""
    square = symmetric_uniform((6 / (width + width)) ** 0.5)
    mlp = symmetric_uniform((6 / (width + mlp_width)) ** 0.5)
    bias = initializers.normal(1e-6)
    return BlockInit(
        qkv=square, out=square, fc1=mlp, fc2=mlp, fc1_bias=bias, fc2_bias=bias
    )


def symmetric_uniform(bound: float) -> nnx.Initializer:
    """Uniform on [-bound, bound)."""

    def initialise(
        key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialise


def keep_slope(activation: Activation) -> Activation:
    """Makes the backward pass need only the slope of what works on each element alone.

    It would keep x and what lies between x and the result, and a tower's activations
    are its widest arrays.
    """

    @jax.custom_jvp
    def apply(x: jax.Array) -> jax.Array:
        return activation(x)

    @apply.defjvp
    def along(
        primals: tuple[jax.Array], tangents: tuple[jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (x,), (tangent,) = primals, tangents
        result, slope = jax.jvp(activation, (x,), (jnp.ones_like(x),))
        return result, tangent * slope

    return functools.wraps(activation)(apply)


@keep_slope
def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


@keep_slope
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, by the error function."""
    return jax.nn.gelu(x, approximate=False)


@keep_slope
def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU by its tanh approximation, as SigLIP has it."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
}


class Attention(nnx.Module):
    """Multi-head attention with one kernel for query, key and value."""

    def __init__(self, shape: BlockShape, init: BlockInit, *, rngs: nnx.Rngs) -> None:
        head_width = shape.width // shape.heads
        self.qkv = nnx.LinearGeneral(
            shape.width,
            (3, shape.heads, head_width),
            kernel_init=init.qkv,
            dtype=shape.dtype,
            rngs=rngs,
        )
        self.out = nnx.LinearGeneral(
            (shape.heads, head_width),
            shape.width,
            axis=(-2, -1),
            kernel_init=init.out,
            dtype=shape.dtype,
            dot_general=product.product,
            rngs=rngs,
        )
        self.causal = shape.causal
        self.attention = shape.attention

    def __call__(self, x: Parts, positions: int | None = None) -> Parts:
        """Maps [B, T, D] to [B, T, D]; a position attends to all, or up to itself.

        Positions in parts attend to those of all parts, by XLA. None attends to those
        from `positions` on, which cuDNN's attention may have been given.
        """
        if isinstance(x, tuple):
            queries, keys, values = (
                tuple(self._project(one, part) for one in x) for part in range(3)
            )
            return tuple(
                self.out(attention.over_parts(query, keys, values)) for query in queries
            )
        query, key, value = (self._project(x, part) for part in range(3))
        if self.attention == "cudnn":
            mixed = attention.fused(
                query, key, value, causal=self.causal, positions=positions
            )
        else:
            mixed = attention.whole(query, key, value, causal=self.causal)
        return self.out(mixed)

    def read(
        self, asking: jax.Array, x: jax.Array, position: jax.Array | None = None
    ) -> jax.Array:
        """Maps [B, 1, D], what attends to x [B, T, D], to [B, 1, D].

        Where attention is causal, it stands at `position`, int32[B], in x.
        """
        query, key, value = (
            self._project(of, part) for part, of in enumerate((asking, x, x))
        )
        mask = None
        if self.causal and position is not None:
            mask = jnp.arange(x.shape[1]) <= position[:, None]
            mask = mask[:, None, None]
        # A single query is nothing to fuse for cuDNN.
        return self.out(attention.whole(query, key, value, mask=mask))

    def _project(self, x: jax.Array, part: int) -> jax.Array:
        """Maps [B, T, D] to its queries (part 0), keys (1) or values (2) by head.

        By a product each: what one product gives in all would be cut apart, and its
        gradient joined, by copies that cost more than they save.
        """
        dtype = self.qkv.dtype
        assert self.qkv.bias is not None
        kernel = self.qkv.kernel[:, part].astype(dtype)  # [D, H, D / H]
        bias = self.qkv.bias[part].astype(dtype)
        along = ((x.ndim - 1,), (0,)), ((), ())
        return product.product(x.astype(dtype), kernel, along, bias=bias)


class Mlp(nnx.Module):
    """Two layers with an activation between them."""

    def __init__(self, shape: BlockShape, init: BlockInit, *, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(
            shape.width,
            shape.mlp_width,
            kernel_init=init.fc1,
            bias_init=init.fc1_bias,
            dtype=shape.dtype,
            dot_general=product.product,
            rngs=rngs,
        )
        self.fc2 = nnx.Linear(
            shape.mlp_width,
            shape.width,
            kernel_init=init.fc2,
            bias_init=init.fc2_bias,
            dtype=shape.dtype,
            dot_general=product.product,
            rngs=rngs,
        )
        self.activation = shape.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class Block(nnx.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, shape: BlockShape, init: BlockInit, *, rngs: nnx.Rngs) -> None:
        self.ln_1 = norm.LayerNorm(shape.width, epsilon=shape.epsilon, rngs=rngs)
        self.attn = Attention(shape, init, rngs=rngs)
        self.ln_2 = norm.LayerNorm(shape.width, epsilon=shape.epsilon, rngs=rngs)
        self.mlp = Mlp(shape, init, rngs=rngs)
        self.unroll = shape.unroll

    def __call__(self, x: Parts, positions: int | None = None) -> Parts:
        """Maps [B, T, D] to [B, T, D], or parts to parts, in x's dtype.

        None attends to those from `positions` on; None = there are none.
        """
        x = jax.tree.map(jnp.add, x, self.attn(jax.tree.map(self.ln_1, x), positions))
        return jax.tree.map(lambda part: part + self.mlp(self.ln_2(part)), x)

    def read(self, x: jax.Array, position: jax.Array | int) -> jax.Array:
        """Maps [B, T, D] to [B, D], what a call gives at one position or int32[B]."""
        if isinstance(position, int):
            there = x[:, position][:, None]  # [B, 1, D]
            position = jnp.full(len(x), position % x.shape[1])
        else:
            there = jnp.take_along_axis(x, position[:, None, None], axis=1)
        there = there + self.attn.read(self.ln_1(there), self.ln_1(x), position)
        return (there + self.mlp(self.ln_2(there)))[:, 0]


def make_blocks(
    shape: BlockShape, init: BlockInit, *, layers: int, rngs: nnx.Rngs
) -> Block:
    """Returns one Block whose leaves all have a leading axis of `layers`."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make(rngs: nnx.Rngs) -> Block:
        return Block(shape, init, rngs=rngs)

    return make(rngs)


def split_last(blocks: Block) -> tuple[Block, Block]:
    """Returns the stack without its last block, and that block."""
    graph, stacks = nnx.split(blocks)
    return (
        nnx.merge(graph, jax.tree.map(lambda stack: stack[:-1], stacks)),
        nnx.merge(graph, jax.tree.map(lambda stack: stack[-1], stacks)),
    )


def run_blocks(
    blocks: Block, x: jax.Array, *, remat: str, constrain: Constrain = unconstrained
) -> jax.Array:
    """Applies the stack to [B, T, D], one layer after another, in a loop or unrolled.

    A class token before patches that fill whole tiles stays apart from them, and
    cuDNN's attention gets an even number of positions; neither changes a result.
    """
    attn, positions = blocks.attn, x.shape[1]

    def apply(x: Parts, block: Block) -> Parts:
        return jax.tree.map(constrain, block(jax.tree.map(constrain, x), positions))

    scan = nnx.scan(
        _remat(apply, remat, unroll=blocks.unroll),
        unroll=blocks.unroll or 1,
        in_axes=(nnx.Carry, 0),
        out_axes=nnx.Carry,
    )
    if attn.attention == "cudnn":
        # Once for all layers: in each, queries, keys and values would be copied.
        x = jnp.pad(x, ((0, 0), (0, positions % 2), (0, 0)))
        return scan(x, blocks)[:, :positions]
    one_too_many = positions > 1 and positions % TILE == 1
    if one_too_many and not attn.causal:
        return jnp.concatenate(scan((x[:, :1], x[:, 1:]), blocks), axis=1)
    return scan(x, blocks)


def read_block(
    block: Block,
    x: jax.Array,
    position: jax.Array | int,
    *,
    remat: str,
    constrain: Constrain = unconstrained,
) -> jax.Array:
    """Maps [B, T, D] to [B, D], a block's result at one position, or at int32[B].

    Queries and all that follows attention are made for that position alone: a twelfth
    of a B/32's products are in its last blocks, and this leaves a sixth of those.
    """

    def apply(x: jax.Array, block: Block) -> jax.Array:
        return constrain(block.read(constrain(x), position))

    return _remat(apply, remat, unroll=block.unroll)(x, block)


def _remat(
    apply: Callable[..., Any], remat: str, *, unroll: bool
) -> Callable[..., Any]:
    if remat == "none":
        return apply
    # Outside a loop, the compiler would find that it computes the same thing twice.
    return nnx.remat(apply, prevent_cse=unroll, policy=REMAT_POLICIES[remat])


def _keep_products(primitive: Primitive, *inputs: Any, **params: Any) -> bool:
    """Keeps the layers' products, and what cuDNN's attention makes out of three."""
    named = jax.checkpoint_policies.save_only_these_names(product.NAME)
    by_cudnn = primitive.name.startswith(attention.FUSED)
    return by_cudnn or named(primitive, *inputs, **params)


# What the forward pass keeps for the backward pass; the rest is computed again.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": _keep_products,
    "full": jax.checkpoint_policies.nothing_saveable,
}
