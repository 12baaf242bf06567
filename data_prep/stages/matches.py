"""Stages from WARC files to parts of unique matches."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from threading import Lock
from typing import Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa

from data_prep import drops, language, schema
from data_prep.matching import Matcher
from data_prep.sources import html, warc
from data_prep.stages import (
    arrow_coder,  # noqa: F401  registers the coder of RecordBatch
    dedup,
    parts,
    steps,
)

Tagged = beam.pvalue.TaggedOutput
_BATCH_ROWS = 16_384
_LOADING = Lock()


class ParseWarc(beam.DoFn):
    """Path of a WARC file -> CANDIDATES."""

    def __init__(
        self,
        *,
        max_page_bytes: int,
        max_texts_per_page: int,
        max_text_chars: int,
        max_url_chars: int,
        max_tree_bytes: int,
        identifier: str,
    ) -> None:
        self._identifier = identifier
        self._max_page_bytes = max_page_bytes
        self._limits = {
            "max_texts_per_page": max_texts_per_page,
            "max_text_chars": max_text_chars,
            "max_url_chars": max_url_chars,
            "max_tree_bytes": max_tree_bytes,
        }

    def process(self, element: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yields batches of candidates, and the flow of files, pages and texts."""
        (path,) = element["value"].to_pylist()
        with _LOADING:
            identify = _identifier(self._identifier)
        lost_files: Counter = Counter()
        lost_pages: Counter = Counter()
        lost_texts: Counter = Counter()
        pages = rows = waiting_rows = 0
        waiting: list[pa.RecordBatch] = []
        for page in warc.read_pages(path, max_page_bytes=self._max_page_bytes):
            if isinstance(page, warc.LostFile):
                lost_files[page.reason] += 1
                continue
            if isinstance(page, warc.LostPage):
                lost_pages[page.reason] += 1
                continue
            parsed = html.parse_page(page, **self._limits, identify=identify)
            if isinstance(parsed, warc.LostPage):
                lost_pages[parsed.reason] += 1
                continue
            candidates, lost = parsed
            lost_texts += lost
            pages += 1
            if not candidates.num_rows:
                continue
            rows += candidates.num_rows
            waiting_rows += candidates.num_rows
            waiting.append(candidates)
            if waiting_rows >= _BATCH_ROWS:
                yield _concat(waiting)
                waiting, waiting_rows = [], 0
        if waiting:
            yield _concat(waiting)
        broken, missing = sum(lost_files.values()), sum(lost_pages.values())
        for flow in (
            drops.flow(
                "read", unit="files", entered=1, left=1 - broken, drops=lost_files
            ),
            drops.flow(
                "read",
                unit="pages",
                entered=pages + missing,
                left=pages,
                drops=lost_pages,
            ),
            drops.flow(
                "parse",
                entered=rows + sum(lost_texts.values()),
                left=rows,
                drops=lost_texts,
            ),
        ):
            yield Tagged("flow", flow)


def _concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return schema.one_batch(pa.Table.from_batches(batches))


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
        with _LOADING:
            identify = _identifier(self._identifier)
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


class _LazyMatchers(Mapping[str, Matcher]):
    """Code -> matcher, loaded when it is first asked for: a batch needs few of many."""

    def __init__(self, paths: Mapping[str, str], engine: str) -> None:
        self._paths, self._engine = paths, engine

    def __getitem__(self, code: str) -> Matcher:
        path = self._paths[code]
        with _LOADING:  # one copy of the tables per process, whatever the threads
            return _matcher(path, self._engine)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


@cache
def _matcher(path: str, engine: str) -> Matcher:
    """The tables at `path`, which never holds others: its name says which."""
    return Matcher.load(path, engine=engine)


_identifier = cache(language.load_identifier)


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
