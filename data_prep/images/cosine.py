"""Finds embeddings of a high cosine, without comparing all with all.

Embeddings are rounded to integers so small that float32 sums their products without
error: whatever library multiplies them, all machines find the same images. Some of the
images, chosen by hash, are pivots. An image is compared with those that share one of
its nearest pivots; with √n pivots, n images cost about n^1.5 products.
"""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import xxhash

# A float32 holds each integer up to 2**24. No sum of some of the products of two
# rounded embeddings is larger, since their norms are about _SCALE.
_SCALE = 4_000
NEAREST = 2  # pivots of an image: near images are on two sides of a border, often
_FEW = 4_096  # images that are all compared with all
_ROWS, _COLUMNS = 512, 16_384  # products at a time


def rounded(embeddings: np.ndarray) -> np.ndarray:
    """Returns i16[n, E] for embeddings f32[n, E] of unit norm.

    Raises ValueError for another norm.
    """
    norms = np.linalg.norm(embeddings, axis=1)
    if embeddings.size and not np.abs(norms - 1).max() < 0.01:  # also of NaN
        raise ValueError(
            f"wanted embeddings of unit norm, got {norms.min():g} to {norms.max():g};"
            " divide each by its norm"
        )
    return np.rint(embeddings.astype(np.float64) * _SCALE).astype(np.int16)


def to_column(vectors: np.ndarray) -> pa.Array:
    """Returns i16[n, E] as a column of bytes."""
    little = np.ascontiguousarray(vectors, "<i2")
    return pa.array([row.tobytes() for row in little], pa.binary())


def of_column(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns f32[n, E] of integers, of a column of `to_column`."""
    rows = column.to_pylist()
    if not rows:
        return np.zeros((0, 0), np.float32)
    numbers = np.frombuffer(b"".join(rows), "<i2").reshape(len(rows), -1)
    return numbers.astype(np.float32)


def pivot_rows(image_ids: Sequence[str], *, images: int) -> np.ndarray:
    """Returns the rows of the ids that are pivots, about √n of n images in all."""
    share = 1 / math.sqrt(images) if images > _FEW else 0.0
    hashes = np.array([xxhash.xxh3_64_intdigest(i.encode()) for i in image_ids], float)
    return np.flatnonzero(hashes < share * 2.0**64)


def cells(vectors: np.ndarray, pivots: np.ndarray) -> np.ndarray:
    """Returns i32[n, NEAREST], the numbers of the nearest pivots; the first of ties.

    Args:
      vectors: f32[n, E], from `of_column`.
      pivots: f32[k, E]; with NEAREST or fewer, all images are in cell 0.
    """
    found = np.full((len(vectors), NEAREST), -1, np.int32)
    if len(pivots) <= NEAREST:
        found[:, 0] = 0
        return found
    for start in range(0, len(vectors), _ROWS):
        products = vectors[start : start + _ROWS] @ pivots.T
        rows = np.arange(len(products))
        for place in range(NEAREST):
            nearest = products.argmax(axis=1)
            found[start : start + _ROWS, place] = nearest
            products[rows, nearest] = -np.inf
    return found


def better_alike(vectors: np.ndarray, rank: np.ndarray, *, least: float) -> np.ndarray:
    """Returns i64[n]: for each image the best similar one of a better rank, or -1.

    Args:
      vectors: f32[n, E], from `of_column`.
      rank: i64[n], smaller is better. Images of equal rank are not compared.
      least: cosine of similar images.
    """
    order = np.argsort(rank, kind="stable")
    vectors, rank = vectors[order], rank[order]
    better = np.full(len(order), -1, np.int64)
    for start in range(0, len(order), _ROWS):
        own = slice(start, start + _ROWS)
        for first in range(0, min(start + _ROWS, len(order)), _COLUMNS):
            others = slice(first, min(first + _COLUMNS, start + _ROWS))
            alike = vectors[own] @ vectors[others].T >= least * _SCALE**2
            alike &= rank[others] < rank[own][:, None]
            new = np.flatnonzero(alike.any(axis=1) & (better[order[own]] < 0))
            better[order[own][new]] = order[others][alike[new].argmax(axis=1)]
    return better


def nearest(
    vectors: np.ndarray, others: np.ndarray, *, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns i64[n], the nearest of `others`, or -1; and f64[n], their cosines.

    All are compared with all.

    Args:
      vectors: f32[n, E], from `of_column`.
      others: f32[m, E].
      least: cosine of similar images.
    """
    best = np.full(len(vectors), -1, np.int64)
    most = np.full(len(vectors), np.ceil(least * _SCALE**2) - 1, np.float32)
    for start in range(0, len(vectors), _ROWS):
        own = slice(start, start + _ROWS)
        for first in range(0, len(others), _COLUMNS):
            products = vectors[own] @ others[first : first + _COLUMNS].T
            at = products.argmax(axis=1)
            largest = products[np.arange(len(products)), at]
            new = largest > most[own]
            best[own][new], most[own][new] = first + at[new], largest[new]
    return best, np.minimum(1.0, most.astype(np.float64) / _SCALE**2)
