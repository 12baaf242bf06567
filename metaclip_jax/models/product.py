"""The matrix product of the layers, and its gradients."""

import functools
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

NAME = "product"  # of its results, in remat policies


def product(
    x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any
) -> jax.Array:
    """Multiplies [..., K] by a kernel [K, N], as `jax.lax.dot_general` does.

    K and N may be several axes each, `dimensions` says which are multiplied. `options`
    are those that Flax passes; all must be None, which are the defaults.
    """
    (contracted, _), _ = dimensions
    if given := {key: value for key, value in options.items() if value is not None}:
        raise ValueError(f"want no options of the product, got {given}")
    return checkpoint_name(_product(len(contracted), x, kernel), NAME)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(contracted: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _contract(x, kernel, range(x.ndim - contracted, x.ndim), range(contracted))


def _forward(
    contracted: int, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(contracted, x, kernel), (x, kernel)


def _backward(
    contracted: int, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of x and of the kernel.

    The kernel's sums over all rows of the batch. With several axes of rows, XLA's CPU
    compiler transposes x in memory, on one thread, which takes about a tenth of a
    train step; so they are joined there. On TPUs it is joining them that copies.
    """
    x, kernel = kept
    rows = range(x.ndim - contracted)
    features = range(len(rows), gradient.ndim)
    to_x = _contract(gradient, kernel, features, range(contracted, kernel.ndim))

    def apart(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return _contract(x, gradient, rows, rows)

    def joined(x: jax.Array, gradient: jax.Array) -> jax.Array:
        x, gradient = (a.reshape(-1, *a.shape[len(rows) :]) for a in (x, gradient))
        return _contract(x, gradient, range(1), range(1))

    return to_x, jax.lax.platform_dependent(x, gradient, cpu=joined, default=apart)


_product.defvjp(_forward, _backward)


def _contract(a: jax.Array, b: jax.Array, of_a: range, of_b: range) -> jax.Array:
    """Sums the products over these axes of a and b."""
    return jax.lax.dot_general(a, b, ((tuple(of_a), tuple(of_b)), ((), ())))
