"""The last stage: writes balanced texts and their images as file shards."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import drops, schema
from data_prep.sinks import array_record as sink
from data_prep.stages import (
    arrow_coder,  # noqa: F401  registers the coder of RecordBatch
    dedup,
    parts,
    rejects,
    steps,
)
from data_prep.stages.draws import Draws
from data_prep.stages.image_dedup import MOVED_SUFFIX
from metaclip_jax.data import records

Tagged = beam.pvalue.TaggedOutput
_NO_FACES = pa.array([], schema.FACE)


class WriteShard(beam.DoFn):
    """Partition -> one file shard of balanced records; COUNTS twice, and facts."""

    def __init__(
        self,
        workdir: str,
        output: str,
        name: str,
        partitions: int,
        *,
        draws: Draws,
        scores: Sequence[str] = (),
        faces: bool = False,
    ) -> None:
        self._workdir, self._output, self._name = workdir, output, name
        self._scores, self._faces = tuple(scores), faces
        self._partitions, self._draws = partitions, draws

    def process(self, element: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Writes the shard if it is missing; yields its counts and drops."""
        (partition,) = element["value"].to_pylist()
        part = parts.name(partition, self._partitions)
        matches = parts.read(f"{self._workdir}/matches", part)
        asked_for = parts.read(f"{self._workdir}/images", part)
        images = asked_for.filter(pc.equal(asked_for["status"], "ok"))
        matches = matches.filter(
            pc.is_in(matches["image_id"], images["image_id"].combine_chunks())
        )
        moved = parts.read(
            f"{self._workdir}/images",
            parts.name(partition, self._partitions, MOVED_SUFFIX),
        )
        texts = dedup.with_moved(matches, moved)
        # Drops what thinning dropped, too: the same draws, a smaller probability.
        kept, accepted = self._draws(texts)
        balanced = dedup.by_kept_image(texts.filter(pa.array(kept)))
        left = images.filter(
            pc.is_in(images["image_id"], balanced["image_id"].combine_chunks())
        )
        shard = records.shard_name(self._name, partition, self._partitions)
        path = os.path.join(self._output, shard)
        facts = sink.read_facts(path, count=left.num_rows, texts=balanced.num_rows)
        if facts is None:
            bodies = parts.read_blobs(
                f"{self._workdir}/downloads",
                parts.name(partition, self._partitions, parts.BLOBS),
                left["position"].to_pylist(),
                digests=left["sha256"].to_pylist(),
            )
            facts = sink.write_shard(path, steps.to_records(balanced, left, bodies))
        name = sink.table_name("scores", partition, self._partitions)
        if self._scores and parts.is_damaged(self._output, name):
            parts.write(self._output, name, _scores(balanced, self._scores))
        urls = sink.table_name("urls", partition, self._partitions)
        if parts.is_damaged(self._output, urls):
            downloads = parts.read(f"{self._workdir}/downloads", part)
            inside = pc.is_in(asked_for["image_id"], left["image_id"].combine_chunks())
            table = _urls(asked_for, downloads, in_dataset=inside)
            parts.write(self._output, urls, table)
        faces = sink.table_name("faces", partition, self._partitions)
        if self._faces and parts.is_damaged(self._output, faces):
            columns = ["image_id", "faces"]
            downloads = parts.read(f"{self._workdir}/downloads", part, columns)
            parts.write(self._output, faces, _faces(downloads, left["image_id"]))
        yield from self._rejects(part, asked_for, texts.filter(pa.array(~kept)))
        entered = (pc.sum(images["texts"]).as_py() or 0) + moved.num_rows
        yield Tagged(
            "flow",
            drops.flow(
                "balance",
                entered=entered,
                left=balanced.num_rows,
                drops={"balanced_away": entered - balanced.num_rows},
            ),
        )
        yield Tagged("accepted", accepted)
        yield Tagged("shards", _shard_row(facts))
        yield Tagged("tallies", steps.tally(balanced))
        yield steps.count(balanced)

    def _rejects(
        self, part: str, images: pa.Table, lost: pa.Table
    ) -> Iterator[pa.RecordBatch]:
        folder = f"{self._workdir}/downloads"
        place = {"folder": folder, "part": part}
        downloads = parts.read(folder, part, ["image_id", "stage"])
        rows = pc.index_in(images["image_id"], downloads["image_id"].combine_chunks())
        texts = parts.read(f"{self._workdir}/matches", part, ["image_id", "text"])
        stage = downloads["stage"].take(rows)
        yield Tagged("rejects", rejects.of_images(images, texts, stage, **place))
        yield Tagged(
            "rejects",
            rejects.of_texts(images, lost, **place),
        )


def _scores(texts: pa.Table, names: Sequence[str]) -> pa.Table:
    """Returns the SCORES of MATCHED rows, with a column for each of `names`."""
    values = [json.loads(scores) for scores in texts["scores"].to_pylist()]
    found = texts.select(schema.SCORES.names)
    for at, name in enumerate(names):
        column = pa.array([of_text[at] for of_text in values], pa.float64())
        found = found.append_column(name, column)
    return found


def _faces(downloads: pa.Table, kept: pa.ChunkedArray) -> pa.Table:
    """Returns the FACES of the images with the ids `kept`, sorted by image id."""
    inside = pc.is_in(downloads["image_id"], kept.combine_chunks())
    rows = downloads.filter(inside).sort_by("image_id")
    of_image = pc.list_parent_indices(rows["faces"])
    boxes = pa.concat_arrays(pc.list_flatten(rows["faces"]).chunks or [_NO_FACES])
    columns = [rows["image_id"].take(of_image), *boxes.flatten()]
    return pa.table(columns, schema.FACES)


def _urls(
    images: pa.Table, downloads: pa.Table, *, in_dataset: pa.ChunkedArray
) -> pa.Table:
    """Returns the URLS of a partition, sorted by image id.

    Args:
      images: IMAGES with their final statuses.
      downloads: those of the download stage, with DOWNLOADED.
      in_dataset: which of `images` have a record.
    """
    rows = pc.index_in(images["image_id"], downloads["image_id"].combine_chunks())
    facts = downloads.select(schema.DOWNLOADED.names).take(rows)
    columns = {name: images[name] for name in images.column_names}
    columns |= {name: facts[name] for name in facts.column_names}
    columns |= {"url": images["image_url"], "in_dataset": in_dataset}
    found = pa.table([columns[name] for name in schema.URLS.names], schema.URLS)
    return found.sort_by("image_id")


def _shard_row(facts: Mapping[str, Any]) -> pa.RecordBatch:
    row = {
        "shard": facts["file"],
        "facts": json.dumps(facts, sort_keys=True),
        "count": facts["count"],
    }
    return pa.RecordBatch.from_pylist([row], schema=schema.SHARDS)
