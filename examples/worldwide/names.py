"""The pictures, and their names in twelve languages.

Eight languages have their names from `emoji`; names.tsv has the others: CLDR's, whose
name of a skin tone follows the drawing's after a colon.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from examples.quickstart import names
from examples.quickstart.names import Picture
from examples.quickstart.tongues import TONGUES, Tongue

LANGUAGES = ("en", "de", "ru", "tr", "ar", "he", "hi", "zh", "ja", "th", "ko", "sw")
_TONES = {
    "light": "1F3FB",
    "medium-light": "1F3FC",
    "medium": "1F3FD",
    "medium-dark": "1F3FE",
    "dark": "1F3FF",
}
_VARIATION = "FE0F"  # whether the sequence asks for the coloured form
SAYINGS: dict[str, Tongue] = TONGUES | {
    "en": Tongue(
        "English",
        "Picture gallery",
        "Here you see small pictures and their names.",
        "picture",
    ),
    "he": Tongue(
        "עברית", "גלריית תמונות", "כאן אפשר לראות תמונות קטנות ואת השמות שלהן.", "תמונה"
    ),
    "hi": Tongue(
        "हिन्दी",
        "चित्र दीर्घा",
        "यहाँ आप छोटे चित्र और उनके नाम देख सकते हैं।",
        "चित्र",
    ),
    "sw": Tongue(
        "Kiswahili",
        "Matunzio ya picha",
        "Hapa unaweza kuona picha ndogo na majina yake.",
        "picha",
    ),
    "th": Tongue(
        "ไทย",
        "แกลเลอรีรูปภาพ",
        "ที่นี่คุณสามารถดูรูปภาพเล็ก ๆ และชื่อของรูปภาพเหล่านั้น",
        "รูปภาพ",
    ),
}


def choose(limit: int, *, seed: int) -> list[Picture]:
    """Returns about `limit` pictures with a name in every language; 0 = all."""
    table = _table()
    there = [
        picture
        for picture in names.all_pictures()
        if _base(picture.code) in table
        and len(picture.tones) < 2
        and not picture.facing_right
        and all(picture.translations.get(code) for code in TONGUES if code in LANGUAGES)
    ]
    return names.choose(there, limit, seed=seed)


def name(picture: Picture, language: str) -> str:
    """Returns a picture's name in one of LANGUAGES."""
    if language == "en":
        return picture.name
    if language in picture.translations:
        return picture.translations[language]
    table = _table()
    own = table[_base(picture.code)][language]
    tones = [table[_TONES[tone]][language] for tone in picture.tones]
    return ": ".join([own, *tones])


def without_tones(everything: Sequence[Picture]) -> dict[str, Picture]:
    """Returns the picture of the same drawing without a skin tone, by code."""
    plain = {
        _base(picture.code): picture for picture in everything if not picture.tones
    }
    return {picture.code: plain[_base(picture.code)] for picture in everything}


def _base(code: str) -> str:
    """Returns a picture's code without its skin tone, a row of names.tsv."""
    tones = _TONES.values()
    return "-".join(
        part for part in code.split("-") if part not in tones and part != _VARIATION
    )


@cache
def _table() -> dict[str, dict[str, str]]:
    path = Path(__file__).with_name("names.tsv")
    head, *rows = (line.split("\t") for line in path.read_text("utf-8").splitlines())
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
