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
from data_prep.stages import contamination, dedup, parts, pipelines
from metaclip_jax import files, patterns

FOLDER = "embeddings"
_PIVOTS, _EVALUATION = "pivots.parquet", "evaluation.parquet"
_ROWS = 4_096
# Partitions whose images one call of Embedded.find_alike holds, by range of cells.
_PARTITIONS_TOGETHER = 16


@dataclass(frozen=True)
class Embedded:
    """Embeddings that a run compares.

    Attributes:
      rows: EMBEDDED; their folder also has the pivots, and those of evaluation sets.
      near: cosine of near duplicates; 0: all are kept.
      evaluation: cosine of an image that is in an evaluation set; 0: none is.
    """

    rows: parts.Sorted
    near: float
    evaluation: float

    def key_by_cell(
        self, images: pa.RecordBatch
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields (range of cells, CELLS), to group similar IMAGES of a partition.

        Each image with an embedding once for each of its cells.
        """
        ok = pa.Table.from_batches([images.filter(pc.equal(images["status"], "ok"))])
        if not ok.num_rows:
            return
        first = ok["image_id"].slice(0, 1).combine_chunks()
        (partition,) = parts.partition_of(first, self.rows.partitions).tolist()
        ok, vectors = self._of(ok, partition)
        pivots, _ = _vectors(f"{self.rows.folder}/{_PIVOTS}")
        cells = cosine.cells(cosine.of_column(vectors), pivots)
        rows = pa.table(dedup.ranked_by(ok) | {"embedding": vectors})
        count = -(-self.rows.partitions // _PARTITIONS_TOGETHER)
        for of_place in cells.T:
            ranges = of_place.astype(np.int64) * count // max(1, len(pivots))
            for number in np.unique(ranges[of_place >= 0]).tolist():
                here = np.flatnonzero((of_place >= 0) & (ranges == number))
                some = rows.take(pa.array(here))
                some = some.append_column("cell", pa.array(of_place[here]))
                some = some.select(schema.CELLS.names).cast(schema.CELLS)
                yield number, schema.one_batch(some)

    def find_alike(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Gets a range of cells and CELLS; yields MARKS of what resembles a better."""
        rows = pa.Table.from_batches(element[1], schema=schema.CELLS)
        marks = [
            dedup.alike(rows.filter(pc.equal(rows["cell"], cell)), least=self.near)
            for cell in pc.unique(rows["cell"]).to_pylist()
        ]
        yield schema.one_batch(pa.Table.from_batches(marks, schema.MARKS))

    def evaluated(self, images: pa.Table, partition: int) -> pa.Table:
        """Returns EVALUATED: the images that resemble one of an evaluation set.

        Args:
          images: IMAGES of a partition; only those with status "ok" are compared.
          partition: its number.
        """
        known, names = _vectors(f"{self.rows.folder}/{_EVALUATION}")
        ok = images.filter(pc.equal(images["status"], "ok"))
        ok, vectors = self._of(ok, partition)
        nearest, cosines = cosine.nearest(
            cosine.of_column(vectors), known, least=self.evaluation
        )
        rows = np.flatnonzero(nearest >= 0)
        found = [names[i] for i in nearest[rows].tolist()]
        return contamination.evaluated(ok, rows, found, cosines=cosines[rows])

    def _of(self, images: pa.Table, partition: int) -> tuple[pa.Table, pa.Array]:
        """Returns the images that have an embedding, and their embeddings as bytes.

        Args:
          images: IMAGES of the partition.
          partition: its number.
        """
        rows = self.rows.of_partition(partition, schema.EMBEDDED)
        at = pc.index_in(images["image_id"], rows["image_id"])
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
    keys = ("embeddings", "evaluation_embeddings")
    return patterns.find_all(config.duplicates, "config.duplicates", *keys)


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
    rows = parts.Sorted(folder, len(paths), config.partitions)
    with pipelines.new(options) as pipeline:
        work = pipelines.start(pipeline, list(enumerate(paths)))
        _ = work | "sort" >> beam.Map(_sort, rows, images)
    names = [parts.name(i, len(paths), _PIVOTS) for i in range(len(paths))]
    pivots = pa.concat_tables(parts.read(folder, name) for name in names)
    parts.write(folder, _PIVOTS, pivots.sort_by("image_id"))
    batches = []
    for path in found["evaluation_embeddings"]:
        for batch in _read(path):
            ids = [f"{path}:{i}" for i in batch["image_id"].to_pylist()]
            columns = {"image_id": ids, "embedding": batch["embedding"]}
            batches.append(schema.from_columns(columns, schema.EMBEDDED))
    evaluation = pa.Table.from_batches(batches, schema.EMBEDDED)
    parts.write(folder, _EVALUATION, evaluation)
    return Embedded(rows, near=wanted.near_cosine, evaluation=wanted.evaluation_cosine)


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


def _sort(element: tuple[int, str], to: parts.Sorted, images: int) -> None:
    """Writes a Parquet file as a part of EMBEDDED, sorted by image id, and its pivots.

    `images` is the number of all embeddings.
    """
    number, path = element
    chosen: list[pa.RecordBatch] = []

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in _read(path):
            ids = batch["image_id"].to_pylist()
            chosen.append(batch.take(pa.array(cosine.pivot_rows(ids, images=images))))
            yield batch

    part, pivots = (parts.name(number, to.count, kind) for kind in ("parquet", _PIVOTS))
    parts.write_sorted(to.folder, part, rows(), schema.EMBEDDED)
    parts.write(to.folder, pivots, pa.Table.from_batches(chosen, schema.EMBEDDED))


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
