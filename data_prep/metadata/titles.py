"""Titles of Wikipedia by their page views."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from data_prep.metadata import editions
from data_prep.sources import compressed, formats, remote
from data_prep.sources.archive import LostFile

_NAMESPACES = Path(__file__).with_name("namespaces.txt")
_HEAD = 1 << 16  # bytes in which a file shows that it has page views
_MAX_LINE = 1 << 16  # bytes; titles have at most 255, or 765 with their escapes
_MAX_DIGITS = 10  # of a title's views in a file: more is not a real number

Views = dict[str, Counter[str]]  # by code of a Wikipedia and title


def check(path: str, *, user_agent: str = "") -> None:
    """Refuses a file that has no page views.

    `user_agent` is the header that a web server gets, see `remote.open_file`.

    Raises:
      ValueError: fewer than half of its first lines are as `read_pageviews` wants them.
      OSError: the file cannot be opened or the storage fails.
    """
    with remote.open_file(path, user_agent=user_agent) as file:
        lines = compressed.head(file, _HEAD).split(b"\n")
    if 2 * sum(map(bool, map(_fields, lines))) < max(1, len(lines) - 1):
        got = formats.of(path, user_agent=user_agent) or "none"
        raise ValueError(
            f"--pageviews: wanted lines of page views such as 'en Cat 3 0' or"
            f" 'en.wikipedia Cat 6678 desktop 3 A3', got {got} in {path}; correct the"
            " path"
        )


def read_pageviews(
    path: str,
    *,
    languages: Collection[str],
    lost: Counter[str],
    most: int = 1 << 20,
    user_agent: str = "",
) -> Iterator[Views | LostFile]:
    """Yields the views of titles in a Wikimedia page view file, plain, .gz or .bz2.

    A line of an hour's file is "domain_code page_title count_views response_size"; of
    a day's or a month's "en.wikipedia page_title page_id access count_views hours". The
    views of desktop and mobile (en and en.m) are summed. Underscores of titles become
    spaces. Pages in a namespace of the wiki ("File:Cat.jpg", "User talk:...") are
    skipped; other titles with a colon are kept.

    Args:
      path: local, gs:// or http(s)://.
      languages: codes of the Wikipedias whose titles are counted.
      lost: gets the number of lines that are dropped: "malformed_line" and
        "line_too_long" (64 KiB).
      most: how many titles are held; a title may be in several of what is yielded.
      user_agent: as in `check`.

    Raises OSError where the file cannot be opened or the storage fails. A damaged file
    is reported by a LostFile (truncated_file, corrupt_file), after its good lines; so
    is one without any (no_page_views).
    """
    codes: dict[bytes, str] = {}
    for code in languages:
        domain = _domain(code).encode()
        for form in (b"%s", b"%s.m", b"%s.wikipedia"):
            codes[form % domain] = code
    views: Views = {code: Counter() for code in languages}
    held, damage, is_empty = 0, "", True
    with remote.open_file(path, user_agent=user_agent) as file:
        try:
            for line in compressed.lines(file, most=_MAX_LINE):
                if line is None:
                    lost["line_too_long"] += 1
                    continue
                fields = _fields(line)
                if not fields:
                    lost["malformed_line"] += 1
                    continue
                is_empty = False
                domain, written, count = fields
                if domain not in codes:
                    continue
                code = codes[domain]
                text = unquote(written.decode("utf-8", "replace"))
                title = " ".join(text.replace("_", " ").split())
                if _is_title(title, code):
                    held += title not in views[code]
                    views[code][title] += count
                if held >= most:
                    yield views
                    views, held = {code: Counter() for code in languages}, 0
        except compressed.DamageError as error:
            damage = f"{error}_file"
    yield views
    if damage or is_empty:
        yield LostFile(damage or "no_page_views")


def _fields(line: bytes) -> tuple[bytes, bytes, int] | None:
    """Returns domain, title and views of a line, None for a malformed one."""
    fields = line.split(b" ")
    if len(fields) not in (4, 6):
        return None
    count = fields[2 if len(fields) == 4 else 4]
    if not count.isdigit() or len(count) > _MAX_DIGITS:
        return None
    return fields[0], fields[1], int(count)


def _domain(language: str) -> str:
    edition = editions.table().get(language)
    return edition.domain if edition else language.replace("_", "-")


def _is_title(title: str, language: str) -> bool:
    namespace, colon, _ = title.lstrip(": ").partition(":")
    if colon and folded(namespace) in namespaces(language):
        return False
    return any(map(str.isalnum, title))


@cache
def namespaces(language: str) -> frozenset[str]:
    """Returns a Wikipedia's namespaces, case-folded: its own and the shared ones."""
    return _listed()["*"].union(_listed().get(_domain(language), ()))


@cache
def link_prefixes(language: str) -> frozenset[str]:
    """Returns the prefixes of links that lead out of a Wikipedia's articles.

    Its namespaces, case-folded, and the codes of the other Wikipedias.
    """
    return namespaces(language) | _listed().keys()


@cache
def _listed() -> dict[str, frozenset[str]]:
    """Returns the namespaces in the file by code; "*" has the shared ones."""
    lines = _NAMESPACES.read_text("utf-8").splitlines()
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return {code: frozenset(map(folded, names.split("|"))) for code, names in rows}


def folded(name: str) -> str:
    """Returns the name of a namespace as the functions here compare it."""
    return unicodedata.normalize("NFC", name).strip().casefold()
