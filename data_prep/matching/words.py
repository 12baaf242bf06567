"""Finds texts with words of a list, such as those of a safety filter."""

import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from data_prep.matching import spacing
from data_prep.matching.matcher import Matcher
from metaclip_jax import files

_MODE = "fixed"


def read(path: str) -> tuple[str, ...]:
    """Reads a word or phrase a line; skips empty lines and comments (#).

    Raises ValueError for a list without words, or a word that no text can contain.
    """
    with files.naming(path, "a list of words"):
        lines = files.path(path).read_text().splitlines()
        kept = [line.strip() for line in lines if not line.startswith("#")]
        words = tuple(dict.fromkeys(word.lower() for word in kept if word))
        if not words:
            raise ValueError(f"{path}: wanted a word a line, got none; write some")
        for word in words:
            if spacing.why_never_matches(word, mode=_MODE):
                raise ValueError(
                    f"{path}: wanted words that a text can contain, got {word!r};"
                    " remove it"
                )
    return words


def contains(texts: pa.StringArray, words: Sequence[str]) -> np.ndarray:
    """Returns bool[n]: texts that contain one of the words, as whole words.

    Letter case does not count, and any punctuation ends a word. A word of a script
    without spaces may be anywhere.
    """
    offsets, _ = _matcher(tuple(words)).match(texts)
    return np.diff(offsets) > 0


@functools.cache
def _matcher(words: tuple[str, ...]) -> Matcher:
    return Matcher(words, mode=_MODE, ignore_case=True)
