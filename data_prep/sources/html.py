"""Finds the images of a page and the texts that the page gives them.

The parser accepts what browsers accept, so malformed HTML is no error. Pages are
untrusted: the size of the tree, texts per page, and lengths of texts and URLs are
bounded, and drops are counted. No page ends a run: one that cannot be read, for any
reason, is a LostPage.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from absl import logging
from selectolax.lexbor import LexborDocumentOptions, LexborHTMLParser, LexborNode

from data_prep import language
from data_prep.sources import charset, image_urls, texts, tree_cost
from data_prep.sources.warc import LostPage, Page

# Without it a page has no image: <image> becomes <img>.
_IMAGE = re.compile(rb"<[iI][mM]")
_IMAGES_AND_CONTEXT = "img, figcaption, base, html, meta[http-equiv], [lang]"
_HTML_TAGS = frozenset(("img", "figcaption", "base", "meta"))  # met by their names
_BLANKS = " \t\n\f\r"  # of texts that the parser calls empty
_FIGURE_LEVELS = 8  # how far above an image or caption its <figure> may be
_PICTURE_SOURCES = 16  # <source>s of an image
_CAPTION_NODES = 250  # nodes read of one caption
# A <select> with <selectedcontent> would be copied once for each of its options.
_AS_WRITTEN = LexborDocumentOptions.WO_EVENTS

_INVISIBLE = frozenset("script style noscript template nav svg iframe".split())
_INLINE = frozenset(
    """a abbr b bdi bdo cite code del dfn em font i ins kbd mark q s samp small span
    strong sub sup time tt u var wbr""".split()
)


@dataclass(frozen=True, slots=True)
class PageText:
    """The visible text of a page, for building metadata."""

    title: str
    text: str  # one line per block of the page
    language: str  # as declared, "" where it is not


_Read = TypeVar("_Read")


def parse_page(
    page: Page, **options: Any
) -> tuple[list[texts.Row], texts.Losses] | LostPage:
    """Returns the CANDIDATES of a page, and its drops by reason; see `find_texts`."""
    found = find_texts(page, **options)
    if isinstance(found, LostPage):
        return found
    return texts.to_rows(found), found.losses


def find_texts(
    page: Page,
    *,
    max_texts_per_page: int,
    max_text_chars: int,
    max_url_chars: int,
    max_tree_bytes: int,
    text_sources: Sequence[str] = texts.SOURCES,
    prefer_larger: bool = False,
) -> texts.Found | LostPage:
    """Returns the texts of a page's images, and its drops by reason.

    Every text attribute of every image is one text, empty ones too; an image without
    any counts as one empty text. So texts found = rows + drops.

    Reasons: empty_text, text_too_long, too_many_texts (all beyond the bound, empty ones
    too), and those of `image_urls.find`. Those of a LostPage: see `_read`; a page
    without images is not parsed.

    `text_sources` are those of texts.SOURCES to read, and other attributes of images
    such as aria-label. With `prefer_larger`, the largest address in srcset and
    <picture> comes before `src`; the drops then count images too (texts.LARGER).
    """
    parsed = _read(
        page,
        max_tree_bytes,
        lambda nodes: _parse(
            page.url,
            nodes,
            max_texts_per_page=max_texts_per_page,
            max_text_chars=max_text_chars,
            max_url_chars=max_url_chars,
            text_sources=text_sources,
            prefer_larger=prefer_larger,
        ),
        unless_without=_IMAGE,
    )
    return parsed or texts.Found(page.url, [], texts.Losses(), "")


def page_text(page: Page, *, max_tree_bytes: int) -> PageText | LostPage:
    """Returns the visible text of a page: no scripts, styles or navigation."""
    text = _read(page, max_tree_bytes, _page_text)
    assert text is not None
    return text


def _read(
    page: Page,
    max_tree_bytes: int,
    read: Callable[["_Nodes"], _Read],
    *,
    unless_without: re.Pattern[bytes] | None = None,
) -> _Read | LostPage | None:
    """Applies `read` to the page's nodes; None if the page has no such element.

    Reasons of a LostPage: tree_too_large (more than max_tree_bytes), tree_too_slow
    (nested deeper, or with more attributes in a tag, than the parser does in a second),
    parser_error (anything else that goes wrong with a page).
    """
    try:
        html = charset.to_parseable(page.html, page.content_type)
        if isinstance(html, str):
            html = html.encode("utf-8", "replace")
        if unless_without is not None and not unless_without.search(html):
            return None
        cost = tree_cost.estimate(html)
        if cost.bytes > max_tree_bytes:
            return LostPage("tree_too_large", page.url)
        if cost.steps >= tree_cost.MAX_STEPS:
            return LostPage("tree_too_slow", page.url)
        tree = LexborHTMLParser(html, options=_AS_WRITTEN)
        if cost.has_context:
            return read(_Nodes(tree, tree.css(_IMAGES_AND_CONTEXT)))
        return read(_Nodes(tree, tree.tags("img")))
    except Exception as error:  # a parser may raise anything: it is this page's fault
        logging.debug("%s: %r", page.url, error)
        return LostPage("parser_error", page.url)


def _page_text(nodes: "_Nodes") -> PageText:
    tree = nodes.tree
    title = _title(tree)
    heading = texts.clean(title.text()) if title is not None else ""
    body = tree.body
    if body is None:
        return PageText(heading, "", nodes.language)
    blocks = (
        texts.clean(block) for block in "".join(_visible(body)).split(texts.BREAK)
    )
    text = "\n".join(block for block in blocks if block)
    return PageText(heading, text, nodes.language)


def _title(tree: LexborHTMLParser) -> LexborNode | None:
    node = None if tree.head is None else tree.head.first_child
    while node is not None and node.tag != "title":
        node = node.next
    return node


def _visible(body: LexborNode) -> Iterator[str]:
    """Yields the texts in `body`, with a texts.BREAK where a block begins or ends.

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
                yield texts.BREAK
            if node.first_child is not None:
                node = node.first_child
                continue
        while node.next is None:
            node = node.parent
            if node is None or node.mem_id == end:
                return
            if node.tag not in _INLINE:
                yield texts.BREAK
        node = node.next


