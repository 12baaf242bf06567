"""Converts pairs of images and texts, of any format, to candidates."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from data_prep import schema
from data_prep.sources import image_urls, texts
from data_prep.sources.spec import Reading, Spec
from metaclip_jax.data import records

_BATCH_PAIRS = 8_192
_BATCH_ROWS = 1 << 16


class Pair(NamedTuple):
    """An image with its texts, as a source has them."""

    url: str  # absolute, or "" where a source with the bytes does not know it
    # (text source, text, its language or None), the last two as `_string` takes them.
    texts: Sequence[tuple[str, Any, Any]]
    page_url: str = ""
    # Of a source that has the bytes: the image's name in place of an address, and the
    # reference to the bytes (`stored.reference`).
    name: str = ""
    stored_at: str = ""
    left_out: int = 0  # texts beyond max_texts_per_page
    scores: str = ""  # as in CANDIDATES


def batches(
    pairs: Iterable[Pair], spec: Spec, reading: Reading
) -> Iterator[pa.RecordBatch]:
    """Yields the CANDIDATES of pairs and counts them.

    Texts are cleaned, and addresses taken as those of a page are. So texts found = rows
    + drops, for the reasons empty_text, text_too_long, too_many_texts and those of
    `image_urls.find`.
    """
    rest, before = iter(pairs), -1
    while reading.items > before:
        before = reading.items
        batch = _candidates(itertools.islice(rest, _BATCH_PAIRS), spec, reading)
        reading.texts += batch.num_rows
        if batch.num_rows:
            yield batch


def from_fields(
    fields: Mapping[str, Any], spec: Spec, *, name: str = "", stored_at: str = ""
) -> Pair:
    """Returns the pair of a row or sample, by the names of columns in `spec`.

    A field may be missing, a text column may be a list, and a language column a list
    with one language for each text.
    """
    found: list[tuple[str, Any, Any]] = []
    left_out, most = 0, _longest(spec)
    for source in spec.text_columns:
        languages = _list(fields, spec.language_column)
        of_source = _list(fields, source)
        if len(languages) != len(of_source):
            languages = (languages or [None])[:1] * len(of_source)
        room = spec.max_texts_per_page - len(found)
        if len(of_source) > room:
            left_out += len(of_source) - room
            of_source, languages = of_source[:room], languages[:room]
        found += [
            (source, text, code)
            for text, code in zip(of_source, languages, strict=True)
        ]
    url, page_url = (
        _string(fields[column], most) if column in fields else ""
        for column in (spec.url_column, spec.page_column)
    )
    if len(page_url) > spec.max_url_chars:
        page_url = ""
    scores = ""
    if spec.score_columns:
        scores = json.dumps([_number(fields, name) for name in spec.score_columns])
    return Pair(url, found, page_url, name, stored_at, left_out, scores)


def _number(fields: Mapping[str, Any], column: str) -> float | None:
    """Returns a finite number, None for anything else."""
    value = fields[column] if column in fields else None
    if isinstance(value, list) and len(value) == 1:  # as records hold one
        value = value[0]
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _list(fields: Mapping[str, Any], column: str) -> list[Any]:
    found = fields[column] if column in fields else None
    return found if isinstance(found, list) else [found]


def _longest(spec: Spec) -> int:
    """Returns how many characters show that a value is too long.

    Many rows of a small file may share a value of megabytes.
    """
    return max(spec.max_text_chars, spec.max_url_chars) + texts.REMOVABLE_CHARS + 1


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


def _candidates(pairs: Iterable[Pair], spec: Spec, reading: Reading) -> pa.RecordBatch:
    rows, most = [], _longest(spec)
    for pair in pairs:  # one at a time: texts that are too long add up
        reading.items += 1
        if pair.left_out:
            reading.lost_texts["too_many_texts"] += pair.left_out
        kept = [
            (text, source, texts.subtag(_string(language, most)))
            for source, found, language in pair.texts
            for _, text in texts.usable(
                [(source, _string(found, most))],
                spec.max_text_chars,
                reading.lost_texts,
            )
        ]
        if not pair.texts:
            reading.lost_texts["empty_text"] += 1
        if not kept:
            continue
        url, reason = image_urls.find(
            {"src": pair.url}, (), "", max_url_chars=spec.max_url_chars
        )
        url = url or _as_utf8(pair.name)
        if not url:
            reading.lost_texts.lose(reason, kept[0][0], len(kept))
            continue
        begin = records.image_id(url), url, _as_utf8(pair.page_url)
        rows += [
            (*begin, *of_text, "", pair.stored_at, pair.scores) for of_text in kept
        ]
        if len(rows) >= _BATCH_ROWS:
            break
    return schema.from_rows(rows, schema.CANDIDATES)
