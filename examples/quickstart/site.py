"""The whole sample web in memory: addresses, files, pages, indexes, page views.

`make` gives every picture a URL, writes the pages of each section, adds faults, then
links everything from the home page.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from examples.quickstart import mess, phrases, pictures, sections, tags
from examples.quickstart.held_out import HeldOut
from examples.quickstart.mess import Files
from examples.quickstart.names import LANGUAGES, Picture
from examples.quickstart.picks import draw, pick, shuffled
from examples.quickstart.pictures import Drawing
from examples.quickstart.tags import HOST, IMAGE_HOST, Page
from examples.quickstart.tongues import TONGUES

# The server's Date header, fixed so that crawls give the same bytes.
DATE = "Sat, 01 Mar 2025 12:00:00 GMT"
_MOST_VIEWED = 25_000  # views of the first title; the n-th has 1/n as many
_IDENTICAL = 1.0  # as pictures.SAME_PICTURE, without mirroring


@dataclass(frozen=True)
class Site:
    """Files to serve, special answers, and (domain, title, views) lines."""

    files: Files
    pages: list[Page]
    views: list[tuple[str, str, int]]


def make(
    everything: Sequence[Picture],
    drawings: Mapping[str, Drawing],
    held_out: HeldOut,
    *,
    seed: int,
) -> Site:
    """Makes the site from all pictures except the withheld ones.

    `drawings`: of all pictures, by code.
    """
    shown = [p for p in everything if p.code not in held_out.withheld]
    files = mess.static_files()
    at = _publish(shown, drawings, files, seed=seed)
    url_of = {code: addresses[0] for code, addresses in at.items()}
    by_section = {
        "Galleries": sections.galleries(shown, at, seed=seed),
        "Articles": sections.articles(shown, at, seed=seed),
        "Shop": sections.shop(shown, at, seed=seed),
        "Icon sets": sections.templates(shown, at, seed=seed),
        "Languages": sections.other_languages(
            shown, at, unsayable=_unsayable(everything, held_out), seed=seed
        ),
        "More": mess.odd_pages(shown, url_of),
    }
    spoiled = mess.spoil(shown, drawings, url_of, files, seed=seed)
    pages = _with_mess(by_section, spoiled, seed=seed)
    wiki = _wiki(shown, pages["Articles"], files)
    pages["More"] += _indexes(pages, wiki)
    files.special |= mess.odd_answers()
    files.contents[f"{HOST}/static/note.txt"] = b"A note in plain text.\n"
    written = _write_pages(pages, files, seed=seed)
    return Site(files, written, _views(shown, pages["Articles"], seed=seed))


def _publish(
    shown: Sequence[Picture],
    drawings: Mapping[str, Drawing],
    files: Files,
    *,
    seed: int,
) -> dict[str, tuple[str, str, str]]:
    """Stores image files; returns (address, smaller copy, other format) by code.

    Most pictures that look the same ("farmer" and "man farmer") share one URL, which
    gets the texts of both; some are stored twice under two URLs.
    """
    thumbnails = np.stack([drawings[p.code].thumbnail for p in shown])
    alike = pictures.look_alikes(thumbnails, mirrored=False, difference=_IDENTICAL)
    pairs = [(i, j) for i, j in alike if shown[i].tones == shown[j].tones]
    first = pictures.components(len(shown), pairs)
    at: dict[str, tuple[str, str, str]] = {}
    for i, picture in enumerate(shown):
        original = shown[first[i]]
        if original is not picture and draw(seed, picture.code, "double") < 0.85:
            at[picture.code] = at[original.code]
            continue
        kind = _kind(picture, seed=seed)
        host = pick(seed, (f"{HOST}/pictures", f"{IMAGE_HOST}/i"), picture.code, "at")
        stem = f"{host}/{picture.code.lower()}"
        drawing = drawings[picture.code]
        files.contents[f"{stem}.{kind}"] = pictures.encode(drawing, kind)
        small = other = ""
        extra = draw(seed, picture.code, "copies")
        if kind == "jpg" and extra < 0.08:
            small = f"http://{stem}-48.jpg"
            files.contents[f"{stem}-48.jpg"] = pictures.encode(drawing, "jpg", side=48)
        elif kind == "jpg" and extra < 0.12:
            other = f"http://{stem}.webp"
            files.contents[f"{stem}.webp"] = pictures.encode(drawing, "webp")
        at[picture.code] = (f"http://{stem}.{kind}", small, other)
    return at


def _kind(picture: Picture, *, seed: int) -> str:
    choice = draw(seed, picture.code, "kind")
    for kind, share in (("jpg", 0.8), ("webp", 0.88), ("png", 0.95)):
        if choice < share:
            return kind
    return "gif"


def _unsayable(
    everything: Iterable[Picture], held_out: HeldOut
) -> dict[str, frozenset[str]]:
    withheld = [p for p in everything if p.code in held_out.withheld]
    return {
        language: frozenset(p.translations.get(language, "") for p in withheld)
        for language in LANGUAGES
    }


def _with_mess(
    by_section: Mapping[str, list[Page]],
    spoiled: Sequence[tags.PageImage],
    *,
    seed: int,
) -> dict[str, list[Page]]:
    """Adds trackers to pages, and bad images to the shop."""
    where = [page.path for page in by_section["Shop"] or by_section["Galleries"]]
    spread: dict[str, list[tags.PageImage]] = {}
    for bad in spoiled:
        spread.setdefault(pick(seed, where, "spread", bad.url), []).append(bad)
    return {
        section: [
            _append(
                page, [*spread.get(page.path, []), mess.tracker(page.path, seed=seed)]
            )
            for page in pages
        ]
        for section, pages in by_section.items()
    }


def _append(page: Page, images: Iterable[tags.PageImage | None]) -> Page:
    more = [
        tags.image(shown, page_path=page.path, base=page.base, seed=0)
        for shown in images
        if shown
    ]
    return replace(page, body="\n".join([page.body, *more]))


def _wiki(
    shown: Sequence[Picture], articles: Sequence[Page], files: Files
) -> dict[str, str]:
    """Redirects /wiki/Title to the article of each subject; returns title -> path."""
    path_of = {page.title: page.path for page in articles}
    titles = {}
    for picture in shown:
        title = phrases.heading(picture.role)
        if title in path_of:
            titles[title] = f"/wiki/{title.replace(' ', '_')}"
    for title, path in titles.items():
        place = f"{HOST}{path}"
        files.special[place] = {"status": 301, "location": path_of[title]}
    return titles


def _indexes(pages: Mapping[str, list[Page]], wiki: Mapping[str, str]) -> list[Page]:
    """Returns the home page and an index of each section."""
    indexes = []
    for section, members in pages.items():
        path = f"/index/{section.lower().replace(' ', '-')}.html"
        links = [f"<li>{tags.link(p.path, p.title)}</li>" for p in members]
        if section == "More":
            links += [
                f"<li>{tags.link(path, title)}</li>"
                for title, path in sorted(wiki.items())[::8]
            ]
        body = f"<h1>{section}</h1>\n<ul>\n" + "\n".join(links) + "\n</ul>"
        indexes.append(Page(path, f"Index: {section}", body))
    greeting = [
        "Welcome to the Sample Web, a small site of drawings, icons and their names.",
        "Artists all over the world drew the pictures for the OpenMoji project.",
    ]
    links = [f"<li>{tags.link(page.path, page.title)}</li>" for page in indexes]
    links += [
        f"<li>{tags.link(f'/index/languages.html#{code}', tongue.label)}</li>"
        for code, tongue in TONGUES.items()
    ]
    body = f"<h1>Sample Web</h1>\n{tags.paragraphs(greeting)}\n<ul>\n"
    home = Page("/", "Sample Web", body + "\n".join(links) + "\n</ul>")
    return [home, *indexes]


def _write_pages(
    pages: Mapping[str, list[Page]], files: Files, *, seed: int
) -> list[Page]:
    """Adds navigation to every page and stores its bytes."""
    written = []
    for section, members in pages.items():
        for i, page in enumerate(members):
            logo = tags.PageImage(
                f"http://{mess.LOGO}", alt="logo", title="Sample Web logo"
            )
            around = [
                tags.image(logo, page_path=page.path, base=page.base, seed=seed),
                tags.link("/", "Home", base=page.base),
                tags.link(
                    f"/index/{section.lower().replace(' ', '-')}.html",
                    section,
                    base=page.base,
                ),
            ]
            if i + 1 < len(members):
                around.append(tags.link(members[i + 1].path, "Next", base=page.base))
            footer = "Drawings: OpenMoji, CC BY-SA 4.0 &copy; the OpenMoji authors"
            body = page.body
            if draw(seed, page.path, "entities") < 0.2:
                body = tags.named_entities(body)
            place = f"{HOST}{page.path}"
            place += "index.html" if place.endswith("/") else ""
            files.contents[place] = tags.document(
                replace(page, body=body),
                navigation=" ".join(around),
                footer=footer,
            )
            if page.declared != "header":
                files.special[place] = {"content_type": "text/html"}
            elif page.charset != "utf-8":
                content_type = f"text/html; charset={page.charset}"
                files.special[place] = {"content_type": content_type}
            written.append(page)
    return written


def _views(
    shown: Sequence[Picture], articles: Sequence[Page], *, seed: int
) -> list[tuple[str, str, int]]:
    """Returns page views: the n-th title has 1/n of the first one's views.

    Every subject has a title, also those without an article.
    """
    titles = {page.title for page in articles}
    titles |= {phrases.heading(picture.subject) for picture in shown}
    lines = [
        (domain, title.replace(" ", "_"), max(1, _MOST_VIEWED // share // rank))
        for domain, share in (("en", 1), ("en.m", 3))
        for rank, title in enumerate(shuffled(seed, titles, "views"), 1)
    ]
    for language in LANGUAGES:
        names = {p.translations[language] for p in shown if language in p.translations}
        lines += [
            (language, name.replace(" ", "_"), max(1, _MOST_VIEWED // 20 // rank))
            for rank, name in enumerate(shuffled(seed, names, "views")[:200], 1)
        ]
    return sorted(lines)