def _pieces(body: LexborNode) -> Iterator[str]:
    """Yields the texts in `body` as `_visible` does, without breaks and blank ones.

    Faster: it is read for each page without a language.
    """
    after = 0  # mem_id of the node after an invisible element
    for node in body.traverse(include_text=True, skip_empty=True):
        if after:
            if node.mem_id != after:
                continue
            after = 0
        if node.is_text_node:
            yield node.text_content or ""
        elif node.tag in _INVISIBLE:
            after = _after(node, body)
            if not after:
                break


def _after(node: LexborNode, body: LexborNode) -> int:
    """Returns the mem_id of what comes after all that is in a node, 0 at the end.

    Blank texts do not count.
    """
    while True:
        beside = node.next
        if beside is None:
            above = node.parent
            if above is None or above.mem_id == body.mem_id:
                return 0
            node = above
        elif beside.is_text_node and not (beside.text_content or "").strip(_BLANKS):
            node = beside
        else:
            return beside.mem_id


def _parse(
    page_url: str,
    nodes: "_Nodes",
    *,
    max_texts_per_page: int,
    max_text_chars: int,
    max_url_chars: int,
    text_sources: Sequence[str],
    prefer_larger: bool,
) -> texts.Found:
    if not nodes.images:
        return texts.Found(page_url, [], texts.Losses(), "")
    captions = _captions(nodes, max_text_chars) if "figcaption" in text_sources else {}
    found, drops = texts.texts_of(
        nodes.images,
        image_urls.base_of(page_url, nodes.base_href),
        language_of=nodes.language_of,
        sources_of=_sources,
        caption_of=(lambda image: captions.get(image.mem_id)) if captions else None,
        max_texts_per_page=max_texts_per_page,
        max_text_chars=max_text_chars,
        max_url_chars=max_url_chars,
        text_sources=text_sources,
        prefer_larger=prefer_larger,
    )
    if all(map(language.known, {declared for *_, declared in found})):
        return texts.Found(page_url, found, drops, "")
    page_text = _beginning(nodes.tree, [text for _, text, _, _ in found])
    return texts.Found(page_url, found, drops, page_text)


