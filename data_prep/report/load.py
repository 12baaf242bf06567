"""Reads what a report shows: the dataset's card and counts, a run's metrics and scores.

What a run does not have yet (metrics, an evaluation) is None; a file of the wrong form
is an error that names it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from metaclip_jax import files, metric_rows

_CARD_KEYS = ("name", "version", "records", "texts", "metadata", "funnel")
_COUNT_COLUMNS = (
    "metadata",
    "entry_id",
    "entry",
    "pool_count",
    "kept_count",
    "accepted_draws",
)


@dataclass(frozen=True)
class EntryCounts:
    """The counts of one metadata, one row per entry with matches in the pool.

    entries: names; the others i64[n] by row. `t` is None for an unbalanced dataset.
    """

    code: str
    entry_ids: np.ndarray
    entries: list[str]
    pool: np.ndarray
    kept: np.ndarray
    accepted: np.ndarray
    t: float | None

    def head(self) -> np.ndarray:
        """bool[n]: entries with at least t matches in the pool."""
        if self.t is None:
            return np.zeros(len(self.pool), bool)
        return self.pool >= self.t


@dataclass(frozen=True)
class Run:
    """A training run: its config, and the rows of its metrics by step."""

    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """The newest evaluation and the first held-out images with their best texts."""

    step: int
    scores: Mapping[str, Any]
    top5: list[dict[str, Any]]


def card(dataset: str) -> dict[str, Any]:
    """Returns the dataset's data card, checked for what the report needs."""
    path = files.path(dataset) / "data_card.json"
    _require(path, cure="run `python -m data_prep.curate` to the end first")
    with files.naming(path, "the data card of a dataset"):
        content: dict[str, Any] = files.read_json(path)
        missing = [key for key in _CARD_KEYS if key not in content]
        if missing:
            raise ValueError(
                f"{path}: wanted the keys {list(_CARD_KEYS)}, got none of {missing}; "
                "write the dataset again with this version"
            )
        funnel(content), thresholds(content)  # so that their errors name the file
    return content


def licence(dataset: str) -> str:
    """Returns the licence in the dataset's card, "" if none."""
    content = files.read_json(files.path(dataset) / "data_card.json")
    return str(content.get("license", ""))


def funnel(data_card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of `drops.funnel`, "drops" as pairs, most frequent first."""
    return [
        {
            "stage": str(row["stage"]),
            "unit": str(row["unit"]),
            "in": int(row["in"]),
            "out": int(row["out"]),
            # Equal counts in a fixed order: same input, same bytes.
            "drops": sorted(row["drops"].items(), key=lambda drop: (-drop[1], drop[0])),
        }
        for row in data_card["funnel"]
    ]


def thresholds(data_card: Mapping[str, Any]) -> dict[str, float]:
    """Returns t by metadata code; empty if the dataset is not balanced."""
    balanced = data_card.get("balanced")
    if not balanced:
        return {}
    return {code: float(t) for code, t in balanced["t"].items()}


def entry_counts(dataset: str, t: Mapping[str, float]) -> list[EntryCounts]:
    """Reads counts.parquet: one item per metadata code, most pool matches first."""
    path = files.path(dataset) / "counts.parquet"
    _require(path, cure="run `python -m data_prep.curate` to the end first")
    table = files.read_parquet(path, _COUNT_COLUMNS)
    with files.naming(path, "the counts of a dataset"):
        codes = sorted(set(table["metadata"].to_pylist()))
        # By count, then by id, so that ties have one order.
        order = [("pool_count", "descending"), ("entry_id", "ascending")]
        table = table.filter(pc.field("pool_count") > 0).sort_by(order)
        result = [_of_code(table, code, t.get(code)) for code in codes]
    return sorted(result, key=lambda counts: (-int(counts.pool.sum()), counts.code))


def _of_code(table: pa.Table, code: str, t: float | None) -> EntryCounts:
    rows = table.filter(pc.field("metadata") == code)
    ids, pool, kept, accepted = (
        rows[name].to_numpy().astype(np.int64)
        for name in ("entry_id", "pool_count", "kept_count", "accepted_draws")
    )
    return EntryCounts(code, ids, rows["entry"].to_pylist(), pool, kept, accepted, t)


def rejects(workdir: str) -> list[dict[str, Any]]:
    """Reads the sample of what a curation dropped: rows of schema.REJECTS."""
    folder = files.path(workdir) / "rejects"
    path = folder / "rejects.parquet"
    _require(path, cure="give --curation the workdir of a finished `data_prep.curate`")
    tables = map(files.read_parquet, (path, folder / "sources.parquet"))
    return [row for table in tables for row in table.to_pylist()]


def run(workdir: str) -> Run | None:
    """Reads a run's config and metrics; None if it has not logged a step yet."""
    path = files.path(workdir) / "config.json"
    rows = metric_rows.read(workdir)
    if not path.exists() or not rows:
        return None
    config = files.read_json(path)
    if "global_batch" not in config:
        raise ValueError(
            f"{path}: wanted the key 'global_batch', got {sorted(config)}; give the "
            "folder of a training run"
        )
    return Run(config, rows)


def evaluation(workdir: str) -> Evaluation | None:
    """Reads the newest evaluation of a run; None if there is none."""
    folder = files.path(workdir) / "evaluation"
    if not folder.exists():
        return None
    steps = [int(p.stem) for p in folder.glob("*.json") if p.stem.isdigit()]
    if not steps:
        return None
    newest = max(steps)
    best_texts = folder / f"{newest}_top5.json"
    scores = files.read_json(folder / f"{newest}.json")
    try:
        _ = scores["candidates"], scores["model"]["image_to_text"]["R@1"]["chance"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / f'{newest}.json'}: wanted 'candidates' and"
            f" 'model.image_to_text.R@1', got no {error}; evaluate the run again"
        ) from error
    top5 = files.read_json(best_texts) if best_texts.exists() else []
    if any("right" not in best for item in top5 for best in item["top5"]):
        raise ValueError(
            f"{best_texts}: wanted 'right' with each text, got a text without it;"
            " evaluate the run again"
        )
    return Evaluation(step=newest, scores=scores, top5=top5)


def _require(path: Any, *, cure: str) -> None:
    if not path.exists():
        raise ValueError(f"wanted {path}, got no such file; {cure}")
