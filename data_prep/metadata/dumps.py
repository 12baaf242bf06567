"""Reads the articles of MediaWiki's XML dumps, plain, .bz2 or .gz.

A dump is cut into ranges of bytes that are read independently. A page belongs to the
range that has its first byte or, in bz2, the first byte of the stream that holds the
page. So many processes read a multistream dump, and the first range of a file that is
one stream has all its pages.

Pages are cut out by their tags and each is parsed by itself, without the document's
prolog: a damaged page is lost alone, one that is too large is never in memory, and
there are no entities to declare. mwxml parses the dump as one document, and is slower
(docs/metadata.md).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote
from xml.etree import ElementTree

from data_prep.sources import compressed, formats, remote
from data_prep.sources.archive import LostFile
from data_prep.sources.warc import LostPage

_TAIL = 64  # bytes at the end that show whether the file is whole
_HEAD = 1 << 20  # decompressed bytes that hold the names of a wiki's namespaces
_7Z = b"7z\xbc\xaf\x27\x1c"
_OPEN, _CLOSE, _END = b"<page>", b"</page>", b"</mediawiki>"
_BEGUN = tuple(_OPEN[:i] for i in range(1, len(_OPEN)))
_TOO_LARGE = "page_too_large"
_ROOT = re.compile(rb"<mediawiki\b[^<>]*>")
_LANGUAGE = re.compile(rb"""\bxml:lang\s*=\s*["']([\w-]+)["']""")
_SITE = re.compile(rb"<siteinfo>.*?</siteinfo>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DumpPage:
    """An article: namespace 0, and no redirect."""

    title: str
    text: str  # wikitext


class Dump(NamedTuple):
    """What the head of a dump says."""

    has_ranges: bool = False  # whether its bytes can be read in ranges
    main_page: str = ""  # its title, if the dump has it

    def ranges(self, size: int, *, range_bytes: int) -> list[tuple[int, int]]:
        """Returns start and stop of the ranges in which the file is read.

        Args:
          size: of the file in bytes; 0 if it is not known, which makes one range.
          range_bytes: of each, except the last; the ranges do not depend on who reads.
        """
        if not size or not self.has_ranges:
            return [(0, 0)]
        starts = range(0, size, range_bytes)
        return [(each, min(each + range_bytes, size)) for each in starts]


def check(path: str, code: str, *, user_agent: str = "") -> Dump:
    """Reads the head of a dump; refuses a file that is not a dump of this Wikipedia.

    Args:
      path: local, gs:// or http(s)://.
      code: of the Wikipedia, such as "en" or "zh_yue".
      user_agent: the header that a web server gets, see `remote.open_file`.

    Raises:
      ValueError: it is not a dump, is of another wiki, or is compressed by 7-Zip.
      OSError: the file cannot be opened or the storage fails.
    """
    wanted = "--wikipedia: wanted a MediaWiki XML dump (.xml, .xml.bz2 or .xml.gz)"
    with remote.open_file(path, user_agent=user_agent) as file:
        start = file.read(len(_7Z))
        if start == _7Z:
            raise ValueError(
                f"{wanted}, got one compressed by 7-Zip, {path}; take the .bz2 file of"
                " the same dump, or run 7z x -so FILE | bzip2 > NEW"
            )
        head = compressed.head(file, _HEAD)
    root = _ROOT.search(head)
    if not root:
        got = formats.of(path, user_agent=user_agent) or "a file"
        raise ValueError(
            f"{wanted}, got {got} without <mediawiki>, {path}; correct the path"
        )
    name, language, main_page = _site(head, root[0])
    database = f"{code}wiki"
    got = name if name != database else ""
    if not name and language.split("-")[0] != code.split("_")[0]:
        got = language  # only pieces of a dump that were cut by hand have no name
    if got:
        raise ValueError(
            f"--wikipedia: wanted the dump of {database}, got one of {got!r}, {path};"
            " correct the path, or config.languages"
        )
    return Dump(compressed.has_ranges(start), main_page)


def read_pages(
    path: str,
    *,
    start: int = 0,
    stop: int = 0,
    max_page_bytes: int,
    main_page: str = "",
    user_agent: str = "",
) -> Iterator[DumpPage | LostPage | LostFile]:
    """Yields the articles that begin in a range of a dump, in their order.

    Damage raises no error and is reported. A page that is not an article, or is
    unusable, is a LostPage: other_namespace, redirect, main_page, not_wikitext,
    empty_page, page_too_large, bad_xml. A LostFile comes after the good pages if the
    range could not be read to its end: not_dump, empty_file, truncated_dump,
    corrupt_dump.

    Args:
      path: local, gs:// or http(s)://.
      start, stop: one of `Dump.ranges`; 0 and 0 is the whole file.
      max_page_bytes: of the XML of a page.
      main_page: title of a page to leave out, since it is not an article.
      user_agent: as in `check`.

    Raises OSError where the file cannot be opened or the storage fails.
    """
    with remote.open_file(path, user_agent=user_agent) as file:
        for found in _cut(file, start, stop, max_page_bytes):
            yield _to_page(found, main_page) if isinstance(found, bytes) else found


def _cut(
    file: BinaryIO, start: int, stop: int, most: int
) -> Iterator[bytes | LostPage | LostFile]:
    """Yields the XML of the pages that begin in a range, and what was lost of it.

    A page of more than `most` bytes is lost.
    """
    buffer, tail, is_dump = bytearray(), b"", False
    searched = 0  # bytes at the buffer's start that hold no end of a page
    limit: int | None = None  # of the range, in the buffer; negative is past
    is_skipping = False  # a page that is too large
    try:
        for data, is_inside in compressed.read(file, start, stop):
            if not is_inside and limit is None:
                limit = len(buffer)
            buffer += data
            tail += data
            is_dump = is_dump or b"<mediawiki" in tail
            tail = tail[-_TAIL:]
            at = 0  # where the next page is looked for
            while True:
                begin = at if is_skipping else buffer.find(_OPEN, at)
                if limit is not None and begin >= limit:
                    return
                if begin < 0:
                    at = max(at, len(buffer) - len(_OPEN) + 1)
                    if limit is not None and not buffer[at:limit].endswith(_BEGUN):
                        return
                    break
                at, end = begin, buffer.find(_CLOSE, max(begin, searched))
                if end < 0:
                    searched = max(at, len(buffer) - len(_CLOSE) + 1)
                    if not is_skipping and len(buffer) - at > most:
                        is_skipping = True
                        yield LostPage(_TOO_LARGE)
                    at = searched if is_skipping else at
                    break
                end += len(_CLOSE)
                if not is_skipping:
                    is_whole = end - at <= most
                    yield bytes(buffer[at:end]) if is_whole else LostPage(_TOO_LARGE)
                at, is_skipping = end, False
            del buffer[:at]
            searched = max(0, searched - at)
            limit = None if limit is None else limit - at
    except compressed.DamageError as damage:
        yield LostFile(f"{damage}_dump")
        return
    if not start and not is_dump:
        yield LostFile("not_dump" if tail else "empty_file")
        return
    tail = tail.strip()  # a short one may begin inside of the last tag
    if not (tail.endswith(_END) or _END.endswith(tail)):
        yield LostFile("truncated_dump")


def _to_page(xml: bytes, main_page: str) -> DumpPage | LostPage:
    try:
        page = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError, LookupError):
        return LostPage("bad_xml")
    title, revisions = page.findtext("title"), page.findall("revision")
    if not title or not revisions:
        return LostPage("bad_xml")
    if page.findtext("ns") not in ("0", None):
        return LostPage("other_namespace")
    if page.find("redirect") is not None:
        return LostPage("redirect")
    if title == main_page:
        return LostPage("main_page")
    if revisions[-1].findtext("model") not in ("wikitext", None):
        return LostPage("not_wikitext")
    text = revisions[-1].findtext("text")
    return DumpPage(title, text) if text else LostPage("empty_page")


def _site(head: bytes, root: bytes) -> tuple[str, str, str]:
    """Returns the name of a wiki's database, its language, and the title of its main
    page, "" for unknown ones.
    """
    language = _LANGUAGE.search(root)
    name = base = None
    if site := _SITE.search(head):
        try:
            described = ElementTree.fromstring(site[0])
            name, base = described.findtext("dbname"), described.findtext("base")
        except (ElementTree.ParseError, ValueError, LookupError):
            pass
    # Such as https://en.wikipedia.org/wiki/Main_Page.
    written = (base or "").partition("/wiki/")[2]
    main_page = unquote(written).replace("_", " ")
    return name or "", language[1].decode() if language else "", main_page
