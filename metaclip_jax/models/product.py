"""The matrix product of the layers, with a bias or without, and its gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

NAME = "product"  # of its results, in remat policies


def product(
    x: jax.Array,
    kernel: jax.Array,
    dimensions: Any,
    *,
    bias: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Multiplies [..., K] by a kernel [K, N], as `jax.lax.dot_general` does.

    K and N may be several axes each, `dimensions` says which are multiplied. A bias [N]
    is added. `options` are those that Flax passes; all must be None, which are the
    defaults.
    """
    (contracted, _), _ = dimensions
    if given := {key: value for key, value in options.items() if value is not None}:
        raise ValueError(f"want no options of the product, got {given}")
    return checkpoint_name(_product(len(contracted), x, kernel, bias), NAME)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(
    contracted: int, x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> jax.Array:
    last = range(x.ndim - contracted, x.ndim)
    result = _contract(x, kernel, last, range(contracted))
    return result if bias is None else _plus(result, bias)


_Kept = tuple[jax.Array, jax.Array, jax.Array | None]  # x, kernel, bias


def _forward(
    contracted: int, x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, _Kept]:
    return _product(contracted, x, kernel, bias), (x, kernel, bias)


def _backward(
    contracted: int, kept: _Kept, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns the gradients of x, of the kernel and of the bias.

    The kernel's sums over all rows of the batch. With several axes of rows, XLA's CPU
    compiler transposes x in memory, on one thread, which takes about a tenth of a
    train step, and its GPU compiler does too where blocks are unrolled; so they are
    joined there. On TPUs it is joining them that copies.
    """
    x, kernel, bias = kept
    rows = range(x.ndim - contracted)
    features = range(len(rows), gradient.ndim)
    to_x = _contract(gradient, kernel, features, range(contracted, kernel.ndim))

    def apart(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return _contract(x, gradient, rows, rows)

    def joined(x: jax.Array, gradient: jax.Array) -> jax.Array:
        x, gradient = (a.reshape(-1, *a.shape[len(rows) :]) for a in (x, gradient))
        return _contract(x, gradient, range(1), range(1))

    to_kernel = jax.lax.platform_dependent(
        x, gradient, cpu=joined, cuda=joined, default=apart
    )
    to_bias = None if bias is None else jnp.sum(gradient, axis=tuple(rows))
    return to_x, to_kernel, to_bias


_product.defvjp(_forward, _backward)


def _plus(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias [N] to [..., N], where N may be several axes.

    cuBLAS adds a vector to a product while it makes it. XLA does not see that a bias of
    several axes is one.
    """

    def flat(x: jax.Array, bias: jax.Array) -> jax.Array:
        joined = x.reshape(*x.shape[: x.ndim - bias.ndim], -1)
        return (joined + bias.reshape(-1)).reshape(x.shape)

    return jax.lax.platform_dependent(x, bias, cuda=flat, default=jnp.add)


def _contract(a: jax.Array, b: jax.Array, of_a: range, of_b: range) -> jax.Array:
    """Sums the products over these axes of a and b."""
    return jax.lax.dot_general(a, b, ((tuple(of_a), tuple(of_b)), ((), ())))
