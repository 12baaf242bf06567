"""The layers' matrix product: dot_general, gradients too, but without copies."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaclip_jax.models import product

# Shapes of x and the kernel, and how many axes are multiplied.
CASES = {
    "linear": ((2, 5, 8), (8, 12), 1),
    "split into heads": ((2, 5, 8), (8, 3, 2, 4), 1),
    "heads joined": ((2, 5, 3, 4), (3, 4, 8), 2),
    "rows only": ((5, 8), (8, 12), 1),
    "a vector": ((8,), (8, 12), 1),
}


def dimensions(x, contracted):
    axes = tuple(range(x.ndim - contracted, x.ndim)), tuple(range(contracted))
    return axes, ((), ())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_dot_general(case, biased):
    x_shape, kernel_shape, contracted = CASES[case]
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s)) for s in (x_shape, kernel_shape))
    axes = dimensions(x, contracted)
    bias = jnp.asarray(rng.normal(size=kernel_shape[contracted:])) if biased else None

    def plainly(x, kernel, bias):
        result = jax.lax.dot_general(x, kernel, axes)
        return result if bias is None else result + bias

    def multiply(x, kernel, bias):
        return product.product(x, kernel, axes, bias=bias)

    expected, expected_vjp = jax.vjp(plainly, x, kernel, bias)
    found, found_vjp = jax.vjp(multiply, x, kernel, bias)
    np.testing.assert_array_equal(found, expected)
    gradient = jnp.asarray(rng.normal(size=expected.shape), expected.dtype)
    gradients = (jax.tree.leaves(pull(gradient)) for pull in (found_vjp, expected_vjp))
    for mine, right in zip(*gradients, strict=True):
        assert mine.shape == right.shape and mine.dtype == right.dtype
        np.testing.assert_allclose(mine, right, rtol=1e-6, atol=1e-6)


def test_a_bias_of_several_axes_is_a_vector_to_gpus():
    shapes = [(2, 5, 8), (8, 3, 2, 4), (3, 2, 4)]
    traced = jax.jit(
        lambda x, kernel, bias: product.product(x, kernel, dimensions(x, 1), bias=bias)
    ).trace(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))

    def added(platform):
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        (line,) = re.findall(r"stablehlo.add .*tensor<(.*)xf32>", lowered)
        return line

    assert [added(p) for p in ("cpu", "tpu", "cuda")] == [
        "2x5x3x2x4",
        "2x5x3x2x4",
        "2x5x24",
    ]


def test_no_transposed_copy_on_cpus():
    x, kernel = jnp.ones((16, 10, 64)), jnp.ones((64, 128))
    axes = dimensions(x, 1)

    def copies(multiply):
        def gradient(x, kernel):
            return jax.grad(lambda k: jnp.square(multiply(x * 2, k, axes)).sum())(
                kernel
            )

        text = jax.jit(gradient).lower(x, kernel).compile().as_text()
        return text.count(" transpose(") + text.count(" copy(")

    assert copies(product.product) == 0
    assert copies(jax.lax.dot_general) > 0  # or it needs no help any more


def test_remat_by_name_keeps_the_product_alone():
    policy = jax.checkpoint_policies.save_only_these_names(product.NAME)
    x, kernel = jnp.ones((2, 5, 8)), jnp.ones((8, 8))

    @functools.partial(jax.checkpoint, policy=policy)
    def layer(x, kernel):
        return jnp.sin(product.product(jnp.cos(x), kernel, dimensions(x, 1)))

    def forward_products(jaxpr):
        return str(jaxpr).count(f"name={product.NAME}")

    _, pull = jax.vjp(layer, x, kernel)
    kept = [leaf.shape for leaf in jax.tree.leaves(pull)]
    assert sorted(kept) == sorted([x.shape, kernel.shape, (2, 5, 8)])
    assert forward_products(jax.make_jaxpr(pull)(x)) == 0  # not made again


def test_an_option_is_refused():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="precision"):
        product.product(x, x.T, dimensions(x, 1), precision="highest")
