"""Stages that compare images with each other, and merge the texts of equal ones."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import drops, schema
from data_prep.images import similarity
from data_prep.stages import (
    arrow_coder,  # noqa: F401  registers the coder of RecordBatch
    contamination,
    dedup,
    embedded,
    parts,
    pipelines,
)
from data_prep.stages.draws import Draws
from data_prep.stages.matches import by_partition

Tagged = beam.pvalue.TaggedOutput
MOVED_SUFFIX = "moved.parquet"  # ends the names of parts with MOVED rows
# Partitions whose images one call of FindNear holds, by band: some hundred bytes each.
_PARTITIONS_TOGETHER = 64
ROW_BYTES = 150  # of BYTES in memory


@dataclass(frozen=True)
class Rules:
    """Which images are dropped for what others are.

    Attributes:
      max_moved_texts: texts that an image takes over from others of equal bytes.
      near_bits: bits in which fingerprints of near duplicates differ; 0: all are kept.
      placeholder_texts: different texts that one image may have at its addresses; 0:
        any number.
      evaluation_sets: not to be in; `contamination.PART` has their pictures.
      evaluation_bits: bits in which fingerprints of one picture differ.
      embeddings, evaluation_embeddings, near_cosine, evaluation_cosine: of
        `embedded.prepare`.
    """

    max_moved_texts: int
    near_bits: int
    placeholder_texts: int
    evaluation_sets: Sequence[str] = ()
    evaluation_bits: int = 0
    embeddings: Sequence[str] = ()
    evaluation_embeddings: Sequence[str] = ()
    near_cosine: float = 0
    evaluation_cosine: float = 0


# What stages yield: a key, and rows.
_OF_PARTITION: Any = tuple[int, pa.RecordBatch]
_OF_BYTES: Any = tuple[str, pa.RecordBatch]
_OF_BAND: Any = tuple[tuple[int, int], pa.RecordBatch]


def add(
    pipeline: beam.Pipeline,
    *,
    ranges: Sequence[pa.RecordBatch] | None,
    workdir: str,
    partitions: int,
    draws: Draws,
    rule: str,
    rules: Rules,
    embeddings: embedded.Embedded | None = None,
) -> dict[str, tuple[beam.PCollection, ...]]:
    """Adds the stages from downloads to parts of images and of texts they take over.

    Args:
      pipeline: to add to.
      ranges: of the sha256, divided like image ids: a worker reads those of one range
        from all downloads, so only repeated images pass through the runner. None: the
        runner groups all images by sha256; for runners that group on disk.
      workdir: of the downloads, and for the parts.
      partitions: their number.
      draws: which texts are drawn.
      rule: of balancing.
      rules: which images are dropped.
      embeddings: of the images, None where none are given.

    Returns:
      FLOW ("flow"), COUNTS of the survivors ("accepted"), and EVALUATED ("evaluated").
    """
    found, flow = _compare(pipeline, ranges, workdir, partitions, rules, embeddings)
    nothing = schema.one_batch(schema.MARKS.empty_table())  # so each part is written
    every = beam.Create([(i, nothing) for i in range(partitions)])
    marks = [pipeline | "every partition" >> every.with_output_types(_OF_PARTITION)]
    for name, rows in found.items():
        marked = rows | f"partition of {name}" >> pipelines.tagged(
            KeyByPartition(partitions), main=_OF_PARTITION, each=f"marks by {name} from"
        )
        marks.append(marked.main)
        flow.append(marked.flow)
    writing = WriteImages(
        workdir,
        partitions,
        draws=draws,
        rule=rule,
        rules=rules,
        embeddings=embeddings,
    )
    written = (
        marks
        | "marks" >> beam.Flatten()
        | "by partition" >> beam.GroupByKey()
        | "image dedup"
        >> pipelines.tagged(
            writing,
            "accepted",
            "evaluated",
            each="images of partition",
            main=_OF_PARTITION,
        )
    )
    merging = MergeTexts(workdir, partitions, draws=draws, most=rules.max_moved_texts)
    merged = (
        written.main
        | "by kept image" >> beam.GroupByKey()
        | "merge texts" >> pipelines.tagged(merging, each="moved texts of partition")
    )
    return {
        "flow": (*flow, written.flow, merged.flow),
        "accepted": (written.accepted, merged.main),
        "evaluated": (written.evaluated,),
    }


def _compare(
    pipeline: beam.Pipeline,
    ranges: Sequence[pa.RecordBatch] | None,
    workdir: str,
    partitions: int,
    rules: Rules,
    embeddings: embedded.Embedded | None,
) -> tuple[dict[str, beam.PCollection], list[beam.PCollection]]:
    """Groups the images by what they may share, and marks some of each group.

    Returns the marks, by what is compared, and FLOW of all steps.
    """
    most = rules.placeholder_texts
    keys: dict[str, tuple[beam.DoFn, Any]] = {}
    find: dict[str, beam.DoFn] = {}
    groups: dict[str, beam.PCollection] = {}
    if ranges is None:
        keys["bytes"], find["bytes"] = (KeyByBytes(), _OF_BYTES), FindRepeated(most)
    else:
        groups["bytes"] = pipelines.start(pipeline, ranges, " ranges")
        find["bytes"] = FindRepeatedInRange(workdir, partitions, most)
    if rules.near_bits:
        keys["band"] = KeyByBand(partitions), _OF_BAND
        find["band"] = FindNear(rules.near_bits)
    if embeddings is not None and embeddings.near:
        keys["cell"] = embedded.KeyByCell(embeddings, partitions), _OF_PARTITION
        find["cell"] = embedded.FindAlike(embeddings.near)
    found, flow = {}, []
    if keys:
        numbers = pipelines.one_each(range(partitions))
        images = pipelines.start(pipeline, numbers) | "read" >> pipelines.tagged(
            ReadImages(workdir, partitions), each="downloaded images of partition"
        )
        flow.append(images.flow)
    for by, (key, kind) in keys.items():
        keyed = images.main | f"key by {by}" >> pipelines.tagged(
            key, main=kind, each=f"images by {by} from"
        )
        groups[by] = keyed.main | f"by {by}" >> beam.GroupByKey()
        flow.append(keyed.flow)
    for by, group in groups.items():
        marked = group | f"find by {by}" >> pipelines.tagged(
            find[by], each=f"images of {by}"
        )
        found[by] = marked.main
        flow.append(marked.flow)
    return found, flow


class ReadImages(beam.DoFn):
    """Partition -> the IMAGES of its downloads."""

    def __init__(self, workdir: str, partitions: int) -> None:
        self._workdir, self._partitions = workdir, partitions

    def process(self, element: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yields them as one batch."""
        part = parts.name(element["value"][0].as_py(), self._partitions)
        images = parts.read(f"{self._workdir}/downloads", part, schema.IMAGES.names)
        yield schema.one_batch(images)


