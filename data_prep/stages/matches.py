"""Stages from the files of a source to parts of unique matches."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from threading import Lock
from typing import Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa

from data_prep import drops, language, schema
from data_prep.matching import EveryText, Matcher
from data_prep.sources import kinds
from data_prep.stages import (
    arrow_coder,  # noqa: F401  registers the coder of RecordBatch
    dedup,
    parts,
    steps,
)

Tagged = beam.pvalue.TaggedOutput
_LOADING = Lock()


class Read(beam.DoFn):
    """Name of a file of the source -> CANDIDATES."""

    def __init__(self, spec: kinds.Spec) -> None:
        self._spec = spec

    def process(self, element: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yields batches of candidates, and the flow of the file and its texts."""
        (path,) = element["value"].to_pylist()
        flow: list[pa.RecordBatch] = []
        yield from kinds.read(path, self._spec, flow)
        for rows in flow:
            yield Tagged("flow", rows)


class Match(beam.DoFn):
    """CANDIDATES -> (partition, MATCHED)."""

    def __init__(
        self,
        tables: Mapping[str, str],
        partitions: int,
        *,
        engine: str,
        identifier: str,
    ) -> None:
        self._tables, self._engine = dict(tables), engine
        self._partitions, self._identifier = partitions, identifier

    def process(
        self, candidates: pa.RecordBatch
    ) -> Iterator[tuple[int, pa.RecordBatch] | Tagged[Literal["flow"], pa.RecordBatch]]:
        """Yields the matched rows of each partition."""
        matchers = _LazyMatchers(self._tables, self._engine)
        identify = language.shared_identifier(self._identifier)
        matches, lost = steps.match(candidates, matchers=matchers, identify=identify)
        yield Tagged(
            "flow",
            drops.flow(
                "match",
                entered=candidates.num_rows,
                left=matches.num_rows,
                drops=lost,
            ),
        )
        yield from by_partition(matches, self._partitions)


class _LazyMatchers(Mapping[str, Matcher | EveryText]):
    """Code -> matcher, loaded when it is first asked for: a batch needs few of many."""

    def __init__(self, paths: Mapping[str, str], engine: str) -> None:
        self._paths, self._engine = paths, engine

    def __getitem__(self, code: str) -> Matcher | EveryText:
        path = self._paths[code]
        with _LOADING:  # one copy of the tables per process, whatever the threads
            return _matcher(path, self._engine)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


@cache
def _matcher(path: str, engine: str) -> Matcher | EveryText:
    """The tables at `path`, which never holds others: its name says which."""
    return Matcher.load(path, engine=engine) if path else EveryText()


def by_partition(
    rows: pa.RecordBatch, partitions: int, *, by: str = "image_id"
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields (partition, its rows), ascending, by the image id in the column `by`."""
    numbers = parts.partition_of(rows[by], partitions)
    order = np.argsort(numbers, kind="stable")
    together, sorted_numbers = rows.take(pa.array(order)), numbers[order]
    for partition in np.unique(numbers).tolist():
        start, end = np.searchsorted(sorted_numbers, [partition, partition + 1])
        yield partition, together.slice(start, end - start)


class WriteMatches(beam.DoFn):
    """(partition, MATCHED batches) -> a part of MATCHES; COUNTS twice, a sample.

    The counts are of all texts, and of those that the rule draws.
    """

    def __init__(
        self,
        folder: str,
        partitions: int,
        *,
        seed: int,
        rule: str,
        sample_images: int,
    ) -> None:
        self._folder, self._partitions = folder, partitions
        self._seed, self._rule = seed, rule
        self._sample_images = -(-sample_images // partitions)

    def process(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Drops repeated pairs and writes the part, unless it is finished already."""
        partition, batches = element
        part = parts.name(partition, self._partitions)
        if not parts.exists(self._folder, part):
            table = pa.Table.from_batches(batches, schema=schema.MATCHED)
            unique = steps.to_matches(
                dedup.sort_and_drop_repeats(table), seed=self._seed, rule=self._rule
            )
            flow = drops.flow(
                "dedup",
                entered=table.num_rows,
                left=unique.num_rows,
                drops={"repeated_pair": table.num_rows - unique.num_rows},
            )
            parts.write(self._folder, part, unique, flow)
        unique = parts.read(self._folder, part)
        yield Tagged("flow", parts.read_flow(self._folder, part))
        yield Tagged("drawn", steps.count(unique.filter(unique["drawn"])))
        yield Tagged(
            "sample",
            steps.sample(unique, images=self._sample_images, partition=partition),
        )
        yield steps.count(unique)
