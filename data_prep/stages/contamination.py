"""Finds images of evaluation sets among those of a run.

An image is one of a set's if its bytes, in the form of records, or its perceptual
fingerprint agree; stages/embedded.py compares embeddings.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging
from apache_beam.options.pipeline_options import PipelineOptions
from ml_collections import ConfigDict

from data_prep import schema
from data_prep.images import screening, similarity
from data_prep.sources import pictures
from data_prep.stages import dedup, parts, pipelines, sums
from metaclip_jax import files

PART = "evaluation_sets.parquet"  # PICTURES
LIST = "evaluation_images.parquet"  # what was dropped, EVALUATED
_FILES = 256  # pictures in a piece of work
_SCREENED_AS_ANY = {
    "min_side": 1,
    "max_aspect": 65_536.0,
    "scorer": None,
    "of_faces": None,
}


def inputs(config: ConfigDict) -> dict[str, str]:
    """Returns a fingerprint of names and sizes of the files of a run's sets, if any.

    Raises ValueError for a set without files that can be read.
    """
    sets = config.duplicates.evaluation_sets
    if not sets:
        return {}
    found = [(path, files.size(path)) for path in pictures.find(sets)]
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    return {"evaluation_sets": digest}


def read_sets(
    sets: Sequence[str], folder: str, *, screen: Mapping, options: PipelineOptions
) -> None:
    """Writes PICTURES of evaluation sets to folder/PART, if they are not there.

    Args:
      sets: globs or folders.
      folder: for the table.
      screen: keyword arguments of screening.screen; its bounds on shapes do not hold.
      options: of the pipeline.
    """
    if parts.exists(folder, PART):  # an unfinished run continues
        return
    found = pictures.find(sets)
    single = [path for path in found if pictures.is_picture(path)]
    several = [path for path in found if not pictures.is_picture(path)]
    pieces = [single[i : i + _FILES] for i in range(0, len(single), _FILES)]
    pieces += [[path] for path in several]
    read = beam.FlatMap(_read, {**screen, **_SCREENED_AS_ANY})
    with pipelines.new(options) as pipeline:
        rows = pipelines.start(pipeline, pieces) | "read" >> read
        sums.write_sum(rows, schema.PICTURES, folder, PART)
    table = parts.read(folder, PART)
    bad = table.filter(pc.equal(table["sha256"], ""))
    logging.info(
        "%d pictures in %d files of evaluation sets", table.num_rows, len(found)
    )
    if bad.num_rows:
        logging.warning(
            "%d pictures of evaluation sets cannot be decoded and so not be found, such"
            " as %s",
            bad.num_rows,
            bad["picture"][0].as_py(),
        )


def _read(paths: list[str], screen: Mapping) -> Iterator[pa.RecordBatch]:
    """Yields PICTURES of each file."""
    for path in paths:
        rows = []
        for name, data in pictures.read(path):
            found = screening.screen(data, **screen)
            rows.append((name, found.sha256, found.fingerprint, 1))
        yield schema.from_rows(rows, schema.PICTURES)


class _Known(NamedTuple):
    by_digest: pa.Table
    by_fingerprint: pa.Table
    prints: similarity.Index


@cache
def _load(path: str) -> _Known:
    table = files.read_parquet(path)
    usable = pc.greater(pc.binary_length(table["fingerprint"]), 0)
    similar = table.filter(usable).combine_chunks()
    prints = similarity.Index(similarity.Fingerprints.of(similar["fingerprint"]))
    digests = table.filter(pc.not_equal(table["sha256"], "")).combine_chunks()
    return _Known(digests, similar, prints)


def find(images: pa.Table, path: str, *, most_bits: int) -> pa.Table:
    """Returns EVALUATED: the images that are in an evaluation set, and the pictures.

    Args:
      images: IMAGES; only those with status "ok" are compared.
      path: of PICTURES.
      most_bits: in which fingerprints of one picture differ.
    """
    known = _load(path)
    ok = images.filter(pc.equal(images["status"], "ok")).combine_chunks()
    near, bits = np.full(ok.num_rows, -1), np.zeros(ok.num_rows, np.int32)
    some = pc.greater(pc.binary_length(ok["fingerprint"]), 0).to_numpy()
    near[some], bits[some] = known.prints.nearest(
        similarity.Fingerprints.of(ok["fingerprint"].filter(pa.array(some))),
        most_bits=most_bits,
    )
    alike = known.by_fingerprint["picture"].take(pa.array(near, mask=near < 0))
    same = pc.index_in(ok["sha256"], known.by_digest["sha256"])
    equal = known.by_digest["picture"].take(same)
    bits[equal.is_valid()] = 0
    found = pc.coalesce(equal, alike)
    rows = np.flatnonzero(found.is_valid())
    return evaluated(ok, rows, found.take(pa.array(rows)), bits=bits[rows])


def evaluated(
    images: pa.Table,
    rows: np.ndarray,
    found: Sequence[str] | pa.ChunkedArray,
    *,
    bits: np.ndarray | None = None,
    cosines: np.ndarray | None = None,
) -> pa.Table:
    """Returns EVALUATED of some rows of IMAGES, whose pictures in a set are `found`."""
    of = images.take(pa.array(rows))
    none = [None] * rows.size
    columns = {
        "image_id": of["image_id"],
        "image_url": of["image_url"],
        "picture": found,
        "bits": none if bits is None else bits,
        "cosine": none if cosines is None else cosines,
        "count": np.ones(rows.size, np.uint64),
    }
    return pa.Table.from_batches([schema.from_columns(columns, schema.EVALUATED)])


def merge(found: Sequence[pa.Table]) -> pa.Table:
    """Returns each image of several EVALUATED once, as it is in the first of them."""
    table = pa.concat_tables(found)
    return table.take(pc.index_in(pc.unique(table["image_id"]), table["image_id"]))


def marks(found: pa.Table) -> pa.RecordBatch:
    """Returns MARKS for EVALUATED."""
    columns = {
        "image_id": found["image_id"],
        "status": [dedup.EVALUATION] * found.num_rows,
        "kept_as": found["picture"],
    }
    return schema.from_columns(columns, schema.MARKS)


def copy_list(folder: str, output: str) -> None:
    """Copies the list of dropped images into the dataset's folder."""
    content = (files.path(folder) / LIST).read_bytes()
    files.write_bytes(files.path(output) / LIST, content)
