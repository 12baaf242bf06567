"""Mixtures: shares that hold at every position, and each dataset in its own order."""

import shutil

import numpy as np
import pytest

from metaclip_jax.data import mixture
from metaclip_jax.training import run_config

SHARES = mixture.shares([5, 3, 1.7])


def test_each_dataset_is_passed_through_without_gaps():
    positions = np.arange(5 * mixture.CYCLE + 1_000)
    which, own = mixture.deal(positions, shares=SHARES, seed=3)
    for dataset in range(3):
        seen = np.sort(own[which == dataset])
        # Within a cycle, in any order; so the last cycle may have holes.
        whole = seen[: int(4 * mixture.CYCLE * SHARES[dataset])]
        np.testing.assert_array_equal(whole, np.arange(len(whole)))
        assert len(np.unique(seen)) == len(seen)


def test_shares_hold_to_one_position_after_every_cycle():
    for cycles in (1, 7, 10**7):
        position = cycles * mixture.CYCLE
        seen = mixture.examples_seen(position, shares=SHARES, seed=3)
        assert seen.sum() == position
        assert np.abs(seen - np.array(SHARES) * position).max() < 1.001


def test_each_position_has_each_dataset_with_the_chance_of_its_share():
    """Over seeds, at positions that have nothing else in common."""
    shares = mixture.shares([0.7, 0.2, 0.1])
    counts, rounds = np.zeros((2, 3)), 1_200
    for seed in range(rounds):
        which = mixture.deal(np.array([17, 10**9 + 5]), shares=shares, seed=seed)[0]
        counts[np.arange(2), which] += 1
    sigma = np.sqrt(rounds * np.array(shares) * (1 - np.array(shares)))
    assert (np.abs(counts - rounds * np.array(shares)) < 4 * sigma).all()


def test_what_was_seen_is_what_was_dealt():
    positions = np.arange(2 * mixture.CYCLE + 100)
    which = mixture.deal(positions, shares=SHARES, seed=8)[0]
    for position in (0, 1, 4_096, 5_000, 8_292):
        found = mixture.examples_seen(position, shares=SHARES, seed=8)
        np.testing.assert_array_equal(found, np.bincount(which[:position], minlength=3))


def test_a_position_says_everything():
    positions = np.arange(10_000)
    which, own = mixture.deal(positions, shares=SHARES, seed=1)
    some = np.array([9_999, 0, 5_000])
    found = mixture.deal(some, shares=SHARES, seed=1)
    np.testing.assert_array_equal(found, [which[some], own[some]])
    other = mixture.deal(positions, shares=SHARES, seed=2)[0]
    assert (which != other).mean() > 0.3


def test_one_dataset_is_its_own_order():
    which, own = mixture.deal(np.arange(9), shares=(1.0,), seed=0)
    assert not which.any() and np.array_equal(own, np.arange(9))


def test_what_does_not_fit_together_is_refused():
    assert mixture.members("a", ()) == (("a",), (1.0,))
    assert mixture.members("", (("a", 1), ("b", 3))) == (("a", "b"), (1.0, 3.0))
    with pytest.raises(ValueError, match="wanted a dataset to train on"):
        mixture.members("", ())
    with pytest.raises(ValueError, match="are both given; empty one"):
        mixture.members("a", (("b", 1.0),))
    with pytest.raises(ValueError, match="names a folder twice"):
        mixture.members("", (("b", 1.0), ("b", 2.0)))
    with pytest.raises(ValueError, match=r"weights above 0, got \[1.0, 0.0\]"):
        mixture.members("", (("a", 1.0), ("b", 0.0)))
    with pytest.raises(ValueError, match="the least share is 0.00049"):
        mixture.members("", (("a", 10_000.0), ("b", 1.0)))


def test_datasets_may_move_but_not_change_weight(tmp_path, write_dataset):
    one, other = (
        write_dataset(tmp_path / name, record_count=count)
        for name, count in (("one", 4), ("other", 6))
    )
    want = mixture.fingerprint([one, other], [3.0, 1.0])
    shutil.copytree(one, tmp_path / "moved")
    assert mixture.fingerprint([str(tmp_path / "moved"), other], [3.0, 1.0]) == want
    assert mixture.fingerprint([one, other], [3.0, 2.0]) != want
    assert mixture.fingerprint([other, one], [3.0, 1.0]) != want
    # A run may name the folders anew; the fingerprint says whether they are the same.
    assert {"dataset", "data.mixture"} <= set(run_config.FREE_KEYS)
    assert mixture.fingerprint([one], [1.0]) == mixture.fingerprint([one], [7.0])
