"""Converts the rows and samples of any format to candidates.

A source that holds the bytes of images gives each a reference to them. No text of a
page or a table can become a reference: sources of pages make none, and their runs
follow none.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from data_prep.sources import image_urls, texts
from data_prep.sources.spec import Reading, Spec, to_batches
from metaclip_jax.data import records

OK = "ok"
SEPARATOR = "@"  # between the position and the file of a reference

_Read = Callable[[str, Spec, Reading], Iterator[pa.RecordBatch]]


def reader(find: Callable[[str, Spec, Reading], Iterator[list[texts.Row]]]) -> _Read:
    """Makes a function that yields what `rows` returns yield batches of CANDIDATES."""

    @functools.wraps(find)
    def read(path: str, spec: Spec, reading: Reading) -> Iterator[pa.RecordBatch]:
        return to_batches(find(path, spec, reading))

    return read


def reference(path: str, position: str = "") -> str:
    """Returns a reference to an image: a file, and a position in it."""
    return f"{position}{SEPARATOR}{path}"


def rows(
    fields: Mapping[str, Any],
    spec: Spec,
    reading: Reading,
    *,
    name: str = "",
    stored_at: str = "",
) -> list[texts.Row]:
    """Returns the rows of CANDIDATES of an image with its texts, and counts them.

    Texts are cleaned, and addresses taken as those of a page are. So texts found = rows
    + drops, for the reasons empty_text, text_too_long, too_many_texts and those of
    `image_urls.find`.

    Args:
      fields: of a row or sample, by the names of columns in `spec`. A field may be
        missing, a text column may be a list, and a language column a list with one
        language for each text.
      spec: the names of columns, and bounds.
      reading: counts the image and its texts.
      name: of a source that has the bytes: the image's name in place of an address.
      stored_at: of such a source: the reference to the bytes (`reference`).
    """
    reading.items += 1
    # So many characters show that a value is too long. Many rows of a small file may
    # share a value of megabytes.
    most = max(spec.max_text_chars, spec.max_url_chars) + texts.REMOVABLE_CHARS + 1
    found = [
        (source, text, code)
        for source in spec.text_columns
        for text, code in _with_languages(fields, source, spec.language_column)
    ]
    if not found:
        reading.lost_texts["empty_text"] += 1
    if len(found) > spec.max_texts_per_page:
        left_out = len(found) - spec.max_texts_per_page
        reading.lost_texts["too_many_texts"] += left_out
        del found[-left_out:]
    kept = []
    for source, text, code in found:  # one at a time: texts that are too long add up
        written = [(source, _string(text, most))]
        usable = texts.usable(written, spec.max_text_chars, reading.lost_texts)
        language = texts.subtag(_string(code, most))
        kept += [(clean, source, language) for _, clean in usable]
    if not kept:
        return []
    url, reason = image_urls.find(
        {"src": _string(fields.get(spec.url_column), most)},
        (),
        "",
        max_url_chars=spec.max_url_chars,
    )
    url = url or _as_utf8(name)
    if not url:
        reading.lost_texts.lose(reason, kept[0][0], len(kept))
        return []
    page_url = _string(fields.get(spec.page_column), most)
    page_url = _as_utf8(page_url) if len(page_url) <= spec.max_url_chars else ""
    scores = ""
    if spec.score_columns:
        numbers = [_number(fields.get(column)) for column in spec.score_columns]
        scores = json.dumps(numbers)
    reading.texts += len(kept)
    begin = records.image_id(url), url, page_url
    return [(*begin, *of_text, "", stored_at, scores) for of_text in kept]


def _with_languages(
    fields: Mapping[str, Any], column: str, language_column: str
) -> Iterator[tuple[Any, Any]]:
    """Yields the texts of a column, each with its language or None."""
    found, languages = _list(fields.get(column)), _list(fields.get(language_column))
    if len(languages) != len(found):
        languages = (languages or [None])[:1] * len(found)
    return zip(found, languages, strict=True)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _number(value: Any) -> float | None:
    """Returns a finite number, None for anything else."""
    if isinstance(value, list) and len(value) == 1:  # as records hold one
        value = value[0]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _string(value: Any, most: int) -> str:
    """Returns a value as text; of a long one the first `most` characters at least.

    "" for a list or a dict; damaged UTF-8 becomes replacement characters.
    """
    if isinstance(value, bytes):
        return value[: 4 * most].decode("utf-8", "replace")
    if value is None or isinstance(value, list | dict):
        return ""
    text = str(value)
    return text if len(text) <= most else text[:most]


def _as_utf8(text: str) -> str:
    """Writes lone surrogates, which UTF-8 cannot, as Python does: \\udcff.

    They come from JSON, and from file names that are not UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
