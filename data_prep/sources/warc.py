"""Reads web pages out of WARC and ARC files, as crawlers write them.

Only response records are read. Damage in a file raises no error and is reported: a bad
page as a LostPage, a file that cannot be read on as a LostFile, after its good pages.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from etils import epath

from data_prep.sources import archive, http, remote
from data_prep.sources.archive import LostFile

_MAX_HEAD = 1 << 16  # bytes of HTTP's head


@dataclass(frozen=True, slots=True)
class Page:
    """An HTML page as it was served, content encodings undone."""

    url: str
    html: bytes
    content_type: str  # the HTTP header with its charset, "" where there was none


@dataclass(frozen=True, slots=True)
class LostPage:
    """A response that is not a usable page.

    Reasons: damaged_record, no_url, bad_http, http_status (other than 200), not_html,
    empty_page, page_too_large; those of the HTML parser are in `sources.html`. `url` is
    the page's, "" where it is not known; it is not compared.
    """

    reason: str
    url: str = field(default="", compare=False)


def read_pages(
    path: epath.PathLike, *, max_page_bytes: int, user_agent: str = ""
) -> Iterator[Page | LostPage | LostFile]:
    """Yields the pages of a WARC or ARC file, plain or gzip, in their order.

    Args:
      path: local, gs:// or http(s)://.
      max_page_bytes: a longer page, as stored or decoded, is a LostPage.
      user_agent: the header that a web server gets, see `remote.open_file`.

    Raises OSError where the file cannot be opened or the storage fails.
    """
    with remote.open_file(path, user_agent=user_agent) as file:
        for record in archive.read_records(
            file, max_block_bytes=max_page_bytes + _MAX_HEAD + 1
        ):
            if isinstance(record, archive.Record):
                yield _to_page(record, max_page_bytes)
            elif isinstance(record, LostFile):
                yield record
            else:
                yield LostPage("damaged_record")


def _to_page(record: archive.Record, max_page_bytes: int) -> Page | LostPage:
    if not record.url:
        return LostPage("no_url")
    response = http.parse(record.block)
    if response is None:
        return LostPage("bad_http", record.url)
    if response.status != 200:
        return LostPage("http_status", record.url)
    content_type = response.get(b"content-type")
    is_html = http.is_html(content_type, record.identified_type)
    if is_html is False:
        return LostPage("not_html", record.url)
    if len(response.body) > max_page_bytes:
        return LostPage("page_too_large", record.url)
    codings = (
        f"{response.get(b'content-encoding')},{response.get(b'transfer-encoding')}"
    )
    try:
        html = http.decode(response.body, codings.split(","), limit=max_page_bytes + 1)
    except ValueError:
        return LostPage("bad_http", record.url)
    if is_html is None and not http.looks_like_html(html):
        return LostPage("not_html", record.url)
    if not html:
        return LostPage("empty_page", record.url)
    if len(html) > max_page_bytes:
        return LostPage("page_too_large", record.url)
    return Page(record.url, html, content_type)
