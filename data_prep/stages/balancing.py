"""The last stage: writes balanced texts and their images as file shards."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import drops, schema
from data_prep.sinks import array_record as sink
from data_prep.stages import dedup, parts, rejects, steps
from data_prep.stages.draws import Draws
from data_prep.stages.image_dedup import MOVED_SUFFIX
from metaclip_jax.data import records

Tagged = beam.pvalue.TaggedOutput
_NO_FACES = pa.array([], schema.FACE)


@dataclass(frozen=True)
class Writing:
    """Writes balanced records.

    Attributes:
      workdir: of the matches, downloads and images.
      output: folder of the dataset.
      name: of the dataset.
      partitions: their number, and that of file shards.
      draws: which texts are kept.
      scores: names of the scores of each text.
      faces: whether faces were looked for.
    """

    workdir: str
    output: str
    name: str
    partitions: int
    draws: Draws
    scores: Sequence[str] = ()
    faces: bool = False

    def write_shard(self, partition: int) -> Iterator[pa.RecordBatch]:
        """Writes the shard of a partition, and its tables, where they are missing.

        Yields COUNTS of the kept texts and of their accepted draws, the flow, facts of
        the shard, tallies and rejects.
        """
        part = parts.name(partition, self.partitions)
        matches = self._read("matches", part)
        asked_for = self._read("images", part)
        downloads = self._read("downloads", part)
        moved_part = parts.name(partition, self.partitions, MOVED_SUFFIX)
        moved = self._read("images", moved_part)
        images = asked_for.filter(pc.equal(asked_for["status"], "ok"))
        texts = dedup.with_moved(dedup.of_images(matches, images), moved)
        # Drops what thinning dropped, too: the same draws, a smaller probability.
        kept, accepted = self.draws(texts)
        balanced = dedup.by_kept_image(texts.filter(pa.array(kept)))
        left = dedup.of_images(images, balanced)
        shard = records.shard_name(self.name, partition, self.partitions)
        path = os.path.join(self.output, shard)
        facts = sink.read_facts(path, count=left.num_rows, texts=balanced.num_rows)
        if facts is None:
            bodies = parts.read_blobs(
                f"{self.workdir}/downloads",
                parts.name(partition, self.partitions, parts.BLOBS),
                left["position"].to_pylist(),
                digests=left["sha256"].to_pylist(),
            )
            facts = sink.write_shard(path, steps.to_records(balanced, left, bodies))
        tables = {"urls": lambda: _urls(asked_for, downloads, left)}
        if self.scores:
            tables["scores"] = lambda: _scores(balanced, self.scores)
        if self.faces:
            tables["faces"] = lambda: _faces(dedup.of_images(downloads, left))
        for table, make in tables.items():
            name = sink.table_name(table, partition, self.partitions)
            if parts.is_damaged(self.output, name):
                parts.write(self.output, name, make())
        place, lost = (f"{self.workdir}/downloads", part), texts.filter(pa.array(~kept))
        some = rejects.of_images(asked_for, matches, downloads, place)
        yield Tagged("rejects", some)
        yield Tagged("rejects", rejects.of_texts(asked_for, lost, place))
        entered = (pc.sum(images["texts"]).as_py() or 0) + moved.num_rows
        away = {"balanced_away": entered - balanced.num_rows}
        flow = drops.flow(
            "balance", entered=entered, left=balanced.num_rows, drops=away
        )
        yield Tagged("flow", flow)
        yield Tagged("accepted", accepted)
        row = (facts["file"], json.dumps(facts, sort_keys=True), facts["count"])
        yield Tagged("shards", schema.from_rows([row], schema.SHARDS))
        yield Tagged("tallies", steps.tally(balanced))
        yield steps.count(balanced)

    def _read(self, stage: str, part: str) -> pa.Table:
        return parts.read(f"{self.workdir}/{stage}", part)


def _scores(texts: pa.Table, names: Sequence[str]) -> pa.Table:
    """Returns the SCORES of MATCHED rows, with a column for each of `names`."""
    values = [json.loads(scores) for scores in texts["scores"].to_pylist()]
    found = texts.select(schema.SCORES.names)
    for at, name in enumerate(names):
        column = pa.array([of_text[at] for of_text in values], pa.float64())
        found = found.append_column(name, column)
    return found


def _faces(downloads: pa.Table) -> pa.Table:
    """Returns the FACES of some downloads, sorted by image id."""
    rows = downloads.sort_by("image_id")
    of_image = pc.list_parent_indices(rows["faces"])
    boxes = pa.concat_arrays(pc.list_flatten(rows["faces"]).chunks or [_NO_FACES])
    columns = [rows["image_id"].take(of_image), *boxes.flatten()]
    return pa.table(columns, schema.FACES)


def _urls(images: pa.Table, downloads: pa.Table, left: pa.Table) -> pa.Table:
    """Returns the URLS of a partition, sorted by image id.

    Args:
      images: IMAGES with their final statuses.
      downloads: those of the download stage, with DOWNLOADED.
      left: those of `images` that have a record.
    """
    rows = pc.index_in(images["image_id"], downloads["image_id"])
    facts = downloads.select(schema.DOWNLOADED.names).take(rows)
    columns = {name: images[name] for name in images.column_names}
    columns |= {name: facts[name] for name in facts.column_names}
    inside = pc.is_in(images["image_id"], left["image_id"])
    columns |= {"url": images["image_url"], "in_dataset": inside}
    found = pa.table([columns[name] for name in schema.URLS.names], schema.URLS)
    return found.sort_by("image_id")
