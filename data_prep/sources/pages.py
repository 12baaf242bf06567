"""Reads the web pages of an archive to batches of candidates."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from data_prep.sources import html, texts, warc
from data_prep.sources.spec import Kind, Reading, Spec, to_batches

# What a page has, or what is lost whole.
Found = texts.Found | warc.LostPage | warc.LostFile


def read(path: str, spec: Spec, reading: Reading) -> Iterator[pa.RecordBatch]:
    """Yields the CANDIDATES of a WARC or ARC file, of many pages in each batch.

    Raises OSError where the file cannot be opened or the storage fails.
    """
    yield from batches(_found(path, spec), reading)


def batches(found: Iterable[Found], reading: Reading) -> Iterator[pa.RecordBatch]:
    """Yields the rows of pages, of many pages in each batch, and counts them."""
    yield from to_batches(_rows(page, reading) for page in found)


def _rows(page: Found, reading: Reading) -> list[texts.Row]:
    if isinstance(page, warc.LostFile):
        reading.lost_files[page.reason] += 1
        return []
    if isinstance(page, warc.LostPage):
        reading.lost_items.lose(page.reason, page.url)
        return []
    for counted in (texts.LARGER, texts.AS_WRITTEN):
        if count := page.losses.pop(counted, 0):
            reading.addresses[counted] += count
    reading.lost_texts.add(page.losses)
    reading.items += 1
    reading.texts += len(page.texts)
    return texts.to_rows(page)


def _found(path: str, spec: Spec) -> Iterator[Found]:
    for page in warc.read_pages(
        path, max_page_bytes=spec.max_page_bytes, user_agent=spec.user_agent
    ):
        if not isinstance(page, warc.Page):
            yield page
            continue
        yield html.find_texts(
            page,
            max_texts_per_page=spec.max_texts_per_page,
            max_text_chars=spec.max_text_chars,
            max_url_chars=spec.max_url_chars,
            max_tree_bytes=spec.max_tree_bytes,
            text_sources=spec.page_texts,
            prefer_larger=spec.prefer_larger,
        )


KIND = Kind(read, "pages", ("WARC",), "*.warc.gz", is_streamed=True)
