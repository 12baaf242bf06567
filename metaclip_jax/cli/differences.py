"""Says in one line how the inputs of a finished output differ from those of a run."""

import json
import re
from collections.abc import Mapping
from typing import Any

_SHOWN = 5  # differences
_CHARS = 60  # of a value
_DIGEST = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b")
# What a folder holds, by an input that only the command which wrote it has.
_OUTPUTS = {
    "source": "a dataset",
    "files": "metadata",
    "form": "an export",
    "model": "embeddings",
    "tokenizer": "a training run",
    "start_url": "a crawl",
}


def other_output(want: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """Returns what a folder holds if another command wrote it, else "".

    Args:
      want: inputs of this run.
      got: inputs of the folder. Another version of the same command may have more, or
        less, but not both.
    """
    if not got.keys() - want.keys() or not want.keys() - got.keys():
        return ""
    return next(
        (name for key, name in _OUTPUTS.items() if key in got),
        "the output of another command",
    )


def describe(want: Any, got: Any) -> str:
    """Returns the differences of two JSON values as "key: wanted …, found …; …"."""
    found = _differences(want, got, "")
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _differences(want: Any, got: Any, where: str) -> list[str]:
    if isinstance(want, dict) and isinstance(got, dict):
        return [
            line
            for key in sorted(want.keys() | got.keys())
            for line in _differences(
                want.get(key, "nothing"),
                got.get(key, "nothing"),
                f"{where}.{key}" if where else key,
            )
        ]
    if want == got and type(want) is type(got):
        return []
    if isinstance(want, list) and isinstance(got, list):
        want, got = _apart(want, got)
    return [f"{where}: wanted {_short(want)}, found {_short(got)}"]


def _apart(want: list[Any], got: list[Any]) -> tuple[list[Any], list[Any]]:
    """Returns the items that only one of two long lists has; if none, both lists."""
    if max(len(_short(want)), len(_short(got))) <= _CHARS:
        return want, got
    wanted, found = ({json.dumps(item) for item in side} for side in (want, got))
    alone = (
        [item for item in want if json.dumps(item) not in found],
        [item for item in got if json.dumps(item) not in wanted],
    )
    return alone if any(alone) else (want, got)


def _short(value: Any) -> str:
    text = _DIGEST.sub(r"\1…", json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _CHARS else f"{text[:_CHARS]}…"
