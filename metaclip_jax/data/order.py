"""The endless seeded order of records that batches are cut from.

The record of a position is computed from the position: nothing is shuffled in memory,
so a restart needs only the step. Each epoch is a permutation of its records, either of
all at once (`global`) or block by block: whole blocks of consecutive records change
places, then records are shuffled inside a window of blocks, so that a batch takes many
records of few blocks.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from metaclip_jax.data import draws

# Draws inside an epoch's order of blocks, after its key.
_SLOT, _BLOCK, _WINDOW = range(3)


@dataclass(frozen=True)
class Blocks:
    """The shape of the `blocks` order."""

    block_records: int  # consecutive records, which stay in one window
    window_blocks: int  # blocks that are shuffled together

    def __post_init__(self) -> None:
        if self.block_records < 1 or self.window_blocks < 1:
            raise ValueError(
                "data.block_records and data.window_blocks: wanted at least 1, got"
                f" {self.block_records} and {self.window_blocks}"
            )


class Source(Protocol):
    """An endless pass over a dataset; data/online.py has one that thins each epoch."""

    def index(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (epoch, index into the records of that epoch), int64 each."""

    def records(
        self, epochs: NDArray[np.int64], index: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Returns int64, the dataset's record of each index; ascending with it."""

    def size(self, epoch: int) -> int:
        """Returns how many records an epoch has."""

    def progress(self, position: int) -> float:
        """Returns how many epochs, with a fraction, are before a position."""


class WholeDataset:
    """A source in which each epoch holds every record."""

    def __init__(self, count: int, *, seed: int, blocks: Blocks | None = None) -> None:
        self._count, self._seed, self._blocks = count, seed, blocks

    def index(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (epoch, record) of positions, int64 each."""
        epochs, place = np.divmod(positions, self._count)
        index = np.empty_like(place)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            index[here] = shuffle(
                place[here],
                n=self._count,
                seed=self._seed,
                epoch=epoch,
                blocks=self._blocks,
            )
        return epochs, index

    def records(
        self, epochs: NDArray[np.int64], index: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Returns the index: it is the record."""
        del epochs
        return index

    def size(self, epoch: int) -> int:
        """Returns the number of records."""
        del epoch
        return self._count

    def progress(self, position: int) -> float:
        """Returns how many epochs, with a fraction, are before a position."""
        return position / self._count


def shuffle(
    place: NDArray[np.int64],
    *,
    n: int,
    seed: int,
    epoch: int,
    blocks: Blocks | None = None,
) -> NDArray[np.int64]:
    """Returns int64, which of the n records of an epoch is at each place in it.

    Memory does not grow with n. Without `blocks` any record may be at any place.
    """
    key = draws.mix(seed, draws.ORDER, epoch)
    if blocks is None:
        return draws.permute(place, n=n, key=np.full(place.shape, key, np.uint64))
    size, window = blocks.block_records, blocks.window_blocks
    count = -(-n // size)
    last = n - (count - 1) * size  # records of the last block, which may be short
    missing = size - last
    # The last block's slot is drawn separately, so that all others have the same size.
    slot_of_last = int(draws.below(count, draws.mix(key, _SLOT)))
    window_of_last = slot_of_last // window

    def as_if_full(place: NDArray[np.int64]) -> NDArray[np.int64]:
        return place + missing * (place >= slot_of_last * size + last)

    number = as_if_full(place) // (size * window)
    first = number * size * window - missing * (number > window_of_last)
    end = (number + 1) * size * window - missing * (number >= window_of_last)
    length = np.minimum(end, n) - first
    inside = place - first
    window_key = draws.mix(key, _WINDOW, number)
    for m in np.unique(length).tolist():  # at most three
        here = length == m
        inside[here] = draws.permute(inside[here], n=m, key=window_key[here])
    slot, offset = np.divmod(as_if_full(first + inside), size)
    block = np.full(slot.shape, count - 1, np.int64)
    others = slot != slot_of_last
    if others.any():
        block[others] = draws.permute(
            slot[others] - (slot[others] > slot_of_last),
            n=count - 1,
            key=np.full(others.sum(), draws.mix(key, _BLOCK), np.uint64),
        )
    return block * size + offset


def mates_of_block(numbers: NDArray[np.int64], *, block: int) -> float:
    """Returns how many rows of a batch come from a row's own block, on average.

    `numbers` int64[B] are the batch's records, `block` the records of a block. With
    (block - 1) * (B - 1) / (n - 1) it is what chance gives among n records.
    """
    counts = np.unique(numbers // block, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / max(numbers.size, 1))
