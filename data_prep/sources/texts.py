"""Turns the texts that a page or a table has for its images into rows of CANDIDATES.

Texts are cleaned; unusable ones are counted by reason.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import xxhash

from data_prep import language
from data_prep.sources import image_urls
from metaclip_jax.data import records

PAGE_TEXT_CHARS = 300  # enough to identify its language
REMOVABLE_CHARS = 1 << 16  # white space and the like, at most, of a usable text
BREAK = "\0"  # no page has it: the parser replaces it
# Attributes of an image; figcaption is the caption of its figure.
SOURCES = ("alt", "title", "data-image-title", "figcaption")
# How many images got a larger address than that in `src`, and how many did not.
LARGER, AS_WRITTEN = "larger_address", "address_as_written"
_LANGUAGE = re.compile(r"([a-z]{2,3})(?:[-_]|$)", re.I)
# Control characters other than white space, and lone surrogates (invalid in UTF-8).
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]+")

SHOWN = 12  # lost texts of each reason, to look at
_SHOWN_CHARS = 300

# The fields of schema.CANDIDATES.
Row = tuple[str, str, str, str, str, str, str, str, str]
# Image URL, text, text source, declared language.
Text = tuple[str, str, str, str]


class Losses(Counter[str]):
    """How many texts were lost by reason, and some of them.

    `shown` has up to SHOWN texts of each reason by their hashes, the smallest, so that
    they do not depend on the order of pages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, dict[int, str]] = {}

    def lose(self, reason: str, text: str | None = None, count: int = 1) -> None:
        """Counts lost texts, of which `text` is one; it is cleaned and shortened."""
        self[reason] += count
        if text and (start := clean(text[:_SHOWN_CHARS])):
            self._show(reason, xxhash.xxh3_64_intdigest(start.encode()), start)

    def add(self, others: "Losses") -> None:
        """Adds the losses of a page."""
        self.update(others)
        for reason, shown in others.shown.items():
            for key, text in shown.items():
                self._show(reason, key, text)

    def _show(self, reason: str, key: int, text: str) -> None:
        shown = self.shown.setdefault(reason, {})
        shown[key] = text
        if len(shown) > SHOWN:
            del shown[max(shown)]


class Found(NamedTuple):
    """What was found on a page."""

    url: str  # of the page
    texts: list[Text]
    losses: Losses
    page_text: str  # its beginning, to identify the language by; "" if not needed


_Image = TypeVar("_Image")


def texts_of(
    images: Iterable[tuple[_Image, image_urls.Attributes]],
    base: str,
    *,
    language_of: Callable[[_Image], str],
    sources_of: Callable[[_Image], Iterable[image_urls.Attributes]],
    caption_of: Callable[[_Image], str | None] | None = None,
    max_texts_per_page: int,
    max_text_chars: int,
    max_url_chars: int,
    text_sources: Sequence[str] = SOURCES,
    prefer_larger: bool = False,
) -> tuple[list[Text], Losses]:
    """Returns the usable texts of a page's images, and how many were lost by reason.

    `html.find_texts` lists the reasons. With `prefer_larger`, it also counts images as
    LARGER and AS_WRITTEN.

    Args:
      images: of the page, with their attributes.
      base: what `image_urls.base_of` returned.
      language_of: returns the language that is declared for an image, "" if none is.
      sources_of: returns the attributes of the <source>s of its <picture>.
      caption_of: returns its caption; None where no image has any.
      max_texts_per_page, max_text_chars, max_url_chars: as in `html.find_texts`.
      text_sources, prefer_larger: likewise.
    """
    drops = Losses()
    rows: list[Text] = []
    names = tuple(name for name in text_sources if name != "figcaption")
    for image, attributes in images:
        texts = [(n, attributes[n]) for n in names if n in attributes]
        if caption_of is not None and (caption := caption_of(image)) is not None:
            texts.append(("figcaption", caption))
        if len(rows) >= max_texts_per_page:
            shown = texts[0][1] if texts else None
            drops.lose("too_many_texts", shown, max(len(texts), 1))
            continue
        kept = usable(texts, max_text_chars, drops)
        if not kept:
            continue
        url = ""
        sources = sources_of(image)
        if prefer_larger:
            sources = list(sources)
            if larger := image_urls.larger(attributes, sources):
                url, _ = image_urls.find(
                    {"src": larger}, (), base, max_url_chars=max_url_chars
                )
        is_larger = bool(url)
        if not url:
            url, reason = image_urls.find(
                attributes, sources, base, max_url_chars=max_url_chars
            )
        if not url:
            drops.lose(reason, kept[0][1], len(kept))
            continue
        if prefer_larger:
            drops[LARGER if is_larger else AS_WRITTEN] += 1
        code = language_of(image)
        rows += [(url, text, source, code) for source, text in kept]
    if len(rows) > max_texts_per_page:
        lost = len(rows) - max_texts_per_page
        drops.lose("too_many_texts", rows[-1][1], lost)
        del rows[max_texts_per_page:]
    return rows, drops


def usable(
    texts: Sequence[tuple[str, str | None]], max_text_chars: int, drops: Losses
) -> list[tuple[str, str]]:
    """Returns the (source, cleaned text) that are neither empty nor too long.

    Counts the others: no text at all is one empty text.
    """
    if not texts:
        drops["empty_text"] += 1
    kept = []
    for source, raw in texts:
        if raw and len(raw) > max_text_chars + REMOVABLE_CHARS:
            # Without the time that cleaning takes.
            drops.lose("text_too_long", raw)
            continue
        text = clean(raw or "")
        if not text:
            drops["empty_text"] += 1
        elif len(text) > max_text_chars:
            drops.lose("text_too_long", text)
        else:
            kept.append((source, text))
    return kept


def clean(text: str) -> str:
    """Strips, collapses white space, removes control characters and surrogates."""
    if not text.isprintable():
        text = _UNWANTED.sub("", text)
    return " ".join(text.split())


def to_rows(page: Found) -> list[Row]:
    """Returns the rows of CANDIDATES of a page."""
    page_texts = {
        code: "" if language.known(code) else page.page_text
        for code in {one[-1] for one in page.texts}
    }
    image_ids = {url: records.image_id(url) for url in {one[0] for one in page.texts}}
    return [
        (image_ids[url], url, page.url, text, source, code, page_texts[code], "", "")
        for url, text, source, code in page.texts
    ]


def beginning(pieces: Iterable[str]) -> str:
    """Returns the beginning of a page's text, by which its language is identified."""
    parts: list[str] = []
    chars = 0
    for part in pieces:
        if not part.isspace():
            parts.append(part[:PAGE_TEXT_CHARS])
            chars += len(parts[-1])
            if chars >= PAGE_TEXT_CHARS:
                break
    return clean(" ".join(parts))[:PAGE_TEXT_CHARS]


def language_of_list(content: str | None) -> str:
    """Returns the language of a Content-Language, "" where it has none or several."""
    return "" if "," in (content or "") else subtag(content)


def subtag(declared: str | None) -> str:
    """Returns the lower-case primary subtag: "en-GB" -> "en"; "" for no tag."""
    found = _LANGUAGE.match((declared or "").strip())
    return found[1].lower() if found else ""
