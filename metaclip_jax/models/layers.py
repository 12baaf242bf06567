"""The transformer block of both towers, and its initialisation.

A tower keeps its blocks in one stack: every leaf has a leading layer axis and
`run_blocks` scans over it, so that compile time does not grow with depth. A tower that
is pooled at one position keeps its last block outside the stack, and `read_block`
computes that block for the pooled position only. Parameters are f32; matrix products
run in the tower's dtype, LayerNorm and softmax in f32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers
from jax.extend.core import Primitive

from metaclip_jax.models import attention, norm, product, stack

Activation = Callable[[jax.Array], jax.Array]
# The whole sequence [B, T, D], or its segments, [B, N, D] each.
Segments = jax.Array | tuple[jax.Array, ...]
# TPUs compute in tiles of this many positions: one position more costs a whole tile. By
# the compiler's estimate, L/14's blocks for images take 334 M cycles with the class
# token apart and 358 M without (v5e:4x4, batch 512, forward and backward).
TILE = 128


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
    unroll: bool = False  # compile each block separately instead of a loop
    norm_gradient: str = "xla"  # of LayerNorm, one of norm.GRADIENTS

    def layer_norm(self, rngs: nnx.Rngs) -> norm.LayerNorm:
        """Returns a new LayerNorm of the tower's width."""
        return norm.LayerNorm(
            self.width, epsilon=self.epsilon, gradient=self.norm_gradient, rngs=rngs
        )


class BlockInit(NamedTuple):
    """Initial distributions of a block's kernels and of its MLP's biases."""

    qkv: nnx.Initializer
    out: nnx.Initializer
    fc1: nnx.Initializer
    fc2: nnx.Initializer
    fc1_bias: nnx.Initializer
    fc2_bias: nnx.Initializer


def image_init(*, width: int, mlp_width: int) -> BlockInit:
    """Returns the reference's initialisation of image blocks: torch's defaults."""
    return BlockInit(
        qkv=symmetric_uniform((6 / (width + 3 * width)) ** 0.5),
        out=symmetric_uniform(width**-0.5),
        fc1=symmetric_uniform(width**-0.5),
        fc2=symmetric_uniform(mlp_width**-0.5),
        fc1_bias=symmetric_uniform(width**-0.5),
        fc2_bias=symmetric_uniform(mlp_width**-0.5),
    )


def text_init(*, width: int, mlp_width: int, layers: int) -> BlockInit:
    """Returns the reference's initialisation of text blocks.

    It is normal, with residual branches scaled by depth.
    """
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
    """Returns SigLIP's initialisation, for both towers.

    It is Xavier uniform, with the fans of query, key and value taken separately.
    """
    square = symmetric_uniform((6 / (width + width)) ** 0.5)
    mlp = symmetric_uniform((6 / (width + mlp_width)) ** 0.5)
    bias = initializers.normal(1e-6)
    return BlockInit(
        qkv=square, out=square, fc1=mlp, fc2=mlp, fc1_bias=bias, fc2_bias=bias
    )


