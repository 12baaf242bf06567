"""What a page or a table says of its images becomes rows of CANDIDATES.

Texts are cleaned, and what is not usable is counted by reason.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from data_prep import language
from data_prep.sources import image_urls
from metaclip_jax.data import records

SAID_CHARS = 300  # of a page's text, to know its language by
REMOVABLE_CHARS = 1 << 16  # white space and the like, at most, of a usable text
BREAK = "\0"  # no page has it: the parser replaces it
# Attributes of an image; figcaption is the caption of its figure.
SOURCES = ("alt", "title", "data-image-title", "figcaption")
# How many images got a larger address than that in `src`, and how many did not.
LARGER, AS_WRITTEN = "larger_address", "address_as_written"
_LANGUAGE = re.compile(r"([a-z]{2,3})(?:[-_]|$)", re.I)
# Control characters that are no white space, and lone surrogates (no valid UTF-8).
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]+")

# The fields of schema.CANDIDATES.
Row = tuple[str, str, str, str, str, str, str, str, str]
# Image URL, text, text source, declared language.
Text = tuple[str, str, str, str]


class Image(NamedTuple):
    """An image of a page."""

    attributes: image_urls.Attributes
    sources: Iterable[image_urls.Attributes]  # of its <picture>
    caption: str | None
    language: Callable[[], str]  # the declared one, "" where there is none


def texts_of(
    images: Iterable[Image],
    base: str,
    *,
    max_texts_per_page: int,
    max_text_chars: int,
    max_url_chars: int,
    text_sources: Sequence[str] = SOURCES,
    prefer_larger: bool = False,
) -> tuple[list[Text], Counter]:
    """Returns the usable texts of a page's images, and how many were lost by reason.

    `base` is what `image_urls.base_of` returned; the reasons are in `parse_page`. With
    `prefer_larger`, it also counts images as LARGER and AS_WRITTEN.
    """
    drops: Counter = Counter()
    rows: list[Text] = []
    names = tuple(name for name in text_sources if name != "figcaption")
    for attributes, sources, caption, declared in images:
        texts = [(n, attributes[n]) for n in names if n in attributes]
        if caption is not None:
            texts.append(("figcaption", caption))
        if len(rows) >= max_texts_per_page:
            drops["too_many_texts"] += max(len(texts), 1)
            continue
        kept = usable(texts, max_text_chars, drops)
        if not kept:
            continue
        url = ""
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
            drops[reason] += len(kept)
            continue
        if prefer_larger:
            drops[LARGER if is_larger else AS_WRITTEN] += 1
        code = declared()
        rows += [(url, text, source, code) for source, text in kept]
    if len(rows) > max_texts_per_page:
        drops["too_many_texts"] += len(rows) - max_texts_per_page
        del rows[max_texts_per_page:]
    return rows, drops


def usable(
    texts: Sequence[tuple[str, str | None]], max_text_chars: int, drops: Counter
) -> list[tuple[str, str]]:
    """Returns the (source, cleaned text) that are neither empty nor too long.

    Counts the others: no text at all is one empty text.
    """
    if not texts:
        drops["empty_text"] += 1
    kept = []
    for source, raw in texts:
        if raw and len(raw) > max_text_chars + REMOVABLE_CHARS:
            drops["text_too_long"] += 1  # without the time that cleaning takes
            continue
        text = clean(raw or "")
        if not text:
            drops["empty_text"] += 1
        elif len(text) > max_text_chars:
            drops["text_too_long"] += 1
        else:
            kept.append((source, text))
    return kept


def clean(text: str) -> str:
    """Strips, collapses white space, removes control characters and surrogates."""
    if not text.isprintable():
        text = _UNWANTED.sub("", text)
    return " ".join(text.split())


def to_rows(
    page_url: str,
    found: Sequence[Text],
    said: str,
    identify: language.LanguageIdentifier,
) -> list[Row]:
    """Returns rows of CANDIDATES.

    Args:
      page_url: of all texts.
      found: the texts of a page.
      said: what to know the language of the page by, "" where all texts declare theirs.
      identify: called at most once.
    """
    of_page = language.of_page(said, identify) if said else ""
    unknown = {code for code in {one[-1] for one in found} if not language.known(code)}
    image_ids = {url: records.image_id(url) for url in {one[0] for one in found}}
    return [
        (image_ids[url], url, page_url, text, source, code, identified, "", "")
        for url, text, source, code in found
        for identified in (of_page if code in unknown else "",)
    ]


def beginning(said: Iterable[str]) -> str:
    """Returns as much of what a page says as its language is identified by."""
    parts: list[str] = []
    chars = 0
    for part in said:
        if part != BREAK and not part.isspace():
            parts.append(part[:SAID_CHARS])
            chars += len(parts[-1])
            if chars >= SAID_CHARS:
                break
    return clean(" ".join(parts))[:SAID_CHARS]


def language_of_list(content: str | None) -> str:
    """Returns the language of a Content-Language, "" where it has none or several."""
    return "" if "," in (content or "") else subtag(content)


def subtag(declared: str | None) -> str:
    """Returns the lower-case primary subtag: "en-GB" -> "en"; "" where it is none."""
    found = _LANGUAGE.match((declared or "").strip())
    return found[1].lower() if found else ""
