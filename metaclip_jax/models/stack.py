"""Runs a stack of equal layers with a backward pass of its own.

JAX's gradient of a scan fills the stacks of gradients with zeros first, and TPU's
compiler keeps that; here each layer's gradient is written into uninitialised memory. By
the compiler's estimate, this takes SigLIP B/16's step from 108.8 to 102.2 M cycles
(`tpu_step`, b16_512_full).

Where a device has many rows, a layer computes a chunk of them at a time, so that a
TPU keeps a chunk's activations on the chip. Each chunk's gradient is added in f32, and
reduced over devices once per layer, in the parameters' dtype.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

# Maps a layer's parameters, its input, and the input's statistics to its output.
Apply = Callable[[Any, Any, Any], Any]


class Rows(NamedTuple):
    """How the rows of a batch are spread over devices, and how many run at a time."""

    mesh: Mesh | None = None  # None: leave the sharding to the compiler
    axes: tuple[str, ...] = ()  # of the mesh, over which a batch is split
    chunk: int = 0  # rows of a device at a time; 0 = all
    collect: Callable[[Any], Any] = lambda layer: layer
    """Collects a layer's parameters, or its gradient, where devices split them.

    Else a TPU multiplies by one device's part of a matrix after another. (By the
    compiler's estimate, that takes B/16's step from 89 to 338 M cycles: `tpu_step`,
    b16_fsdp_ring.)
    """

    def constrain(self, x: jax.Array) -> jax.Array:
        """Keeps [B, ...] split over the batch's axes.

        So the compiler gathers the parameters and does not move the batch: else it may
        split other axes as the parameters are, and give each device the whole batch.
        """
        if self.mesh is None:
            return x
        spread = jax.sharding.NamedSharding(self.mesh, PartitionSpec(self.axes))
        return lax.with_sharding_constraint(x, spread)

    def chunks(self, count: int) -> int:
        """Returns into how many chunks a device splits its share of `count` rows."""
        if self.mesh is None or not self.chunk:
            return 1
        own = count // math.prod(self.mesh.shape[axis] for axis in self.axes)
        return next(n for n in range(-(-own // self.chunk), own + 1) if own % n == 0)


ANYWHERE = Rows()


class _Static(NamedTuple):
    """What does not change between calls; a static argument of `_run`."""

    apply: Apply
    statistics: Callable[[Any], Any]
    rows: Rows
    chunks: int


def run(
    apply: Apply,
    statistics: Callable[[Any], Any],
    stacks: Any,
    x: Any,
    *,
    rows: Rows,
    unroll: bool,
) -> Any:
    """Applies layer after layer to a pytree of [B, ...].

    Args:
      apply: the layer; it decides what the backward pass recomputes, by its own
        `jax.checkpoint`.
      statistics: of an input, for `apply`. They are computed at the end of the layer
        before, where its output is already loaded, and have no gradient of their own.
        (By the TPU compiler's estimate, this takes B/16's blocks from 67.9 to 64.8 M
        cycles.)
      stacks: parameters, each leaf with a leading axis of layers.
      x: the first layer's input; outputs have its shapes and dtypes.
      rows: of the batch.
      unroll: compile each layer by itself, with JAX's gradient.
    """
    if unroll:
        return lax.scan(
            lambda x, layer: (apply(rows.collect(layer), x, statistics(x)), None),
            x,
            stacks,
            unroll=True,
        )[0]
    chunks = rows.chunks(len(jax.tree.leaves(x)[0]))
    return _run(_Static(apply, statistics, rows, chunks), stacks, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(static: _Static, stacks: Any, x: Any) -> Any:
    def step(carry: Any, layer: Any) -> tuple[Any, None]:
        compute = _chunks_forward(static, functools.partial(_layer, static))
        return compute(static.rows.collect(layer), carry), None

    return lax.scan(step, (x, static.statistics(x)), stacks)[0][0]


def _layer(static: _Static, layer: Any, carry: Any) -> Any:
    y = static.apply(layer, *carry)
    return y, static.statistics(y)


def _forward(static: _Static, stacks: Any, x: Any) -> tuple[Any, tuple[Any, Any]]:
    def compute(layer: Any, carry: Any) -> Any:
        x, statistics = carry
        y, pull = jax.vjp(lambda layer, x: static.apply(layer, x, statistics), layer, x)
        return (y, static.statistics(y)), _omit_parameters(layer, pull)

    def step(carry: Any, layer: Any) -> tuple[Any, Any]:
        return _chunks_forward(static, compute)(static.rows.collect(layer), carry)

    (y, _), pulls = lax.scan(step, (x, static.statistics(x)), stacks)
    return y, (stacks, pulls)


def _backward(static: _Static, residuals: tuple[Any, Any], gradient: Any) -> Any:
    stacks, pulls = residuals
    count = len(jax.tree.leaves(stacks)[0])

    def compute(layer: Any, rows: Any) -> Any:
        pull, gradient = rows
        return _restore_parameters(layer, pull)(gradient)

    def step(number: jax.Array, carry: Any) -> Any:
        gradients, gradient = carry
        number = count - 1 - number
        layer, pull = jax.tree.map(
            lambda stack: lax.dynamic_index_in_dim(stack, number, keepdims=False),
            (stacks, pulls),
        )
        layer = static.rows.collect(layer)
        own, gradient = _chunks_backward(static, compute)(layer, (pull, gradient))
        gradients = jax.tree.map(
            lambda stack, new: lax.dynamic_update_index_in_dim(stack, new, number, 0),
            gradients,
            static.rows.collect(own),
        )
        return gradients, gradient

    empty = jax.tree.map(lambda stack: lax.empty(stack.shape, stack.dtype), stacks)
    return lax.fori_loop(0, count, step, (empty, gradient))


_run.defvjp(_forward, _backward)


def _chunks_forward(static: _Static, compute: Callable[..., Any]) -> Callable[..., Any]:
    """Lets each device run compute(layer, rows) for one chunk of its rows at a time."""
    if static.chunks == 1:
        return compute

    def local(layer: Any, rows: Any) -> Any:
        done = lax.map(lambda chunk: compute(layer, chunk), _split(static, rows))
        return _join(done)

    by_row = PartitionSpec(static.rows.axes)
    return jax.shard_map(
        local,
        mesh=static.rows.mesh,
        in_specs=(PartitionSpec(), by_row),
        out_specs=by_row,
        check_vma=False,
    )


def _chunks_backward(
    static: _Static, compute: Callable[..., Any]
) -> Callable[..., Any]:
    """Does the same if compute(layer, rows) returns their gradients."""
    if static.chunks == 1:
        return compute

    def local(layer: Any, rows: Any) -> Any:
        def step(total: Any, chunk: Any) -> tuple[Any, Any]:
            own, gradient = compute(layer, chunk)
            return jax.tree.map(
                lambda t, o: t + o.astype(t.dtype), total, own
            ), gradient

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), layer)
        total, gradient = lax.scan(step, zeros, _split(static, rows))
        total = jax.tree.map(
            lambda t, leaf: lax.psum(t.astype(leaf.dtype), static.rows.axes),
            total,
            layer,
        )
        return total, _join(gradient)

    by_row = PartitionSpec(static.rows.axes)
    return jax.shard_map(
        local,
        mesh=static.rows.mesh,
        in_specs=(PartitionSpec(), by_row),
        out_specs=(PartitionSpec(), by_row),
        check_vma=False,
    )


def _split(static: _Static, rows: Any) -> Any:
    """Splits [b, ...] into [chunks, b / chunks, ...]."""
    return jax.tree.map(lambda x: x.reshape(static.chunks, -1, *x.shape[1:]), rows)


def _join(chunks: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), chunks)


@jax.tree_util.register_static
class _Parameter(int):
    """Stands for a leaf of a layer's parameters, by its number."""


def _omit_parameters(layer: Any, pull: Any) -> Any:
    """Replaces a layer's own parameters in `pull`, as `stacks` has them already."""
    own = {id(leaf): number for number, leaf in enumerate(jax.tree.leaves(layer))}
    return jax.tree.map(
        lambda leaf: _Parameter(own[id(leaf)]) if id(leaf) in own else leaf, pull
    )


def _restore_parameters(layer: Any, pull: Any) -> Any:
    """Undoes `_omit_parameters`."""
    leaves = jax.tree.leaves(layer)
    return jax.tree.map(
        lambda leaf: leaves[leaf] if isinstance(leaf, _Parameter) else leaf,
        pull,
        is_leaf=lambda leaf: isinstance(leaf, _Parameter),
    )
