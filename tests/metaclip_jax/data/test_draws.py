"""Draws of the loader: equal keys give equal draws, and these look random."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaclip_jax.data import draws


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation_holds_each_number_once(n, key):
    keys = np.full(n, key, np.uint64)
    assert sorted(draws.permute(np.arange(n), n=n, key=keys)) == list(range(n))


@pytest.mark.parametrize("n", [2**31 + 1, 2_500_000_000, 80_000_000_000])
def test_a_permutation_of_billions_stays_in_range_without_repeats(n):
    index = np.arange(n - 100_000, n)
    found = draws.permute(index, n=n, key=draws.mix(3, np.zeros_like(index)))
    assert found.min() >= 0
    assert found.max() < n
    assert len(np.unique(found)) == len(index)


def test_a_permutation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1 element"):
        draws.permute(np.arange(0), n=0, key=np.zeros(0, np.uint64))


def test_a_permutation_leaves_no_neighbours_together():
    n = 10_000
    found = draws.permute(np.arange(n), n=n, key=draws.mix(0, np.zeros(n, np.int64)))
    # Two random numbers below n are within 10 with chance 21 / n: about 20 pairs.
    assert (np.abs(np.diff(found)) <= 10).sum() < 50
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 0.05


def test_every_key_and_its_place_count():
    keys = list(itertools.permutations([0, 1, 2, -1]))
    assert len({int(draws.mix(*key)) for key in keys}) == len(keys)
    assert int(draws.mix(1)) != int(draws.mix(1, 0))


def test_arrays_and_integers_mix_alike():
    many = draws.mix(7, np.arange(5), 2)
    assert [int(draws.mix(7, n, 2)) for n in range(5)] == many.tolist()


def test_draws_are_uniform_and_below_one():
    found = draws.uniform(draws.mix(0, np.arange(100_000)))
    counts = np.histogram(found, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 10_000).max() < 4 * np.sqrt(9_000)
    assert draws.uniform(np.array([2**64 - 1], np.uint64))[0] < 1


def test_a_draw_below_n_never_is_n():
    bits = np.array([0, 2**63, 2**64 - 1], np.uint64)
    for n in (1, 2, 3, 2**53):
        found = draws.below(n, bits)
        assert found[0] == 0
        assert found[-1] == n - 1


def test_a_stream_repeats_for_its_key_and_is_uniform():
    one = list(itertools.islice(draws.stream(5), 20_000))
    assert one == list(itertools.islice(draws.stream(5), 20_000))
    assert one[:5] != list(itertools.islice(draws.stream(6), 5))
    assert abs(np.mean(one) - 0.5) < 4 / np.sqrt(12 * 20_000)
    assert 0 <= min(one) <= max(one) < 1
