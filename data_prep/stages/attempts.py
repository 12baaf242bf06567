"""Sources and partitions that fail on their own data are tried three times.

What fails three times is lost, and counted with its reason; everything else is
finished. The command then ends with an error that lists what failed.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from absl import logging

from data_prep import drops
from metaclip_jax import files

Tagged = beam.pvalue.TaggedOutput
_TRIES = 3
# So many sources after each other do not fail on their own data: the storage is out of
# reach, or the program is wrong.
_MOST_IN_A_ROW = 10


def thrice(name: str, work: Callable[[], Iterable | None]) -> Iterator:
    """Yields what `work()` yields, or after three failures a row of "flow" for it.

    Args:
      name: of the partition, and of what is made of it.
      work: may be called again after an error.

    Raises errors of the storage at once: they are not of a partition's own data.
    """
    for left in reversed(range(_TRIES)):
        try:
            found = list(work() or ())
        except Exception as error:
            if isinstance(error, OSError) or files.is_full_disk(error):
                raise
            logging.warning("%s failed: %s", name, drops.in_one_line(error))
            logging.debug("%s", name, exc_info=True)
            if not left:
                yield Tagged("flow", drops.failed("partitions", name, error))
        else:
            yield from found
            return


def of_element(stage: Callable[[Any], Iterable], name: str, element: Any) -> Iterator:
    """Yields what a stage yields for an element; see `thrice`.

    `name` is that of its elements, before the key of a group, the first value of a
    batch, or the element itself.
    """
    key = element[0] if isinstance(element, tuple) else element
    if isinstance(element, pa.RecordBatch):
        key = element[0][0].as_py() if element.num_rows else "of no rows"
    yield from thrice(f"{name} {key}", lambda: stage(element))


class SourceError(Exception):
    """A source failed; the reason is its cause."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Sources:
    """Counts the failures of the sources that a worker reads."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def read(
        self, paths: Iterable[str], read: Callable[[str], Iterator[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Yields the rows of all files.

        Raises SourceError, with the reason as its cause, where one of them fails.
        """
        for path in paths:
            try:
                yield from read(path)
            except Exception as error:
                if files.is_full_disk(error):  # of temporary files
                    raise
                raise SourceError(path) from error
            self._in_a_row = 0

    def thrice(
        self, paths: Iterable[str], work: Callable[[list[str], list], None]
    ) -> list[pa.RecordBatch]:
        """Calls `work` until it succeeds, without the sources that fail three times.

        Args:
          paths: the sources.
          work: gets the sources to read, and FLOW rows to add to those of what is read.

        Returns FLOW rows that say which sources failed, for `outcomes.check_failed`.
        """
        tries: Counter[str] = Counter()
        failed: list[pa.RecordBatch] = []
        lost: list[pa.RecordBatch] = []
        while True:
            try:
                work([p for p in paths if tries[p] < _TRIES], list(lost))
                return failed
            except SourceError as found:
                path, reason = found.path, found.__cause__
            assert isinstance(reason, Exception)
            tries[path] += 1
            logging.warning("%s failed: %s", path, drops.in_one_line(reason))
            logging.debug("%s", path, exc_info=reason)
            if tries[path] < _TRIES:
                if isinstance(reason, OSError):  # the storage may be busy
                    time.sleep(tries[path] ** 2)
                continue
            self._in_a_row += 1
            if self._in_a_row == _MOST_IN_A_ROW:
                raise reason
            failed.append(drops.failed("sources", path, reason))
            lost.append(drops.failed_source(reason))
