"""Contact sheets: images in a grid with their texts, as HTML or PNG.

Texts come from strangers. The HTML template escapes them and isolates their writing
direction; in a PNG they are only drawn. Images are JPEGs that we encoded ourselves.
"""

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from metaclip_jax.data import fonts
from metaclip_jax.pages import charts, page

_BARS = 24
_MOST_CHARACTERS = 200  # of a text
_MOST_TEXTS = 3  # other texts of an image that are shown; more are folded
# Sizes in the PNG, in pixels; _COLUMNS is a number of cells.
_COLUMNS, _CELL, _GAP, _LINE, _SIZE, _TITLE = 8, 150, 14, 16, 12, 20
_TEXT_LINES = 6  # below each image
_BARS_HEIGHT = 90
_INK, _FAINT, _BLUE = (29, 39, 51), (93, 107, 122), (53, 97, 142)


@dataclass(frozen=True)
class Cell:
    """One image: its JPEG (b"" = none), its text, a note, and its other texts."""

    jpeg: bytes
    text: str
    note: str = ""
    others: Sequence[str] = ()


@dataclass(frozen=True)
class Sheet:
    """The contents of a sheet.

    `facts` are (name, value) rows, `note` is a sentence above the images, `lengths`
    int64[n] are the texts' lengths in tokens for a histogram; empty = none.
    """

    title: str
    cells: Sequence[Cell]
    note: str = ""
    facts: Sequence[tuple[str, str]] = ()
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def render(sheet: Sheet, *, png: bool) -> bytes:
    """Returns the sheet as a PNG, or as a self-contained HTML page."""
    return render_png(sheet) if png else render_html(sheet).encode()


def render_html(sheet: Sheet) -> str:
    """Returns the sheet as a self-contained HTML page."""
    lengths = None
    if sheet.lengths.size:
        counts, edges = _counts(sheet.lengths)
        lengths = charts.histogram(
            counts, edges, label="tokens", describe="How many tokens texts have."
        )
    return page.render(
        page.__package__,
        "sheet.html",
        title=sheet.title,
        has_charts=lengths is not None,
        filters={"base64": lambda jpeg: base64.b64encode(jpeg).decode()},
        values={
            "facts": sheet.facts,
            "note": sheet.note,
            "cells": sheet.cells,
            "lengths": lengths,
            "limit": _MOST_CHARACTERS,
            "most": _MOST_TEXTS,
        },
    ).decode()


def render_png(sheet: Sheet) -> bytes:
    """Returns the sheet as a PNG, drawn with this machine's fonts."""
    rows = -(-len(sheet.cells) // _COLUMNS)
    bars = _BARS_HEIGHT + 3 * _LINE if sheet.lengths.size else 0
    top = 3 * _LINE + _LINE * len(sheet.facts) + _GAP + bars
    height = _CELL + _LINE * _TEXT_LINES + _GAP
    width = _GAP + _COLUMNS * (_CELL + _GAP)
    picture = Image.new("RGB", (width, top + rows * height + _GAP), "white")
    on = ImageDraw.Draw(picture)
    fonts.draw(on, (_GAP, _GAP), page.clean(sheet.title), fill=_INK, size=_TITLE)
    for number, (what, figure) in enumerate(sheet.facts):
        y = 3 * _LINE + number * _LINE
        fonts.draw(on, (_GAP, y), what, fill=_FAINT, size=_SIZE)
        fonts.draw(on, (_GAP + 230, y), page.clean(figure), fill=_INK, size=_SIZE)
    if sheet.lengths.size:
        _draw_bars(on, sheet.lengths, bottom=top - 2 * _LINE, width=width)
    for number, cell in enumerate(sheet.cells):
        x = _GAP + number % _COLUMNS * (_CELL + _GAP)
        y = top + number // _COLUMNS * height
        if cell.jpeg:
            with Image.open(io.BytesIO(cell.jpeg), formats=("JPEG",)) as opened:
                shown = opened.convert("RGB")
            shown = ImageOps.contain(shown, (_CELL, _CELL))
            picture.paste(shown, (x + (_CELL - shown.width) // 2, y))
        lines = [(line, _FAINT) for line in _lines(cell.note)[:1] if line]
        lines += [(line, _INK) for line in _lines(cell.text)]
        for row, (line, colour) in enumerate(lines[:_TEXT_LINES]):
            place = (x, y + _CELL + 2 + _LINE * row)
            fonts.draw(on, place, line, fill=colour, size=_SIZE)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _lines(text: str) -> list[str]:
    """Wraps a text to the width of a PNG cell; returns at least one line."""
    text = page.clean(text, _MOST_CHARACTERS)
    letters = int(len(text) * _CELL / max(fonts.length(text, size=_SIZE), 1))
    return textwrap.wrap(text, max(letters - 2, 8)) or [""]


def _counts(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the counts and edges of at most _BARS bins of equal width."""
    every = int(lengths.max(initial=0)) + 1
    width = -(-every // _BARS)
    return np.histogram(lengths, np.arange(0, every + width, width))


def _draw_bars(
    on: ImageDraw.ImageDraw, lengths: np.ndarray, *, bottom: int, width: int
) -> None:
    counts, edges = _counts(lengths)
    step = (width - 2 * _GAP) / len(counts)
    for number, count in enumerate(counts.tolist()):
        tall = round(_BARS_HEIGHT * count / max(counts.max(), 1))
        left = _GAP + number * step
        on.rectangle((left, bottom - max(tall, 1), left + step - 2, bottom), _BLUE)
    label, end = (_GAP, bottom + 2), f"{edges[-1] - 1:.0f}"
    fonts.draw(on, label, "0 tokens a text", fill=_FAINT, size=_SIZE)
    right = width - _GAP - fonts.length(end, size=_SIZE)
    fonts.draw(on, (right, bottom + 2), end, fill=_FAINT, size=_SIZE)
