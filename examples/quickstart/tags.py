"""HTML as people write it: the many ways to include an image and its text."""

import html
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html.entities import codepoint2name
from urllib.parse import urlsplit

from examples.quickstart.picks import draw, pick

HOST = "sample-web.example"
IMAGE_HOST = f"images.{HOST}"
SPACER = f"http://{HOST}/static/spacer.gif"
_PLACEHOLDER = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs="


@dataclass(frozen=True)
class PageImage:
    """One image on a page. `alt` None: no such attribute; other texts: "" = none.

    `way`: plain, lazy, srcset or picture. `small_url` is a smaller copy of the image,
    `other_url` the same image in another format.
    """

    url: str
    alt: str | None = None
    title: str = ""
    data_title: str = ""
    caption: str = ""
    way: str = "plain"
    small_url: str = ""
    other_url: str = ""


@dataclass(frozen=True)
class Page:
    """One page. `path` starts with "/"; `body` is HTML; `language` "" is undeclared.

    `base` is the <base href>, "" for none. `charset` is the encoding of the bytes;
    `declared` says where it is declared: header, meta or http-equiv.
    """

    path: str
    title: str
    body: str
    language: str = "en"
    base: str = ""
    charset: str = "utf-8"
    declared: str = "header"
    in_body_language: str = ""  # lang on <main>, where <html> has another or none
    sloppy: bool = False

    @property
    def url(self) -> str:
        """The page's absolute address."""
        return f"http://{HOST}{self.path}"


def reference(url: str, *, page_path: str, base: str, seed: int) -> str:
    """Returns a URL as a page might write it: relative, //host/..., or absolute."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    start = urlsplit(base or f"http://{HOST}{page_path}")
    choice = draw(seed, "reference", url, page_path)
    if parts.netloc != start.netloc:
        return f"//{parts.netloc}{target}" if choice < 0.5 else url
    if choice < 0.5:
        folder = posixpath.dirname(start.path) or "/"
        return posixpath.relpath(target, folder)
    return target if choice < 0.85 else url


def image(shown: PageImage, *, page_path: str, base: str = "", seed: int) -> str:
    """Returns the <img> (or <figure>, <picture>) of one image."""

    def address(url: str) -> str:
        return reference(url, page_path=page_path, base=base, seed=seed)

    sources = {"src": address(shown.url)}
    before = after = ""
    if shown.way == "lazy":
        holder = pick(seed, (_PLACEHOLDER, address(SPACER)), page_path, shown.url)
        sources = {"class": "lazy", "src": holder, "data-src": address(shown.url)}
    elif shown.way == "srcset" and shown.small_url:
        small, large = address(shown.small_url), address(shown.url)
        first = pick(seed, (small, large), shown.url, "src")  # both orders are common
        sources = {"src": first, "srcset": f"{small} 48w, {large} 96w"}
    elif shown.way == "picture" and shown.other_url:
        other = address(shown.other_url)
        before = f'<picture><source type="image/webp" srcset="{html.escape(other)}">'
        after = "</picture>"
    texts = {"title": shown.title, "data-image-title": shown.data_title}
    attributes = {
        **sources,
        **({} if shown.alt is None else {"alt": shown.alt}),
        **{name: text for name, text in texts.items() if text},
    }
    element = f"{before}<img {_attributes(attributes)}>{after}"
    if shown.caption:
        caption = f"<figcaption>{escape(shown.caption)}</figcaption>"
        return f"<figure>{element}{caption}</figure>"
    return element


def escape(text: str) -> str:
    """Escapes a text for HTML."""
    return html.escape(text)


def named_entities(markup: str) -> str:
    """Replaces non-ASCII characters by entities: "é" by &eacute;, "☃" by &#9731;."""

    def entity(match: re.Match[str]) -> str:
        point = ord(match[0])
        return f"&{codepoint2name.get(point, f'#{point}')};"

    return re.sub(r"[^\x00-\x7f]", entity, markup)


def link(path: str, text: str, *, base: str = "") -> str:
    """Returns a link to a page of the site."""
    address = f"http://{HOST}{path}" if base else path
    return f'<a href="{escape(address)}">{escape(text)}</a>'


def paragraphs(texts: Sequence[str], *, sloppy: bool = False) -> str:
    """Returns one <p> per text; a sloppy author closes none of them."""
    end = "" if sloppy else "</p>"
    return "\n".join(f"<p>{escape(text)}{end}" for text in texts)


def document(page: Page, *, navigation: str, footer: str) -> bytes:
    """Returns the bytes of a page in its charset."""
    lang = f' lang="{page.language}"' if page.language else ""
    inner = f' lang="{page.in_body_language}"' if page.in_body_language else ""
    head = [f"<title>{escape(page.title)}</title>"]
    if page.declared == "meta":
        head.insert(0, f'<meta charset="{page.charset}">')
    elif page.declared == "http-equiv":
        head.insert(
            0,
            '<meta http-equiv="Content-Type" '
            f'content="text/html; charset={page.charset}">',
        )
    if page.base:
        head.append(f'<base href="{escape(page.base)}">')
    head.append("<style>img { margin: 4px } nav { font-size: small }</style>")
    head.append('<script>var pictures = \'<img src="none.jpg" alt="no">\';</script>')
    text = (
        f"<!DOCTYPE html>\n<html{lang}>\n<head>\n" + "\n".join(head) + "\n</head>\n"
        f"<body>\n<nav>{navigation}</nav>\n<main{inner}>\n{page.body}\n</main>\n"
        f"<footer>{footer}</footer>\n</body>\n</html>\n"
    )
    if page.sloppy:
        text = text.replace("</main>\n", "").replace("</body>\n</html>\n", "")
        text = text.replace("<img ", "<IMG ").replace("</figure>", "")
    return text.encode(page.charset, errors="xmlcharrefreplace")


def _attributes(values: dict[str, str]) -> str:
    return " ".join(f'{name}="{html.escape(value)}"' for name, value in values.items())
