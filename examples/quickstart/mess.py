"""Faults of the real web: broken, mislabelled, missing and moved images, trackers.

They are added on purpose, so that curation has something to drop and count.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from examples.quickstart import phrases, pictures, tags
from examples.quickstart.names import Picture
from examples.quickstart.picks import draw, noise, pick, shuffled
from examples.quickstart.pictures import Drawing
from examples.quickstart.tags import HOST, IMAGE_HOST, Page, PageImage

KINDS = (
    "missing",
    "gone",
    "failing",
    "noise",
    "empty",
    "truncated",
    "page_as_jpg",
    "page_as_page",
    "png_as_jpg",
    "moved",
    "loop",
    "tiny",
    "banner",
    "mirror",
    "mirror",
)
LOGO = f"{HOST}/static/logo.png"
_PAGE_INSTEAD = b"<!DOCTYPE html><html><body><h1>Please log in</h1></body></html>"


@dataclass
class Files:
    """Files by "host/path", and answers other than 200.

    A special answer has any of `status`, `location`, `content_type`.
    """

    contents: dict[str, bytes] = field(default_factory=dict)
    special: dict[str, dict] = field(default_factory=dict)


def static_files() -> Files:
    """Returns the spacer, the tracking pixel, the logo and robots.txt."""
    white = (255, 255, 255)
    return Files(
        {
            f"{HOST}/static/spacer.gif": pictures.flat("gif", (1, 1), white),
            f"{IMAGE_HOST}/t.gif": pictures.flat("gif", (1, 1), white),
            LOGO: pictures.flat("png", (96, 96), (46, 125, 50)),
            f"{HOST}/robots.txt": (
                b"User-agent: *\nDisallow: /private/\nCrawl-delay: 0\n"
            ),
        }
    )


def spoil(
    some: Sequence[Picture],
    drawings: Mapping[str, Drawing],
    url_of: Mapping[str, str],
    files: Files,
    *,
    seed: int,
) -> list[PageImage]:
    """Adds bad or duplicated images for one picture in twelve, each kind at least once.

    Returns their <img>s, each with a text of its picture.
    """
    count = max(len(some) // 12, len(KINDS))
    shown = []
    for i, picture in enumerate(shuffled(seed, some, "spoil")[:count]):
        kind = KINDS[i % len(KINDS)]
        host = pick(seed, (HOST, IMAGE_HOST), picture.code, "host")
        place = f"{host}/{kind.replace('_', '-')}/{picture.code.lower()}.jpg"
        drawing, url = drawings[picture.code], url_of[picture.code]
        _store(kind, place, drawing, url, files, seed=seed)
        text = phrases.english(picture, "spoiled", seed=seed)
        shown.append(PageImage(f"http://{place}", alt=text))
    return shown


def tracker(path: str, *, seed: int) -> PageImage | None:
    """Returns the tracking pixel of a page, or None."""
    choice = draw(seed, path, "tracker")
    if choice > 0.5:
        return None
    alt = pick(seed, ("", "", "pixel", "image"), path, "tracker alt")
    return PageImage(f"http://{IMAGE_HOST}/t.gif?page={path.strip('/')}", alt=alt)


def odd_pages(some: Sequence[Picture], url_of: Mapping[str, str]) -> list[Page]:
    """Returns pages that no template makes: very long alts, odd markup."""
    first, second, third = (some[i % len(some)] for i in (0, 7, 13))
    listed = ", ".join(picture.name for picture in some[:200])
    rows = [
        # Keyword stuffing, longer than any limit on texts.
        PageImage(url_of[first.code], alt=(f"{listed}, buy cheap icons, " * 4)[:9000]),
        PageImage(url_of[second.code], alt="  \n  "),
        PageImage(url_of[third.code], alt=f"  {third.name}\n\t({third.group})  "),
        PageImage(f"http://{HOST}/" + "very-long-name-" * 200 + ".jpg", alt=first.name),
    ]
    body = "\n".join(
        tags.image(row, page_path="/odd/alts.html", seed=0) for row in rows
    )
    body += (
        f"\n<img src={url_of[first.code]} alt=unquoted title='it&#39;s &quot;odd&quot;"
        f" &amp; new'>\n<img alt='no address at all'>\n<img src='' alt='empty address'>"
        f"\n<img src='ftp://{HOST}/old.jpg' alt='an old file server'>"
        f"\n<img src='data:image/png;base64,iVBORw0KGgo=' alt='inline data'>"
        f"\n<img src='http://[broken/x.jpg' alt='a broken address'>"
        f"\n<img src='javascript:void(0)' alt='a script'>"
        "\n<a href='mailto:web@sample-web.example'>Mail</a> <a href='#top'>Top</a>"
        f"\n<a href='//{HOST}/odd/moved'>Moved</a> <a href='/odd/missing.html'>Gone</a>"
        f" <a href='/private/index.html'>Private</a> <a href='{url_of[first.code]}'>"
        "Full size</a> <a href='http://elsewhere.example/'>Elsewhere</a>"
        " <a href='/static/note.txt'>Note</a>"
        "\n<table><tr><td><b>unclosed<td><i>cells</table></b>\x0c\x00 end"
    )
    hidden = f"<img src='{url_of[second.code]}' alt='a private picture'>"
    return [
        Page("/odd/alts.html", "Odds & ends", body),
        Page("/odd/here.html", "Moved here", "<p>This page has moved here.</p>"),
        Page("/private/index.html", "Private", f"<p>No robots, please.</p>{hidden}"),
    ]


def odd_answers() -> dict[str, dict]:
    """Returns the special answers that `odd_pages` link to."""
    return {
        f"{HOST}/odd/moved": {"status": 301, "location": "/odd/here.html"},
        f"{HOST}/static/note.txt": {"status": 200, "content_type": "text/plain"},
    }


def _store(
    kind: str, place: str, drawing: Drawing, url: str, files: Files, *, seed: int
) -> None:
    grey = (int(draw(seed, place, "grey") * 255),) * 3
    bodies: dict[str, Callable[[], bytes]] = {
        "noise": lambda: noise(seed, 2000, place),
        "empty": lambda: b"",
        "truncated": lambda: drawing.jpg[: len(drawing.jpg) * 6 // 10],
        "page_as_jpg": lambda: _PAGE_INSTEAD,
        "page_as_page": lambda: _PAGE_INSTEAD,
        "png_as_jpg": lambda: drawing.png,
        "tiny": lambda: pictures.encode(drawing, "jpg", side=16),
        "banner": lambda: pictures.flat("jpg", (468, 60), grey),
        "mirror": lambda: drawing.jpg,
    }
    special: dict[str, dict] = {
        "gone": {"status": 410},
        "failing": {"status": 503},
        "page_as_page": {"content_type": "text/html; charset=utf-8"},
        "moved": {"status": 301, "location": url},
        "loop": {"status": 302, "location": f"http://{place}"},
    }
    if kind in bodies:
        files.contents[place] = bodies[kind]()
    if kind in special:
        files.special[place] = special[kind]
