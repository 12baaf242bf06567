"""Chooses pairs by lists of images and by scores, before matches are counted.

Lists and scores are Parquet by image id, or by address; scores may also be columns of
the source. They are sorted by image id once, so that each partition reads its own.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import logging
from apache_beam.options.pipeline_options import PipelineOptions
from ml_collections import ConfigDict

from data_prep import schema
from data_prep.matching import words
from data_prep.stages import parts, pipelines
from metaclip_jax import files, patterns
from metaclip_jax.data import records

FOLDER = "selection"
_KEYS, _SCORES = "text_keys", "text_scores"  # of metaclip_jax.embed
_ADDRESSES = ("url", "URL")
_ROWS = 8_192


@dataclass(frozen=True)
class Selection:
    """Which pairs are kept.

    Attributes:
      rows: SELECTED.
      scored: whether a pair without a score is dropped.
      column: index of the score among those that the source carries, -1 for those in
        `rows`.
      least: the score that a pair must have.
    """

    rows: parts.Sorted
    scored: bool
    column: int
    least: float

    def apply(
        self, texts: pa.Table, partition: int
    ) -> tuple[pa.Table, np.ndarray, Counter]:
        """Returns the pairs that are kept, their scores, and what is dropped.

        The scores are f64[n], NaN where there are none.

        Args:
          texts: MATCHED of a partition.
          partition: its number.
        """
        rows = self.rows.of_partition(partition, schema.SELECTED)
        listed = rows.filter(rows["excluded"])["image_id"]
        excluded = pc.is_in(texts["image_id"], listed).to_numpy()
        none = low = np.zeros(texts.num_rows, bool)
        scores = np.full(texts.num_rows, np.nan)
        if self.scored:
            scores = self._scores(texts, rows)
            none = np.isnan(scores) & ~excluded
            low = (scores < self.least) & ~excluded
        lost = Counter(
            excluded=int(excluded.sum()), no_score=int(none.sum()), low_score=low.sum()
        )
        kept = ~(excluded | none | low)
        return texts.filter(pa.array(kept)), scores[kept], +lost

    def _scores(self, texts: pa.Table, rows: pa.Table) -> np.ndarray:
        """Returns f64[n], NaN for a pair without a score."""
        if self.column >= 0:
            found = [json.loads(one) for one in texts["scores"].to_pylist()]
            values = [one[self.column] for one in found]
            return np.array([np.nan if v is None else v for v in values], float)
        rows = rows.filter(pc.is_valid(rows["score"]))
        of = {name: rows[name].to_pylist() for name in rows.column_names}
        scored = zip(of["image_id"], of["text_key"], strict=True)
        known = dict(zip(scored, of["score"], strict=True))
        ids = texts["image_id"].to_pylist()
        keys = records.text_keys(ids, texts["text"].to_pylist()).tolist()
        of_image = [known.get((image, None), np.nan) for image in ids]
        pairs = zip(ids, keys, of_image, strict=True)
        return np.array([known.get((image, key), one) for image, key, one in pairs])


def find(config: ConfigDict) -> dict[str, list[str]]:
    """Returns the files of a config's `selection`, by what they are.

    Raises ValueError where a glob has none.
    """
    return patterns.find_all(config.selection, "config.selection", "exclude", "scores")


def inputs(config: ConfigDict) -> dict[str, Any]:
    """Returns what decides which pairs are kept, if any are dropped.

    Names and sizes of these files, and the words of `config.safety.words`.
    """
    given: dict[str, Any] = {}
    if found := [path for some in find(config).values() for path in some]:
        given["selection"] = [(path, files.size(path)) for path in found]
    if config.safety.words:
        unsafe = "\n".join(words.read(config.safety.words))
        given["unsafe_words"] = hashlib.sha256(unsafe.encode()).hexdigest()
    return given


def prepare(
    config: ConfigDict, workdir: str, options: PipelineOptions
) -> Selection | None:
    """Sorts lists and scores into WORKDIR/selection; None where there are none.

    Raises ValueError for a file without the columns.
    """
    wanted, folder = config.selection, f"{workdir}/{FOLDER}"
    found = find(config)
    work = [(name, path) for name, some in found.items() for path in some]
    column = -1
    if wanted.score and not found["scores"]:
        column = list(config.source.score_columns).index(wanted.score)
    scored = bool(found["scores"]) or column >= 0
    if not work and not scored:
        return None
    rows = parts.Sorted(folder, len(work), config.partitions)
    if work:
        sort = beam.Map(_sort, rows, wanted.score or _SCORES)
        with pipelines.new(options) as pipeline:
            _ = pipelines.start(pipeline, list(enumerate(work))) | "sort" >> sort
    least = -math.inf if wanted.least_score is None else wanted.least_score
    if found["scores"] and wanted.top_share < 1:
        least = max(least, _quantile(rows, wanted.top_share))
    if scored:
        logging.info("pairs are kept from a score of %g on", least)
    return Selection(rows, scored, column, least)


def _quantile(rows: parts.Sorted, top_share: float) -> float:
    """Returns the least of the given share of all scores, the highest ones."""
    names = [parts.name(i, rows.count) for i in range(rows.count)]
    columns = [parts.read(rows.folder, name, ["score"]) for name in names]
    scores = pa.concat_tables(columns)["score"].drop_null().to_numpy()
    if not scores.size:
        return -math.inf
    kept = max(1, math.ceil(top_share * scores.size))
    return float(np.partition(scores, scores.size - kept)[scores.size - kept])


def _sort(element: tuple[int, tuple[str, str]], to: parts.Sorted, score: str) -> None:
    """Writes a Parquet file as a part of SELECTED, sorted by image id."""
    number, (kind, path) = element
    rows = _read(path, "" if kind == "exclude" else score)
    parts.write_sorted(to.folder, parts.name(number, to.count), rows, schema.SELECTED)


def _read(path: str, score: str) -> Iterator[pa.RecordBatch]:
    """Yields SELECTED of a file: of its scores, or "" for a list to exclude."""
    with files.naming(path, "a list or scores by image"), files.open_parquet(path) as p:
        names = p.schema_arrow.names
        by = [name for name in ("image_id", *_ADDRESSES) if name in names]
        lists = score == _SCORES
        columns = [*by[:1], *([score] if score else []), *([_KEYS] if lists else [])]
        missing = [name for name in columns if name not in names]
        if not by or missing:
            wanted = ["image_id or url", *columns[bool(by) :]]
            raise ValueError(
                f"{path}: wanted columns {wanted}, got {names}; rename them"
            )
        for batch in p.iter_batches(_ROWS, columns=columns):
            ids = batch[by[0]].to_pylist()
            if by[0] != "image_id":
                ids = [records.image_id(url) for url in ids]
            scores = batch[score].to_pylist() if score else [None] * len(ids)
            rows: dict[str, Any] = {"image_id": ids, "text_key": None, "score": scores}
            if lists:
                rows = _of_texts(ids, batch[_KEYS].to_pylist(), scores)
            yield schema.from_columns(rows | {"excluded": not score}, schema.SELECTED)


def _of_texts(
    ids: Sequence[str], keys: Sequence[list | None], scores: Sequence[list | None]
) -> dict[str, Sequence]:
    """Returns the columns of SELECTED with a row for each text."""
    flat = [
        (image, key, score)
        for image, own, of_own in zip(ids, keys, scores, strict=True)
        if own is not None and of_own is not None
        for key, score in zip(own, of_own, strict=True)
    ]
    columns = zip(*flat, strict=True) if flat else ((), (), ())
    return dict(zip(("image_id", "text_key", "score"), columns, strict=True))
