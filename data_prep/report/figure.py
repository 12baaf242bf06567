"""The pieces that sections share: headings, figures with captions, two widths."""

from collections.abc import Callable

from data_prep.report.markup import Markup, element, join

# Text keeps its size on a phone: a chart is drawn anew, not shrunk.
HALF_WIDTH, FULL_WIDTH, NARROW_WIDTH = 488, 1024, 358  # px


def section(title: str, *children: object, name: str) -> Markup:
    """A section with its heading; `name` is its anchor."""
    return element("section", element("h2", title), *children, id=name)


def lead(*words: object) -> Markup:
    """What a reader must know before the figures of a section."""
    return element("p", *words, class_="lead")


def missing(*words: object) -> Markup:
    """Says what a section cannot show and how to make it."""
    return element("p", *words, class_="missing")


def figure(drawing: object, *caption: object, title: str) -> Markup:
    """A figure; its caption starts with a bold title and says what to see."""
    words = element("figcaption", element("b", f"{title}. "), *caption)
    return element("figure", drawing, words)


def two_widths(draw: Callable[..., Markup], *, wide: int) -> Markup:
    """The same chart drawn for a desk and for a phone; the style shows one of them.

    `draw` is called with `width` in px.
    """
    return join(
        [
            element("div", draw(width=wide), class_="wide"),
            element("div", draw(width=NARROW_WIDTH), class_="narrow"),
        ]
    )


def scroll(table: Markup, *, label: str) -> Markup:
    """A box that scrolls sideways by itself, so that the page never has to."""
    # A keyboard can scroll only what it can reach.
    return element(
        "div", table, class_="scroll", role="region", aria_label=label, tabindex=0
    )


def picture(uri: str) -> Markup:
    """A thumbnail beside its text, or an empty frame for what could not be decoded."""
    if not uri:
        return element("span", class_="picture", title="not decodable")
    return element("img", src=uri, alt="", class_="picture")
