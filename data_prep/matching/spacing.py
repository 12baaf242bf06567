"""What counts as a match: the three matching modes, in plain Python.

By definition an entry matches a text if `key(entry) in spaced(text)`. The kernel in
`token_trie` computes the same without building strings.

v1     MetaCLIP 1. The text gets one space at both ends and around each of the seven
       marks , . ; : ? ! ` and tab, newline and CR become a space; the entry gets one
       space at both ends and is otherwise unchanged.
           "a cat, asleep"   matches "cat"          "a cat's tail" does not
           "in St. Louis"    does not match "St. Louis": "." is spaced in texts only
v2     MetaCLIP 2. As v1, but an entry gets no space at an end where its character is
       of a script without spaces (Han, Thai, Lao, Burmese, Khmer, Tibetan) or is
       punctuation; such an end matches inside running text.
           "大東京駅"         matches "東京"
           "さくら咲く"       does not match "さくら": kana are not in the set
           "C++11"           matches "C++": no space is needed after its last "+"
           "abC++"           does not: a space is needed before "C"
fixed  What a user expects. Entries are spaced like texts, every Unicode punctuation
       mark or symbol is a delimiter, runs of white space count as one space, each
       character of a script without spaces (also kana and Hangul) is a word, format
       characters (joiners, direction marks, variation selectors) are ignored. Tibetan
       is matched by syllable.
           "in St. Louis"    matches "St. Louis", "U.S." and "Yahoo!" match likewise
           "(cat)", "cat's", "cat、"  match "cat"     "category" does not
           "さくら咲く"       matches "さくら"       "iPhone手机" matches "iPhone"

No mode normalises Unicode: give texts and entries in the same form (NFC).
"""

import functools
import re
import string
import unicodedata

import numpy as np
from numpy.typing import NDArray

MODES = ("v1", "v2", "fixed")

# The marks that MetaCLIP surrounds with spaces, and those it replaces by a space.
MARKS = ",.;:?!`"
BREAKS = "\t\n\r"

# Character classes. A text is cut into atoms: runs of PLAIN characters, single MARKs
# and SINGLEs. EXTENDS (combining marks) joins the atom before it.
PLAIN, SPACE, MARK, SINGLE, IGNORED, EXTENDS = range(6)

# What no spaced text has, so that a key with it never matches. Between two characters
# that are not marks, a text has at most one space; beside a mark also the mark's own.
_FAULTS = (
    ("mark_without_its_spaces", re.compile(rf"(?<=[^ ])[{MARKS}]|[{MARKS}](?=[^ ])")),
    ("marks_share_a_space", re.compile(rf"[{MARKS}] [{MARKS}]")),
    (
        "too_many_spaces",
        re.compile(rf"[^ {MARKS}](?:  +[^ {MARKS}]|   )|   [^ {MARKS}]|    "),
    ),
)

# Separates the atoms of a text in fixed mode; control characters count as spaces
# there, so no atom contains it.
_SEPARATOR = "\x00"

_V2_SCRIPTS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2CEB0, 0x2EBEF),
    (0xF900, 0xFAFF),
    (0x2E80, 0x2EFF),
    (0x2F00, 0x2FDF),
    (0x2FF0, 0x2FFF),
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x0F00, 0x0FFF),  # Tibetan
)
_V2_PUNCTUATION = string.punctuation + "，。、；：？！“”‘’（）【】《》〈〉「」『』～—"

_SCRIPTS_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese, and its extensions below
    (0x1100, 0x11FF),  # Hangul jamo
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3005, 0x3007),  # Han iteration mark, closing mark, zero
    (0x3021, 0x3029),
    (0x3038, 0x303B),
    (0x3040, 0x31BF),  # kana, bopomofo, Hangul jamo
    (0x31F0, 0x31FF),  # small kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA960, 0xA97F),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF),  # Burmese extension, Tai Viet
    (0xAC00, 0xD7FF),  # Hangul
    (0xF900, 0xFAFF),
    (0xFF66, 0xFFDC),  # half-width kana and Hangul
    (0x1AFF0, 0x1B16F),  # kana
    (0x20000, 0x323AF),  # Han
)


def check_mode(mode: str) -> None:
    """Raises ValueError if `mode` is not one of MODES."""
    if mode not in MODES:
        raise ValueError(f"wanted a mode among {', '.join(MODES)}, got {mode!r}")


