"""Titles of Wikipedia by their page views."""

import gzip
import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from etils import epath

from metaclip_jax import files

# Wikimedia counts mobile page views separately: en.m, and formerly en.zero.
_DOMAIN = re.compile(r"([a-z0-9-]+)(?:\.m|\.zero)?")
_NAMESPACES = Path(__file__).with_name("namespaces.txt")


def read_pageviews(
    path: epath.PathLike, *, languages: Collection[str]
) -> tuple[dict[str, Counter[str]], int]:
    """Reads a Wikimedia page view file, plain or .gz.

    A line is "domain_code page_title count_views total_response_size". Counts the
    Wikipedias (desktop and mobile) of `languages`, which are their domain codes.
    Underscores of titles become spaces. Pages in a namespace of the wiki
    ("File:Cat.jpg", "User talk:...") are skipped; other titles with a colon are kept.

    Returns:
      Views by title for each of the languages, and the number of malformed lines.
    """
    views: dict[str, Counter[str]] = {language: Counter() for language in languages}
    malformed = 0
    with files.path(path).open("rb") as raw:
        data = gzip.open(raw) if str(path).endswith(".gz") else raw
        for line in data:
            parts = line.decode("utf-8", "replace").rstrip("\r\n").split(" ")
            domain = _DOMAIN.fullmatch(parts[0])
            if len(parts) != 4 or not parts[2].isdecimal():
                malformed += 1
            elif domain and domain[1] in views:
                title = " ".join(unquote(parts[1]).replace("_", " ").split())
                if _is_title(title, domain[1]):
                    views[domain[1]][title] += int(parts[2])
    return views, malformed


def _is_title(title: str, language: str) -> bool:
    namespace, colon, _ = title.lstrip(": ").partition(":")
    if colon and folded(namespace) in namespaces(language):
        return False
    return any(map(str.isalnum, title))


@cache
def namespaces(language: str) -> frozenset[str]:
    """Returns a Wikipedia's namespaces, case-folded: its own and the shared ones."""
    names: set[str] = set()
    for line in _NAMESPACES.read_text("utf-8").splitlines():
        code, _, listed = line.partition("\t")
        if code in ("*", language.replace("_", "-")):
            names.update(map(folded, listed.split("|")))
    return frozenset(names)


@cache
def link_prefixes(language: str) -> frozenset[str]:
    """Returns the prefixes of links that lead out of a Wikipedia's articles.

    Its namespaces, case-folded, and the codes of the other Wikipedias.
    """
    lines = _NAMESPACES.read_text("utf-8").splitlines()
    codes = {line.partition("\t")[0] for line in lines}
    return namespaces(language) | codes


def folded(name: str) -> str:
    """Returns the name of a namespace as the functions here compare it."""
    return unicodedata.normalize("NFC", name).strip().casefold()
