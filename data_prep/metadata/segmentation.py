"""Words of languages that are written without spaces between them.

ICU finds the words of Chinese, Japanese, Thai, Lao, Khmer and Burmese by dictionary.
Tibetan marks the ends of syllables (the tsheg, U+0F0B), and its words here are
syllables, as in matching: ICU has no dictionary of it. A segmenter only puts spaces
into a text, so that words are counted as in other languages; `written` takes them out
of the entries again.

No filter of odd words follows, unlike in MetaCLIP 2, whose tokenizers leave punctuation
in words: a counted word has none (see `ngrams`). Single characters stay, as they do
there: "の" is a word like "of", and balancing is what thins out frequent entries.
"""

import re
from collections.abc import Callable
from functools import cache

import icu4py
import numpy as np
from icu4py.breakers import WordBreaker
from numpy.typing import NDArray

from data_prep.matching import spacing
from data_prep.metadata import editions

Segmenter = Callable[[str], str]

_EDGE = "\x1f"
_TSHEG = "\u0f0b"
# Between words, and neither part of them nor a gap: the tshegs, the zero-width space.
_SOFT = re.compile(f"{_EDGE}[{_TSHEG}\u0f0c\u200b]{_EDGE}")
# A Burmese letter that asat silences ends a syllable. ICU cuts before it in words that
# its dictionary lacks.
_SILENCED = re.compile(f"{_EDGE}(?=.\u103a)")


def segmenter(code: str) -> Segmenter | None:
    """Returns the segmenter of an edition, None if its words have spaces between them.

    "other" has one, since it may have texts of any language.

    A segmenter returns its text with one space between adjacent words; other spaces at
    the words of a script without spaces become line ends, since an entry has no space
    there. Text in other scripts stays as it is.
    """
    if code != editions.OTHER and not editions.table()[code].needs_segmentation:
        return None

    def segment(text: str) -> str:
        text = text.encode("utf-8", "replace").decode()  # ICU takes no lone surrogates
        return _space(_EDGE.join(WordBreaker(text.replace(_EDGE, " "), "root")))

    return segment


def version() -> str:
    """Returns ICU's version. Another one may have other words."""
    return str(icu4py.icu_version)


def written(first: str, second: str) -> str:
    """Returns a bigram of a segmented text as it occurs in texts.

    Raises IndexError if a word is empty.
    """
    edges = first[-1] + second[0]
    if all("\u0f00" <= edge <= "\u0fff" for edge in edges):
        return first + _TSHEG + second
    unspaced = _unspaced()[list(map(ord, edges))].any()
    return first + ("" if unspaced else " ") + second


def _space(pieces: str) -> str:
    """Puts spaces and line ends at the edges of words of scripts without spaces.

    Args:
      pieces: the text with _EDGE between ICU's pieces.
    """
    pieces = _SILENCED.sub("", _SOFT.sub(_EDGE, pieces))
    codes = np.frombuffer(pieces.encode("utf-32-le"), np.uint32).copy()
    edges = np.flatnonzero(codes == ord(_EDGE))
    before, behind = codes[edges - 1], codes[edges + 1]
    unspaced, of_words = _unspaced(), _of_words()
    adjacent = of_words[before] & of_words[behind]
    codes[edges] = np.where(adjacent, ord(" "), ord("\n"))
    keep = np.ones(codes.size, bool)
    keep[edges] = unspaced[before] | unspaced[behind]
    return codes[keep].tobytes().decode("utf-32-le")


@cache
def _unspaced() -> NDArray[np.bool_]:
    """Returns bool[0x110000]: characters of words in scripts without spaces."""
    single = spacing.character_classes("fixed") == spacing.SINGLE
    # v2 also has Tibetan and the vowel signs, but punctuation too.
    of_v2 = spacing.character_classes("v2") == spacing.SINGLE
    return single | (of_v2 & _of_words())


@cache
def _of_words() -> NDArray[np.bool_]:
    """Returns bool[0x110000]: letters, digits and combining marks."""
    kinds = spacing.PLAIN, spacing.SINGLE, spacing.EXTENDS
    return np.isin(spacing.character_classes("fixed"), kinds)