def spaced(text: str, *, mode: str) -> str:
    """Returns the form of `text` that is searched for the keys of `mode`."""
    if mode == "fixed":
        return _SEPARATOR.join(["", *atoms(text), ""])
    for mark in MARKS:
        text = text.replace(mark, f" {mark} ")
    text = text.replace("\t", " ").replace("\n", " ").replace("\r", " ")
    return f" {text} "


def key(entry: str, *, mode: str) -> str:
    """Returns the string that a spaced text contains if and only if `entry` matches.

    Raises:
      ValueError: `entry` is empty.
    """
    if not entry:
        raise ValueError("wanted an entry of at least one character, got ''")
    if mode == "fixed":
        return _SEPARATOR.join(["", *atoms(entry), ""])
    if mode == "v1":
        return f" {entry} "
    classes = character_classes("v2")
    first, last = (classes[ord(c)] in (MARK, SINGLE) for c in (entry[0], entry[-1]))
    return ("" if first else " ") + entry + ("" if last else " ")


def why_never_matches(entry: str, *, mode: str) -> str | None:
    """Returns why no text can match `entry`, or None if one can.

    Texts are as `sources.texts.clean` returns them: without control characters, and
    with no white space but single spaces between other characters.
    """
    if mode == "fixed":
        has_atoms = any(map(str.isalnum, entry)) or bool(atoms(entry))
        return None if has_atoms else "nothing_left"
    if entry.isalnum():
        return None
    for character in entry:
        if character.isspace() and character != " ":
            return "other_white_space"
        if unicodedata.category(character) == "Cc":
            return "control_character"
    # The ends of a key may need spaces that are not part of it.
    searched = key(entry, mode=mode)
    return next((why for why, fault in _FAULTS if fault.search(searched)), None)


@functools.cache
def character_classes(mode: str) -> NDArray[np.uint8]:
    """Returns u8[0x110000], the class of each code point in `mode`, read-only."""
    check_mode(mode)
    classes = np.full(0x110000, PLAIN, np.uint8)
    if mode == "fixed":
        _fill_fixed(classes)
    else:
        if mode == "v2":
            for first, last in _V2_SCRIPTS:
                classes[first : last + 1] = SINGLE
            classes[[ord(c) for c in _V2_PUNCTUATION]] = SINGLE
        classes[[ord(c) for c in " " + BREAKS]] = SPACE
        classes[[ord(c) for c in MARKS]] = MARK
    classes.flags.writeable = False
    return classes


def is_in_words(character: str) -> bool:
    """Whether words are runs of such characters.

    False for marks, and in scripts without spaces.
    """
    kind = int(character_classes("fixed")[ord(character)])
    if kind == EXTENDS:  # decided by the script of the letter before it
        return int(character_classes("v2")[ord(character)]) == PLAIN
    return kind == PLAIN


def _fill_fixed(classes: NDArray[np.uint8]) -> None:
    for code in range(0x110000):
        category = unicodedata.category(chr(code))
        if category[0] == "Z" or category == "Cc":
            classes[code] = SPACE
        elif category[0] in "PS":
            classes[code] = MARK
        elif category[0] == "M":
            classes[code] = EXTENDS
        elif category == "Cf":
            classes[code] = IGNORED
    for first, last in _SCRIPTS_WITHOUT_SPACES:
        part = classes[first : last + 1]
        part[part == PLAIN] = SINGLE
    for first, last in ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF)):
        classes[first : last + 1] = IGNORED  # variation selectors


def atoms(text: str) -> list[str]:
    """Cuts `text` into atoms by the rules of fixed mode, with " " where words end.

    Joined, they are the text's canonical form, which has the same atoms.
    """
    classes = character_classes("fixed")
    out: list[str] = []
    previous = SPACE  # class of the current atom; SPACE: none
    space_due = False
    for character in text:
        kind = int(classes[ord(character)])
        if kind == IGNORED:
            continue
        if kind == SPACE:
            previous, space_due = SPACE, True
            continue
        if kind == EXTENDS:
            kind = PLAIN if previous == SPACE else EXTENDS
        if kind == EXTENDS or (kind == PLAIN and previous == PLAIN):
            out[-1] += character
            continue
        if out and (space_due or kind == MARK):
            out.append(" ")
        out.append(character)
        previous, space_due = kind, kind == MARK
    return out
