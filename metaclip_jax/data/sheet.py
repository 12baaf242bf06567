"""Contact sheets: pictures in a grid with their texts, as HTML or PNG.

Texts come from strangers. In HTML they are escaped by the template, isolated in their
own direction, and nothing may be fetched or run; in PNG they are only drawn. Pictures
are JPEGs that we encoded ourselves.
"""

import base64
import io
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import jinja2
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from metaclip_jax.data import fonts

_BARS = 24
_MOST_CHARACTERS = 200  # of a text
_MOST_TEXTS = 3  # of the other texts of an image, before the rest is folded
# Of the PNG, in pixels.
_COLUMNS, _CELL, _GAP, _LINE, _SIZE, _TITLE = 8, 150, 14, 16, 12, 20
_TEXT_LINES = 6  # below each image
_BARS_HEIGHT = 90
_INK, _FAINT, _BLUE = (29, 39, 51), (93, 107, 122), (53, 97, 142)

_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
    """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
 img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ sheet.title }}</title><style>
:root { --ink: #1d2733; --faint: #5d6b7a; --blue: #35618e; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe6ee; --faint: #93a1b0; --blue: #7fb0e0; --paper: #14191f; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 74rem;
  padding: 0 1rem; color: var(--ink); background: var(--paper); }
table { border-collapse: collapse; } td { padding: .15rem 1.2rem .15rem 0; }
.sheet { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { margin: 0; min-width: 0; } figure img { width: 100%; border-radius: 4px; }
figcaption { overflow-wrap: anywhere; } bdi { unicode-bidi: isolate; }
.other { color: var(--faint); font-size: 13px; }
.bars { display: flex; align-items: flex-end; height: 9rem; gap: 2px; }
.bars div { flex: 1; background: var(--blue); min-height: 1px; }
.axis { display: flex; justify-content: space-between; color: var(--faint); }
</style>
<h1><bdi dir="auto">{{ sheet.title }}</bdi></h1>
{% if sheet.facts %}
<table>{% for what, figure in sheet.facts %}
<tr><td>{{ what }}</td><td><bdi dir="auto">{{ figure }}</bdi></td></tr>{% endfor %}
</table>
{% endif %}
{% if bars %}
<h2>Tokens a text</h2>
<div class="bars">{% for height, title in bars %}
<div style="height:{{ '%.1f' % height }}%" title="{{ title }}"></div>{% endfor %}</div>
<div class="axis"><span>0</span><span>{{ most_tokens }}</span></div>
{% endif %}
<p>{{ sheet.note }}</p>
<div class="sheet">
{% for cell in sheet.cells %}
<figure><img alt="" src="data:image/jpeg;base64,{{ encoded(cell.jpeg) }}">
<figcaption><bdi dir="auto">{{ shorten(cell.text) }}</bdi>
<div class="other"><bdi dir="auto">{{ cell.note }}</bdi></div>
{% for text in cell.others[:most_texts] %}
<div class="other"><bdi dir="auto">{{ shorten(text) }}</bdi></div>
{% endfor %}
{% if cell.others[most_texts:] %}
<details class="other"><summary>{{ cell.others[most_texts:] | length }} more</summary>
{% for text in cell.others[most_texts:] %}
<div><bdi dir="auto">{{ shorten(text) }}</bdi></div>
{% endfor %}
</details>
{% endif %}
</figcaption></figure>
{% endfor %}
</div></html>
"""
)


@dataclass(frozen=True)
class Cell:
    """One picture: its JPEG (b"" = none), its text, a note, and its other texts."""

    jpeg: bytes
    text: str
    note: str = ""
    others: Sequence[str] = ()


@dataclass(frozen=True)
class Sheet:
    """What a sheet shows.

    `facts` are (what, figure) rows, `note` a sentence above the pictures, `lengths`
    int64[n] tokens of texts for a histogram, empty = none.
    """

    title: str
    cells: Sequence[Cell]
    note: str = ""
    facts: Sequence[tuple[str, str]] = ()
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def render(sheet: Sheet, *, png: bool) -> bytes:
    """Returns the sheet as a PNG, or as an HTML page that needs nothing else."""
    return render_png(sheet) if png else render_html(sheet).encode()


def render_html(sheet: Sheet) -> str:
    """Returns the sheet as a page that needs nothing else and runs nothing."""
    counts, edges = _counts(sheet.lengths)
    bars = [
        (100 * count / max(counts.max(), 1), f"{low:.0f} to {high:.0f}: {count}")
        for count, low, high in zip(counts, edges, edges[1:], strict=False)
    ]
    return _PAGE.render(
        sheet=sheet,
        bars=bars if sheet.lengths.size else [],
        most_tokens=f"{edges[-1] - 1:.0f}",
        most_texts=_MOST_TEXTS,
        shorten=_shorten,
        encoded=lambda jpeg: base64.b64encode(jpeg).decode(),
    )


def render_png(sheet: Sheet) -> bytes:
    """Returns the sheet as a picture, in the fonts that this machine has."""
    rows = -(-len(sheet.cells) // _COLUMNS)
    bars = _BARS_HEIGHT + 3 * _LINE if sheet.lengths.size else 0
    top = 3 * _LINE + _LINE * len(sheet.facts) + _GAP + bars
    height = _CELL + _LINE * _TEXT_LINES + _GAP
    width = _GAP + _COLUMNS * (_CELL + _GAP)
    picture = Image.new("RGB", (width, top + rows * height + _GAP), "white")
    on = ImageDraw.Draw(picture)
    fonts.draw(on, (_GAP, _GAP), _shorten(sheet.title), fill=_INK, size=_TITLE)
    for number, (what, figure) in enumerate(sheet.facts):
        y = 3 * _LINE + number * _LINE
        fonts.draw(on, (_GAP, y), what, fill=_FAINT, size=_SIZE)
        fonts.draw(on, (_GAP + 230, y), _shorten(figure), fill=_INK, size=_SIZE)
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


def _shorten(text: str) -> str:
    """One line of at most _MOST_CHARACTERS, without control characters."""
    kept = "".join(
        " " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c
        for c in text[: 4 * _MOST_CHARACTERS]
    )
    line = " ".join(kept.split())
    cut = len(line) > _MOST_CHARACTERS or len(text) > 4 * _MOST_CHARACTERS
    return line[: _MOST_CHARACTERS - 1] + "…" if cut else line


def _lines(text: str) -> list[str]:
    """Breaks a text into lines that are as wide as a cell of the PNG, at least one."""
    text = _shorten(text)
    letters = int(len(text) * _CELL / max(fonts.length(text, size=_SIZE), 1))
    return textwrap.wrap(text, max(letters - 2, 8)) or [""]


def _counts(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    most = int(lengths.max(initial=0))
    return np.histogram(lengths, bins=min(_BARS, most + 1), range=(0, most + 1))


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
