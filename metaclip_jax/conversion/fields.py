"""Reads and checks the fields of another library's config file.

A row maps one of our architecture's fields to its name in the file. The value must be
in config.py's range for our own key, so that an absurd one is refused here by name, and
not by the first code that divides by it or allocates it.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from metaclip_jax import config as keys
from metaclip_jax.cli.ranges import Range
from metaclip_jax.models.clip import Architecture

_WIDTH = Range(int, least=1, most=2**20)
_ID = Range(int, least=0, below=2**24)
# Fields without a key in config.py, or whose key may be 0.
_RANGES = {
    "vision_mlp_width": _WIDTH,
    "text_mlp_width": _WIDTH,
    "vocab_size": Range(int, least=3, most=2**24),
    "eos_id": _ID,
    "pad_id": _ID,
}


class Row(NamedTuple):
    """A field's name in the file, and its library's default."""

    theirs: str  # "text_config.hidden_size"
    default: Any = None  # None = the file must have the field
    allowed: Range | None = None  # None = the range of our own key


Rows = dict[str, Row]


def section(file: str, written: Any, name: str) -> dict[str, Any]:
    """Returns the object `name` of a file's object; {} if it is missing or null.

    Raises:
      ValueError: it is not an object.
    """
    value = written.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        refuse(file, name, "an object", value)
    return value


def read(file: str, written: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """Returns our fields' values.

    Args:
      file: for messages.
      written: the file's object; null fields count as missing.
      rows: by the name of our field.

    Raises:
      ValueError: a field is missing or out of range; the message names it.
    """
    values = {}
    for ours, (theirs, default, allowed) in rows.items():
        *folders, last = theirs.split(".")
        inner: Mapping[str, Any] = written
        for folder in folders:
            inner = section(file, inner, folder)
        value = default if inner.get(last) is None else inner[last]
        check(file, theirs, allowed or _range_of(ours), value)
        values[ours] = value
    return values


def write(rows: Rows, architecture: Architecture) -> dict[str, Any]:
    """Returns the file's object with our fields' values; the inverse of `read`."""
    written: dict[str, Any] = {}
    for ours, row in rows.items():
        *folders, last = row.theirs.split(".")
        inner = written
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = getattr(architecture, ours)
    return written


def _range_of(ours: str) -> Range:
    known = _RANGES.get(ours) or keys.RANGES.get(f"model.{ours}")
    return known or keys.RANGES[ours]


def check(file: str, field: str, allowed: Range, value: Any) -> None:
    """Raises ValueError, which names the field, for a value outside the range."""
    if not allowed.holds(value):
        refuse(file, field, allowed.wanted(), value)


def build(file: str, rows: Rows, **values: Any) -> Architecture:
    """Returns the architecture with these values.

    Raises:
      ValueError: they contradict each other; the message has the file's field names.
    """
    try:
        return Architecture(**values)
    except ValueError as error:
        ours = re.compile(rf"\b({'|'.join(rows)})\b")
        words = ours.sub(lambda found: rows[found[1]].theirs, str(error))
        raise ValueError(f"{file}: {words}") from error


def refuse(file: str, field: str, wanted: Any, got: Any) -> NoReturn:
    """Raises ValueError for a field: what was wanted, what came."""
    shown = repr(got) if len(repr(got)) <= 200 else f"{repr(got)[:200]}..."
    raise ValueError(f"{file}: wanted {field} {wanted}, got {shown}")


def same_in_both(
    file: str, written: Mapping[str, Any], field: str, *, default: Any, allowed: Range
) -> Any:
    """Returns the value of a field that must be equal for both towers.

    Raises:
      ValueError: the values differ or are out of range.
    """
    found = [
        section(file, written, tower).get(field)
        for tower in ("text_config", "vision_config")
    ]
    text, vision = (default if value is None else value for value in found)
    check(file, f"text_config.{field}", allowed, text)
    if vision != text:
        refuse(file, f"vision_config.{field}", f"{text!r}, as in text_config", vision)
    return text
