"""Compares images by embeddings that were made before, as by metaclip_jax.embed.

The embeddings are Parquet by image id. They are sorted by image id once, so that each
partition reads its own; those of evaluation sets are compared with all images.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging
from apache_beam.options.pipeline_options import PipelineOptions
from ml_collections import ConfigDict

from data_prep import schema
from data_prep.images import cosine
from data_prep.stages import dedup, parts, pipelines
from metaclip_jax import files, patterns

FOLDER = "embeddings"
_PIVOTS, _EVALUATION = "pivots.parquet", "evaluation.parquet"
_ROWS = 4_096
# Partitions whose images one call of FindAlike holds, by range of cells.
_PARTITIONS_TOGETHER = 16


@dataclass(frozen=True)
class Embedded:
    """Embeddings that a run compares.

    Attributes:
      folder: of their parts, sorted by image id.
      files: number of these parts.
      near: cosine of near duplicates; 0: all are kept.
      evaluation: cosine of an image that is in an evaluation set; 0: none is.
    """

    folder: str
    files: int
    near: float
    evaluation: float

    def of(self, images: pa.Table, first: str, last: str) -> tuple[pa.Table, pa.Array]:
        """Returns the images that have an embedding, and their embeddings as bytes.

        Args:
          images: IMAGES with ids first <= id < last.
          first, last: their range.
        """
        batches = [
            parts.read_range(
                self.folder,
                parts.name(i, self.files),
                by="image_id",
                start=first,
                stop=last,
            )
            for i in range(self.files)
        ]
        rows = pa.Table.from_batches(batches, schema.EMBEDDED)
        at = pc.index_in(images["image_id"], rows["image_id"].combine_chunks())
        there = pc.is_valid(at)
        missing = images.num_rows - (pc.sum(there).as_py() or 0)
        if missing:
            logging.warning(
                "%d of %d images have no embedding, and are not compared by it",
                missing,
                images.num_rows,
            )
        vectors = rows["embedding"].take(at.filter(there))
        return images.filter(there), vectors


def find(config: ConfigDict) -> dict[str, list[str]]:
    """Returns the files of embeddings that a config names, by its keys.

    Raises ValueError where a glob has none.
    """
    wanted = config.duplicates
    return {
        name: patterns.find_all(wanted[name], key=f"config.duplicates.{name}")
        for name in ("embeddings", "evaluation_embeddings")
    }


def inputs(config: ConfigDict) -> dict[str, list]:
    """Returns names and sizes of the files of embeddings, if there are any."""
    named = [
        (path, files.size(path)) for some in find(config).values() for path in some
    ]
    return {"embeddings": named} if named else {}


def prepare(
    config: ConfigDict, workdir: str, options: PipelineOptions
) -> Embedded | None:
    """Sorts embeddings into WORKDIR/embeddings; None where none are given.

    Raises ValueError for files without the columns, or of several widths.
    """
    found, folder = find(config), f"{workdir}/{FOLDER}"
    paths, wanted = found["embeddings"], config.duplicates
    if not paths:
        return None
    _check_widths([*paths, *found["evaluation_embeddings"]])
    images = sum(_rows_of(path) for path in paths)
    pieces = [
        pa.RecordBatch.from_pydict({"path": [path], "number": [i]})
        for i, path in enumerate(paths)
    ]
    with pipelines.new(options) as pipeline:
        stage = Sort(folder, len(paths), images)
        _ = pipelines.start(pipeline, pieces) | beam.ParDo(stage)
    names = [_pivots(i, len(paths)) for i in range(len(paths))]
    pivots = pa.concat_tables(parts.read(folder, name) for name in names)
    parts.write(folder, _PIVOTS, pivots.sort_by("image_id"))
    batches = [
        batch.set_column(0, "image_id", _named(path, batch["image_id"]))
        for path in found["evaluation_embeddings"]
        for batch in _read(path)
    ]
    evaluation = pa.Table.from_batches(batches, schema.EMBEDDED)
    parts.write(folder, _EVALUATION, evaluation)
    return Embedded(folder, len(paths), wanted.near_cosine, wanted.evaluation_cosine)


def _pivots(number: int, count: int) -> str:
    return parts.name(number, count, _PIVOTS)


def _named(path: str, image_ids: pa.Array) -> pa.Array:
    return pa.array([f"{path}:{i}" for i in image_ids.to_pylist()], pa.string())


def _check_widths(paths: Sequence[str]) -> None:
    widths = {path: _width(path) for path in paths}
    known = {width for width in widths.values() if width}
    if len(known) > 1:
        raise ValueError(
            f"wanted embeddings of one model, got widths {sorted(known)}:"
            f" {widths}; embed all images with the same model"
        )


def _width(path: str) -> int:
    """Returns the width of a file's embeddings, 0 where it has none."""
    first = next(_read(path), None)
    return 0 if first is None else len(first["embedding"][0].as_py()) // 2


def _rows_of(path: str) -> int:
    with files.naming(path, "embeddings by image"), files.open_parquet(path) as parquet:
        return int(parquet.metadata.num_rows)


class Sort(beam.DoFn):
    """Parquet file -> a part of EMBEDDED, sorted by image id, and its pivots."""

    def __init__(self, folder: str, count: int, images: int) -> None:
        self._folder, self._count, self._images = folder, count, images

    def process(self, element: pa.RecordBatch) -> None:
        """Writes both parts."""
        (row,) = element.to_pylist()
        chosen: list[pa.RecordBatch] = []

        def rows() -> Iterator[pa.RecordBatch]:
            for batch in _read(row["path"]):
                ids = batch["image_id"].to_pylist()
                pivots = cosine.pivot_rows(ids, images=self._images)
                chosen.append(batch.take(pa.array(pivots)))
                yield batch

        parts.write_sorted(
            self._folder,
            parts.name(row["number"], self._count),
            rows(),
            schema.EMBEDDED,
            by="image_id",
        )
        pivots = pa.Table.from_batches(chosen, schema.EMBEDDED)
        parts.write(self._folder, _pivots(row["number"], self._count), pivots)


