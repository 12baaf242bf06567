"""The pages of the sample web: galleries, articles, shop, templates, other languages.

Each function takes pictures and their URLs, and returns pages. In all, a picture gets
about five English texts.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from examples.quickstart import phrases, tags
from examples.quickstart.groups import GROUPS
from examples.quickstart.names import LANGUAGES, Picture, slug
from examples.quickstart.picks import draw, pick, shuffled
from examples.quickstart.tags import IMAGE_HOST, Page, PageImage
from examples.quickstart.tongues import TONGUES

T = TypeVar("T")

# code -> (address, smaller copy or "", other format or "")
Addresses = Mapping[str, tuple[str, str, str]]

_INTROS = (
    "All drawings on this page share one style: flat colours and a black outline.",
    "The pictures are sorted by their names.",
    "Click on a picture to see it in full size; every icon is free to use.",
    "This page grows every month, as our illustrators add new drawings.",
    "Every image is an illustration, not a photo; a photo of the real thing is rare.",
    "Use an emoji, an icon or a piece of clip art on a white background.",
    "For a simple picture of your own, print the drawing and colour it.",
)
_SHOP_INTROS = (
    "Stickers for walls, laptops and lunch boxes. Free shipping from 20 €.",
    "Buy a single sticker, 5 cm wide, or a set of 10. Our online shop never closes.",
    "Each sticker shows an icon from our sample collection; buy five, get a logo free.",
)
_TEMPLATE_INTROS = (
    "Icon set {number} for your app: each image has a thumbnail, an icon and a logo.",
    "A picture, a photo or an image? In set {number} everything is an icon.",
    "Click on a thumbnail to open the image. A logo from set {number} may be changed.",
    "Name your img files well: an icon without a text is only an image or a photo.",
)


def galleries(some: Sequence[Picture], at: Addresses, *, seed: int) -> list[Page]:
    """Returns pages of pictures by group, with one or two texts per picture."""
    pages = []
    for group, facts in GROUPS.items():
        members = [picture for picture in some if picture.group == group]
        for number, chunk in enumerate(_chunks(members, 48), 1):
            path = f"/gallery/{group}/{number}.html"
            base = _base(path, seed=seed)
            items = []
            for picture in chunk:
                extra = draw(seed, picture.code, "gallery extra")
                shown = _page_image(
                    picture,
                    at,
                    seed=seed,
                    alt=phrases.english(picture, "gallery", seed=seed),
                    title=phrases.keywords(picture, seed=seed) if extra < 0.1 else "",
                    data_title=picture.name if 0.1 <= extra < 0.2 else "",
                )
                items.append(tags.image(shown, page_path=path, base=base, seed=seed))
            intro = [
                f"{facts.title}: {len(chunk)} pictures on {', '.join(facts.tags)}.",
                pick(seed, _INTROS, path),
                "You find here " + ", ".join(map(phrases.a, chunk)) + ".",
            ]
            sloppy = draw(seed, path, "sloppy") < 0.15
            pages.append(
                Page(
                    path,
                    f"{facts.title} – page {number}",
                    f"<h1>{facts.title}</h1>\n"
                    + tags.paragraphs(intro, sloppy=sloppy)
                    + "\n"
                    + "\n".join(items),
                    language=_declared("en", path, seed=seed),
                    base=base,
                    sloppy=sloppy,
                )
            )
    return pages


def articles(some: Sequence[Picture], at: Addresses, *, seed: int) -> list[Page]:
    """Returns articles: one per role ("Firefighter"), and one per 16 single things.

    Every picture is in one article, with a figure caption and a paragraph.
    """
    subjects: dict[str, list[Picture]] = {}
    for picture in some:
        subjects.setdefault(picture.role, []).append(picture)
    lessons = [m for m in subjects.values() if len(m) >= 5]
    singles = [m[0] for m in subjects.values() if len(m) == 1]
    singles += [p for m in subjects.values() if 1 < len(m) < 5 for p in m]
    for group in GROUPS:
        members = [picture for picture in singles if picture.group == group]
        lessons += _chunks(shuffled(seed, members, "articles"), 16)
    pages, taken = [], set()
    for lesson in lessons:
        lead = min(lesson, key=lambda p: (len(p.tones), p.subject, p.code))
        title = phrases.heading(lead.role)
        name = slug(title) or lead.code.lower()
        path = f"/articles/{name}.html"
        if path in taken:
            path = f"/articles/{name}-{lead.code.lower()}.html"
        taken.add(path)
        body = [f"<h1>{tags.escape(title)}</h1>"]
        for i, picture in enumerate(lesson):
            other = lesson[i - 1] if len(lesson) > 1 else picture
            shown = _page_image(
                picture,
                at,
                seed=seed,
                alt=phrases.english(picture, "article", seed=seed),
                caption=phrases.english(picture, "caption", seed=seed),
            )
            body.append(tags.image(shown, page_path=path, seed=seed))
            text = phrases.paragraph(picture, other, seed=seed)
            body.append(tags.paragraphs([text]))
        language = _declared("en", path, seed=seed)
        pages.append(Page(path, title, "\n".join(body), language=language))
    return pages


def shop(some: Sequence[Picture], at: Addresses, *, seed: int) -> list[Page]:
    """Returns product lists: template titles on about two thirds of the pictures."""
    goods = [p for p in some if draw(seed, p.code, "for sale") < 0.65]
    pages = []
    for number, chunk in enumerate(_chunks(shuffled(seed, goods, "shop"), 40), 1):
        path = f"/shop/page-{number}.html"
        base = _base(path, seed=seed)
        rows = []
        for picture in chunk:
            extra = draw(seed, picture.code, "shop extra")
            shown = _page_image(
                picture,
                at,
                seed=seed,
                alt=phrases.product(picture, "alt", seed=seed) if extra < 0.9 else "",
                title=phrases.english(picture, "shop", seed=seed),
                data_title=phrases.product(picture, "d", seed=seed)
                if extra < 0.2
                else "",
            )
            price = 100 + int(extra * 400)
            rows.append(
                f'<div class="product">'
                f"{tags.image(shown, page_path=path, base=base, seed=seed)}"
                f"<h3>{tags.escape(phrases.heading(picture.name))}</h3>"
                f"<span>{price // 100}.{price % 100:02} &euro;</span> "
                f"<button>Add to cart</button></div>"
            )
        title = f"Stickers, page {number} | Sample Shop"
        text = pick(seed, _SHOP_INTROS, path)
        body = f"<h1>Stickers</h1>\n{tags.paragraphs([text])}\n" + "\n".join(rows)
        pages.append(Page(path, title, body, language="en", base=base))
    return pages


def templates(some: Sequence[Picture], at: Addresses, *, seed: int) -> list[Page]:
    """Returns galleries with texts from templates: "image", "icon of ...", empty."""
    shown_here = [p for p in some if draw(seed, p.code, "in template") < 0.45]
    pages = []
    for number, chunk in enumerate(_chunks(shuffled(seed, shown_here, "sets"), 60), 1):
        path = f"/icons/set-{number}.html"
        base = _base(path, seed=seed)
        items = [
            tags.image(
                _page_image(
                    picture,
                    at,
                    seed=seed,
                    alt=phrases.template(picture, seed=seed),
                    title=phrases.template(picture, "title", seed=seed)
                    if draw(seed, picture.code, "titled") < 0.2
                    else "",
                ),
                page_path=path,
                base=base,
                seed=seed,
            )
            for picture in chunk
        ]
        text = pick(seed, _TEMPLATE_INTROS, path)
        intro = tags.paragraphs([text.format(number=number)])
        body = f"<h1>Icon set {number}</h1>\n{intro}\n<div>" + "</div>\n<div>".join(
            items
        )
        pages.append(Page(path, f"Icon set {number}", f"{body}</div>", language=""))
    return pages


def other_languages(
    some: Sequence[Picture],
    at: Addresses,
    *,
    unsayable: Mapping[str, frozenset[str]],
    seed: int,
) -> list[Page]:
    """Returns pages in 13 languages, with and without a declared language.

    `unsayable`: names per language that belong to held-out pictures.
    """
    pages = []
    for language in LANGUAGES:
        tongue = TONGUES[language]
        members = [
            picture
            for picture in some
            if draw(seed, picture.code, "speaks", language) < 0.09
            and picture.translations.get(language)
            and picture.translations[language] not in unsayable[language]
        ]
        chunks = _chunks(shuffled(seed, members, language), 40)
        for number, chunk in enumerate(chunks, 1):
            path = f"/{language}/{number}.html"
            items = []
            for picture in chunk:
                name = picture.translations[language]
                captioned = draw(seed, picture.code, language, "caption") < 0.3
                shown = _page_image(
                    picture,
                    at,
                    seed=seed,
                    alt=name,
                    caption=f"{tongue.picture}: {name}" if captioned else "",
                )
                items.append(tags.image(shown, page_path=path, seed=seed))
            # Declared on <html>, not declared, or declared on <main>.
            declared = (LANGUAGES.index(language) + number) % 3
            charset, declared_in = _charset(language, number)
            pages.append(
                Page(
                    path,
                    f"{tongue.title} {number}",
                    f"<h1>{tongue.title}</h1>\n{tags.paragraphs([tongue.intro])}\n"
                    + "\n".join(items),
                    language=language if declared == 1 else "",
                    in_body_language=language if declared == 0 else "",
                    charset=charset,
                    declared=declared_in,
                )
            )
    return pages


def _charset(language: str, number: int) -> tuple[str, str]:
    """Returns (charset, where it is declared); a few pages are not UTF-8."""
    legacy = {
        ("fr", 1): ("windows-1252", "meta"),
        ("ja", 1): ("shift_jis", "http-equiv"),
        ("ru", 1): ("koi8-r", "header"),
    }
    return legacy.get((language, number), ("utf-8", "header"))


def _page_image(
    picture: Picture,
    at: Addresses,
    *,
    seed: int,
    alt: str,
    title: str = "",
    data_title: str = "",
    caption: str = "",
) -> PageImage:
    url, small, other = at[picture.code]
    way = "srcset" if small else "picture" if other else "plain"
    if way == "plain" and draw(seed, picture.code, alt, "lazy") < 0.2:
        way = "lazy"
    return PageImage(url, alt, title, data_title, caption, way, small, other)


def _base(path: str, *, seed: int) -> str:
    choice = draw(seed, path, "base")
    if choice < 0.1:
        return f"http://{IMAGE_HOST}/i/"
    return f"http://{tags.HOST}/pictures/" if choice < 0.2 else ""


def _declared(language: str, path: str, *, seed: int) -> str:
    choice = draw(seed, path, "declared")
    if choice < 0.3:
        return ""
    return language if choice < 0.8 else f"{language}-GB"


def _chunks(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
