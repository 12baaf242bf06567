"""Reads a dataset block by block, for the `blocks` order.

A block is fetched whole, once while its window lasts, and its records wait in memory
until the batches have taken them: from gs:// one large request instead of hundreds.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaclip_jax.data import order, records

_FETCHES = 16  # at a time, in each process


class BlockReader:
    """Reads records of a source through its blocks. Threads may share it.

    Memory: `blocks.window` blocks of records as they are stored, and as many again
    while the batches pass from one window to the next.
    """

    def __init__(
        self, dataset: records.Dataset, source: order.Source, blocks: order.Blocks
    ) -> None:
        self._dataset, self._source, self._blocks = dataset, source, blocks
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[int, int], Future[list[bytes]]] = OrderedDict()
        self._pool = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")

    def __getstate__(self) -> dict[str, Any]:
        own = ("_lock", "_held", "_pool")
        return {k: v for k, v in self.__dict__.items() if k not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def read(self, epochs: NDArray[np.int64], index: NDArray[np.int64]) -> list[bytes]:
        """Returns the records that a source's `index` named, in their order."""
        numbers = index // self._blocks.records
        wanted = sorted(set(zip(epochs.tolist(), numbers.tolist(), strict=True)))
        with self._lock:
            futures = {key: self._request(key) for key in wanted}
            while len(self._held) > max(2 * self._blocks.window, len(wanted)):
                self._held.popitem(last=False)
        fetched = {key: future.result() for key, future in futures.items()}
        places = zip(
            epochs.tolist(),
            numbers.tolist(),
            (index % self._blocks.records).tolist(),
            strict=True,
        )
        return [fetched[epoch, block][place] for epoch, block, place in places]

    def _request(self, key: tuple[int, int]) -> "Future[list[bytes]]":
        """The records of a block, fetched or under way."""
        if key not in self._held or _failed(self._held[key]):
            self._held[key] = self._pool.submit(self._fetch, *key)
        self._held.move_to_end(key)
        return self._held[key]

    def _fetch(self, epoch: int, block: int) -> list[bytes]:
        size = self._blocks.records
        end = min((block + 1) * size, self._source.size(epoch))
        index = np.arange(block * size, end)
        numbers = self._source.records(np.full_like(index, epoch), index)
        return records.read(self._dataset, numbers, ahead=True)


def _failed(future: "Future[list[bytes]]") -> bool:
    return future.done() and future.exception() is not None
