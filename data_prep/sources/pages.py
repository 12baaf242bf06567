"""From the web pages of an archive to batches of candidates."""

from collections.abc import Iterator

import pyarrow as pa

from data_prep import language, schema
from data_prep.sources import html, warc
from data_prep.sources.spec import Reading, Spec

_BATCH_ROWS = 16_384


def read(path: str, spec: Spec, reading: Reading) -> Iterator[pa.RecordBatch]:
    """Yields the CANDIDATES of a WARC or ARC file, of many pages in each batch.

    Raises OSError where the file cannot be opened or the storage fails.
    """
    identify = language.shared_identifier(spec.identifier)
    waiting: list[pa.RecordBatch] = []
    waiting_rows = 0
    for page in warc.read_pages(path, max_page_bytes=spec.max_page_bytes):
        if isinstance(page, warc.LostFile):
            reading.lost_files[page.reason] += 1
            continue
        if isinstance(page, warc.LostPage):
            reading.lost_items[page.reason] += 1
            continue
        parsed = html.parse_page(
            page,
            max_texts_per_page=spec.max_texts_per_page,
            max_text_chars=spec.max_text_chars,
            max_url_chars=spec.max_url_chars,
            max_tree_bytes=spec.max_tree_bytes,
            identify=identify,
        )
        if isinstance(parsed, warc.LostPage):
            reading.lost_items[parsed.reason] += 1
            continue
        candidates, lost = parsed
        reading.lost_texts.update(lost)
        reading.items += 1
        if not candidates.num_rows:
            continue
        reading.texts += candidates.num_rows
        waiting_rows += candidates.num_rows
        waiting.append(candidates)
        if waiting_rows >= _BATCH_ROWS:
            yield _concat(waiting)
            waiting, waiting_rows = [], 0
    if waiting:
        yield _concat(waiting)


def _concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return schema.one_batch(pa.Table.from_batches(batches))
