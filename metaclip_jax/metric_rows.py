"""Reads metrics of a run, WORKDIR/metrics/part-*.jsonl: their rows, and curves."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from metaclip_jax import files

_PART = re.compile(r"part-(\d{6,})\.jsonl")


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics by step, the last written row of each step.

    Raises:
        ValueError: a line is not an object with a `step`; the message names file and
            line.
    """
    rows: dict[int, dict[str, Any]] = {}
    for _, part in numbered_parts(workdir):
        for number, line in enumerate(part.read_bytes().splitlines(), start=1):
            try:
                row = json.loads(line)
                rows[int(row["step"])] = row
            except files.CONTENT_ERRORS as error:
                shown = line[:80].decode("utf-8", "replace")
                raise ValueError(
                    f"{part}:{number}: wanted a JSON object with a step, got"
                    f" {shown!r}; remove this file or start the run again"
                ) from error
    return [rows[step] for step in sorted(rows)]


def curves(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], *, points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps f64[n] and values f64[n, keys] of metrics, n at most `points`.

    Rows in which no key has a finite value are left out. More than `points` become
    means of adjacent rows, without values that are not finite; a mean of none is NaN.
    """
    steps = np.array([row["step"] for row in rows], np.float64)
    found = [[row.get(key) for key in keys] for row in rows]
    numbers = [
        [v if isinstance(v, int | float) else np.nan for v in of] for of in found
    ]
    values = np.array(numbers, np.float64).reshape(-1, len(keys))
    shown = np.isfinite(values).any(axis=1)
    steps, values = steps[shown], values[shown]
    if len(steps) <= points:
        return steps, values
    means = []
    runs = np.array_split(np.arange(len(steps)), points)
    for run in runs:
        known = np.isfinite(values[run])
        sums = np.where(known, values[run], 0).sum(axis=0)
        means.append(np.where(known.any(axis=0), sums, np.nan) / known.sum(0).clip(1))
    # A mean is at its last step, so that curves end at the last step.
    return np.array([steps[run[-1]] for run in runs]), np.array(means)


def numbered_parts(workdir: epath.PathLike) -> list[tuple[int, epath.Path]]:
    """Returns (number, path) of a run's part files, in the order of their writing."""
    folder = files.path(workdir) / "metrics"
    if not folder.exists():
        return []
    found = []
    for part in folder.iterdir():
        match = _PART.fullmatch(part.name)
        if match:
            found.append((int(match[1]), part))
    return sorted(found, key=lambda part: part[0])
