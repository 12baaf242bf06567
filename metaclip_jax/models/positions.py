"""Position embeddings: adding them, and resizing them for another image size.

Two interpolation conventions are in use, and a model fine-tuned with one loses a little
accuracy with the other. "open_clip" is bicubic with antialiasing, and pixel centres are
half a pixel from the edge (align_corners=False). "metaclip" is MetaCLIP's trainer's:
bicubic without antialiasing, with the grids' corners aligned (align_corners=True).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

CONVENTIONS = ("open_clip", "metaclip")
# The bicubic kernel's `a` in torch without antialiasing. With antialiasing, torch and
# JAX use -0.5.
_CUBIC_A = -0.75


@jax.custom_vjp
def add(x: jax.Array, table: jax.Array) -> jax.Array:
    """Adds a table [T, D] to every row of x [B, T, D]."""
    return x + table


def _forward(
    x: jax.Array, table: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # The backward pass needs only the dtypes.
    return add(x, table), (jnp.zeros(0, x.dtype), jnp.zeros(0, table.dtype))


def _backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of x and of the table.

    The table's gradient is the sum over the batch. For a reduction, XLA on GPUs puts
    the batch axis last; in unrolled blocks that layout spreads to the residual stream,
    and each matmul then needs a transposed copy. So GPUs compute the sum as a matmul,
    in TF32 unless JAX's default precision says otherwise.
    """

    def by_sum(gradient: jax.Array) -> jax.Array:
        return jnp.sum(gradient, axis=0, dtype=jnp.float32)

    def by_matmul(gradient: jax.Array) -> jax.Array:
        rows = gradient.reshape(len(gradient), -1)
        ones = jnp.ones((1, len(rows)), rows.dtype)
        total = jnp.dot(ones, rows, preferred_element_type=jnp.float32)
        return total.reshape(gradient.shape[1:])

    x, table = residuals
    total = jax.lax.platform_dependent(gradient, cuda=by_matmul, default=by_sum)
    return gradient.astype(x.dtype), total.astype(table.dtype)


add.defvjp(_forward, _backward)


def resize(table: np.ndarray, *, patches: int, convention: str) -> np.ndarray:
    """Resizes a table of position embeddings to another square grid of patches.

    Args:
      table: f32[N, D]. N is a square, or a square + 1 with the class token's row first.
      patches: the number of patches in the new grid, a square.
      convention: one of CONVENTIONS.

    Returns:
      f32[patches, D], or f32[patches + 1, D] if `table` has a class token's row.

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
    """Returns the interpolation matrix f64[after, before]; edge points are repeated."""
    weights = np.zeros((after, before))
    for new in range(after):
        source = new * (before - 1) / max(after - 1, 1)
        left = math.floor(source)
        for old in range(left - 1, left + 3):
            weights[new, min(max(old, 0), before - 1)] += _cubic(abs(source - old))
    return weights


def _cubic(distance: float) -> float:
    """Returns the value of Keys' cubic convolution kernel."""
    a, x = _CUBIC_A, distance
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0
