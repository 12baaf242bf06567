"""Tables of positions: added to a batch, and interpolated for another image size.

There are two conventions of interpolation, and a model fine-tuned with one loses a
little with the other. "open_clip" is bicubic with antialiasing, pixel centres half a
pixel in from the edge. "metaclip" is what MetaCLIP's trainer does: bicubic without
antialiasing, the corners of both grids on each other.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

CONVENTIONS = ("open_clip", "metaclip")
_SHARPNESS = -0.75  # of torch's bicubic without antialiasing; with it, and here, -0.5


@jax.custom_vjp
def add(x: jax.Array, table: jax.Array) -> jax.Array:
    """Adds a table [T, D] to each of [B, T, D]."""
    return x + table


def _forward(
    x: jax.Array, table: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Of both only the dtype is wanted.
    return add(x, table), (jnp.zeros(0, x.dtype), jnp.zeros(0, table.dtype))


def _backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of x and of the table.

    The table's is the sum over the batch. To make it, XLA lays the array out on GPUs
    with the batch's axis last and, where blocks are unrolled, so all that it is added
    to on its way through them, with a transposed copy for each product. So there it is
    a product, by TF32 unless JAX is told otherwise.
    """

    def plainly(gradient: jax.Array) -> jax.Array:
        return jnp.sum(gradient, axis=0, dtype=jnp.float32)

    def by_product(gradient: jax.Array) -> jax.Array:
        rows = gradient.reshape(len(gradient), -1)
        ones = jnp.ones((1, len(rows)), rows.dtype)
        total = jnp.dot(ones, rows, preferred_element_type=jnp.float32)
        return total.reshape(gradient.shape[1:])

    x, table = kept
    total = jax.lax.platform_dependent(gradient, cuda=by_product, default=plainly)
    return gradient.astype(x.dtype), total.astype(table.dtype)


add.defvjp(_forward, _backward)


def resize(table: np.ndarray, *, patches: int, convention: str) -> np.ndarray:
    """Returns f32[patches, D], or one row more where `table` has a class token's.

    Args:
      table: f32[N, D], N a square number or one more: the class token's row, first.
      patches: of the new grid, a square number.
      convention: one of CONVENTIONS.

    Raises:
      ValueError: the convention is unknown.
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"position_resize must be one of {CONVENTIONS}, got {convention!r}"
        )
    before = math.isqrt(len(table))
    first, rows = np.split(np.asarray(table, np.float32), [len(table) - before**2])
    after = math.isqrt(patches)
    if before == after:
        return np.asarray(table, np.float32)
    grid = rows.reshape(before, before, -1)
    if convention == "open_clip":
        new = jax.image.resize(
            jnp.asarray(grid), (after, after, grid.shape[2]), "cubic", antialias=True
        )
    else:
        weights = _aligned_weights(before, after)
        new = np.einsum("ai,bj,ijd->abd", weights, weights, grid)
    return np.concatenate([first, np.asarray(new, np.float32).reshape(patches, -1)])


def _aligned_weights(before: int, after: int) -> np.ndarray:
    """f64[after, before]: what each new point takes of each old one; edges repeat."""
    weights = np.zeros((after, before))
    for new in range(after):
        place = new * (before - 1) / max(after - 1, 1)
        left = math.floor(place)
        for old in range(left - 1, left + 3):
            weights[new, min(max(old, 0), before - 1)] += _cubic(abs(place - old))
    return weights


def _cubic(distance: float) -> float:
    """Keys' cubic convolution kernel."""
    a, x = _SHARPNESS, distance
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0
