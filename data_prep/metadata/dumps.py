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
from typing import NamedTuple
from urllib.parse import unquote
from xml.etree import ElementTree

from data_prep.sources import compressed, formats, remote
from data_prep.sources.archive import LostFile
from data_prep.sources.warc import LostPage

_TAIL = 64  # bytes at the end that show whether the file is whole
_HEAD = 1 << 20  # decompressed bytes that hold the names of a wiki's namespaces
_7Z = b"7z\xbc\xaf\x27\x1c"
_OPEN, _CLOSE, _END = b"<page>", b"</page>", b"</mediawiki>"
_BEGUN = [_OPEN[:i] for i in range(1, len(_OPEN))]
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
        pages = _Pages(max_page_bytes)
        is_empty = start > 0  # a range in which no stream begins
        try:
            for data, is_inside in compressed.read(file, start, stop):
                is_empty = False
                for xml in pages.feed(data, is_inside):
                    yield _to_page(xml, main_page)
                if pages.is_done:
                    return
        except compressed.DamageError as damage:
            yield LostFile(f"{damage}_dump")
        else:
            if not is_empty and (lost := pages.end(is_first=not start)):
                yield LostFile(lost)


class _Pages:
    """Cuts the XML of pages out of the bytes of a dump."""

    def __init__(self, max_page_bytes: int) -> None:
        self.is_done = False  # whether all pages of the range were seen
        self._most = max_page_bytes
        self._buffer = bytearray()
        self._searched = 0  # bytes at the buffer's start that hold no end of a page
        self._limit: int | None = None  # of the range, in the buffer; negative is past
        self._is_skipping = False  # a page that is too large
        self._is_dump = False
        self._tail = b""

    def feed(self, data: bytes, is_inside: bool) -> Iterator[bytes | LostPage]:
        """Yields the XML of the pages that are complete, and what was lost."""
        if not is_inside and self._limit is None:
            self._limit = len(self._buffer)
        self._buffer += data
        self._tail += data
        self._is_dump = self._is_dump or b"<mediawiki" in self._tail
        self._tail = self._tail[-_TAIL:]
        while not self.is_done:
            begin = 0 if self._is_skipping else self._buffer.find(_OPEN)
            if begin < 0:
                self._forget(max(0, len(self._buffer) - len(_OPEN) + 1))
                if self._limit is not None:
                    begun = bytes(self._buffer[: max(0, self._limit)])
                    self.is_done = not any(map(begun.endswith, _BEGUN))
                return
            if self._limit is not None and begin >= self._limit:
                self.is_done = True
                return
            self._forget(begin)
            end = self._buffer.find(_CLOSE, self._searched)
            if end >= 0:
                if self._is_skipping:
                    self._is_skipping = False
                elif end + len(_CLOSE) > self._most:
                    yield LostPage("page_too_large")
                else:
                    yield bytes(self._buffer[: end + len(_CLOSE)])
                self._forget(end + len(_CLOSE))
                continue
            self._searched = max(0, len(self._buffer) - len(_CLOSE) + 1)
            if not self._is_skipping and len(self._buffer) > self._most:
                self._is_skipping = True
                yield LostPage("page_too_large")
            if self._is_skipping:
                self._forget(self._searched)
            return

    def end(self, *, is_first: bool) -> str:
        """Returns why the file could not be read to its end, "" if it was."""
        if is_first and not self._is_dump:
            return "not_dump" if self._tail else "empty_file"
        tail = self._tail.strip()  # a short one may begin inside of the last tag
        is_whole = tail.endswith(_END) or _END.endswith(tail)
        return "" if is_whole else "truncated_dump"

    def _forget(self, size: int) -> None:
        """Drops bytes at the buffer's start."""
        del self._buffer[:size]
        self._searched = max(0, self._searched - size)
        if self._limit is not None:
            self._limit -= size


def _to_page(xml: bytes | LostPage, main_page: str) -> DumpPage | LostPage:
    if isinstance(xml, LostPage):
        return xml
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