def symmetric_uniform(bound: float) -> nnx.Initializer:
    """Returns an initializer that is uniform on [-bound, bound)."""

    def initialise(
        key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialise


def store_derivative(activation: Activation) -> Activation:
    """Makes an elementwise function store only its derivative for the backward pass.

    By default JAX stores x and the intermediate values, and a tower's MLP activations
    are its widest arrays.
    """

    @jax.custom_jvp
    def apply(x: jax.Array) -> jax.Array:
        return activation(x)

    @apply.defjvp
    def jvp(
        primals: tuple[jax.Array], tangents: tuple[jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (x,), (tangent,) = primals, tangents
        result, derivative = jax.jvp(activation, (x,), (jnp.ones_like(x),))
        return result, tangent * derivative

    return functools.wraps(activation)(apply)


@store_derivative
def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's sigmoid approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


@store_derivative
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, with the error function."""
    return jax.nn.gelu(x, approximate=False)


@store_derivative
def gelu_tanh(x: jax.Array) -> jax.Array:
    """SigLIP's tanh approximation of GELU."""
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

    def __call__(self, x: Segments, positions: int | None = None) -> Segments:
        """Maps [B, T, D] to [B, T, D]; causal attention hides later positions.

        Segments attend to the positions of all segments; XLA computes this. Positions
        from `positions` on are padding for cuDNN, and no position attends to them.
        """
        if isinstance(x, tuple):
            queries, keys, values = (
                tuple(self._project(segment, kind) for segment in x)
                for kind in range(3)
            )
            return tuple(
                self.out(attention.over_segments(query, keys, values))
                for query in queries
            )
        query, key, value = (self._project(x, kind) for kind in range(3))
        if self.attention == "cudnn":
            mixed = attention.fused(
                query, key, value, causal=self.causal, positions=positions
            )
        else:
            attend = attention.plain if self.attention == "xla" else attention.by_jax
            mixed = attend(query, key, value, causal=self.causal)
        return self.out(mixed)

    def read(
        self, query_input: jax.Array, x: jax.Array, position: jax.Array | None = None
    ) -> jax.Array:
        """Maps one query a row, [B, 1, D], that attends to x [B, T, D], to [B, 1, D].

        Causal attention needs the query's `position` in x, int32[B].
        """
        query, key, value = (
            self._project(source, kind)
            for kind, source in enumerate((query_input, x, x))
        )
        mask = None
        if self.causal and position is not None:
            mask = jnp.arange(x.shape[1]) <= position[:, None]
            mask = mask[:, None, None]
        # With a single query, cuDNN's fused attention saves nothing.
        return self.out(attention.plain(query, key, value, mask=mask))

    def _project(self, x: jax.Array, kind: int) -> jax.Array:
        """Maps [B, T, D] to queries (kind 0), keys (1) or values (2), [B, T, H, D / H].

        Each is a matmul of its own: splitting the result of one fused matmul, and
        joining its gradient, are copies that cost more than the fusion saves.
        """
        dtype = self.qkv.dtype
        assert self.qkv.bias is not None
        kernel = self.qkv.kernel[:, kind].astype(dtype)  # [D, H, D / H]
        bias = self.qkv.bias[kind].astype(dtype)
        dimensions = ((x.ndim - 1,), (0,)), ((), ())
        return product.product(x.astype(dtype), kernel, dimensions, bias=bias)


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
        self.ln_1 = shape.layer_norm(rngs)
        self.attn = Attention(shape, init, rngs=rngs)
        self.ln_2 = shape.layer_norm(rngs)
        self.mlp = Mlp(shape, init, rngs=rngs)
        self.unroll = shape.unroll

    def __call__(
        self,
        x: Segments,
        positions: int | None = None,
        statistics: Any = None,
    ) -> Segments:
        """Maps [B, T, D], or each segment, to the same shape, in x's dtype.

        Positions from `positions` on are padding; None means no padding. `statistics`
        are those of `ln_1` for x, or for each segment.
        """
        if statistics is None:
            statistics = jax.tree.map(self.ln_1.statistics, x)
        mixed = self.attn(jax.tree.map(self.ln_1, x, statistics), positions)
        x = jax.tree.map(jnp.add, x, mixed)
        return jax.tree.map(lambda segment: segment + self.mlp(self.ln_2(segment)), x)

    def read(self, x: jax.Array, position: jax.Array | int) -> jax.Array:
        """Maps [B, T, D] to the output [B, D] at `position`, an int or int32[B]."""
        if isinstance(position, int):
            row = x[:, position][:, None]  # [B, 1, D]
            position = jnp.full(len(x), position % x.shape[1])
        else:
            row = jnp.take_along_axis(x, position[:, None, None], axis=1)
        row = row + self.attn.read(self.ln_1(row), self.ln_1(x), position)
        return (row + self.mlp(self.ln_2(row)))[:, 0]


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
    blocks: Block, x: jax.Array, *, remat: str, rows: stack.Rows = stack.ANYWHERE
) -> jax.Array:
    """Applies the stack to [B, T, D], in a loop over layers or unrolled.

    If the patches fill whole tiles, the class token is a segment of its own. For
    cuDNN, the sequence is padded to an even length. Neither changes the result.
    """
    attn, positions = blocks.attn, x.shape[1]
    graph, stacks = nnx.split(blocks)
    spread = rows.constrain if rows.chunks(len(x)) == 1 else lambda x: x

    def apply(layer: nnx.State, x: Segments, statistics: Any) -> Segments:
        block = nnx.merge(graph, layer)
        return jax.tree.map(
            spread, block(jax.tree.map(spread, x), positions, statistics)
        )

    run = functools.partial(
        stack.run,
        _remat(apply, remat, unroll=blocks.unroll),
        functools.partial(jax.tree.map, blocks.ln_1.statistics),
        cast_products(stacks, attn.qkv.dtype),
        rows=rows,
        unroll=blocks.unroll,
    )
    if attn.attention == "cudnn":
        # Pad once here: padding in each layer would copy queries, keys and values.
        x = jnp.pad(x, ((0, 0), (0, positions % 2), (0, 0)))
        return run(x)[:, :positions]
    one_too_many = positions > 1 and positions % TILE == 1
    if one_too_many and not attn.causal:
        return jnp.concatenate(run((x[:, :1], x[:, 1:])), axis=1)
    return run(x)


def cast_products(stacks: nnx.State, dtype: Any) -> nnx.State:
    """Casts the parameters of attention and MLP to the dtype that they multiply in.

    Before the loop over layers: so their gradients are stored in that dtype too.
    """

    def cast(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path[:1], simple=True)
        return leaf if name in ("ln_1", "ln_2") else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, stacks)


def read_block(
    block: Block,
    x: jax.Array,
    position: jax.Array | int,
    *,
    remat: str,
    rows: stack.Rows = stack.ANYWHERE,
) -> jax.Array:
    """Maps [B, T, D] to a block's output [B, D] at `position`, one int or int32[B].

    Queries, the output projection and the MLP run for that position only. By the TPU
    compiler's estimate, L/14's step takes 1,808 M cycles and 41,950 MiB a chip, and
    1,880 and 48,096 with the last blocks whole (`tpu_step`, l14_v5p).
    """

    graph, params = nnx.split(block)

    def apply(params: nnx.State, x: jax.Array) -> jax.Array:
        read = nnx.merge(graph, rows.collect(params)).read
        return rows.constrain(read(rows.constrain(x), position))

    return _remat(apply, remat, unroll=block.unroll)(params, x)


def _remat(
    apply: Callable[..., Any], remat: str, *, unroll: bool
) -> Callable[..., Any]:
    if remat == "none":
        return apply
    # Outside a loop, common subexpression elimination would undo the rematerialisation.
    return jax.checkpoint(apply, prevent_cse=unroll, policy=REMAT_POLICIES[remat])


def _save_products(primitive: Primitive, *inputs: Any, **params: Any) -> bool:
    """Saves the results of the layers' matmuls and of cuDNN's fused attention."""
    named = jax.checkpoint_policies.save_only_these_names(product.NAME)
    by_cudnn = primitive.name.startswith(attention.CUDNN_PRIMITIVE)
    return by_cudnn or named(primitive, *inputs, **params)


# What the forward pass saves for the backward pass; the rest is recomputed.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": _save_products,
    "full": jax.checkpoint_policies.nothing_saveable,
}
