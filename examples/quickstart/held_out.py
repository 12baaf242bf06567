"""Chooses the compositions to hold out for evaluation, and their zero-shot tasks.

A composition is (role, gender, skin tone). It is held out together with every picture
that looks like it (OpenMoji draws "farmer" and "man farmer" alike, and mirrors walkers
that face right). Each of its parts stays on the site in other compositions.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from examples.quickstart import names, pictures
from examples.quickstart.names import Picture
from examples.quickstart.picks import shuffled
from examples.quickstart.pictures import Drawing

TEMPLATES = ("{}", "an illustration of {}", "icon of {}", "a drawing of {}")
_WORD = r"[\w’-]+"
_TONES_LEFT = 3  # of five, per (role, gender)


@dataclass(frozen=True)
class HeldOut:
    """The pictures of the held-out dataset, and what the site must not have.

    No two of `chosen` look alike. `withheld` has their codes, and those of all pictures
    that look like one of them.
    """

    chosen: list[Picture]
    withheld: frozenset[str]


def hold_out(
    everything: Sequence[Picture],
    drawings: Mapping[str, Drawing],
    *,
    count: int,
    seed: int,
) -> HeldOut:
    """Chooses up to `count` compositions. `drawings`: by code.

    At least three tones of each (role, gender) stay on the site, and at least one
    gender of each (role, tone) if the role has genders.
    """
    units = _units(everything, drawings)
    texts = [words(picture.name) for picture in everything]
    index = {picture.code: i for i, picture in enumerate(everything)}
    left = _parts(everything)
    chosen: list[Picture] = []
    withheld: set[str] = set()
    for key in shuffled(seed, units, "hold out"):
        if len(chosen) == count:
            break
        unit = units[key]
        best = min(unit, key=_plainness)
        if not _is_composition(unit) or best.facing_right:
            continue
        after = left - _parts(unit)
        if any(after[part] < least for part, least in _needed(unit).items()):
            continue
        own = {index[picture.code] for picture in unit}
        if any(
            texts[index[best.code]] in t for i, t in enumerate(texts) if i not in own
        ):
            continue  # a text of the site would contain its name
        left = after
        chosen.append(best)
        withheld |= {picture.code for picture in unit}
    chosen.sort(key=lambda picture: picture.code)
    return HeldOut(chosen, frozenset(withheld))


def zero_shot(chosen: Sequence[Picture], image_ids: Sequence[str]) -> dict:
    """Returns the task "which role": class_names, templates, labels by image_id."""
    classes = sorted({role_text(picture) for picture in chosen})
    labels = {
        image_id: classes.index(role_text(picture))
        for image_id, picture in zip(image_ids, chosen, strict=True)
    }
    return {"class_names": classes, "templates": list(TEMPLATES), "labels": labels}


def skin_tone(chosen: Sequence[Picture], image_ids: Sequence[str]) -> dict:
    """Returns the task "which skin tone", in the same form as `zero_shot`."""
    labels = {
        image_id: names.TONES.index(picture.tones[0])
        for image_id, picture in zip(image_ids, chosen, strict=True)
    }
    return {
        "class_names": [f"{tone} skin tone" for tone in names.TONES],
        "templates": ["{}", "a person with {}", "an illustration with {}"],
        "labels": labels,
    }


def role_text(picture: Picture) -> str:
    """Returns the class name, without tone and gender: "person walking"."""
    if not picture.gender:
        return picture.role
    if picture.role == "bald":
        return "bald person"
    first = picture.role.split()[0]
    is_noun = not first.endswith("ing") and first not in {"with", "in"}
    return picture.role if is_noun else f"person {picture.role}"


def words(text: str) -> str:
    """Returns a text as lower-case words, each between spaces, no punctuation.

    So `words(name) in words(text)` is true if the text contains the name.
    """
    return f" {' '.join(re.findall(_WORD, text.lower()))} "


def _units(
    everything: Sequence[Picture], drawings: Mapping[str, Drawing]
) -> dict[str, list[Picture]]:
    """Returns groups of pictures that look alike, by the first picture's code."""
    thumbnails = np.stack([drawings[p.code].thumbnail for p in everything])
    pairs = list(pictures.look_alikes(thumbnails, mirrored=True))
    first: dict[tuple, int] = {}
    for i, picture in enumerate(everything):
        composition = (picture.role, picture.gender, picture.tones)
        pairs.append((first.setdefault(composition, i), i))
    units: dict[str, list[Picture]] = {}
    roots = pictures.components(len(everything), pairs)
    for root, picture in zip(roots, everything, strict=True):
        units.setdefault(everything[root].code, []).append(picture)
    return units


def _is_composition(unit: Sequence[Picture]) -> bool:
    return (
        len({(picture.role, picture.tones) for picture in unit}) == 1
        and len(unit[0].tones) == 1
        and unit[0].subject != "skin tone swatch"
    )


def _plainness(picture: Picture) -> tuple:
    return (picture.facing_right, picture.gender in {"", "person"}, picture.code)


def _compositions(some: Sequence[Picture]) -> set[tuple[str, str, str]]:
    return {(p.role, p.gender, p.tones[0]) for p in some if len(p.tones) == 1}


def _parts(some: Sequence[Picture]) -> Counter:
    """Counts the compositions that have each (role, gender) and each (role, tone)."""
    parts: Counter = Counter()
    for role, gender, tone in _compositions(some):
        parts["role and gender", role, gender] += 1
        parts["role and tone", role, tone] += 1
    return parts


def _needed(unit: Sequence[Picture]) -> dict[tuple, int]:
    needed = {}
    for role, gender, tone in _compositions(unit):
        needed["role and gender", role, gender] = _TONES_LEFT
        if gender:
            needed["role and tone", role, tone] = 1
    return needed
