"""Contact sheets show any text in any script, and run nothing of it."""

import io
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from metaclip_jax.data import fonts, sheet

JPEG = io.BytesIO()
Image.new("RGB", (40, 30), "teal").save(JPEG, "JPEG")
SCRIPTS = {
    "Latin": "a caf\u00e9",
    "Cyrillic": "\u0447\u0451\u0440\u043d\u0430\u044f \u043a\u043e\u0448\u043a\u0430",
    "Han": "\u6771\u4eac\u306e\u591c\u666f",
    "Hangul": "\uace0\uc591\uc774",
    "Arabic": "\u0635\u0648\u0631\u0629 \u0642\u0637\u0629",
    "Hebrew": "\u05ea\u05de\u05d5\u05e0\u05d4",
    "Devanagari": "\u092c\u093f\u0932\u094d\u0932\u0940",
    "Thai": "\u0e41\u0e21\u0e27\u0e2a\u0e35\u0e14\u0e33",
}
HOSTILE = (
    "<script>alert(1)</script>",
    "</figcaption></figure></div>",
    '" onload="x',
    "{{ 7 * 7 }}",
    "\u202egnp.exe\x1b[2J",
    "\ud800 lone",
    "x" * 100_000,
    "\u0301" * 500,
)


def cell(text, others=()):
    return sheet.Cell(JPEG.getvalue(), text, "a note", others)


def test_texts_of_strangers_stay_text():
    cells = [cell(text, HOSTILE) for text in HOSTILE]
    page = sheet.render_html(sheet.Sheet(title=HOSTILE[0], cells=cells))
    assert "<script" not in page and 'onload="' not in page and "49" not in page
    assert page.count("<figure>") == page.count("</figure>") == len(HOSTILE)
    assert page.count("<bdi ") == page.count("</bdi>") >= 2 * len(HOSTILE)
    assert page.count("<bdi ") == page.count('<bdi dir="auto">')
    assert "default-src 'none'" in page
    assert len(page) < 200_000
    page.encode()


def test_a_picture_of_strangers_texts_has_its_usual_size():
    some = sheet.render_png(sheet.Sheet("some", [cell("a cat")] * len(HOSTILE)))
    cells = [cell(text, HOSTILE) for text in HOSTILE]
    hostile = sheet.render_png(sheet.Sheet(HOSTILE[0], cells))
    assert Image.open(io.BytesIO(some)).size == Image.open(io.BytesIO(hostile)).size


@pytest.mark.parametrize("most", [0, 1, 22, 23, 24, 29, 1_000])
def test_each_bar_counts_as_many_lengths_as_the_others(most):
    """Bars of 1.25 lengths would be uneven where the lengths are not."""
    counts, edges = sheet._counts(np.arange(most + 1))
    assert counts.sum() == most + 1 and len(counts) <= 24
    assert set(counts[:-1].tolist()) <= {int(edges[1])}


def test_many_texts_of_one_image_are_folded():
    texts = [f"text number {n}" for n in range(12)]
    page = sheet.render_html(sheet.Sheet("many", [cell(texts[0], texts[1:])]))
    assert all(text in page for text in texts)
    assert "<summary>8 more</summary>" in page
    shown = page[: page.index("<details")]
    assert len(re.findall("text number", shown)) == 4


@pytest.mark.parametrize("script", SCRIPTS)
def test_letters_are_drawn_by_a_font_that_has_them(script):
    text = SCRIPTS[script]
    if fonts.missing(text):
        pytest.skip(f"no font of this machine has {script}")
    canvas = Image.new("RGB", (300, 40), "white")
    fonts.draw(ImageDraw.Draw(canvas), (4, 4), text, fill=(0, 0, 0), size=20)
    assert (np.asarray(canvas) < 128).any()
    assert 0 < fonts.length(text, size=20) < 300
    for font, run in fonts._runs(text, 20):
        assert isinstance(font, ImageFont.FreeTypeFont)
        have = fonts._characters(font.path)
        assert all(ord(c) in have for c in run if not c.isspace() and c.isalpha())
