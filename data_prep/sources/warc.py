"""Reads web pages out of WARC files (.warc.gz), as crawlers write them.

Only response records are read. What cannot be read is reported, never raised and never
passed over in silence: a bad page as a LostPage, a bad file as a LostFile, after the
good pages before it.
"""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from etils import epath
from fastwarc import ArchiveIterator, GzipReader, WarcRecord, WarcRecordType
from fastwarc.stream_io import BrotliReader, ChunkedReader, ZstdReader

from metaclip_jax import files

HTML_TYPES = ("text/html", "application/xhtml+xml")
# The HTML parser's time grows with the square of the depth: a page that never closes
# its elements takes about six seconds at this many, and half an hour at 4 MB.
MAX_ELEMENTS = 50_000
_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 1 << 20
_DECODERS = {
    "gzip": GzipReader,
    "x-gzip": GzipReader,
    "br": BrotliReader,
    "zstd": ZstdReader,
}


@dataclass(frozen=True, slots=True)
class Page:
    """An HTML page as it was served, content encodings undone."""

    url: str
    html: bytes
    content_type: str  # the HTTP header with its charset, "" where there was none


@dataclass(frozen=True, slots=True)
class LostPage:
    """A response that is no usable page.

    Reasons: no_url, bad_http, http_status (other than 200), not_html, page_too_large,
    too_many_elements.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class LostFile:
    """A file that could not be read to its end; comes last.

    Reasons: empty_file, not_gzip, corrupt_warc, truncated_warc. The record in which
    the damage lies and all after it are lost with the file.
    """

    reason: str


def read_pages(
    path: epath.PathLike, *, max_page_bytes: int
) -> Iterator[Page | LostPage | LostFile]:
    """Yields the pages of a .warc.gz file in their order.

    Args:
      path: local or gs://.
      max_page_bytes: a longer page, as stored or decoded, is a LostPage.

    Raises OSError where the file cannot be opened or the storage fails.
    """
    with files.path(path).open("rb") as file:
        magic = file.read(len(_GZIP_MAGIC))
        if magic != _GZIP_MAGIC:
            yield LostFile("not_gzip" if magic else "empty_file")
            return
        file.seek(0)
        yield from _read_records(file, max_page_bytes)


def _read_records(
    file: BinaryIO, max_page_bytes: int
) -> Iterator[Page | LostPage | LostFile]:
    # fastwarc ends quietly where a file breaks off, and may hand out the broken
    # record as a short one. So each page waits until its successor, or the check of
    # the file's tail, has shown that it is whole.
    waiting: Page | LostPage | None = None
    position = 0
    whole = True
    reason = ""
    try:
        for record in ArchiveIterator(
            file, record_types=WarcRecordType.response, parse_http=False
        ):
            if waiting is not None:
                yield waiting
            position = record.stream_pos
            waiting, whole = _read_record(record, max_page_bytes)
    except OSError as error:
        if error.errno is not None:  # the storage, not the content
            raise
        reason = "corrupt_warc"
    first, rest = _whole_members(file, position)
    if waiting is not None and whole and first:
        yield waiting
    if reason or not (whole and first and rest):
        yield LostFile(reason or "truncated_warc")


def _read_record(
    record: WarcRecord, max_page_bytes: int
) -> tuple[Page | LostPage, bool]:
    """Returns what the record holds, and whether it is as long as it says."""
    try:
        record.parse_http()
    except OSError as error:
        if error.errno is not None:
            raise
        return LostPage("bad_http"), True
    left = record.content_length  # of the body: parse_http has taken off the headers
    body = record.reader.read(max_page_bytes + 1)
    whole = len(body) >= min(left, max_page_bytes + 1)
    return _to_page(record, body, max_page_bytes), whole


def _to_page(record: WarcRecord, body: bytes, max_page_bytes: int) -> Page | LostPage:
    # WARC 1.0 writers such as wget put the address in angle brackets.
    url = (record.headers.get("WARC-Target-URI") or "").strip().strip("<>")
    if not url:
        return LostPage("no_url")
    http = record.http_headers
    if http is None or http.status_code is None:
        return LostPage("bad_http")
    if http.status_code != 200:
        return LostPage("http_status")
    content_type = http.get("Content-Type") or ""
    # Crawlers that look at the content say here what they saw.
    kind = content_type or record.headers.get("WARC-Identified-Payload-Type") or ""
    if kind.split(";")[0].strip().lower() not in HTML_TYPES:
        return LostPage("not_html")
    if len(body) > max_page_bytes:
        return LostPage("page_too_large")
    try:
        html = _decoded(
            body,
            transfer=http.get("Transfer-Encoding") or "",
            content=http.get("Content-Encoding") or "",
            limit=max_page_bytes + 1,
        )
    except (OSError, zlib.error):
        return LostPage("bad_http")
    if len(html) > max_page_bytes:
        return LostPage("page_too_large")
    if html.count(b"<") - html.count(b"</") > MAX_ELEMENTS:
        return LostPage("too_many_elements")
    return Page(url, html, content_type)


def _decoded(body: bytes, *, transfer: str, content: str, limit: int) -> bytes:
    """Undoes HTTP's encodings, up to `limit` bytes. Raises OSError or zlib.error.

    Done on a copy of the record: fastwarc's own decoding can lose the next record.
    """
    codings = [c.strip().lower() for c in f"{content},{transfer}".split(",")]
    for coding in reversed([c for c in codings if c not in ("", "identity")]):
        if coding == "chunked":
            body = ChunkedReader(io.BytesIO(body)).read(limit)
        elif coding == "deflate":
            body = _inflated(body, limit)
        elif coding in _DECODERS:
            body = _DECODERS[coding](io.BytesIO(body)).read(limit)
        else:
            raise OSError(f"unknown content coding {coding!r}")
    return body


def _inflated(body: bytes, limit: int) -> bytes:
    """HTTP's "deflate" should have zlib's header, but servers leave it out, too."""
    try:
        return zlib.decompressobj().decompress(body, limit)
    except zlib.error:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, limit)


def _whole_members(file: BinaryIO, position: int) -> tuple[bool, bool]:
    """Says whether the gzip member at `position` is whole, and whether all after it."""
    file.seek(position)
    if file.read(len(_GZIP_MAGIC)) != _GZIP_MAGIC:
        position = 0  # one gzip member over all records: no record starts at a member
    file.seek(position)
    rest = _skip_member(file, file.read(_BLOCK))
    first = rest is not None
    while rest:
        rest = _skip_member(file, rest)
    return first, rest is not None


def _skip_member(file: BinaryIO, data: bytes) -> bytes | None:
    """Reads over the gzip member that starts with `data`.

    Returns the next bytes, b"" at the end of the file, None if the member is broken.
    """
    member = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        while not member.eof:
            # The output is thrown away, and bounded: it may be a bomb.
            output = member.decompress(data, _BLOCK)
            data = member.unconsumed_tail
            if not (data or output or member.eof):
                data = file.read(_BLOCK)
                if not data:
                    return None
    except zlib.error:
        return None
    return member.unused_data or file.read(_BLOCK)
