"""The order of records: global and by blocks, each a permutation known by position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaclip_jax.data import order

BLOCKS = order.Blocks(16, 8)


@given(
    n=st.integers(1, 700),
    size=st.integers(1, 60),
    window=st.integers(1, 20),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 5),
)
def test_an_epoch_of_blocks_holds_each_record_once(n, size, window, seed, epoch):
    blocks = order.Blocks(size, window)
    found = order.shuffle(np.arange(n), n=n, seed=seed, epoch=epoch, blocks=blocks)
    assert np.array_equal(np.sort(found), np.arange(n))


@given(n=st.integers(50, 5_000), size=st.integers(1, 60), window=st.integers(1, 20))
def test_a_window_holds_whole_blocks(n, size, window):
    """So a batch reads adjacent records of a block."""
    blocks = order.Blocks(size, window)
    found = order.shuffle(np.arange(n), n=n, seed=1, epoch=0, blocks=blocks) // size
    last_seen, first_seen = {}, {}
    for place, block in enumerate(found.tolist()):
        last_seen[block] = place
        first_seen.setdefault(block, place)
    # At any place, the blocks that are begun and not finished fit into the window.
    change = np.zeros(n + 1, int)
    for block, first in first_seen.items():
        change[first] += 1
        change[last_seen[block] + 1] -= 1
    assert np.cumsum(change).max() <= window


def test_a_part_of_an_epoch_is_that_part_of_the_whole():
    n = 1_003
    whole = order.shuffle(np.arange(n), n=n, seed=4, epoch=2, blocks=BLOCKS)
    some = np.array([1002, 0, 500, 77, 78, 500])
    part = order.shuffle(some, n=n, seed=4, epoch=2, blocks=BLOCKS)
    np.testing.assert_array_equal(part, whole[some])


def test_epochs_and_seeds_have_orders_of_their_own():
    source = order.WholeDataset(1_000, seed=0, blocks=BLOCKS)
    epochs, records = source.index(np.arange(2_000))
    assert np.array_equal(epochs, np.repeat([0, 1], 1_000))
    assert (records[:1_000] == records[1_000:]).mean() < 0.01
    other = order.WholeDataset(1_000, seed=1, blocks=BLOCKS).index(np.arange(1_000))[1]
    assert (records[:1_000] == other).mean() < 0.01


def test_a_huge_dataset_needs_no_memory():
    n = 2_500_000_001
    blocks = order.Blocks(128, 256)
    place = np.arange(n - 4_096, n)
    found = order.shuffle(place, n=n, seed=0, epoch=3, blocks=blocks)
    assert len(np.unique(found)) == 4_096
    assert 0 <= found.min() < found.max() < n
    assert len(np.unique(found // 128)) <= 256


def test_blocks_stand_anywhere_and_the_short_one_too():
    """Over many epochs, each block begins its window with an equal chance."""
    n, epochs = 10 * 16 - 5, 1_200
    source = order.WholeDataset(n, seed=0, blocks=order.Blocks(16, 1))
    first = source.index(np.arange(epochs) * n)[1] // 16
    counts = np.bincount(first, minlength=10)
    assert abs(counts - epochs / 10).max() < 4.5 * np.sqrt(epochs * 0.09)


@pytest.mark.parametrize(
    ("blocks", "wanted"),
    # Of the other 1,023 rows, those of the own block: by chance among all records;
    # among the records of a window; all of them where the batch is the window.
    [
        (None, 1_023 * 15 / (64_000 - 1)),
        (order.Blocks(16, 1_000), 1_023 * 15 / (16_000 - 1)),
        (order.Blocks(16, 64), 15.0),
    ],
)
def test_mates_of_the_own_block_are_as_many_as_chance_in_the_window(blocks, wanted):
    source = order.WholeDataset(64_000, seed=0, blocks=blocks)
    records = source.index(np.arange(16_384))[1]
    rows = records.reshape(16, 1_024)
    found = np.mean([order.mates_of_block(row, block=16) for row in rows])
    assert found == pytest.approx(wanted, rel=0.1)
