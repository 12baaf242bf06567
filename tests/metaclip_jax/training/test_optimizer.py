import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaclip_jax.training import optimizer


def test_warm_up_is_linear_from_the_first_step_and_cosine_ends_at_zero():
    rate = optimizer.make_schedule(peak_lr=0.5, warmup_steps=10, total_steps=110)
    steps = jnp.asarray([0, 4, 9, 10, 60, 109, 110])
    got = [float(rate(step)) for step in steps]
    end = 0.25 * (1 + np.cos(np.pi * 0.99))
    np.testing.assert_allclose(
        got, [0.05, 0.25, 0.5, 0.5, 0.25, end, 0], rtol=1e-4, atol=1e-7
    )


def test_no_warm_up_starts_at_the_peak():
    rate = optimizer.make_schedule(peak_lr=1.0, warmup_steps=0, total_steps=4)
    assert float(rate(jnp.int32(0))) == 1


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=40 .* total_steps=20; try 2"):
        optimizer.make_schedule(peak_lr=1.0, warmup_steps=40, total_steps=20)


def test_tables_and_kernels_decay_but_stacked_vectors_do_not():
    vectors = {"bias": jnp.ones((3, 8)), "scale": jnp.ones((3, 8))}
    params = {
        "blocks": {"ln_1": vectors, "fc1": {"kernel": jnp.ones((3, 8, 8))}},
        "projection": jnp.ones((8, 8)),
        "token_embedding": jnp.ones((8, 8)),
        "position_embedding": jnp.ones((8, 8)),
        "class_embedding": jnp.ones(8),
        "log_logit_scale": jnp.ones(()),
    }
    assert optimizer.decay_mask(params) == {
        "blocks": {"ln_1": {"bias": False, "scale": False}, "fc1": {"kernel": True}},
        "projection": True,
        "token_embedding": True,
        "position_embedding": True,
        "class_embedding": False,
        "log_logit_scale": False,
    }


def test_a_leaf_without_a_decay_rule_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="no weight decay rule for a/gamma"):
        optimizer.decay_mask({"a": {"gamma": jnp.ones(2)}})


def test_direction_is_adam_plus_decay():
    """Three steps against AdamW's formula in f64."""
    adamw = optimizer.make_optimizer(
        beta1=0.9, beta2=0.98, epsilon=1e-6, weight_decay=0.2
    )
    rng = np.random.default_rng(0)
    value = rng.standard_normal(5)
    params = {"kernel": jnp.asarray(value, jnp.float32)}
    state = adamw.init(params)
    mean = variance = np.zeros(5)
    for step in range(1, 4):
        gradient = rng.standard_normal(5)
        mean = 0.9 * mean + 0.1 * gradient
        variance = 0.98 * variance + 0.02 * gradient**2
        want = mean / (1 - 0.9**step)
        want /= np.sqrt(variance / (1 - 0.98**step)) + 1e-6
        direction, state = adamw.update(
            {"kernel": jnp.asarray(gradient, jnp.float32)}, state, params
        )
        np.testing.assert_allclose(direction["kernel"], want + 0.2 * value, rtol=1e-4)


def test_the_first_moment_may_be_bfloat16():
    adamw = optimizer.make_optimizer(
        beta1=0.9,
        beta2=0.98,
        epsilon=1e-6,
        weight_decay=0.2,
        first_moment_dtype="bfloat16",
    )
    state = adamw.init({"kernel": jnp.ones(2)})
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert dtypes == {jnp.dtype("bfloat16"), jnp.dtype("float32")}
