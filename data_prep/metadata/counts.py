"""Counts of strings that go to disk where they do not fit the memory.

A run is a file of sorted counts, cut at the same keys in every run; so the sums of a
range of keys need one piece of each run.
"""

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

_ROWS = pa.schema([("key", pa.string()), ("count", pa.int64())])
_KEY_BYTES = 150  # of a key in a Counter: the string, its number, its place
_RUN_KEYS = 1 << 19
_RANGES = 256
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")


class Spill:
    """The folder to which counters go when all together exceed a memory budget."""

    def __init__(self, folder: Path, max_bytes: float) -> None:
        self._folder = folder
        self._most = max(1, int(max_bytes / _KEY_BYTES))
        self._runs: dict[str, list[Path]] = {}
        self._edges: dict[str, list[str]] = {}  # the keys at which runs are cut

    def relieve(self, counters: Mapping[str, Counter[str]]) -> None:
        """Writes counters to disk and clears them, if they are too large together."""
        if sum(map(len, counters.values())) > self._most:
            for name, counter in counters.items():
                self._write(name, counter)

    def sums(self, name: str, counter: Counter[str], least: int) -> Iterator[pa.Table]:
        """Yields `key` and `count` of all keys with `least` or more, and clears."""
        if name not in self._runs:
            yield from tables(counter, least)
            counter.clear()
            return
        self._write(name, counter)
        for i in range(len(self._edges[name]) + 1):
            batches = []
            for path in self._runs[name]:
                with pa.memory_map(str(path)) as file:
                    batches.append(pa.ipc.open_file(file).get_batch(i))
            table = pa.Table.from_batches(batches, _ROWS)
            table = table.group_by("key", use_threads=False).aggregate(
                [("count", "sum")]
            )
            yield _at_least(table.rename_columns(_ROWS.names), least)

    def _write(self, name: str, counter: Counter[str]) -> None:
        runs = self._runs.setdefault(name, []) if counter else []
        for batch in _batches(counter):
            run = batch.sort_by("key")
            keys, n = run["key"], run.num_rows
            if name not in self._edges:
                found = (keys[n * i // _RANGES].as_py() for i in range(1, _RANGES))
                self._edges[name] = sorted(set(found))
            cuts = [
                bisect.bisect_left(range(n), edge, key=lambda i: keys[i].as_py())
                for edge in self._edges[name]
            ]
            path = self._folder / f"{name}-{len(runs)}.arrow"
            with pa.ipc.new_file(path, _ROWS, options=_COMPRESSED) as writer:
                for start, stop in itertools.pairwise([0, *cuts, n]):
                    writer.write_batch(run.slice(start, stop - start))
            runs.append(path)
        counter.clear()


def tables(counter: Counter[str], least: int) -> Iterator[pa.Table]:
    """Yields `key` and `count` of the keys of a counter with `least` or more."""
    yield _ROWS.empty_table()
    for batch in _batches(counter):
        yield _at_least(pa.Table.from_batches([batch]), least)


def _batches(counter: Counter[str]) -> Iterator[pa.RecordBatch]:
    keys, numbers = iter(counter.keys()), iter(counter.values())
    while some := list(itertools.islice(keys, _RUN_KEYS)):
        columns = some, list(itertools.islice(numbers, _RUN_KEYS))
        arrays = [pa.array(c, f.type) for c, f in zip(columns, _ROWS, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=_ROWS)


def _at_least(table: pa.Table, least: int) -> pa.Table:
    return table.filter(pc.greater_equal(table["count"], least))
