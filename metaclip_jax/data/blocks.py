"""Reads records for the `blocks` order: few large requests, as suits gs://.

The rows of a global batch are sorted by record, so that those of a host lie in few
blocks. Records that are close together are read as one run: from gs:// a run is one
request instead of hundreds, which also skips the few records between them.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from metaclip_jax import files
from metaclip_jax.data import order, records

_FETCHES = 16  # at a time, in each process
_GAP = 8  # records: passing over fewer costs less than another request


def neighbours(
    positions: NDArray[np.int64],
    *,
    members: NDArray[np.int64],
    own: NDArray[np.int64],
    sources: Sequence[order.Source],
) -> NDArray[np.int64]:
    """Returns the positions of a global batch, sorted by record within each dataset.

    The rows of each dataset stay the same rows of the batch, so that hosts have equal
    shares of each dataset.

    Args:
      positions: int64[B], of the global batch.
      members, own: int64[B] each, what `mixture.deal` says of them.
      sources: of all datasets.
    """
    result = positions.copy()
    for member, source in enumerate(sources):
        here = np.flatnonzero(members == member)
        epochs, index = source.index(own[here])
        result[here] = positions[here][np.lexsort((index, epochs))]
    return result


def runs(
    numbers: NDArray[np.int64], shard_lengths: Sequence[int]
) -> list[NDArray[np.int64]]:
    """Splits ascending record numbers into runs, each read by one request.

    The records of a run are close together in one file shard.
    """
    shard = np.searchsorted(np.cumsum(shard_lengths), numbers, side="right")
    apart = (np.diff(numbers) > _GAP) | (np.diff(shard) > 0)
    return np.split(numbers, np.flatnonzero(apart) + 1) if numbers.size else []


class BlockReader:
    """Reads records that are close together in a dataset. Threads may share it."""

    def __init__(self, dataset: records.Dataset) -> None:
        self._dataset = dataset
        self._pool = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")

    def __reduce__(self) -> tuple[type, tuple[records.Dataset]]:
        return BlockReader, (self._dataset,)  # a copy in another process has its own

    def read(self, numbers: NDArray[np.int64]) -> list[bytes]:
        """Returns the records of int64[n] numbers, in their order."""
        ascending, places = np.unique(numbers, return_inverse=True)
        if files.is_local(self._dataset.folder):
            found = records.read(self._dataset, ascending)
        else:
            parts = runs(ascending, self._dataset.shard_lengths)
            fetched = self._pool.map(
                lambda part: records.read(self._dataset, part, ahead=True), parts
            )
            found = [data for part in fetched for data in part]
        return [found[place] for place in places.tolist()]