def _beginning(tree: LexborHTMLParser, of_images: Sequence[str]) -> str:
    """Returns the beginning of a page's text: title, text, texts of its images."""
    title = _title(tree)
    heading = [] if title is None else [title.text()]
    pieces = iter(()) if tree.body is None else _pieces(tree.body)
    return texts.beginning(itertools.chain(heading, pieces, of_images))


def _sources(image: LexborNode) -> Iterator[image_urls.Attributes]:
    """Yields the attributes of the <source>s before an image in its <picture>.

    Not beyond another image, so that no element is looked at twice.
    """
    sources: list[image_urls.Attributes] = []
    above = image.parent
    if above is None or above.tag != "picture":
        return
    sibling = image.prev
    while sibling is not None and sibling.tag != "img":
        if sibling.tag == "source" and len(sources) < _PICTURE_SOURCES:
            sources.append(sibling.attributes)
        sibling = sibling.prev
    yield from sources[::-1]


def _captions(nodes: "_Nodes", max_chars: int) -> dict[int, str]:
    """Returns image mem_id -> text of the caption of its figure.

    Only for figures with one image: of several, the caption does not say which.
    """
    captions: dict[int, LexborNode] = {}
    for caption in nodes.captions:
        figure = _figure_of(caption)
        if figure is not None:
            captions.setdefault(figure.mem_id, caption)
    if not captions:
        return {}
    images_of: dict[int, list[int]] = {}
    for image, _ in nodes.images:
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
    """Reads a caption, up to little more than its usable length."""
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


class _Nodes:
    """The elements of a page that say something of its images, found in one walk."""

    def __init__(self, tree: LexborHTMLParser, found: Sequence[LexborNode]) -> None:
        """`found` are images and their context, or only images if there is none."""
        self.tree = tree
        self.images: list[tuple[LexborNode, image_urls.Attributes]] = []
        self.captions: list[LexborNode] = []
        self.base_href: str | None = None
        self.language = ""  # of the page
        self._declared: dict[int, str] = {}
        root = tree.root
        if root is not None and root.tag == "html":
            self.language = texts.subtag(root.attributes.get("lang"))
        has_base = has_meta = False
        meta_language, in_doubt = "", list[LexborNode]()
        seen = None
        for node in found:
            if node.mem_id == seen:  # it meets two of the selectors
                continue
            seen, tag, attributes = node.mem_id, node.tag, node.attributes
            if tag == "html":
                self.language = self.language or texts.subtag(attributes.get("lang"))
                continue
            if "lang" in attributes or tag not in _HTML_TAGS:
                self._declared[seen] = texts.subtag(_lang(attributes))
            elif "xml:lang" in attributes:
                in_doubt.append(node)
            if tag == "img":
                self.images.append((node, attributes))
            elif tag == "figcaption":
                self.captions.append(node)
            elif tag == "base" and not has_base and "href" in attributes:
                has_base, self.base_href = True, attributes["href"]
            elif tag == "meta" and not has_meta and "http-equiv" in attributes:
                name = (attributes["http-equiv"] or "").strip().lower()
                if has_meta := name == "content-language":
                    meta_language = texts.language_of_list(attributes.get("content"))
        if in_doubt:  # it is a declaration in <svg> and <math> only
            foreign = {node.mem_id for node in tree.css("[lang]")}
            self._declared |= {
                node.mem_id: texts.subtag(_lang(node.attributes))
                for node in in_doubt
                if node.mem_id in foreign
            }
        self.language = self.language or meta_language

    def language_of(self, node: LexborNode) -> str:
        """Returns the code of the nearest declaration, "" if there is none."""
        if not self._declared:
            return self.language
        passed = []
        language = self.language
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


def _lang(attributes: image_urls.Attributes) -> str | None:
    """Returns the value of `lang`; in <svg> and <math> `xml:lang` means the same."""
    return attributes["lang"] if "lang" in attributes else attributes.get("xml:lang")
