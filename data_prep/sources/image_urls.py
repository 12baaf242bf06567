"""Finds the URL of an <img> among the many attributes that pages use.

Lazy loaders keep it in data-src and its like while `src` holds a spacer, so these come
first; then `src`; then srcset and the <source>s of a <picture>.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

import ada_url

Attributes = Mapping[str, str | None]

_LAZY = ("data-src", "data-original", "data-lazy-src", "data-lazy")
_LAZY_SETS = ("data-srcset", "data-lazy-srcset")
_LAZY_NAMES = frozenset((*_LAZY, *_LAZY_SETS))
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.I)
_DESCRIPTOR = re.compile(r"(\d{1,5}(?:\.\d{1,5})?)[wx]")
# What most addresses are: the URL parser would return them as they are.
_PLAIN = re.compile(
    r"https?://(?:[a-z0-9]+(?:-[a-z0-9]+)*\.)+[a-z]{2,}(?!\S*/(?:\.|%2[eE]))/"
    r"[A-Za-z0-9_./?=&%+,;:@~!*()$-]*"
)
# What most addresses on the page's own site are; joined to the folder of a plain URL,
# the URL parser would return them as they are.
_PLAIN_RELATIVE = re.compile(
    r"(/?)((?:\.\./)*)((?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*)"
)
_TOO_LONG = "image_url_too_long"
_SPACES = "".join(map(chr, range(33)))  # what the URL standard strips at both ends
_TYPES = ("", *(f"image/{x}" for x in ("jpeg", "png", "webp", "gif", "avif")))
_MAX_WIDTH = 1_600  # pixels; a wider srcset image only costs more to download


def base_of(page_url: str, base_href: str | None) -> str:
    """Returns the page's base: <base href> if it is http(s), else its own URL.

    "" if neither is an absolute URL.
    """
    if not base_href and _PLAIN.fullmatch(page_url):
        return page_url
    if base_href:
        joined = _joined(base_href, page_url)
        if joined.startswith(("http:", "https:")):
            return joined
    return _joined(page_url, "")


def find(
    image: Attributes, sources: Iterable[Attributes], base: str, *, max_url_chars: int
) -> tuple[str, str]:
    """Returns (absolute URL without fragment, "") or ("", drop reason).

    The URL is what a browser would request (the URL standard): percent signs stay as
    they are written, other characters are percent-encoded where they must be, and host
    names are in ASCII.

    Args:
      image: attributes of the <img>.
      sources: attributes of the <source>s of its <picture>, asked for last.
      base: of the page, from `base_of`.
      max_url_chars: a longer absolute URL is a drop.

    Reasons: no_image_url, image_url_not_http, image_url_too_long, bad_url; of several
    addresses that fail, the first one's.
    """
    if _LAZY_NAMES.isdisjoint(image) and (address := image.get("src")):
        found = _absolute(address, base, max_url_chars)
        if found[0]:
            return found
    first_reason = ""
    for address in _addresses(image, sources):
        url, reason = _absolute(address, base, max_url_chars)
        if url:
            return url, ""
        first_reason = first_reason or reason
    return "", first_reason or "no_image_url"


def larger(image: Attributes, sources: Iterable[Attributes]) -> str:
    """Returns the largest address that srcset or <picture> offer in place of `src`.

    By its descriptor, such as 800w or 2x; of <source>s, those whose type can be
    screened. "" if none is said to be larger, or if it is that in `src`.

    Args:
      image: attributes of the <img>.
      sources: attributes of the <source>s of its <picture>.
    """
    offered = [
        candidate
        for one in (image, *sources)
        if (one.get("type") or "") in _TYPES
        for name in (*_LAZY_SETS, "srcset")
        for candidate in _candidates(one.get(name) or "")
    ]
    address, descriptor = max(offered, key=lambda one: _size(one[1]), default=("", ""))
    is_larger = _size(descriptor) > 1 and address != image.get("src")
    return address if is_larger else ""


def _addresses(image: Attributes, sources: Iterable[Attributes]) -> Iterator[str]:
    for name in _LAZY:
        address = image.get(name)
        # Some loaders put a flag or a template name here.
        if address and ("/" in address or "." in address):
            yield address
    for name in _LAZY_SETS:
        if srcset := image.get(name):
            yield from _best_of_srcset(srcset)
    if address := image.get("src"):
        yield address
    if srcset := image.get("srcset"):
        yield from _best_of_srcset(srcset)
    for source in sources:
        for name in (*_LAZY_SETS, "srcset"):
            if srcset := source.get(name):
                yield from _best_of_srcset(srcset)


def _best_of_srcset(srcset: str) -> Iterator[str]:
    """Yields the widest (or densest) address of a srcset, if there is any."""
    candidates = list(_candidates(srcset))
    if candidates:
        yield max(candidates, key=lambda candidate: _size(candidate[1]))[0]


def _candidates(srcset: str) -> Iterator[tuple[str, str]]:
    """Yields (address, descriptor); commas inside an address belong to it."""
    url, descriptor = "", ""
    for word in srcset.split():
        if not url:
            url = word.strip(",")
            if url and word.endswith(","):
                yield url, ""
                url = ""
            continue
        part, comma, rest = word.partition(",")
        descriptor = descriptor or part
        if comma:
            yield url, descriptor
            url, descriptor = rest.strip(","), ""
    if url:
        yield url, descriptor


def _size(descriptor: str) -> float:
    """Orders descriptors: "800w" and "2x"; none means "1x", nonsense comes last."""
    found = _DESCRIPTOR.fullmatch(descriptor or "1x")
    if not found:
        return -1.0
    size = float(found[1])
    return size if size <= _MAX_WIDTH else 1 / size


def _absolute(address: str, base: str, max_url_chars: int) -> tuple[str, str]:
    """Returns (absolute URL, "") or ("", reason)."""
    if len(address) <= max_url_chars:
        if _PLAIN.fullmatch(address):
            return address, ""
        relative = _PLAIN_RELATIVE.fullmatch(address)
        origin, folder = _place(base) if relative else ("", "")
        if relative and origin:
            if relative[1]:
                folder = "/"
            for _ in range(len(relative[2]) // 3):
                folder = folder[: folder.rfind("/", 0, -1) + 1] or "/"
            url = f"{origin}{folder}{relative[3]}"
            return (url, "") if len(url) <= max_url_chars else ("", _TOO_LONG)
    address = address.strip(_SPACES)
    # data: URIs can be long: look at the scheme before anything else.
    scheme = _SCHEME.match(address)
    if scheme and scheme[0].lower() not in ("http:", "https:"):
        return "", "image_url_not_http"
    address = address.partition("#")[0]
    if not address:
        return "", "no_image_url"
    if len(address) > max_url_chars:
        return "", _TOO_LONG
    url = _joined(address, base)
    if not url:
        return "", "bad_url"
    if not url.startswith(("http:", "https:")):
        return "", "image_url_not_http"
    if len(url) > max_url_chars:
        return "", _TOO_LONG
    return url, ""


@lru_cache(maxsize=64)
def _place(base: str) -> tuple[str, str]:
    """Returns the origin and the folder of a plain URL, ("", "") of any other."""
    if not _PLAIN.fullmatch(base):
        return "", ""
    scheme, _, host, *path = base.partition("?")[0].split("/")
    return f"{scheme}//{host}", "/".join(("", *path[:-1], ""))


def _joined(address: str, base: str) -> str:
    """Makes a URL absolute as browsers do, "" if that is impossible."""
    try:
        return ada_url.URL(address, base or None).href
    except ValueError:
        return ""
