"""HTML and SVG by construction: what is not markup already is escaped.

Every tag of the report is made by `element`, which escapes each child and each
attribute that is not `Markup`. Text that strangers wrote goes through `stranger`,
which also bounds it and keeps its direction from leaking into the page.
"""

import html
import re
import unicodedata
from collections.abc import Iterable

from data_prep.matching import spacing

# An HTML parser reads these without an end tag.
_VOID = frozenset({"br", "col", "img", "link", "meta"})
# Characters that steer the layout of what follows them; <bdi> does that job here.
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e") | {
    chr(code) for code in range(0x2066, 0x206A)
}
# Honest scripts need three marks on a letter; a hundred would cover other lines.
_MAX_MARKS = 3


class Markup(str):
    """A string that is finished HTML or SVG, to be written as it is."""


def escape(value: object) -> Markup:
    """Returns `value` as text: quotes, angle brackets and ampersands escaped."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(str(value), quote=True))


def join(parts: Iterable[object]) -> Markup:
    """Joins children one after another, escaping those that are not `Markup`."""
    return Markup("".join(escape(part) for part in parts))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """Makes one element.

    Attribute names lose a trailing underscore (`class_`) and turn the others into
    hyphens (`stroke_width`). An attribute that is None is left out.
    """
    pairs = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{pairs}>")
    return Markup(f"<{tag}{pairs}>{join(children)}</{tag}>")


def clean(text: str, *, limit: int = 160) -> str:
    """Returns strangers' text as one printable line of at most `limit` characters.

    Control and direction characters go, lone surrogates become U+FFFD, runs of
    combining marks and of spaces are shortened. It is not escaped yet.
    """
    kept: list[str] = []
    marks = 0
    # Bounded before the loop too: a text may be megabytes long.
    for character in text[: 8 * limit]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if category == "Cs":
            kept.append("\ufffd")
        elif category in ("Cc", "Zl", "Zp"):
            kept.append(" ")
        elif character not in _BIDI_CONTROLS and marks <= _MAX_MARKS:
            kept.append(character)
    line = re.sub(r"\s+", " ", "".join(kept)).strip()
    shortened = len(line) > limit or len(text) > 8 * limit
    return line[: limit - 1].rstrip() + "\u2026" if shortened else line


def stranger(text: str, *, limit: int = 160, mark: str = "") -> Markup:
    """Text from outside, isolated in a <bdi> of its own direction.

    The first occurrence of `mark` in it (any case) is marked, if it is not a part of a
    word. Scripts without spaces have no such words.
    """
    line = clean(text, limit=limit)
    wanted = clean(mark, limit=limit)
    for found in re.finditer(re.escape(wanted), line, re.IGNORECASE) if wanted else ():
        start, end = found.span()
        if not (_in_word(line, start) or _in_word(line, end)):
            marked = element("mark", found.group())
            return element("bdi", line[:start], marked, line[end:], dir="auto")
    return element("bdi", line, dir="auto")


def _in_word(line: str, place: int) -> bool:
    """Whether the characters on both sides of this place are of one word."""
    around = line[max(place - 1, 0) : place + 1]
    return 0 < place < len(line) and all(map(spacing.is_of_a_word, around))
