"""The contact sheet of a look at the data, as HTML or PNG, and its figures as text.

All that strangers wrote is escaped in HTML and only drawn in PNG.
"""

import base64
import html
import io
import textwrap
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageDraw, ImageFont

from metaclip_jax.data import clean_up

_BARS = 24
# Of the PNG, in pixels.
_COLUMNS, _CELL, _GAP, _LINE = 8, 150, 14, 15
_TEXT_LINES = 6  # below each image
_BARS_HEIGHT = 90
_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf")
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_INK, _FAINT, _BLUE = (29, 39, 51), (93, 107, 122), (53, 97, 142)

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 74rem;
  padding: 0 1rem; color: #1d2733; background: #fff; }
table { border-collapse: collapse; } td { padding: .15rem 1.2rem .15rem 0; }
.sheet { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { margin: 0; } figure img { width: 100%; border-radius: 4px; }
figcaption { overflow-wrap: anywhere; } .other { color: #5d6b7a; font-size: 13px; }
.bars { display: flex; align-items: flex-end; height: 9rem; gap: 2px; }
.bars div { flex: 1; background: #35618e; min-height: 1px; }
.axis { display: flex; justify-content: space-between; color: #5d6b7a; }
"""


@dataclass(frozen=True)
class Example:
    """One row of a batch: `image` uint8[H, W, 3], the text as the model gets it
    (cleaned, cut), the texts of its record as they are stored, and where it is from.
    """

    image: np.ndarray
    text: str
    stored: tuple[str, ...]
    dataset: str
    source: str  # of the text: alt, title, ...; "" if two texts look the same


@dataclass(frozen=True)
class Report:
    """What the sheet shows.

    `facts` are (what, figure) rows, `lengths` int64[n] tokens of single texts without
    marks, of records spread evenly over the datasets.
    """

    title: str
    facts: list[tuple[str, str]]
    examples: list[Example]
    lengths: np.ndarray


def render_html(report: Report) -> str:
    """Returns the contact sheet as a page that needs nothing else."""
    rows = "".join(
        f"<tr><td>{html.escape(what)}</td><td>{html.escape(figure)}</td></tr>"
        for what, figure in report.facts
    )
    name = html.escape(report.title)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{name}</title><style>{_STYLE}</style>"
        f"<h1>What training sees of {name}</h1><table>{rows}</table>"
        f"<h2>Tokens a text</h2>{_histogram(report.lengths)}"
        "<h2>Examples</h2><p>Cropped and resized; the text as the model reads it, and "
        "below it the others of the image.</p>"
        f'<div class="sheet">{"".join(map(_figure, report.examples))}</div></html>\n'
    )


def render_png(report: Report) -> bytes:
    """Returns the contact sheet as a picture.

    Letters that the machine's fonts lack are boxes; HTML shows them all.
    """
    font, large = _font(12), _font(20)
    rows = -(-len(report.examples) // _COLUMNS)
    top = 3 * _LINE + _LINE * len(report.facts) + _BARS_HEIGHT + 4 * _LINE
    height = _CELL + _LINE * _TEXT_LINES + _GAP
    width = _GAP + _COLUMNS * (_CELL + _GAP)
    sheet = Image.new("RGB", (width, top + rows * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (_GAP, _GAP), _printable(f"What training sees of {report.title}"), _INK, large
    )
    for number, (what, figure) in enumerate(report.facts):
        y = 3 * _LINE + number * _LINE
        draw.text((_GAP, y), _printable(what), _FAINT, font)
        draw.text((_GAP + 230, y), _printable(figure), _INK, font)
    _draw_bars(draw, report.lengths, bottom=top - 2 * _LINE, width=width, font=font)
    for number, example in enumerate(report.examples):
        x = _GAP + number % _COLUMNS * (_CELL + _GAP)
        y = top + number // _COLUMNS * height
        shown = Image.fromarray(example.image).resize((_CELL, _CELL))
        sheet.paste(shown, (x, y))
        note = " ".join(filter(None, (example.dataset, example.source)))
        draw.text((x, y + _CELL + 2), _fitting(note, font)[0], _FAINT, font)
        for line, text in enumerate(_fitting(example.text, font)[: _TEXT_LINES - 1]):
            draw.text((x, y + _CELL + 2 + _LINE * (line + 1)), text, _INK, font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _font(size: int) -> _Font:
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)  # it has ASCII


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _fitting(text: str, font: _Font) -> list[str]:
    """Breaks a text into lines that are as wide as an image, at least one."""
    text = _printable(text)
    letters = int(len(text) * _CELL / max(font.getlength(text), 1))
    return textwrap.wrap(text, max(letters - 2, 8)) or [""]


def _draw_bars(
    draw: ImageDraw.ImageDraw,
    lengths: np.ndarray,
    *,
    bottom: int,
    width: int,
    font: _Font,
) -> None:
    counts, edges = _counts(lengths)
    step = (width - 2 * _GAP) / len(counts)
    for number, count in enumerate(counts.tolist()):
        tall = round(_BARS_HEIGHT * count / max(counts.max(), 1))
        left = _GAP + number * step
        box = (left, bottom - max(tall, 1), left + step - 2, bottom)
        draw.rectangle(box, fill=_BLUE)
    draw.text((_GAP, bottom + 2), "0 tokens a text", _FAINT, font)
    end = f"{edges[-1] - 1:.0f}"
    draw.text((width - _GAP - font.getlength(end), bottom + 2), end, _FAINT, font)


def _figure(example: Example) -> str:
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(example.image), quality=90)
    source = base64.b64encode(jpeg).decode()
    others = [text for text in example.stored if not is_shown(text, example.text)]
    listed = "".join(f"<div>{html.escape(text)}</div>" for text in others)
    note = " ".join(filter(None, (example.dataset, example.source)))
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{source}">'
        f"<figcaption>{html.escape(example.text)}"
        f'<div class="other">{html.escape(note)}</div>'
        f'<div class="other">{listed}</div></figcaption></figure>'
    )


def is_shown(stored: str, shown: str) -> bool:
    """Says whether the model was shown this text, perhaps cut."""
    # Tokens come back with spaces around punctuation.
    cleaned, shown = (t.replace(" ", "") for t in (clean_up.clean(stored), shown))
    return cleaned == shown or (len(shown) > 20 and cleaned.startswith(shown))


def _counts(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    most = int(lengths.max(initial=0))
    return np.histogram(lengths, bins=min(_BARS, most + 1), range=(0, most + 1))


def _histogram(lengths: np.ndarray) -> str:
    counts, edges = _counts(lengths)
    columns = "".join(
        f'<div style="height:{100 * count / max(counts.max(), 1):.1f}%" '
        f'title="{low:.0f} to {high:.0f}: {count}"></div>'
        for count, low, high in zip(counts, edges, edges[1:], strict=False)
    )
    return (
        f'<div class="bars">{columns}</div>'
        f'<div class="axis"><span>0</span><span>{edges[-1] - 1:.0f}</span></div>'
    )
