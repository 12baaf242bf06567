"""Converts pairs of images and texts, of any format, to candidates."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from data_prep import schema
from data_prep.sources import image_urls, texts
from data_prep.sources.spec import Reading, Spec
from metaclip_jax.data import records

_BATCH_PAIRS = 8_192


class Pair(NamedTuple):
    """An image with its texts, as a source has them."""

    url: str  # absolute, or "" where a source with the bytes does not know it
    texts: Sequence[tuple[str, str, str]]  # (text source, text, its language or "")
    page_url: str = ""
    # Of a source that has the bytes: what stands for an address, and where they are.
    name: str = ""
    stored_at: str = ""


def batches(
    pairs: Iterable[Pair], spec: Spec, reading: Reading
) -> Iterator[pa.RecordBatch]:
    """Yields the CANDIDATES of pairs and counts them.

    Texts are cleaned, and addresses taken as those of a page are. So texts found = rows
    + drops, for the reasons empty_text, text_too_long and those of `image_urls.find`.
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
    texts: list[tuple[str, str, str]] = []
    for source in spec.text_columns:
        languages = _list(fields, spec.language_column)
        found = _list(fields, source)
        if len(languages) != len(found):
            languages = (languages or [None])[:1] * len(found)
        texts += [
            (source, _string(text), _string(code))
            for text, code in zip(found, languages, strict=True)
        ]
    url, page_url = (
        _string(fields[column]) if column in fields else ""
        for column in (spec.url_column, spec.page_column)
    )
    return Pair(url, texts, page_url, name, stored_at)


def _list(fields: Mapping[str, Any], column: str) -> list[Any]:
    found = fields[column] if column in fields else None
    return found if isinstance(found, list) else [found]


def _string(value: Any) -> str:
    """Returns a value as text; damaged UTF-8 with replacement characters."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _as_utf8(text: str) -> str:
    """Writes lone surrogates, which UTF-8 cannot, as Python does: \\udcff.

    JSON has them, and they stand for the bytes of a name that is not UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _candidates(pairs: Iterable[Pair], spec: Spec, reading: Reading) -> pa.RecordBatch:
    rows = []
    for pair in pairs:  # one at a time: texts that are too long add up
        reading.items += 1
        kept = [
            (text, source, texts.subtag(language))
            for source, found, language in pair.texts
            for _, text in texts.usable(
                [(source, found)], spec.max_text_chars, reading.lost_texts
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
            reading.lost_texts[reason] += len(kept)
            continue
        image_id = records.image_id(url)
        rows += [
            (image_id, url, _as_utf8(pair.page_url), *of_text, "", pair.stored_at)
            for of_text in kept
        ]
    return schema.from_rows(rows, schema.CANDIDATES)
