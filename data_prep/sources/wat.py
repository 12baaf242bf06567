"""Reads WAT files, Common Crawl's list of the links of each page.

They hold each <img> with src, alt and title as they are written, <base> and <meta>. So
their candidates are those of the WARC files except what WAT files lack: srcset and
lazy addresses (an image without src is not listed, one with a placeholder in src has
that address), data-image-title, captions, declared languages other than that of a
<meta>, and the page's text, by which its language is identified. Also, images in
comments, scripts and templates may be listed, as these were found without a tree.
"""

import re
from collections.abc import Callable, Iterator
from html import unescape
from html.entities import html5

import msgspec
import pyarrow as pa

from data_prep import language
from data_prep.sources import archive, image_urls, pages, remote, texts, warc
from data_prep.sources.spec import Kind, Reading, Spec

_REFERENCE = re.compile(
    r"&(?:(#(?:[0-9]+|[xX][0-9a-fA-F]+);?)|([A-Za-z][A-Za-z0-9]*+(?:;|(?!=))))"
)


class _Link(msgspec.Struct):
    path: str = ""
    url: str | None = None
    alt: str | None = None
    title: str | None = None


class _Meta(msgspec.Struct, rename={"http_equiv": "http-equiv"}):
    http_equiv: str | None = None
    content: str | None = None


class _Head(msgspec.Struct, rename="pascal"):
    base: str | None = None
    title: str | None = None
    metas: list[_Meta] = []


class _Html(msgspec.Struct, rename="pascal"):
    head: _Head = msgspec.field(default_factory=_Head)
    links: list[_Link] = []


class _Message(msgspec.Struct, rename="pascal"):
    status: str = ""


class _Response(
    msgspec.Struct, rename={"message": "Response-Message", "page": "HTML-Metadata"}
):
    message: _Message = msgspec.field(default_factory=_Message)
    page: _Html | None = None


class _Payload(msgspec.Struct, rename={"response": "HTTP-Response-Metadata"}):
    response: _Response | None = None


class _Envelope(msgspec.Struct, rename={"payload": "Payload-Metadata"}):
    payload: _Payload = msgspec.field(default_factory=_Payload)


class _Wat(msgspec.Struct, rename="pascal"):
    envelope: _Envelope = msgspec.field(default_factory=_Envelope)


_decode: Callable[[bytes], _Wat] = msgspec.json.Decoder(_Wat).decode


def read(path: str, spec: Spec, reading: Reading) -> Iterator[pa.RecordBatch]:
    """Yields the CANDIDATES of a WAT file, of many pages in each batch.

    Lost pages: damaged_record, no_url, bad_wat (malformed JSON, or nested too deeply),
    http_status, not_html, page_too_large; texts as in `html.find_texts`.

    Raises OSError where the file cannot be opened or the storage fails.
    """
    yield from pages.batches(_found(path, spec), reading)


def _found(path: str, spec: Spec) -> Iterator[pages.Found]:
    with remote.open_file(path, user_agent=spec.user_agent) as file:
        for record in archive.read_records(
            file, max_block_bytes=spec.max_page_bytes + 1, kind=b"metadata"
        ):
            if isinstance(record, archive.LostFile):
                yield record
            elif isinstance(record, archive.LostRecord):
                yield warc.LostPage("damaged_record")
            elif (page := _page(record, spec)) is not None:
                yield page


def _page(record: archive.Record, spec: Spec) -> pages.Found | None:
    """Returns what a record says of a page, None where it is about something else."""
    if len(record.block) > spec.max_page_bytes:
        return warc.LostPage("page_too_large", record.url)
    try:
        response = _decode(record.block).envelope.payload.response
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return warc.LostPage("bad_wat", record.url)
    if response is None:
        return None
    if not record.url:
        return warc.LostPage("no_url")
    if response.message.status != "200":
        return warc.LostPage("http_status", record.url)
    if response.page is None:
        return warc.LostPage("not_html", record.url)
    head, declared = response.page.head, ""
    for meta in response.page.head.metas:
        if (meta.http_equiv or "").strip().lower() == "content-language":
            declared = texts.language_of_list(attribute(meta.content))
            break
    images = (
        (link, _attributes(link))
        for link in response.page.links
        if link.path == "IMG@/src"
    )
    found, drops = texts.texts_of(
        images,
        image_urls.base_of(record.url, attribute(head.base)),
        language_of=lambda link: declared,
        sources_of=lambda link: (),
        max_texts_per_page=spec.max_texts_per_page,
        max_text_chars=spec.max_text_chars,
        max_url_chars=spec.max_url_chars,
        text_sources=spec.page_texts,
    )
    page_text = ""
    if found and not language.known(declared):
        of_images = (text for _, text, _, _ in found)
        page_text = texts.beginning([attribute(head.title) or "", *of_images])
    return texts.Found(record.url, found, drops, page_text)


def _attributes(link: _Link) -> dict[str, str | None]:
    written = {"src": link.url, "alt": link.alt, "title": link.title}
    return {k: attribute(v) for k, v in written.items() if v is not None}


def attribute(written: str | None) -> str | None:
    """Returns the value of an attribute as browsers read it: references resolved."""
    if written is None or "&" not in written:
        return written
    return _REFERENCE.sub(_character, written)


def _character(found: re.Match[str]) -> str:
    number, name = found.groups()
    # A name without its semicolon counts only where no letter follows, and no "=".
    if not number and name not in html5:
        return found[0]
    # Python drops the numbers of control characters, which browsers keep.
    return unescape(found[0]) or _code_point(found[0].strip("&#;"))


def _code_point(digits: str) -> str:
    return chr(int(digits[1:], 16) if digits[0] in "xX" else int(digits))


KIND = Kind(read, "pages", ("WAT",), "*.wat.gz", is_streamed=True)
