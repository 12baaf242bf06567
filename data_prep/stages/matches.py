"""Stages from the files of a source to parts of unique matches."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

import apache_beam as beam
import numpy as np
import pyarrow as pa

from data_prep import drops, language, schema
from data_prep.matching import EveryText, Matcher, Reference, words
from data_prep.metadata import store
from data_prep.sources import kinds
from data_prep.stages import (
    attempts,
    dedup,
    parts,
    pipelines,
    rejects,
    selection,
    steps,
)

Tagged = beam.pvalue.TaggedOutput
_LOADING = Lock()
_READERS = 16  # files that are read at a time: each on gs:// takes a request's time
_HELD_BYTES = 16 << 20  # of the rows of a range that are split by partition at a time
SAMPLE_SUFFIX = "sample.parquet"  # of the names of parts with SAMPLE rows


def pieces(found: Sequence[str], size: int) -> list[tuple[int, list[str]]]:
    """Returns the elements of `Matching.write`, `size` files in each."""
    starts = range(0, len(found), size)
    return [(i, list(found[start : start + size])) for i, start in enumerate(starts)]


@dataclass(frozen=True)
class Matching:
    """Makes parts of MATCHED, each from some source files, sorted by image id.

    Attributes:
      folder: for the parts.
      count: their number.
      spec: of the source.
      tables: of `save_matchers`.
      engine: of the matchers.
      sources: the failures of those that the worker reads.
    """

    folder: str
    count: int
    spec: kinds.Spec
    tables: Mapping[str, str]
    engine: str
    sources: attempts.Sources = field(default_factory=attempts.Sources)

    def write(self, element: tuple[int, list[str]]) -> Iterator[pa.RecordBatch]:
        """Writes a part from its files, unless it is finished and none of them failed.

        Yields the bytes of the part's rows as TALLIES, its flow, and REJECTS.
        """
        number, found = element
        part = parts.name(number, self.count)

        def write(paths: list[str], flow: list[pa.RecordBatch]) -> None:
            lost = rejects.Texts()
            parts.write_sorted(
                self.folder,
                part,
                self.sources.read(paths, lambda path: self._matched(path, flow, lost)),
                schema.MATCHED,
                flow=lambda: schema.sum_counts(flow, schema.FLOW),
                lost=lost.rows,
            )

        if not parts.is_whole(self.folder, part):
            for failed in self.sources.thrice(found, write):
                yield Tagged("flow", failed)
        yield Tagged("flow", parts.read_flow(self.folder, part))
        lost = parts.read_lost(self.folder, part)
        yield Tagged("rejects", rejects.of_rows(lost))
        row = ("matched", "bytes", parts.read_size(self.folder, part))
        yield schema.from_rows([row], schema.TALLIES)

    def _matched(
        self, path: str, flow: list[pa.RecordBatch], lost_texts: rejects.Texts
    ) -> Iterator[pa.RecordBatch]:
        """Yields MATCHED rows of a file; `flow` gets their FLOW rows."""
        identify = language.shared_identifier(self.spec.identifier)
        for candidates in kinds.read(path, self.spec, flow, lost_texts.lost):
            rows, lost = steps.match(
                candidates,
                self.tables,
                self._matcher_of,
                identify=identify,
                reject=lost_texts.offer,
            )
            entered, left = candidates.num_rows, rows.num_rows
            flow.append(drops.flow("match", entered=entered, left=left, drops=lost))
            yield rows

    def _matcher_of(self, code: str) -> steps.AnyMatcher:
        with _LOADING:  # one copy of the tables per process, whatever the threads
            return _load(self.tables[code], self.engine)


def save_matchers(
    metadata: Mapping[str, store.Metadata], mode: str, folder: str
) -> dict[str, str]:
    """Saves one matcher per metadata for all workers to map; returns their paths.

    File names include a fingerprint, since long-lived workers cache what they map.
    "" means EveryText.
    """
    if mode == "none":
        return dict.fromkeys(metadata, "")
    paths = {}
    for code, each in metadata.items():
        paths[code] = f"{folder}/{code}-{mode}-{each.fingerprint[:16]}"
        Matcher(each.entries, mode=mode).save(paths[code])
    pipelines.release_memory()
    return paths


# By config.matching.engine, what matches with the entries of a saved matcher.
ENGINES: dict[str, Callable[[Matcher], steps.AnyMatcher]] = {
    "numba": lambda saved: saved,
    "pyahocorasick": lambda saved: Reference(saved.entries(), mode=saved.mode),
}


@functools.cache
def _load(path: str, engine: str) -> steps.AnyMatcher:
    """The matcher at `path`, whose name has the fingerprint of its content."""
    return ENGINES[engine](Matcher.load(path)) if path else EveryText()


def by_partition(
    rows: pa.RecordBatch, partitions: int, *, by: str = "image_id"
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields (partition, its rows), ascending, by the image id in the column `by`."""
    order, edges = _sorted_by_partition(rows[by], partitions)
    together = rows.take(order)
    for partition, (start, end) in edges.items():
        yield partition, together.slice(start, end - start)


