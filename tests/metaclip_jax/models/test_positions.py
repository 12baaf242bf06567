"""Adding a table of positions: the sum and its gradients, on every platform's way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaclip_jax.models import positions


@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("table_dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_sum(x_dtype, table_dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 5, 4)), x_dtype)
    table = jnp.asarray(rng.normal(size=(5, 4)), table_dtype)
    found, found_vjp = jax.vjp(positions.add, x, table)
    wanted, wanted_vjp = jax.vjp(jnp.add, x, table)
    np.testing.assert_array_equal(found, wanted)
    gradient = jnp.asarray(rng.normal(size=x.shape), wanted.dtype)
    for mine, right in zip(found_vjp(gradient), wanted_vjp(gradient), strict=True):
        assert mine.dtype == right.dtype
        np.testing.assert_allclose(
            np.asarray(mine, np.float32), np.asarray(right, np.float32), rtol=2e-2
        )


def test_only_gpus_sum_over_the_batch_by_a_product():
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((6, 5, 4), (5, 4))]
    step = jax.grad(lambda x, table: positions.add(x, table).sum(), argnums=1)
    traced = jax.jit(step).trace(*shapes)

    def products(platform):
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        return lowered.count("dot_general")

    assert [products(p) for p in ("cpu", "tpu", "cuda")] == [0, 0, 1]
