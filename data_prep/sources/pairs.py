"""From pairs of image addresses and texts, of whatever format, to candidates."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from data_prep import schema
from data_prep.sources import html, image_urls
from data_prep.sources.spec import Reading, Spec
from metaclip_jax.data import records

_BATCH_PAIRS = 8_192


class Pair(NamedTuple):
    """An image with its texts, as a source has them."""

    url: str  # absolute
    texts: Sequence[tuple[str, str | None]]  # (text source, text)
    language: str = ""  # of the texts, where it is known
    page_url: str = ""


def batches(
    pairs: Iterable[Pair], spec: Spec, reading: Reading
) -> Iterator[pa.RecordBatch]:
    """Yields the CANDIDATES of pairs and counts them.

    Texts are cleaned, and addresses taken as those of a page are. So texts found = rows
    + drops, for the reasons empty_text, text_too_long and those of `image_urls.find`.
    """
    rest = iter(pairs)
    while some := list(itertools.islice(rest, _BATCH_PAIRS)):
        batch = _candidates(some, spec, reading)
        reading.items += len(some)
        reading.texts += batch.num_rows
        if batch.num_rows:
            yield batch


def _candidates(pairs: Sequence[Pair], spec: Spec, reading: Reading) -> pa.RecordBatch:
    rows = []
    for pair in pairs:
        kept = html.usable(pair.texts, spec.max_text_chars, reading.lost_texts)
        if not kept:
            continue
        url, reason = image_urls.find(
            {"src": pair.url}, (), "", max_url_chars=spec.max_url_chars
        )
        if not url:
            reading.lost_texts[reason] += len(kept)
            continue
        image_id = records.image_id(url)
        language = html.subtag(pair.language)
        rows += [
            (image_id, url, pair.page_url, text, source, language, "")
            for source, text in kept
        ]
    columns = zip(*rows, strict=True) if rows else [()] * len(schema.CANDIDATES)
    named = dict(zip(schema.CANDIDATES.names, columns, strict=True))
    return schema.from_columns(named, schema.CANDIDATES)
