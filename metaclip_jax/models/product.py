"""The layers' matrix product with an optional bias, and its gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

NAME = "product"  # by which remat policies find the results


def product(
    x: jax.Array,
    kernel: jax.Array,
    dimensions: Any,
    *,
    bias: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Multiplies x [..., K] by a kernel [K, N] and adds a bias [N], if there is one.

    K and N may be several axes each. `dimensions` are those of `jax.lax.dot_general`,
    and `options` are its other arguments, which Flax passes.

    Raises:
      ValueError: an option is not None, the default.
    """
    (contracted, _), _ = dimensions
    if given := {key: value for key, value in options.items() if value is not None}:
        raise ValueError(
            f"the product's options must be None, got {given}; "
            "leave these arguments of the Flax layer at their defaults"
        )
    return checkpoint_name(_product(len(contracted), x, kernel, bias), NAME)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(
    contracted: int, x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    last = range(x.ndim - contracted, x.ndim)
    result = _contract(x, kernel, last, range(contracted))
    return result if bias is None else _add_bias(result, bias)


_Residuals = tuple[jax.Array, jax.Array, jax.Array | None]  # x, kernel, bias


def _forward(
    contracted: int, x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, _Residuals]:
    return _product(contracted, x, kernel, bias), (x, kernel, bias)


def _backward(
    contracted: int, residuals: _Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns the gradients of x, of the kernel and of the bias.

    The kernel's gradient sums over the batch axes of x, usually [B, T]. With two axes,
    XLA transposes x in memory: on CPUs with one thread, about a tenth of a train step,
    and on GPUs where blocks are unrolled. So it gets one axis, [B * T]. TPUs compute
    both alike.
    """
    x, kernel, bias = residuals
    rows = range(x.ndim - contracted)
    features = range(len(rows), gradient.ndim)
    x_gradient = _contract(gradient, kernel, features, range(contracted, kernel.ndim))
    bias_gradient = None if bias is None else jnp.sum(gradient, axis=tuple(rows))
    x, gradient = (a.reshape(-1, *a.shape[len(rows) :]) for a in (x, gradient))
    kernel_gradient = _contract(x, gradient, range(1), range(1))
    return x_gradient, kernel_gradient, bias_gradient


_product.defvjp(_forward, _backward)


def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias [N] to [..., N], where N may be several axes.

    cuBLAS can add a bias vector in the epilogue of a matmul, but XLA uses that only for
    a bias of one axis. So GPUs get a flat one.
    """

    def flat(x: jax.Array, bias: jax.Array) -> jax.Array:
        joined = x.reshape(*x.shape[: x.ndim - bias.ndim], -1)
        return (joined + bias.reshape(-1)).reshape(x.shape)

    return jax.lax.platform_dependent(x, bias, cuda=flat, default=jnp.add)


def _contract(a: jax.Array, b: jax.Array, a_axes: range, b_axes: range) -> jax.Array:
    """Contracts these axes of a with these axes of b."""
    return jax.lax.dot_general(a, b, ((tuple(a_axes), tuple(b_axes)), ((), ())))
