"""Draws text in any script with the machine's fonts.

A font covers few scripts, and Pillow draws with one font. So a line is split into runs
of characters that one font covers. fontTools reads which characters a font covers, from
as few files as are needed.
"""

import functools
import itertools
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from fontTools.ttLib import TTCollection, TTFont, TTLibError
from PIL import ImageDraw, ImageFont

_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
)
_FIRST = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc")
_STYLES = ("bold", "italic", "oblique", "light", "thin", "medium", "black", "mono")
_OUTLINES = ("glyf", "CFF ", "CFF2")  # tables of fonts that Pillow draws at any size
# Unicode categories of characters that stay in the previous character's run.
_JOINED = ("Mn", "Me", "Mc", "Cf", "Zs")

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw(
    on: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    *,
    fill: tuple[int, int, int],
    size: int,
) -> None:
    """Draws one line of text at `place` (left, top); `size` is in pixels."""
    left, top = place
    for font, run in _runs(text, size):
        on.text((left, top + size), run, fill, font, anchor="ls")  # one base line
        left += font.getlength(run)


def length(text: str, *, size: int) -> float:
    """Returns the width of a line in pixels."""
    return sum(font.getlength(run) for font, run in _runs(text, size))


def missing(text: str) -> set[str]:
    """Returns the characters that no font covers; they are drawn as boxes."""
    return {c for c in text if not c.isspace() and _file_for(c) is None}


def _runs(text: str, size: int) -> Iterator[tuple[_Font, str]]:
    """Yields each run of characters with its font."""
    files: list[str | None] = []
    for character in text:
        joined = unicodedata.category(character) in _JOINED
        files.append(files[-1] if files and joined else _file_for(character))
    for file, group in itertools.groupby(
        zip(files, text, strict=True), key=lambda pair: pair[0]
    ):
        yield _open(file, size), "".join(character for _, character in group)


@functools.cache
def _open(file: str | None, size: int) -> _Font:
    if file is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(file, size)


@functools.cache
def _file_for(character: str) -> str | None:
    """Returns the first font with the character; fonts named by its script first."""
    script = unicodedata.name(character, "").split(" ")[0].lower()
    files = _files()
    usual = [file for file in files if os.path.basename(file) in _FIRST]
    likely = [f for f in files if len(script) > 2 and script in f.lower()]
    for file in dict.fromkeys([*usual, *likely, *files]):
        if ord(character) in _characters(file):
            return file
    return None


@functools.cache
def _files() -> tuple[str, ...]:
    """Returns the machine's fonts in the regular style, the usual ones first."""
    found = {
        str(path)
        for folder in _FOLDERS
        for path in Path(folder).expanduser().rglob("*")
        if path.suffix.lower() in (".ttf", ".otf", ".ttc")
        and not any(style in path.stem.lower() for style in _STYLES)
    }

    def order(file: str) -> tuple[int, str]:
        name = os.path.basename(file)
        return (_FIRST.index(name) if name in _FIRST else len(_FIRST)), file

    return tuple(sorted(found, key=order))


@functools.cache
def _characters(file: str) -> frozenset[int]:
    """Returns a font's code points; none if it is damaged or has no outlines."""
    try:
        font = (
            TTCollection(file, lazy=True).fonts[0]
            if file.lower().endswith(".ttc")
            else TTFont(file, lazy=True)
        )
        with font:
            outlined = any(table in font for table in _OUTLINES)
            return frozenset(font.getBestCmap() or ()) if outlined else frozenset()
    except (OSError, TTLibError, ValueError, KeyError, AssertionError):
        return frozenset()
