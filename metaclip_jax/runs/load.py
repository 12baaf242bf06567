"""Reads training runs: their configs, metrics and evaluations."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from metaclip_jax import files, metric_rows
from metaclip_jax.cli import ranges
from metaclip_jax.training import run_config

# The metrics in the table.
_SHOWN = ("loss", "image_accuracy", "text_accuracy", "examples_per_second")


class Run(NamedTuple):
    """A run.

    Attributes:
      workdir: its folder, local or gs://.
      config: values by dotted key, such as "optimizer.peak_lr".
      rows: of its metrics, by step.
      scores: of its newest evaluation by name, such as "zero_shot/accuracy": the value,
        and the ends of its interval if it has one.
      scored_step: the step of that evaluation; None = not evaluated.
      finished: whether all its steps are done.
    """

    workdir: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    scores: dict[str, dict[str, float]]
    scored_step: int | None
    finished: bool

    @property
    def step(self) -> int:
        """The last step with metrics; 0 if there are none."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def last(self, key: str) -> float | None:
        """Returns the newest value of a metric, None if there is none."""
        values = [row[key] for row in self.rows if key in row]
        return float(values[-1]) if values else None


def find(folders: Sequence[str]) -> list[str]:
    """Returns the workdirs among these folders and directly in them, without repeats.

    Raises:
      FileNotFoundError: a folder is missing, or has no run.
    """
    workdirs: list[str] = []
    for folder in folders:
        root = files.path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; correct the path")
        inside = [root] if _is_run(root) else sorted(filter(_is_run, root.iterdir()))
        if not inside:
            raise FileNotFoundError(
                f"{folder} holds no run: wanted a workdir of metaclip_jax.train, with"
                " its config.json, or a folder of them; correct the path"
            )
        workdirs += [str(path) for path in inside]
    return list(dict.fromkeys(workdirs))


def _is_run(path: Any) -> bool:
    return bool((path / "config.json").exists()) and any(
        (path / name).exists() for name in ("metrics", "checkpoints", "manifest.json")
    )


def read(workdir: str) -> Run:
    """Reads a run, which may still be training.

    Raises:
      ValueError: a file is damaged; the message names it.
    """
    root = files.path(workdir)
    scores, step = _scores(root / "evaluation")
    return Run(
        workdir=workdir,
        config=dict(ranges.flat(run_config.read(workdir))),
        rows=metric_rows.read(workdir),
        scores=scores,
        scored_step=step,
        finished=(root / "manifest.json").exists(),
    )


def _scores(folder: Any) -> tuple[dict[str, dict[str, float]], int | None]:
    """Returns the newest evaluation's scores by name, and its step."""
    steps = (
        [int(p.stem) for p in folder.glob("*.json") if p.stem.isdigit()]
        if folder.exists()
        else []
    )
    if not steps:
        return {}, None
    path = folder / f"{max(steps)}.json"
    with files.naming(path, "an evaluation"):
        groups = files.read_json(path)["model"]
        scores = {
            f"{group}/{name}": cell
            for group, cells in groups.items()
            for name, cell in cells.items()
            if isinstance(cell, dict)
        }
    return scores, max(steps)


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns each run's values of the config keys in which the runs differ."""
    # `run_config.read` adds the default of keys that are newer than a run.
    by_key = {key: [run.config[key] for run in runs] for key in runs[0].config}
    return {
        key: values
        for key, values in by_key.items()
        if any(value != values[0] for value in values)
    }


def metrics(runs: Sequence[Run]) -> dict[str, list[float | None]]:
    """Returns each run's newest metrics and scores by name."""
    by_name = {key: [run.last(key) for run in runs] for key in _SHOWN}
    names = dict.fromkeys(name for run in runs for name in run.scores)
    for name in names:
        by_name[name] = [
            run.scores[name]["value"] if name in run.scores else None for run in runs
        ]
    return {k: v for k, v in by_name.items() if any(x is not None for x in v)}