class KeyByBytes(beam.DoFn):
    """IMAGES -> (first digits of the sha256, BYTES), to group equal images."""

    def process(self, images: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Yields the rows of each group; dropped images, without bytes, are omitted."""
        ok = images.filter(pc.equal(images["status"], "ok")).select(schema.BYTES.names)
        heads = pc.utf8_slice_codeunits(ok["sha256"], 0, 2)
        for head in sorted(pc.unique(heads).to_pylist()):
            yield head, ok.filter(pc.equal(heads, head))


class FindRepeated(beam.DoFn):
    """(digits, BYTES batches) -> MARKS of images that repeat another's bytes."""

    def __init__(self, placeholder_texts: int) -> None:
        self._placeholder_texts = placeholder_texts

    def process(
        self, element: tuple[str, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Yields the images with their new status."""
        images = pa.Table.from_batches(element[1], schema=schema.BYTES)
        yield from _marks_of_repeated(images, self._placeholder_texts)


class FindRepeatedInRange(beam.DoFn):
    """Range [`start`, `stop`) of sha256 -> the MARKS that `FindRepeated` yields."""

    def __init__(self, workdir: str, partitions: int, placeholder_texts: int) -> None:
        self._downloads, self._partitions = f"{workdir}/downloads", partitions
        self._placeholder_texts = placeholder_texts

    def process(self, element: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yields images of all downloads. Dropped ones, without sha256, are not in."""
        (row,) = element.to_pylist()
        edges = (row["start"], row["stop"])
        first, last = (parts.first_id(edge, self._partitions) for edge in edges)
        some = [schema.BYTES.empty_table()]
        for i in range(self._partitions):
            part = parts.name(i, self._partitions)
            rows = parts.read(self._downloads, part, schema.BYTES.names)
            digests = rows["sha256"]
            inside = pc.and_(pc.greater_equal(digests, first), pc.less(digests, last))
            some.append(rows.filter(inside))
        yield from _marks_of_repeated(pa.concat_tables(some), self._placeholder_texts)


def _marks_of_repeated(
    images: pa.Table, placeholder_texts: int
) -> Iterator[pa.RecordBatch]:
    """Yields MARKS of BYTES rows, which are all images with some range of sha256."""
    marks = [dedup.repeated_images(images)]
    if placeholder_texts:
        marks.append(dedup.placeholders(images, most=placeholder_texts))
    for found in marks:
        yield schema.one_batch(found.select(schema.MARKS.names))


class KeyByBand(beam.DoFn):
    """IMAGES -> ((band, range of its values), PRINTS), to group similar images."""

    def __init__(self, partitions: int) -> None:
        self._ranges = min(
            -(-partitions // _PARTITIONS_TOGETHER), similarity.BAND_VALUES
        )

    def process(
        self, images: pa.RecordBatch
    ) -> Iterator[tuple[tuple[int, int], pa.RecordBatch]]:
        """Yields each image with a fingerprint once for every band."""
        seen = pc.and_(
            pc.equal(images["status"], "ok"),
            pc.greater(pc.binary_length(images["fingerprint"]), 0),
        )
        images = images.filter(seen)
        columns = {
            "image_id": images["image_id"],
            "digest": pc.utf8_slice_codeunits(images["sha256"], 0, 16),
            "fingerprint": images["fingerprint"],
            "pixels": pc.multiply(
                images["width"].cast(pa.int64()), images["height"].cast(pa.int64())
            ),
        }
        prints = schema.from_columns(columns, schema.PRINTS)
        bands = similarity.Fingerprints.of(prints["fingerprint"]).bands
        numbers = bands.astype(np.int64) * self._ranges // similarity.BAND_VALUES
        for band in range(similarity.BANDS):
            for number in np.unique(numbers[:, band]).tolist():
                here = pa.array(numbers[:, band] == number)
                yield (band, number), prints.filter(here)


class FindNear(beam.DoFn):
    """((band, range), PRINTS batches) -> MARKS of images that resemble a better one."""

    def __init__(self, most_bits: int) -> None:
        self._most_bits = most_bits

    def process(
        self, element: tuple[tuple[int, int], Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Yields the images with their new status."""
        (band, _), batches = element
        prints = pa.Table.from_batches(batches, schema=schema.PRINTS)
        yield schema.one_batch(
            dedup.near_duplicates(prints, band=band, most_bits=self._most_bits)
        )


class KeyByPartition(beam.DoFn):
    """MARKS -> (partition, their rows)."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions

    def process(self, rows: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields the marks of each partition."""
        yield from by_partition(rows, self._partitions)


class WriteImages(beam.DoFn):
    """(partition, MARKS batches) -> the final status of each image.

    Yields the texts of repeated images for the partitions of the images that are kept,
    and COUNTS of the survivors.
    """

    def __init__(
        self,
        workdir: str,
        partitions: int,
        *,
        draws: Draws,
        rule: str,
        rules: Rules,
        embeddings: embedded.Embedded | None = None,
    ) -> None:
        self._workdir, self._partitions, self._rules = workdir, partitions, rules
        self._embeddings = embeddings
        # Under v2 an image has one text, so it does not need those of its repeats.
        self._draws, self._moves = draws, rule != "v2"

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator:
        """Writes the part; yields MOVED rows, and the survivors' accepted draws."""
        partition, batches = element
        part = parts.name(partition, self._partitions)
        images = parts.read(f"{self._workdir}/downloads", part, schema.IMAGES.names)
        marks = pa.Table.from_batches(batches, schema=schema.MARKS)
        if found := self._evaluated(images, partition):
            evaluated = contamination.merge(found)
            marks = pa.concat_tables([marks, contamination.marks(evaluated)])
            yield Tagged("evaluated", schema.one_batch(evaluated))
        images = dedup.mark(images, marks)
        flow = _dedup_flow(images, moves=self._moves)
        parts.write(f"{self._workdir}/images", part, images, flow)
        yield Tagged("flow", flow)
        matches = parts.read(f"{self._workdir}/matches", part)
        ok = images.filter(pc.equal(images["status"], "ok"))
        _, accepted = self._draws(_texts_of(ok, matches))
        yield Tagged("accepted", accepted)
        # Every partition rewrites its part of moved texts.
        yield partition, schema.one_batch(schema.MOVED.empty_table())
        if self._moves:
            repeated = images.filter(pc.equal(images["status"], "repeated_image"))
            texts = _texts_of(repeated, matches)
            kept, _ = self._draws(texts)
            texts = texts.filter(pa.array(kept))
            rows = pc.index_in(texts["image_id"], repeated["image_id"].combine_chunks())
            moved = texts.append_column("kept_as", repeated["kept_as"].take(rows))
            yield from by_partition(
                schema.one_batch(moved), self._partitions, by="kept_as"
            )

    def _evaluated(self, images: pa.Table, partition: int) -> list[pa.Table]:
        """Returns EVALUATED by bytes and fingerprints, and by embeddings."""
        found = []
        if self._rules.evaluation_sets:
            place = f"{self._workdir}/images/{contamination.PART}"
            bits = self._rules.evaluation_bits
            found.append(contamination.find(images, place, most_bits=bits))
        if self._embeddings is not None and self._embeddings.evaluation:
            edges = [parts.first_id(partition + i, self._partitions) for i in (0, 1)]
            found.append(embedded.evaluated(images, self._embeddings, edges))
        return found


def _dedup_flow(images: pa.Table, *, moves: bool) -> pa.RecordBatch:
    """FLOW of the images of a partition; MergeTexts counts texts that are moved."""
    reasons = (*dedup.REASONS, "ok")
    of = {
        status: images.filter(pc.equal(images["status"], status)) for status in reasons
    }
    texts = {status: pc.sum(rows["texts"]).as_py() or 0 for status, rows in of.items()}
    counts = {status: rows.num_rows for status, rows in of.items()}
    if moves:
        del texts["repeated_image"]
    flows = []
    for unit, by_status in (("texts", texts), ("images", counts)):
        entered, left = sum(by_status.values()), by_status.pop("ok")
        # A run in which nothing is repeated says so.
        lost = {r: n for r, n in by_status.items() if n or r == "repeated_image"}
        flows.append(
            drops.flow("image_dedup", unit=unit, entered=entered, left=left, drops=lost)
        )
    return schema.sum_counts(flows, schema.FLOW)


def _texts_of(images: pa.Table, matches: pa.Table) -> pa.Table:
    ids = images["image_id"].combine_chunks()
    return matches.filter(pc.is_in(matches["image_id"], ids))


class MergeTexts(beam.DoFn):
    """(partition, MOVED batches) -> texts that its images take over from repeats."""

    def __init__(
        self, workdir: str, partitions: int, *, draws: Draws, most: int
    ) -> None:
        self._workdir, self._partitions = workdir, partitions
        self._draws, self._most = draws, most

    def process(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Writes the part of new texts; yields their accepted draws."""
        partition, batches = element
        moved = pa.Table.from_batches(batches, schema=schema.MOVED)
        own = parts.read(
            f"{self._workdir}/matches", parts.name(partition, self._partitions)
        )
        own = own.filter(pc.is_in(own["image_id"], pc.unique(moved["kept_as"])))
        kept, _ = self._draws(own)
        new, lost = dedup.moved_texts(
            moved, own.filter(pa.array(kept)), most=self._most
        )
        flow = drops.flow(
            "image_dedup", entered=moved.num_rows, left=new.num_rows, drops=lost
        )
        part = parts.name(partition, self._partitions, MOVED_SUFFIX)
        parts.write(f"{self._workdir}/images", part, new, flow)
        yield Tagged("flow", flow)
        _, accepted = self._draws(new)
        yield accepted