def _sorted_by_partition(
    image_ids: pa.StringArray, partitions: int
) -> tuple[pa.Int64Array, dict[int, tuple[int, int]]]:
    """Returns row numbers in the order of partitions, and which are of each."""
    numbers = parts.partition_of(image_ids, partitions)
    order = np.argsort(numbers, kind="stable")
    found, starts = np.unique(numbers[order], return_index=True)
    edges = itertools.pairwise([*starts.tolist(), len(order)])
    return pa.array(order), dict(zip(found.tolist(), edges, strict=True))


@dataclass(frozen=True)
class Gathering:
    """Makes parts of MATCHES, one per partition, from the MATCHED rows of all sources.

    Attributes:
      matched: the parts of `Matching`.
      folder: for the parts of MATCHES.
      seed, rule: of steps.to_matches.
      sample_images: how many images of each partition are sampled.
      selected: which pairs are kept, None for all.
      by_score: whether pairs with high scores of `selected` get small draws.
      unsafe_words: texts that contain one are dropped.
    """

    matched: parts.Sorted
    folder: str
    seed: int
    rule: str
    sample_images: int
    selected: selection.Selection | None = None
    by_score: bool = False
    unsafe_words: Sequence[str] = ()

    def of_range(self, element: tuple[int, int]) -> Iterator[pa.RecordBatch]:
        """Reads the rows of a range of partitions (start, stop); yields as `finish`."""
        return self.finish(*element, self.read(*element))

    def of_group(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Gets a partition and its MATCHED batches; yields as `finish`."""
        partition, batches = element
        return self.finish(partition, partition + 1, batches)

    def split(self, number: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields the rows of each partition, some at a time, of part `number`."""
        if number == 0:  # every partition gets a part, also one without rows
            nothing = schema.one_batch(schema.MATCHED.empty_table())
            yield from ((i, nothing) for i in range(self.matched.partitions))
        part = parts.name(number, self.matched.count)
        for batch in parts.read_batches(self.matched.folder, part):
            yield from by_partition(batch, self.matched.partitions)

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yields the rows of the partitions from `start` up to `stop`.

        In batches of many parts: each batch is split by partition, and what a slice
        takes besides its rows would grow with the number of parts.
        """
        held: list[pa.RecordBatch] = []
        size = 0
        for rows in self.matched.read(start, stop):
            held.append(rows)
            size += rows.nbytes
            if size >= _HELD_BYTES:
                yield schema.one_batch(pa.Table.from_batches(held))
                held, size = [], 0
        if held:
            yield schema.one_batch(pa.Table.from_batches(held))

    def finish(
        self, start: int, stop: int, batches: Iterable[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        """Writes the missing parts.

        Yields COUNTS of all texts and, tagged, of those that the rule v2 draws
        ("drawn"), and the flow, also of parts that were already finished.
        """
        names = {i: parts.name(i, self.matched.partitions) for i in range(start, stop)}
        missing = [i for i in names if not parts.exists(self.folder, names[i])]
        # A partition's rows are taken out of them when it is written: all at once would
        # be a second copy of a batch, in buffers that grew to up to twice their size.
        held = [
            (batch, *_sorted_by_partition(batch["image_id"], self.matched.partitions))
            for batch in (batches if missing else ())
        ]
        lost = set()
        for partition in missing:
            rows = [
                batch.take(order[slice(*edges[partition])])
                for batch, order, edges in held
                if partition in edges
            ]
            name = f"matches of partition {partition}"
            for failed in attempts.thrice(
                name, functools.partial(self._write, partition, rows)
            ):
                lost.add(partition)
                yield failed
        del held
        pipelines.release_memory()
        columns = ["metadata", "entry_ids", "drawn"]
        counted = [schema.MATCHES.empty_table().select(columns)]
        for part in (part for i, part in names.items() if i not in lost):
            yield Tagged("flow", parts.read_flow(self.folder, part))
            counted.append(parts.read(self.folder, part, columns))
        pipelines.release_memory()
        # Once for all parts, since the cost is proportional to the number of entries.
        table = pa.concat_tables(counted)
        if self.rule == "v2":  # other rules draw all texts
            yield Tagged("drawn", steps.count(table.filter(table["drawn"])))
        yield steps.count(table)

    def _write(self, partition: int, batches: list[pa.RecordBatch]) -> None:
        """Drops repeated pairs; writes the sample, and the part when that is there."""
        table = pa.Table.from_batches(batches, schema=schema.MATCHED)
        texts = dedup.sort_and_drop_repeats(table)
        lost = {"repeated_pair": table.num_rows - texts.num_rows}
        if self.unsafe_words:
            unsafe = words.contains(texts["text"].combine_chunks(), self.unsafe_words)
            lost["unsafe_text"] = int(unsafe.sum())
            texts = texts.filter(pa.array(~unsafe))
        scores = None
        if self.selected is not None:
            texts, scores, others = self.selected.apply(texts, partition)
            lost |= others
        unique = steps.to_matches(
            texts,
            seed=self.seed,
            rule=self.rule,
            scores=scores if self.by_score else None,
        )
        flow = drops.flow(
            "dedup", entered=table.num_rows, left=unique.num_rows, drops=lost
        )
        some = steps.sample(unique, images=self.sample_images, partition=partition)
        name = parts.name(partition, self.matched.partitions, SAMPLE_SUFFIX)
        parts.write(self.folder, name, pa.Table.from_batches([some]))
        name = parts.name(partition, self.matched.partitions)
        parts.write(self.folder, name, unique, flow)


def read_sample(folder: str, partitions: int) -> pa.Table:
    """Returns the sample of all partitions of a finished folder of matches, SAMPLE."""
    names = [parts.name(i, partitions, SAMPLE_SUFFIX) for i in range(partitions)]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda name: parts.read(folder, name), names)
        return pa.concat_tables(found).cast(schema.SAMPLE)


def gather(
    pipeline: beam.Pipeline,
    gathering: Gathering,
    ranges: Sequence[tuple[int, int]] | None,
) -> beam.pvalue.DoOutputsTuple:
    """Adds the stages from the parts of the source to those of the partitions.

    Args:
      pipeline: to add to.
      gathering: the work of the stages.
      ranges: of `pipelines.ranges`: a worker reads the rows of one range at a time from
        all parts of the source, so no rows pass through the runner. None: the runner
        groups the rows, which are read once; for runners that group on disk.

    Returns:
      COUNTS of all texts (main), of those that the rule v2 draws ("drawn"), and
      "flow".
    """
    if ranges is not None:
        stage = pipelines.tagged(gathering.of_range, "drawn")
        return pipelines.start(pipeline, ranges) | "gather" >> stage
    return (
        pipelines.start(pipeline, range(gathering.matched.count))
        | "split" >> beam.FlatMap(gathering.split)
        | "by partition" >> beam.GroupByKey()
        | "gather" >> pipelines.tagged(gathering.of_group, "drawn")
    )
