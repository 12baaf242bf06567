"""Reads the rows of a run's metrics from WORKDIR/metrics/part-*.jsonl."""

import json
import re
from typing import Any

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
