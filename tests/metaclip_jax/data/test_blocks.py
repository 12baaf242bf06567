"""Reads of the `blocks` order: hosts and workers read what they need, in few runs."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaclip_jax import config
from metaclip_jax.data import blocks, mixture, order, records

RECORDS, SHARDS, BATCH = 1_000_000, 50, 32_768
DATA = config.default().data
SHAPE = order.Blocks(DATA.block_records, DATA.window_blocks)


def near(step, sources, shares=(1.0,)):
    """The positions of a global batch as its hosts take them."""
    positions = step * BATCH + np.arange(BATCH)
    members, own = mixture.deal(positions, shares=shares, seed=0)
    found = blocks.neighbours(positions, members=members, own=own, sources=sources)
    np.testing.assert_array_equal(np.sort(found), positions)
    return found


@pytest.mark.parametrize("hosts", [1, 4, 16, 64])
def test_a_host_reads_its_records_once_and_in_large_runs(hosts):
    """Whatever worker makes a batch: nothing is kept from one to the next."""
    source = order.WholeDataset(RECORDS, seed=0, blocks=SHAPE)
    count, passed_over = 0, 0
    for step in (3, 20, 31):  # batches that begin inside a window, and an epoch's end
        epochs, index = source.index(near(step, [source]))
        for host in range(hosts):
            mine = slice(BATCH * host // hosts, BATCH * (host + 1) // hosts)
            wanted = np.sort(source.records(epochs[mine], index[mine]))
            found = blocks.runs(np.unique(wanted), [RECORDS // SHARDS] * SHARDS)
            np.testing.assert_array_equal(np.concatenate(found), np.unique(wanted))
            # To open a file is a request, too; of many files most are opened anew.
            count += len(found) + len({run[0] * SHARDS // RECORDS for run in found})
            passed_over += sum(run[-1] - run[0] + 1 - len(run) for run in found)
    assert count / (3 * BATCH) <= 1 / 50  # requests an example; single records: 1 to 2
    assert passed_over / (3 * BATCH) < 0.5


def test_every_host_has_the_same_share_of_each_dataset():
    sources = [order.WholeDataset(n, seed=0, blocks=SHAPE) for n in (100_000, 30_000)]
    shares = (0.7, 0.3)
    found = near(5, sources, shares)
    for rows in found.reshape(16, -1):
        members, own = mixture.deal(rows, shares=shares, seed=0)
        assert abs((members == 1).mean() - 0.3) < 4 * np.sqrt(0.21 / len(rows))
        for member, source in enumerate(sources):
            epochs, index = source.index(own[members == member])
            assert (np.diff(epochs * 100_000 + index) > 0).all()


@given(
    numbers=st.sets(st.integers(0, 99), min_size=1),
    lengths=st.lists(st.integers(0, 60), max_size=8),
)
def test_runs_hold_all_and_stay_in_their_file(numbers, lengths):
    lengths = [*lengths, 100]
    ascending = np.array(sorted(numbers))
    found = blocks.runs(ascending, lengths)
    assert np.concatenate(found).tolist() == ascending.tolist()
    ends = np.cumsum(lengths)
    for run in found:
        assert len(run)
        assert len(np.unique(np.searchsorted(ends, run, side="right"))) == 1


def test_records_come_in_the_order_asked_for_and_may_repeat(tmp_path, write_dataset):
    dataset = records.open_dataset(write_dataset(tmp_path, record_count=40))
    wanted = np.array([39, 3, 3, 20, 0, 19, 21])
    reader = pickle.loads(pickle.dumps(blocks.BlockReader(dataset)))
    assert reader.read(wanted) == records.read(dataset, wanted)
    assert reader.read(wanted[:0]) == []
