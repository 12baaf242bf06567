"""Reads what a report shows: the dataset's card and counts, a run's metrics and scores.

Only finished files are read. What a run does not have yet (metrics, an evaluation) is
None; a file of the wrong form is an error that names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

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
class Stage:
    """A stage of curation: its input, output and drops by reason."""

    name: str
    unit: str
    received: int
    passed: int
    drops: tuple[tuple[str, int], ...]  # most frequent first

    def adds_up(self) -> bool:
        """Whether in = out + drops."""
        return self.received == self.passed + sum(n for _, n in self.drops)


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
    """A training run: its config, and metrics f64[n] by key over `steps` i64[n]."""

    config: Mapping[str, Any]
    steps: np.ndarray
    metrics: Mapping[str, np.ndarray]  # NaN where a row does not have the key


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
        found: dict[str, Any] = files.read_json(path)
        missing = [key for key in _CARD_KEYS if key not in found]
        if missing:
            raise ValueError(
                f"{path}: expected keys {list(_CARD_KEYS)}, missing {missing}; "
                "write the dataset again with this version"
            )
        funnel(found), thresholds(found)  # checks them here, where errors name the file
    return found


def licence(dataset: str) -> str:
    """Returns the licence in the dataset's card, "" if none."""
    found = files.read_json(files.path(dataset) / "data_card.json")
    return str(found.get("license", ""))


def funnel(data_card: Mapping[str, Any]) -> list[Stage]:
    """Returns the stages of curation in their order."""
    return [
        Stage(
            name=str(row["stage"]),
            unit=str(row["unit"]),
            received=int(row["in"]),
            passed=int(row["out"]),
            # Equal counts in a fixed order: same input, same bytes.
            drops=tuple(
                sorted(row["drops"].items(), key=lambda item: (-item[1], item[0]))
            ),
        )
        for row in data_card["funnel"]
    ]


def thresholds(data_card: Mapping[str, Any]) -> dict[str, float]:
    """Returns t by metadata code; empty if the dataset is not balanced."""
    balanced = data_card["balanced"] if "balanced" in data_card else None
    if not balanced or not balanced["t"]:
        return {}
    return {code: float(t) for code, t in balanced["t"].items()}


def entry_counts(dataset: str, t: Mapping[str, float]) -> list[EntryCounts]:
    """Reads counts.parquet: one item per metadata code, most pool matches first."""
    path = files.path(dataset) / "counts.parquet"
    _require(path, cure="run `python -m data_prep.curate` to the end first")
    table = files.read_parquet(path)
    missing = [name for name in _COUNT_COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{path}: expected columns {list(_COUNT_COLUMNS)}, missing {missing}; "
            "write the dataset again with this version"
        )
    with files.naming(path, "the counts of a dataset"):
        return _entry_counts(table, t)


def _entry_counts(table: pa.Table, t: Mapping[str, float]) -> list[EntryCounts]:
    codes = np.array(table["metadata"].to_pylist(), dtype=object)
    result = []
    for code in sorted(set(codes.tolist())):
        rows = table.filter(codes == code)
        pool = rows["pool_count"].to_numpy().astype(np.int64)
        matched = np.flatnonzero(pool > 0)
        # By count, then by id, so that ties have one order.
        ids = rows["entry_id"].to_numpy().astype(np.int64)
        order = matched[np.lexsort((ids[matched], -pool[matched]))]
        result.append(
            EntryCounts(
                code=code,
                entry_ids=ids[order],
                entries=rows["entry"].take(order).to_pylist(),
                pool=pool[order],
                kept=rows["kept_count"].to_numpy().astype(np.int64)[order],
                accepted=rows["accepted_draws"].to_numpy().astype(np.int64)[order],
                t=t[code] if code in t else None,
            )
        )
    return sorted(result, key=lambda counts: (-int(counts.pool.sum()), counts.code))


def rejects(workdir: str) -> list[dict[str, Any]]:
    """Reads the sample of what a curation dropped: rows of schema.REJECTS."""
    folder = files.path(workdir) / "rejects"
    path, sources = folder / "rejects.parquet", folder / "sources.parquet"
    _require(path, cure="give --curation the workdir of a finished `data_prep.curate`")
    rows: list[dict[str, Any]] = files.read_parquet(path).to_pylist()
    if sources.exists():  # older runs have none
        rows += files.read_parquet(sources).to_pylist()
    return rows


def run(workdir: str) -> Run | None:
    """Reads a run's config and metrics; None if it has not logged a step yet."""
    folder = files.path(workdir)
    config_path, metrics_path = folder / "config.json", folder / "metrics"
    if not config_path.exists() or not metrics_path.exists():
        return None
    rows = metric_rows.merge(
        sorted(metrics_path.glob("part-*.jsonl"), key=lambda p: (len(p.name), p.name)),
        wanted="expected a JSON object with `step`",
        cure="remove the damaged part or train again",
    )
    if not rows:
        return None
    config = files.read_json(config_path)
    if "global_batch" not in config:
        raise ValueError(
            f"{config_path}: expected the key `global_batch`, found {sorted(config)}; "
            "is this the folder of a training run?"
        )
    steps = [int(row["step"]) for row in rows]
    keys = sorted({key for row in rows for key in row} - {"step"})
    metrics = {key: np.array([_number(row, key) for row in rows]) for key in keys}
    return Run(config, np.array(steps, np.int64), metrics)


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
            f"{folder / f'{newest}.json'}: expected `candidates` and "
            f"`model.image_to_text.R@1`, missing {error}; evaluate the run again"
        ) from error
    top5 = files.read_json(best_texts) if best_texts.exists() else []
    if any("right" not in best for item in top5 for best in item["top5"]):
        raise ValueError(
            f"{best_texts}: expected `right` with each text, as this version writes it;"
            " evaluate the run again"
        )
    return Evaluation(step=newest, scores=scores, top5=top5)


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row[key] if key in row else None
    return float(value) if isinstance(value, int | float) else np.nan


def _require(path: Any, *, cure: str) -> None:
    if not path.exists():
        raise ValueError(f"expected {path}, found no such file; {cure}")
