"""Finds the images of a page and the texts that the page gives them.

The parser takes whatever a browser would, so malformed HTML is no error. Pages come
from strangers: the size of the tree, texts per page, length of texts and of addresses
are bounded, and what the bounds cut off is counted. No page ends a run: one that cannot
be read, for whatever reason, is a LostPage.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
from absl import logging
from selectolax.lexbor import LexborDocumentOptions, LexborHTMLParser, LexborNode

from data_prep import language, schema
from data_prep.sources import charset, image_urls, tree_cost
from data_prep.sources.warc import LostPage, Page
from metaclip_jax.data import records

_TEXT_ATTRIBUTES = ("alt", "title", "data-image-title")
_LANGUAGE = re.compile(r"([a-z]{2,3})(?:[-_]|$)", re.I)
# Control characters that are no white space, and lone surrogates (no valid UTF-8).
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]+")
_FIGURE_LEVELS = 8  # how far above an image or caption its <figure> may be
_PICTURE_SOURCES = 16  # <source>s of an image
_SAID_CHARS = 300  # of a page's text, to know its language by
_CAPTION_NODES = 250  # nodes read of one caption
# A <select> with <selectedcontent> would be copied once for each of its options.
_AS_WRITTEN = LexborDocumentOptions.WO_EVENTS

_BREAK = "\0"  # no page has it: the parser replaces it
_INVISIBLE = frozenset("script style noscript template nav svg iframe".split())
_INLINE = frozenset(
    """a abbr b bdi bdo cite code del dfn em font i ins kbd mark q s samp small span
    strong sub sup time tt u var wbr""".split()
)


@dataclass(frozen=True, slots=True)
class PageText:
    """What a page says, for the metadata."""

    title: str
    text: str  # one line per block of the page
    language: str  # as declared, "" where it is not


# image URL, page URL, text, text source, declared language
_Row = tuple[str, str, str, str, str]
_Read = TypeVar("_Read")


def parse_page(
    page: Page,
    *,
    max_texts_per_page: int,
    max_text_chars: int,
    max_url_chars: int,
    max_tree_bytes: int,
    identify: language.LanguageIdentifier,
) -> tuple[pa.RecordBatch, Counter] | LostPage:
    """Returns the CANDIDATES of a page, and how many texts were dropped by reason.

    Every text attribute of every image is one text, empty ones too; an image without
    any counts as one empty text. So texts found = rows + drops.

    Reasons: empty_text, text_too_long, too_many_texts (all beyond the bound, empty ones
    too), and those of `image_urls.find`. Those of a LostPage: see `_read`.

    Where the page declares no language for some of its texts, `identify` is asked once,
    for that of the page.
    """
    parsed = _read(
        page,
        max_tree_bytes,
        lambda tree: _parse(
            page.url, tree, max_texts_per_page, max_text_chars, max_url_chars
        ),
    )
    if isinstance(parsed, LostPage):
        return parsed
    rows, drops, said = parsed
    of_page = language.of_page(said, identify) if said else ""
    urls, *others, declared = zip(*rows, strict=True) if rows else [()] * 5
    image_ids = {url: records.image_id(url) for url in dict.fromkeys(urls)}
    unknown = {code for code in set(declared) if not language.known(code)}
    identified = [of_page if code in unknown else "" for code in declared]
    nowhere = [""] * len(urls)
    ids = [image_ids[url] for url in urls]
    columns = (ids, urls, *others, declared, identified, nowhere)
    named = dict(zip(schema.CANDIDATES.names, columns, strict=True))
    return schema.from_columns(named, schema.CANDIDATES), drops


def page_text(page: Page, *, max_tree_bytes: int) -> PageText | LostPage:
    """Returns the visible text of a page: no scripts, styles or navigation."""
    return _read(page, max_tree_bytes, _page_text)


def _read(
    page: Page, max_tree_bytes: int, read: Callable[[LexborHTMLParser], _Read]
) -> _Read | LostPage:
    """Applies `read` to the page's tree.

    Reasons of a LostPage: tree_too_large (more than max_tree_bytes), tree_too_slow
    (nested deeper, or with more attributes in a tag, than the parser does in a second),
    parser_error (anything else that goes wrong with a page).
    """
    try:
        html = charset.to_parseable(page.html, page.content_type)
        if isinstance(html, str):
            html = html.encode("utf-8", "replace")
        size, steps = tree_cost.estimate(html)
        if size > max_tree_bytes:
            return LostPage("tree_too_large")
        if steps >= tree_cost.MAX_STEPS:
            return LostPage("tree_too_slow")
        return read(LexborHTMLParser(html, options=_AS_WRITTEN))
    except Exception as error:  # a parser may raise anything: it is this page's fault
        logging.debug("%s: %r", page.url, error)
        return LostPage("parser_error")


def _page_text(tree: LexborHTMLParser) -> PageText:
    title = tree.css_first("head > title")
    language = _page_language(tree)
    heading = clean(title.text()) if title is not None else ""
    body = tree.body
    if body is None:
        return PageText(heading, "", language)
    blocks = (clean(block) for block in "".join(_visible(body)).split(_BREAK))
    return PageText(heading, "\n".join(block for block in blocks if block), language)


def _visible(body: LexborNode) -> Iterator[str]:
    """Yields the texts in `body`, with a _BREAK where a block begins or ends.

    Words in inline elements are not broken: a bold first letter belongs to its word.
    By hand, since the parser's own ways to remove elements are quadratic in depth.
    """
    end = body.mem_id
    node = body.first_child
    while node is not None:
        if node.is_text_node:
            yield node.text_content or ""
        elif node.tag not in _INVISIBLE:
            if node.tag not in _INLINE:
                yield _BREAK
            if node.first_child is not None:
                node = node.first_child
                continue
        while node.next is None:
            node = node.parent
            if node is None or node.mem_id == end:
                return
            if node.tag not in _INLINE:
                yield _BREAK
        node = node.next


def clean(text: str) -> str:
    """Strips, collapses white space, removes control characters and surrogates."""
    if not text.isprintable():
        text = _UNWANTED.sub("", text)
    return " ".join(text.split())


def _parse(
    page_url: str,
    tree: LexborHTMLParser,
    max_texts_per_page: int,
    max_text_chars: int,
    max_url_chars: int,
) -> tuple[list[_Row], Counter, str]:
    """Returns the rows of one page, its drops, and what to know its language by.

    The last is "" where all rows have a declared language.
    """
    drops: Counter = Counter()
    rows: list[_Row] = []
    images = tree.tags("img")
    if not images:
        return rows, drops, ""
    base = image_urls.base_of(page_url, _base_href(tree))
    languages = _Languages(tree)
    captions = _captions(tree, images, max_text_chars)
    for image in images:
        attributes = image.attributes
        texts = [(n, attributes[n]) for n in _TEXT_ATTRIBUTES if n in attributes]
        if captions and image.mem_id in captions:
            texts.append(("figcaption", captions[image.mem_id]))
        if len(rows) >= max_texts_per_page:
            drops["too_many_texts"] += max(len(texts), 1)
            continue
        kept = usable(texts, max_text_chars, drops)
        if not kept:
            continue
        url, reason = image_urls.find(
            attributes, _sources(image), base, max_url_chars=max_url_chars
        )
        if not url:
            drops[reason] += len(kept)
            continue
        declared = languages.of(image)
        rows += [(url, page_url, text, source, declared) for source, text in kept]
    if len(rows) > max_texts_per_page:
        drops["too_many_texts"] += len(rows) - max_texts_per_page
        del rows[max_texts_per_page:]
    if all(map(language.known, {declared for *_, declared in rows})):
        return rows, drops, ""
    return rows, drops, _said(tree, [text for _, _, text, _, _ in rows])


def _said(tree: LexborHTMLParser, texts: Sequence[str]) -> str:
    """Returns the beginning of what a page says: title, text, texts of its images."""
    title = tree.css_first("head > title")
    body = tree.body
    parts: list[str] = [] if title is None else [title.text()]
    chars = 0
    for part in itertools.chain(() if body is None else _visible(body), texts):
        if not part.isspace() and part != _BREAK:
            parts.append(part[:_SAID_CHARS])
            chars += len(parts[-1])
            if chars >= _SAID_CHARS:
                break
    return clean(" ".join(parts))[:_SAID_CHARS]


def usable(
    texts: Sequence[tuple[str, str | None]], max_text_chars: int, drops: Counter
) -> list[tuple[str, str]]:
    """Returns the (source, cleaned text) that are neither empty nor too long.

    Counts the others: no text at all is one empty text.
    """
    if not texts:
        drops["empty_text"] += 1
    kept = []
    for source, raw in texts:
        text = clean(raw or "")
        if not text:
            drops["empty_text"] += 1
        elif len(text) > max_text_chars:
            drops["text_too_long"] += 1
        else:
            kept.append((source, text))
    return kept


def _base_href(tree: LexborHTMLParser) -> str | None:
    for base in tree.tags("base"):
        if "href" in base.attributes:
            return base.attributes["href"]
    return None


def _sources(image: LexborNode) -> list[image_urls.Attributes]:
    """Returns the attributes of the <source>s before an image in its <picture>.

    Not beyond another image, so that no element is looked at twice.
    """
    sources: list[image_urls.Attributes] = []
    above = image.parent
    if above is None or above.tag != "picture":
        return sources
    sibling = image.prev
    while sibling is not None and sibling.tag != "img":
        if sibling.tag == "source" and len(sources) < _PICTURE_SOURCES:
            sources.append(sibling.attributes)
        sibling = sibling.prev
    return sources[::-1]


def _captions(
    tree: LexborHTMLParser, images: Sequence[LexborNode], max_chars: int
) -> dict[int, str]:
    """Returns image mem_id -> text of the caption of its figure.

    Only for figures with one image: of several, the caption does not say which.
    """
    captions: dict[int, LexborNode] = {}
    for caption in tree.tags("figcaption"):
        figure = _figure_of(caption)
        if figure is not None:
            captions.setdefault(figure.mem_id, caption)
    if not captions:
        return {}
    images_of: dict[int, list[int]] = {}
    for image in images:
        figure = _figure_of(image)
        if figure is not None and figure.mem_id in captions:
            images_of.setdefault(figure.mem_id, []).append(image.mem_id)
    return {
        image_ids[0]: _caption_text(captions[figure_id], max_chars)
        for figure_id, image_ids in images_of.items()
        if len(image_ids) == 1
    }


def _figure_of(node: LexborNode) -> LexborNode | None:
    above = node.parent
    for _ in range(_FIGURE_LEVELS):
        if above is None or above.tag == "figure":
            return above
        above = above.parent
    return None


def _caption_text(caption: LexborNode, max_chars: int) -> str:
    """Reads a caption, but not much more than may be used of it."""
    parts: list[str] = []
    chars = 0
    for seen, node in enumerate(caption.traverse(include_text=True)):
        if seen >= _CAPTION_NODES or chars > max_chars:
            break
        if node.is_text_node:
            parts.append(node.text_content or "")
            chars += len(parts[-1])
        elif node.tag == "br":
            parts.append(" ")
    return "".join(parts)


class _Languages:
    """Answers which language a page declares for each of its elements."""

    def __init__(self, tree: LexborHTMLParser) -> None:
        self._page = _page_language(tree)
        self._declared = {
            node.mem_id: subtag(_lang(node.attributes))
            for node in tree.css("[lang]")
            if node.tag != "html"
        }

    def of(self, node: LexborNode) -> str:
        """Returns the code of the nearest declaration, "" where there is none."""
        if not self._declared:
            return self._page
        passed = []
        language = self._page
        above: LexborNode | None = node
        while above is not None:
            if above.mem_id in self._declared:
                language = self._declared[above.mem_id]
                break
            passed.append(above.mem_id)
            above = above.parent
        # Remembered, so that deep pages cost no more than their number of elements.
        self._declared.update(dict.fromkeys(passed, language))
        return language


def _page_language(tree: LexborHTMLParser) -> str:
    """Returns the language of <html lang>, else of a Content-Language <meta>."""
    for root in tree.tags("html"):
        if language := subtag(root.attributes.get("lang")):
            return language
    for meta in tree.css("meta[http-equiv]"):
        attributes = meta.attributes
        if (attributes["http-equiv"] or "").strip().lower() == "content-language":
            # A list of several languages says nothing about one text.
            content = attributes.get("content") or ""
            return "" if "," in content else subtag(content)
    return ""


def _lang(attributes: image_urls.Attributes) -> str | None:
    """Returns the value of `lang`; in <svg> and <math> `xml:lang` means the same."""
    return attributes["lang"] if "lang" in attributes else attributes.get("xml:lang")


def subtag(declared: str | None) -> str:
    """Returns the lower-case primary subtag: "en-GB" -> "en"; "" where it is none."""
    found = _LANGUAGE.match((declared or "").strip())
    return found[1].lower() if found else ""
