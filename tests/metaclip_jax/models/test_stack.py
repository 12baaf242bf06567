"""A stack of blocks with a backward pass of its own, against JAX's gradient."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from metaclip_jax.models import attention, layers, stack
from metaclip_jax.training import sharding

WIDTH, LAYERS, ROWS = 32, 3, 16


def blocks(dtype="float32", attention="xla", causal=False, unroll=False):
    shape = layers.BlockShape(
        width=WIDTH,
        heads=2,
        mlp_width=2 * WIDTH,
        activation="gelu_tanh",
        causal=causal,
        attention=attention,
        dtype=dtype,
        epsilon=1e-6,
        unroll=unroll,
    )
    init = layers.siglip_init(width=WIDTH, mlp_width=2 * WIDTH)
    return layers.make_blocks(shape, init, layers=LAYERS, rngs=nnx.Rngs(0))


def graded(run, made, positions, dtype="float32"):
    """Returns the result, the gradients of all parameters and that of the input."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, ROWS, positions, WIDTH)).astype(np.float32)
    graph, params = nnx.split(made)

    def apply(params, x):
        return run(nnx.merge(graph, params), x.astype(dtype)).astype(jnp.float32)

    @jax.jit
    def both(params, x):
        result, backward = jax.vjp(apply, params, x)
        return result, backward(jnp.asarray(weights))

    return [np.asarray(leaf) for leaf in jax.tree.leaves(both(params, x + 0.3))]


def one_by_one(made, x):
    """Applies the blocks in a Python loop."""
    graph, stacks = nnx.split(made)
    for number in range(LAYERS):
        layer = jax.tree.map(operator.itemgetter(number), stacks)
        x = nnx.merge(graph, layer)(x)
    return x


def distances(got, want):
    """The difference of each array from the one wanted, relative to its norm."""
    pairs = zip(got, want, strict=True)
    return [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]


@functools.cache
def wanted(positions):
    return graded(one_by_one, blocks(attention="jax"), positions)


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("remat", layers.REMAT_POLICIES)
@pytest.mark.parametrize("positions", [6, layers.TILE + 1])
def test_values_and_gradients_are_those_of_block_after_block(positions, remat, chunk):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    rows = stack.Rows(mesh, sharding.BATCH_AXES, chunk)
    run = functools.partial(layers.run_blocks, remat=remat, rows=rows)
    found = graded(run, blocks(), positions)
    assert max(distances(found, wanted(positions))) < 1e-6


def test_bf16_is_as_near_to_f32_as_with_jaxs_gradients():
    dtype, run = "bfloat16", functools.partial(layers.run_blocks, remat="full")
    own = distances(graded(run, blocks(dtype), 48, dtype), wanted(48))
    jaxs = graded(one_by_one, blocks(dtype, "jax"), 48, dtype)
    jaxs = distances(jaxs, wanted(48))
    assert 0.003 < np.mean(own) < 1.2 * np.mean(jaxs) < 0.02


@pytest.mark.parametrize("remat", layers.REMAT_POLICIES)
def test_the_forward_pass_stores_no_parameters(remat):
    """They are in the stacks already; only what rows gave is new."""
    stored = []
    forward = stack._forward

    def spy(static, stacks, x):
        result = forward(static, stacks, x)
        stored.extend(jax.tree.leaves(result[1][1]))
        return result

    stack._run.defvjp(spy, stack._backward)
    try:
        run = functools.partial(layers.run_blocks, remat=remat)
        graph, params = nnx.split(blocks())
        x = jnp.zeros((ROWS, 6, WIDTH))
        jax.eval_shape(
            lambda p, x: jax.vjp(lambda p, x: run(nnx.merge(graph, p), x), p, x)[0],
            params,
            x,
        )
    finally:
        stack._run.defvjp(forward, stack._backward)
    shapes = {leaf.shape for leaf in stored}
    assert (LAYERS, ROWS, 6, WIDTH) in shapes
    assert not shapes & {(LAYERS, WIDTH, 2 * WIDTH), (LAYERS, 2 * WIDTH, WIDTH)}


def test_a_device_splits_its_rows_into_equal_chunks_of_at_most_the_size():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    rows = stack.Rows(mesh, sharding.BATCH_AXES, 32)
    counts = {4 * 32: 1, 4 * 33: 3, 4 * 64: 2, 4 * 96: 3, 4 * 37: 37}
    assert {count: rows.chunks(count) for count in counts} == counts
    assert rows._replace(chunk=0).chunks(4 * 64) == stack.ANYWHERE.chunks(4 * 64) == 1


@pytest.mark.parametrize("causal", [False, True])
def test_own_attention_is_jaxs(causal):
    rng = np.random.default_rng(0)
    *inputs, weights = rng.normal(size=(4, 3, 7, 2, 4)).astype(np.float32)

    def run(attend):
        result, backward = jax.vjp(functools.partial(attend, causal=causal), *inputs)
        return result, *backward(jnp.asarray(weights))

    assert max(distances(run(attention.plain), run(attention.by_jax))) < 1e-6
