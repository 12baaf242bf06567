"""Fields of another library's config file: checked by name before anything is built.

A row says what the file calls one of our architecture's fields. It may have the values
that config.py allows for our own key, so that absurd ones are refused here, and not by
whatever would first divide by them or allocate them.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from metaclip_jax import config as keys
from metaclip_jax.cli.ranges import Range
from metaclip_jax.models.clip import Architecture

_WIDTH = Range(int, least=1, most=2**20)
_ID = Range(int, least=0, below=2**24)
# What config.py has no key for, or one that may be left at 0.
_RANGES = {
    "vision_mlp_width": _WIDTH,
    "text_mlp_width": _WIDTH,
    "vocab_size": Range(int, least=3, most=2**24),
    "eos_id": _ID,
    "pad_id": _ID,
}


class Row(NamedTuple):
    """What a file calls a field, and what its library takes where it has none."""

    theirs: str  # "text_config.hidden_size"
    default: Any = None  # None = the file must have it
    allowed: Range | None = None  # None = what our own key may have


Rows = dict[str, Row]


def section(file: str, written: Any, name: str) -> dict[str, Any]:
    """An object inside a file's object; empty where it is missing or null.

    Raises:
      ValueError: it is something else.
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
      written: the file's object; fields that are null count as missing.
      rows: by the name of our field.

    Raises:
      ValueError: a field is missing or has a value that no model has; names it.
    """
    values = {}
    for ours, (theirs, default, allowed) in rows.items():
        *folders, last = theirs.split(".")
        held: Mapping[str, Any] = written
        for folder in folders:
            held = section(file, held, folder)
        value = default if held.get(last) is None else held[last]
        check(file, theirs, allowed or _range_of(ours), value)
        values[ours] = value
    return values


def _range_of(ours: str) -> Range:
    known = _RANGES.get(ours) or keys.RANGES.get(f"model.{ours}")
    return known or keys.RANGES[ours]


def check(file: str, field: str, allowed: Range, value: Any) -> None:
    """Raises ValueError for a value that is not in the range; names the field."""
    if not allowed.holds(value):
        refuse(file, field, allowed.wanted(), value)


def build(file: str, rows: Rows, **values: Any) -> Architecture:
    """Returns the architecture of these values.

    Raises:
      ValueError: they do not fit together; named as the file names them.
    """
    try:
        return Architecture(**values)
    except ValueError as error:
        ours = re.compile(rf"\b({'|'.join(rows)})\b")
        words = ours.sub(lambda found: rows[found[1]].theirs, str(error))
        raise ValueError(f"{file}: {words}") from error


def refuse(file: str, field: str, wanted: Any, got: Any) -> NoReturn:
    """Raises ValueError: what was wanted of a field and what came."""
    shown = repr(got) if len(repr(got)) <= 200 else f"{repr(got)[:200]}..."
    raise ValueError(f"{file}: wanted {field} {wanted}, got {shown}")


def same_in_both(
    file: str, written: Mapping[str, Any], field: str, *, default: Any, allowed: Range
) -> Any:
    """Returns what both towers have of a field that ours have in common."""
    found = [
        section(file, written, part).get(field)
        for part in ("text_config", "vision_config")
    ]
    text, vision = (default if value is None else value for value in found)
    check(file, f"text_config.{field}", allowed, text)
    if vision != text:
        refuse(file, f"vision_config.{field}", f"{text!r}, as in text_config", vision)
    return text