def _read(path: str) -> Iterator[pa.RecordBatch]:
    """Yields EMBEDDED of a file, without images that have no embedding."""
    wanted = ["image_id", "embedding"]
    with files.naming(path, "embeddings by image"), files.open_parquet(path) as parquet:
        names = parquet.schema_arrow.names
        if not set(wanted) <= set(names):
            raise ValueError(
                f"{path}: wanted columns {wanted}, as metaclip_jax.embed writes them,"
                f" got {names}; rename them"
            )
        columns = [*wanted, *(["status"] if "status" in names else [])]
        for batch in parquet.iter_batches(_ROWS, columns=columns):
            if "status" in columns:
                batch = batch.filter(pc.equal(batch["status"], "ok"))
            lists = batch["embedding"]
            widths = pc.unique(pc.list_value_length(lists)).to_pylist()
            if len(widths) > 1 or None in widths:
                raise ValueError(
                    f"{path}: wanted one width of embeddings, got {widths}"
                )
            values = lists.flatten().to_numpy(zero_copy_only=False)
            vectors = values.astype(np.float32).reshape(len(lists), *widths)
            if not len(lists):
                continue
            columns_of = {
                "image_id": batch["image_id"],
                "embedding": cosine.to_column(cosine.rounded(vectors)),
            }
            yield schema.from_columns(columns_of, schema.EMBEDDED)


@cache
def _vectors(path: str) -> tuple[np.ndarray, list[str]]:
    table = files.read_parquet(path)
    return cosine.of_column(table["embedding"]), table["image_id"].to_pylist()


class KeyByCell(beam.DoFn):
    """IMAGES of a partition -> (range of cells, CELLS), to group similar images."""

    def __init__(self, embedded: Embedded, partitions: int) -> None:
        self._embedded, self._partitions = embedded, partitions
        self._ranges = -(-partitions // _PARTITIONS_TOGETHER)

    def process(self, images: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields each image with an embedding once for each of its cells."""
        ok = pa.Table.from_batches([images.filter(pc.equal(images["status"], "ok"))])
        if not ok.num_rows:
            return
        (partition,) = set(
            parts.partition_of(
                ok["image_id"].combine_chunks(), self._partitions
            ).tolist()
        )
        edges = (parts.first_id(partition + i, self._partitions) for i in (0, 1))
        ok, vectors = self._embedded.of(ok, *edges)
        pivots, _ = _vectors(f"{self._embedded.folder}/{_PIVOTS}")
        cells = cosine.cells(cosine.of_column(vectors), pivots)
        columns = {
            "image_id": ok["image_id"],
            "digest": pc.utf8_slice_codeunits(ok["sha256"], 0, 16),
            "pixels": pc.multiply(
                ok["width"].cast(pa.int64()), ok["height"].cast(pa.int64())
            ),
            "embedding": vectors,
        }
        rows = pa.table(columns)
        for of_place in cells.T:
            ranges = of_place.astype(np.int64) * self._ranges // max(1, len(pivots))
            for number in np.unique(ranges[of_place >= 0]).tolist():
                here = np.flatnonzero((of_place >= 0) & (ranges == number))
                some = rows.take(pa.array(here))
                some = some.append_column("cell", pa.array(of_place[here]))
                some = some.select(schema.CELLS.names).cast(schema.CELLS)
                yield number, schema.one_batch(some)


class FindAlike(beam.DoFn):
    """(range of cells, CELLS batches) -> MARKS of images that resemble a better one."""

    def __init__(self, least: float) -> None:
        self._least = least

    def process(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Yields the images with their new status."""
        _, batches = element
        rows = pa.Table.from_batches(batches, schema=schema.CELLS)
        found = []
        for cell in pc.unique(rows["cell"]).to_pylist():
            here = rows.filter(pc.equal(rows["cell"], cell))
            found.append(dedup.alike(here, least=self._least))
        marks = pa.concat_tables([schema.MARKS.empty_table(), *found])
        yield schema.one_batch(marks)


def evaluated(
    images: pa.Table, embedded: Embedded, partition: Sequence[str]
) -> pa.Table:
    """Returns EVALUATED: the images that resemble one of an evaluation set.

    Args:
      images: IMAGES of a partition; only those with status "ok" are compared.
      embedded: embeddings of both.
      partition: the range of its image ids.
    """
    known, names = _vectors(f"{embedded.folder}/{_EVALUATION}")
    ok = images.filter(pc.equal(images["status"], "ok"))
    ok, vectors = embedded.of(ok, *partition)
    nearest, cosines = cosine.nearest(
        cosine.of_column(vectors), known, least=embedded.evaluation
    )
    found = np.flatnonzero(nearest >= 0)
    of = ok.take(pa.array(found))
    columns = {
        "image_id": of["image_id"].combine_chunks(),
        "image_url": of["image_url"].combine_chunks(),
        "picture": [names[i] for i in nearest[found].tolist()],
        "bits": [None] * found.size,
        "cosine": cosines[found],
        "count": np.ones(found.size, np.uint64),
    }
    return pa.Table.from_batches([schema.from_columns(columns, schema.EVALUATED)])
