"""LayerNorm and its gradient, which is its own, against Flax's and against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from metaclip_jax.models import norm

WIDTH = 48


def layers(gradient="xla"):
    """Ours and Flax's, with the same scale and bias, none of them one or zero."""
    rngs = nnx.Rngs(0)
    ours = norm.LayerNorm(WIDTH, epsilon=1e-5, gradient=gradient, rngs=rngs)
    flax = nnx.LayerNorm(
        WIDTH,
        epsilon=1e-5,
        dtype=jnp.float32,
        use_fast_variance=False,
        rngs=nnx.Rngs(0),
    )
    rng = np.random.default_rng(0)
    for name in ("scale", "bias"):
        value = jnp.asarray(rng.normal(size=WIDTH), jnp.float32)
        getattr(ours, name)[...] = getattr(flax, name)[...] = value
    return ours, flax


def graded(layer, x, weights):
    """Returns the result, and the gradients of x and of the parameters."""
    graph, params = nnx.split(layer)

    def apply(x, params):
        return nnx.merge(graph, params)(x)

    result, backward = jax.vjp(apply, x, params)
    to_x, to_params = backward(weights)
    return result, to_x, *jax.tree.leaves(to_params)


def in_float64(layer, x, weights):
    """The same by the definition, as numpy has it; the derivative written out."""
    x, weights = (np.asarray(a, np.float64) for a in (x, weights))
    scale, bias = (np.asarray(p[...], np.float64) for p in (layer.scale, layer.bias))
    mean = x.mean(-1, keepdims=True)
    deviation = np.sqrt(x.var(-1, keepdims=True) + layer.epsilon)
    unit = (x - mean) / deviation
    scaled = weights * scale
    to_x = scaled - scaled.mean(-1, keepdims=True)
    to_x = (to_x - unit * (scaled * unit).mean(-1, keepdims=True)) / deviation
    return (
        unit * scale + bias,
        to_x,
        weights.sum((0, 1)),
        (weights * unit).sum((0, 1)),
    )


def error(got, want):
    got, want = (np.asarray(a, np.float64) for a in (got, want))
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)


@given(
    spread=st.sampled_from([1e-3, 1, 1e3]),
    offset=st.sampled_from([0, 1, 30]),  # of the mean, in spreads
    dtype=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 99),
    gradient=st.sampled_from(norm.GRADIENTS),
)
@settings(max_examples=20, deadline=None)
def test_values_and_gradients_are_those_of_the_definition(
    spread, offset, dtype, seed, gradient
):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(spread * (rng.normal(size=(3, 5, WIDTH)) + offset), dtype)
    weights = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    ours, flax = layers(gradient)
    wanted = in_float64(ours, x, weights)
    got, theirs = graded(ours, x, weights), graded(flax, x, weights)
    assert [a.dtype for a in got] == [a.dtype for a in theirs]
    assert got[0].dtype == jnp.float32 and got[1].dtype == dtype
    for mine, other, want in zip(got, theirs, wanted, strict=True):
        # In f32 the sums cancel: mean^2 is at most 1,000 variances here. The gradient
        # of x is rounded to its dtype.
        assert error(mine, want) <= 1.2 * error(other, want) + 2e-4


def test_a_constant_row_gives_the_bias_and_no_gradient():
    # Its variance, by the difference of two sums, may come out below zero.
    x = jnp.full((1, 1, WIDTH), 123.456, jnp.float32)
    ours, _ = layers()
    result, to_x, *_ = graded(ours, x, jnp.ones_like(x))
    assert np.isfinite(result).all() and np.isfinite(to_x).all()
    np.testing.assert_allclose(result[0, 0], ours.bias[...], atol=0.05)


@pytest.mark.parametrize("part", ["scale", "bias"])
def test_new_parameters_are_those_of_flax(part):
    ours = norm.LayerNorm(WIDTH, epsilon=1e-6, rngs=nnx.Rngs(3))
    flax = nnx.LayerNorm(WIDTH, epsilon=1e-6, rngs=nnx.Rngs(3))
    np.testing.assert_array_equal(getattr(ours, part)[...], getattr(flax, part)[...])


def test_only_gpus_make_row_sums_apart():
    ours, _ = layers()
    graph, params = nnx.split(ours)

    def loss(x, params):
        return nnx.merge(graph, params)(x).sum()

    traced = jax.jit(jax.grad(loss)).trace(
        jax.ShapeDtypeStruct((2, 3, WIDTH), jnp.bfloat16), params
    )

    def barriers(platform):
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        return lowered.count("optimization_barrier")

    assert [barriers(p) for p in ("cpu", "tpu", "cuda")] == [0, 0, 2]
