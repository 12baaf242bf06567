"""Similar fingerprints are found as by comparing all with all."""

import numpy as np
import pyarrow as pa
import pytest

from data_prep.images import similarity

BITS = 32


def flipped(rng, prints, most):
    """Fingerprints u8[n, 32] that differ from others in 0 to `most` bits."""
    bits = np.unpackbits(prints, axis=1)
    for row in bits:
        row[rng.choice(256, rng.integers(0, most + 1), replace=False)] ^= 1
    return np.packbits(bits, axis=1)


def column(prints):
    return pa.array([row.tobytes() for row in prints], pa.binary())


def distances(a, b):
    return np.bitwise_count(a[:, None] ^ b[None]).sum(-1, dtype=int)


@pytest.fixture(scope="module")
def prints():
    """300 pictures in up to 4 versions, in any order."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    copies = flipped(rng, base[rng.integers(0, 300, 600)], 24)
    return rng.permutation(np.concatenate([base, copies]))


def test_each_picture_gets_the_best_of_those_that_are_similar(prints):
    rank = np.random.default_rng(1).permutation(len(prints))
    found = similarity.Fingerprints.of(column(prints))
    best = np.full(len(prints), -1)
    for band in range(similarity.BANDS):
        better = similarity.better_like(found, rank, band=band, most_bits=BITS)
        for i in np.flatnonzero(better >= 0):
            if best[i] < 0 or rank[better[i]] < rank[best[i]]:
                best[i] = better[i]
    near = distances(prints, prints) <= BITS
    near &= rank[None] < rank[:, None]
    wanted = np.where(
        near.any(1), np.where(near, rank[None], len(prints)).argmin(1), -1
    )
    assert (wanted >= 0).sum() > 300
    # Pairs that agree in no band are missed.
    assert (best == wanted).mean() > 0.99
    assert not ((best >= 0) & (wanted < 0)).any()


def test_full_buckets_are_split_and_lose_little(prints, monkeypatch):
    rank = np.arange(len(prints))
    found = similarity.Fingerprints.of(column(prints))
    one_band = found.bands.copy()
    one_band[:, 0] = 7
    crowded = similarity.Fingerprints(found.words, one_band)
    whole = similarity.better_like(crowded, rank, band=0, most_bits=BITS)
    monkeypatch.setattr(similarity, "_MOST_IN_BUCKET", 100)
    split = similarity.better_like(crowded, rank, band=0, most_bits=BITS)
    # Two that differ in few bits often agree in the next band, too.
    assert ((split >= 0) <= (whole >= 0)).all()
    assert (split >= 0).sum() > 0.5 * (whole >= 0).sum() > 100


def test_pictures_of_equal_bytes_have_one_rank_and_larger_ones_a_better():
    ids = ["d", "a", "c", "b", "e"]
    digests = ["x", "y", "x", "z", "y"]
    rank = similarity.ranks(ids, digests, np.array([9, 9, 9, 10, 9]))
    # b is the largest; then a with e (y), whose least id is a; then c with d (x).
    assert rank.tolist() == [2, 1, 2, 0, 1]


def test_pictures_of_equal_rank_are_not_compared():
    same = similarity.Fingerprints.of(column(np.ones((3, 32), np.uint8)))
    better = similarity.better_like(same, np.array([0, 0, 1]), band=0, most_bits=0)
    assert better.tolist() == [-1, -1, 0]


def test_the_index_finds_the_nearest_and_of_equally_near_ones_the_first(prints):
    known, queries = prints[:600], prints[300:]
    index = similarity.Index(similarity.Fingerprints.of(column(known)))
    found, bits = index.nearest(
        similarity.Fingerprints.of(column(queries)), most_bits=BITS
    )
    grid = distances(queries, known)
    wanted = np.where(grid.min(1) <= BITS, grid.argmin(1), -1)
    assert (found == wanted).mean() > 0.99
    hit = found >= 0
    assert (bits[hit] == grid[hit, found[hit]]).all()


def test_nothing_is_like_nothing():
    none = similarity.Fingerprints.of(pa.array([], pa.binary()))
    assert not similarity.better_like(none, np.zeros(0, int), band=0, most_bits=9).size
    assert similarity.ranks([], [], np.zeros(0)).size == 0
    found, _ = similarity.Index(none).nearest(none, most_bits=9)
    assert not found.size
