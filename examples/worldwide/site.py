"""The pages of the small web: galleries in twelve languages, English ones in threes.

Each page has its own files of its pictures, on paper of another colour, as if each
author had taken another photograph: curation merges images with equal bytes.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from examples.quickstart import mess, tags
from examples.quickstart.held_out import HeldOut
from examples.quickstart.mess import Files
from examples.quickstart.names import Picture
from examples.quickstart.picks import draw, pick, shuffled
from examples.quickstart.pictures import Drawing
from examples.quickstart.tags import HOST, IMAGE_HOST, Page, PageImage
from examples.worldwide import names

_EDITIONS = {"en": 3}  # of each gallery; other languages have one
_PICTURES_PER_PAGE = 40
_DARKEST = 200  # of the paper's red, green and blue
_FORMS = ("{name}", "{name}", "{picture}: {name}", "{name} – {title}")
# Pages declare their language on <html> or <main>, or leave it to be identified.
_DECLARED = ({"language": True}, {}, {"in_body_language": True})


def make(
    everything: Sequence[Picture],
    drawings: Mapping[str, Drawing],
    held_out: HeldOut,
    *,
    seed: int,
) -> Files:
    """Returns the files of the site, which shows no held-out picture and name.

    `drawings`: of all pictures, by code.
    """
    files = mess.static_files()
    shown = [p for p in everything if p.code not in held_out.withheld]
    withheld = [p for p in everything if p.code in held_out.withheld]
    paths = []
    for language in names.LANGUAGES:
        unsayable = {names.name(picture, language) for picture in withheld}
        members = [p for p in shown if names.name(p, language) not in unsayable]
        for edition in range(_EDITIONS.get(language, 1)):
            order = shuffled(seed, members, language, edition)
            for start in range(0, len(order), _PICTURES_PER_PAGE):
                chunk = order[start : start + _PICTURES_PER_PAGE]
                path = f"/{language}/{edition}-{start // _PICTURES_PER_PAGE}.html"
                paths.append(path)
                page = _page(chunk, drawings, files, language, path, seed=seed)
                _store(page, files)
    links = "\n".join(f"<li>{tags.link(path, path)}</li>" for path in paths)
    _store(Page("/", "Sample Web", f"<ul>\n{links}\n</ul>"), files)
    return files


def captions(pictures: Sequence[Picture]) -> str:
    """Returns captions.jsonl of the held-out pictures, in XM3600's form."""
    rows: list[dict[str, Any]] = [
        {"image/key": picture.code}
        | {
            language: {"caption": [names.name(picture, language)]}
            for language in names.LANGUAGES
        }
        for picture in pictures
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _page(
    chunk: Sequence[Picture],
    drawings: Mapping[str, Drawing],
    files: Files,
    language: str,
    path: str,
    *,
    seed: int,
) -> Page:
    saying = names.SAYINGS[language]
    items = []
    for picture in chunk:
        stem = f"{IMAGE_HOST}{path.removesuffix('.html')}/{picture.code.lower()}.jpg"
        files.contents[stem] = _on_paper(drawings[picture.code], path, seed=seed)
        text = pick(seed, _FORMS, path, picture.code).format(
            name=names.name(picture, language),
            picture=saying.picture,
            title=saying.title,
        )
        shown = PageImage(f"http://{stem}", alt=text)
        items.append(tags.image(shown, page_path=path, seed=seed))
    declared = _DECLARED[int(draw(seed, path, "declared") * len(_DECLARED))]
    return Page(
        path,
        saying.title,
        f"<h1>{saying.title}</h1>\n{tags.paragraphs([saying.intro])}\n"
        + "\n".join(items),
        **{"language": "", **dict.fromkeys(declared, language)},
    )


def _store(page: Page, files: Files) -> None:
    place = f"{HOST}{page.path}"
    place += "index.html" if place.endswith("/") else ""
    files.contents[place] = tags.document(
        page, navigation=tags.link("/", "Sample Web"), footer="OpenMoji, CC BY-SA 4.0"
    )


def _on_paper(drawing: Drawing, path: str, *, seed: int) -> bytes:
    """Returns a drawing as JPEG on a light colour, which depends on the page."""
    colour = [
        _DARKEST + int(draw(seed, path, part) * (256 - _DARKEST)) for part in "rgb"
    ]
    image = Image.open(io.BytesIO(drawing.png)).convert("RGBA")
    paper = Image.new("RGBA", image.size, (*colour, 255))
    buffer = io.BytesIO()
    whole = Image.alpha_composite(paper, image).convert("RGB")
    whole.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
