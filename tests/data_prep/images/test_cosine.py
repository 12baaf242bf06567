"""Embeddings of a high cosine are found, the same on all machines."""

import numpy as np
import pytest

from data_prep.images import cosine


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pairs(count, width, alike, seed=0):
    """`count` embeddings around 30 topics, and one more near each, at a cosine."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(30, width))
    first = unit(topics[rng.integers(0, 30, count)] + rng.normal(size=(count, width)))
    other = rng.normal(size=first.shape)
    other = unit(other - (other * first).sum(axis=1, keepdims=True) * first)
    second = unit(alike * first + np.sqrt(1 - alike**2) * other)
    return np.concatenate([first, second])


def integers(embeddings):
    return cosine.of_column(cosine.to_column(cosine.rounded(embeddings)))


def test_cosines_are_those_of_the_embeddings_and_sums_are_exact():
    found = pairs(200, 512, 0.97)
    numbers = integers(found)
    products = numbers @ numbers.T
    exact = numbers.astype(np.int64) @ numbers.astype(np.int64).T
    assert np.array_equal(products, exact)
    # In any order of summation.
    order = np.random.default_rng(1).permutation(512)
    assert np.array_equal(numbers[:, order] @ numbers[:, order].T, exact)
    assert np.abs(products / 4_000**2 - found @ found.T).max() < 1e-3


def test_sums_are_exact_at_their_largest():
    one = np.zeros((1, 4_096), np.float32)
    one[0, 0] = 1
    even = np.full((1, 4_096), 1 / 64, np.float32)
    numbers = integers(np.concatenate([one, even]))
    assert (numbers @ numbers.T).max() < 2**24


def test_other_norms_are_refused():
    for bad in (2 * np.eye(3, dtype=np.float32), np.full((2, 3), np.nan, np.float32)):
        with pytest.raises(ValueError, match="wanted embeddings of unit norm, got"):
            cosine.rounded(bad)


def test_the_best_similar_image_is_found(monkeypatch):
    """Against a comparison of each with each; blocks do not show."""
    numbers = integers(pairs(150, 32, 0.95))
    rng = np.random.default_rng(2)
    rank = rng.integers(0, 200, len(numbers))
    alike = numbers @ numbers.T >= 0.9 * 4_000**2
    alike &= rank[None, :] < rank[:, None]
    best = np.where(alike, rank[None, :], 1_000).min(axis=1)
    for rows, columns in ((512, 16_384), (7, 5), (64, 300)):
        monkeypatch.setattr(cosine, "_ROWS", rows)
        monkeypatch.setattr(cosine, "_COLUMNS", columns)
        better = cosine.better_alike(numbers, rank, least=0.9)
        assert np.array_equal(better >= 0, best < 1_000)
        assert np.array_equal(rank[better[better >= 0]], best[better >= 0])
        assert alike[np.flatnonzero(better >= 0), better[better >= 0]].all()
        others = numbers[:40]
        nearest, cosines = cosine.nearest(numbers, others, least=0.9)
        products = numbers @ others.T
        there = products.max(axis=1) >= 0.9 * 4_000**2
        assert np.array_equal(nearest >= 0, there)
        assert np.array_equal(nearest[there], products.argmax(axis=1)[there])
        wanted = np.minimum(1, products.max(axis=1)[there].astype(float) / 4_000**2)
        assert np.array_equal(cosines[there], wanted)


def test_few_images_are_all_in_one_cell():
    ids = [f"{n:024x}" for n in range(100)]
    assert not cosine.pivot_rows(ids, images=4_096).size
    cells = cosine.cells(integers(pairs(50, 16, 0.9)), np.zeros((0, 16), np.float32))
    assert cells.tolist() == [[0, -1]] * 100


def test_cells_find_most_pairs_and_compare_few():
    """Of 20,000 images, each pair of which has a cosine of 0.97."""
    count = 10_000
    numbers = integers(pairs(count, 64, 0.97))
    ids = [f"{n:024x}" for n in range(2 * count)]
    rows = cosine.pivot_rows(ids, images=2 * count)
    assert abs(len(rows) - np.sqrt(2 * count)) < 50
    cells = cosine.cells(numbers, numbers[rows])
    assert (cells[:, 0] != cells[:, 1]).all() and cells.min() == 0
    shared = (cells[:count, :, None] == cells[count:, None, :]).any(axis=(1, 2))
    assert shared.mean() > 0.97
    sizes = np.bincount(cells.ravel()).astype(float)
    assert (sizes**2).sum() < 0.1 * (2 * count) ** 2
