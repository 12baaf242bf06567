"""Stages that compare images with each other, and merge the texts of equal ones."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import drops, schema
from data_prep.images import similarity
from data_prep.stages import contamination, dedup, embedded, parts, pipelines
from data_prep.stages.draws import Draws
from data_prep.stages.matches import by_partition

Tagged = beam.pvalue.TaggedOutput
MOVED_SUFFIX = "moved.parquet"  # ends the names of parts with MOVED rows
# Partitions whose images one call of Comparing.find_near holds, by band: some hundred
# bytes each.
_PARTITIONS_TOGETHER = 64
ROW_BYTES = 150  # of BYTES in memory

# What stages yield: a key, and rows.
_OF_PARTITION: Any = tuple[int, pa.RecordBatch]
_OF_BYTES: Any = tuple[str, pa.RecordBatch]
_OF_BAND: Any = tuple[tuple[int, int], pa.RecordBatch]


@dataclass(frozen=True)
class Comparing:
    """Drops images for what others are, and moves the texts of equal ones.

    Attributes:
      workdir: of the downloads, and for the parts.
      partitions: their number.
      draws: which texts are drawn.
      moves: whether an image takes over texts of others of equal bytes. Under the rule
        v2 an image has one text, so it does not need theirs.
      max_moved_texts: how many it takes over at most.
      near_bits: bits in which fingerprints of near duplicates differ; 0: all are kept.
      placeholder_texts: different texts that one image may have at its addresses; 0:
        any number.
      evaluation_bits: bits in which fingerprints of one picture differ, where there
        are evaluation sets not to be in; `contamination.PART` has their pictures.
      embeddings: of the images, None where none are given.
    """

    workdir: str
    partitions: int
    draws: Draws
    moves: bool
    max_moved_texts: int
    near_bits: int
    placeholder_texts: int
    evaluation_bits: int | None
    embeddings: embedded.Embedded | None

    def read(
        self, stage: str, partition: int, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Returns the part of a partition in the folder of a stage."""
        part = parts.name(partition, self.partitions)
        return parts.read(f"{self.workdir}/{stage}", part, columns)

    def read_images(self, partition: int) -> Iterator[pa.RecordBatch]:
        """Yields the IMAGES of a partition's downloads, as one batch."""
        images = self.read("downloads", partition, schema.IMAGES.names)
        yield schema.one_batch(images)

    def repeated_in_group(
        self, element: tuple[str, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Gets BYTES by digits of the sha256; yields as `repeated`."""
        _, batches = element
        return self.repeated(pa.Table.from_batches(batches, schema=schema.BYTES))

    def repeated_in_range(self, element: tuple[int, int]) -> Iterator[pa.RecordBatch]:
        """Gets a range (start, stop) of sha256; yields as `repeated`.

        They are divided like image ids, and read from all downloads. Dropped images
        have no sha256, and so are in no range.
        """
        first, last = (parts.first_id(i, self.partitions) for i in element)
        some = [schema.BYTES.empty_table()]
        for partition in range(self.partitions):
            rows = self.read("downloads", partition, schema.BYTES.names)
            digests = rows["sha256"]
            inside = pc.and_(pc.greater_equal(digests, first), pc.less(digests, last))
            some.append(rows.filter(inside))
        return self.repeated(pa.concat_tables(some))

    def repeated(self, images: pa.Table) -> Iterator[pa.RecordBatch]:
        """Yields MARKS of the images that repeat the bytes of another, from BYTES."""
        yield dedup.repeated_images(images)
        if self.placeholder_texts:
            yield dedup.placeholders(images, most=self.placeholder_texts)

    def key_by_band(
        self, images: pa.RecordBatch
    ) -> Iterator[tuple[tuple[int, int], pa.RecordBatch]]:
        """Yields ((band, range of its values), PRINTS), to group similar IMAGES.

        Each image with a fingerprint once for every band.
        """
        seen = pc.and_(
            pc.equal(images["status"], "ok"),
            pc.greater(pc.binary_length(images["fingerprint"]), 0),
        )
        images = images.filter(seen)
        columns = dedup.ranked_by(images) | {"fingerprint": images["fingerprint"]}
        prints = schema.from_columns(columns, schema.PRINTS)
        bands = similarity.Fingerprints.of(prints["fingerprint"]).bands
        ranges = min(
            -(-self.partitions // _PARTITIONS_TOGETHER), similarity.BAND_VALUES
        )
        numbers = bands.astype(np.int64) * ranges // similarity.BAND_VALUES
        for band in range(similarity.BANDS):
            for number in np.unique(numbers[:, band]).tolist():
                here = pa.array(numbers[:, band] == number)
                yield (band, number), prints.filter(here)

    def find_near(
        self, element: tuple[tuple[int, int], Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Yields MARKS of the images among PRINTS that resemble a better one."""
        (band, _), batches = element
        prints = pa.Table.from_batches(batches, schema=schema.PRINTS)
        yield dedup.near_duplicates(prints, band=band, most_bits=self.near_bits)

    def write_images(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator:
        """Gets a partition and MARKS; writes the final status of its images.

        Yields the survivors' accepted draws as COUNTS, what is in evaluation sets, and
        MOVED: the texts of repeated images, by the partition of the kept ones.
        """
        partition, batches = element
        images = self.read("downloads", partition, schema.IMAGES.names)
        marks = list(batches)
        if found := self._evaluated(images, partition):
            evaluated = contamination.merge(found)
            marks.append(contamination.marks(evaluated))
            yield Tagged("evaluated", schema.one_batch(evaluated))
        images = dedup.mark(images, pa.Table.from_batches(marks, schema=schema.MARKS))
        flow = _dedup_flow(images, moves=self.moves)
        part = parts.name(partition, self.partitions)
        parts.write(f"{self.workdir}/images", part, images, flow)
        yield Tagged("flow", flow)
        matches = self.read("matches", partition)
        ok = images.filter(pc.equal(images["status"], "ok"))
        _, accepted = self.draws(dedup.of_images(matches, ok))
        yield Tagged("accepted", accepted)
        # Every partition rewrites its part of moved texts.
        yield partition, schema.one_batch(schema.MOVED.empty_table())
        if self.moves:
            repeated = images.filter(pc.equal(images["status"], "repeated_image"))
            texts = dedup.of_images(matches, repeated)
            kept, _ = self.draws(texts)
            texts = texts.filter(pa.array(kept))
            rows = pc.index_in(texts["image_id"], repeated["image_id"])
            moved = texts.append_column("kept_as", repeated["kept_as"].take(rows))
            yield from by_partition(
                schema.one_batch(moved), self.partitions, by="kept_as"
            )

    def _evaluated(self, images: pa.Table, partition: int) -> list[pa.Table]:
        """Returns EVALUATED by bytes and fingerprints, and by embeddings."""
        found = []
        if self.evaluation_bits is not None:
            place = f"{self.workdir}/images/{contamination.PART}"
            bits = self.evaluation_bits
            found.append(contamination.find(images, place, most_bits=bits))
        if self.embeddings is not None and self.embeddings.evaluation:
            found.append(self.embeddings.evaluated(images, partition))
        return found

    def merge_texts(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Gets a partition and MOVED; writes the texts that its images take over.

        Yields their accepted draws as COUNTS.
        """
        partition, batches = element
        moved = pa.Table.from_batches(batches, schema=schema.MOVED)
        own = self.read("matches", partition)
        own = own.filter(pc.is_in(own["image_id"], pc.unique(moved["kept_as"])))
        kept, _ = self.draws(own)
        new, lost = dedup.moved_texts(
            moved, own.filter(pa.array(kept)), most=self.max_moved_texts
        )
        flow = drops.flow(
            "image_dedup", entered=moved.num_rows, left=new.num_rows, drops=lost
        )
        part = parts.name(partition, self.partitions, MOVED_SUFFIX)
        parts.write(f"{self.workdir}/images", part, new, flow)
        yield Tagged("flow", flow)
        _, accepted = self.draws(new)
        yield accepted


def add(
    pipeline: beam.Pipeline,
    comparing: Comparing,
    ranges: Sequence[tuple[int, int]] | None,
) -> dict[str, beam.PCollection]:
    """Adds the stages from downloads to parts of images and of texts they take over.

    Args:
      pipeline: to add to.
      comparing: the work of the stages.
      ranges: of the sha256, divided like image ids: a worker reads those of one range
        from all downloads, so only repeated images pass through the runner. None: the
        runner groups all images by sha256; for runners that group on disk.

    Returns:
      FLOW ("flow"), COUNTS of the survivors ("accepted"), and EVALUATED ("evaluated").
    """
    partitions, embeddings = comparing.partitions, comparing.embeddings
    flow = []

    def apply(
        rows: beam.PCollection, name: str, stage: Callable, *tags: str, **how: Any
    ) -> beam.pvalue.DoOutputsTuple:
        done = rows | name >> pipelines.tagged(stage, *tags, **how)
        flow.append(done.flow)
        return done

    # What is compared, its key, and the stage that finds it in a group.
    keys: dict[str, tuple[Callable, Any]] = {}
    find: dict[str, Callable] = {}
    groups = {}
    if ranges is None:
        keys["bytes"] = key_by_bytes, _OF_BYTES
        find["bytes"] = comparing.repeated_in_group
    else:
        groups["bytes"] = pipelines.start(pipeline, ranges, " ranges")
        find["bytes"] = comparing.repeated_in_range
    if comparing.near_bits:
        keys["band"] = comparing.key_by_band, _OF_BAND
        find["band"] = comparing.find_near
    if embeddings is not None and embeddings.near:
        keys["cell"] = embeddings.key_by_cell, _OF_PARTITION
        find["cell"] = embeddings.find_alike
    if keys:
        images = apply(
            pipelines.start(pipeline, range(partitions)),
            "read",
            comparing.read_images,
            each="downloaded images of partition",
        )
    for by, (key, kind) in keys.items():
        keyed = apply(
            images.main, f"key by {by}", key, main=kind, each=f"images by {by} from"
        )
        groups[by] = keyed.main | f"by {by}" >> beam.GroupByKey()
    nothing = schema.one_batch(schema.MARKS.empty_table())  # so each part is written
    every = beam.Create([(i, nothing) for i in range(partitions)])
    marks = [pipeline | "every partition" >> every.with_output_types(_OF_PARTITION)]
    for by, group in groups.items():
        found = apply(group, f"find by {by}", find[by], each=f"images of {by}")
        marked = apply(
            found.main,
            f"partition of {by}",
            functools.partial(by_partition, partitions=partitions),
            main=_OF_PARTITION,
            each=f"marks by {by} from",
        )
        marks.append(marked.main)
    written = apply(
        marks | "marks" >> beam.Flatten() | "by partition" >> beam.GroupByKey(),
        "image dedup",
        comparing.write_images,
        *("accepted", "evaluated"),
        each="images of partition",
        main=_OF_PARTITION,
    )
    merged = apply(
        written.main | "by kept image" >> beam.GroupByKey(),
        "merge texts",
        comparing.merge_texts,
        each="moved texts of partition",
    )
    return {
        "flow": flow | "flows" >> beam.Flatten(),
        "accepted": (written.accepted, merged.main) | "draws" >> beam.Flatten(),
        "evaluated": written.evaluated,
    }


def key_by_bytes(images: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yields (first digits of the sha256, BYTES), to group equal IMAGES.

    Dropped images, without bytes, are omitted.
    """
    ok = images.filter(pc.equal(images["status"], "ok")).select(schema.BYTES.names)
    heads = pc.utf8_slice_codeunits(ok["sha256"], 0, 2)
    for head in sorted(pc.unique(heads).to_pylist()):
        yield head, ok.filter(pc.equal(heads, head))


def _dedup_flow(images: pa.Table, *, moves: bool) -> pa.RecordBatch:
    """FLOW of the images of a partition; `merge_texts` counts moved texts."""
    compared = pc.is_in(images["status"], pa.array(("ok", *dedup.REASONS)))
    found = images.filter(compared).group_by("status")
    found = found.aggregate([("texts", "sum"), ("texts", "count")]).to_pydict()
    flows = []
    for unit, column in (("texts", "texts_sum"), ("images", "texts_count")):
        # A run in which nothing is repeated says so.
        counts = {"ok": 0, "repeated_image": 0}
        counts |= dict(zip(found["status"], found[column], strict=True))
        if moves and unit == "texts":
            del counts["repeated_image"]
        entered, left = sum(counts.values()), counts.pop("ok")
        flows.append(
            drops.flow(
                "image_dedup", unit=unit, entered=entered, left=left, drops=counts
            )
        )
    return schema.sum_counts(flows, schema.FLOW)
