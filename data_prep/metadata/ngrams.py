"""Counts of words and bigrams, and bigrams by pointwise mutual information."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.metadata.ranking import Ranked, ranked

_ROUNDING = 1e-6  # nats
# Without marks above the basic plane (a few rare scripts): with them, Python's re does
# a search instead of a look-up in a bitmap, which is several times slower.
_MARKS = range(0x300, 0x10000)


@dataclass
class NgramCounts:
    """Counts of words and of pairs of adjacent words.

    A bigram's key is both words with one space between. `tokens` is the total number of
    words.
    """

    unigrams: Counter[str] = field(default_factory=Counter)
    bigrams: Counter[str] = field(default_factory=Counter)
    tokens: int = 0


def count_ngrams(
    texts: Iterable[str], *, into: NgramCounts | None = None
) -> NgramCounts:
    """Counts words and bigrams of texts, added to `into` if given.

    A word is a run of letters, digits and combining marks; hyphens and apostrophes
    inside belong to it, so "T-shirt" is one word, as in matching. A bigram is two words
    with exactly one space between, since words separated by a comma or a line end never
    match as one entry. Languages written without spaces must be segmented before.

    All counts are kept in memory; `counts.Spill` moves them to disk.
    """
    counts = NgramCounts() if into is None else into
    words = _words()
    for text in texts:
        previous, end = "", -1
        pairs = []
        tokens = []
        for found in words.finditer(text):
            word = found[0]
            tokens.append(word)
            if found.start() == end + 1 and text[end] == " ":
                pairs.append(f"{previous} {word}")
            previous, end = word, found.end()
        counts.unigrams.update(tokens)
        counts.bigrams.update(pairs)
        counts.tokens += len(tokens)
    return counts


def select_bigrams(
    bigrams: Iterable[pa.Table],
    unigrams: pa.Table,
    *,
    tokens: int,
    min_pmi: float,
    most: int,
) -> Ranked:
    """Returns the bigrams whose words occur together more often than by chance.

    The score is the pointwise mutual information in nats,
    ln(count(a b) · tokens / (count(a) · count(b))), best first; equal scores in
    alphabetical order. It cannot exceed ln(tokens / min_count), where pairs rarer than
    min_count were dropped, since their PMI is mostly noise.

    Args:
      bigrams: `key` and `count` of the bigrams that are frequent enough.
      unigrams: `key` and `count` of all words that are as frequent.
      tokens: number of all words.
      min_pmi: nats.
      most: how many bigrams at most.
    """

    def scored() -> Iterator[tuple[str, float]]:
        words, times = unigrams["key"].combine_chunks(), unigrams["count"]
        for table in bigrams:
            pairs = pc.list_flatten(pc.split_pattern(table["key"], " "))
            occurring = times.take(pc.index_in(pairs, words)).to_numpy()
            first, second, n = (
                occurring[::2],
                occurring[1::2],
                table["count"].to_numpy(),
            )
            near = np.log(n * float(tokens)) - np.log(first * second.astype(float))
            rows = np.flatnonzero(near > min_pmi - _ROUNDING)
            for bigram, *numbers in zip(
                table["key"].take(pa.array(rows)).to_pylist(),
                *(each[rows].tolist() for each in (n, first, second)),
                strict=True,
            ):
                pmi = math.log(numbers[0] * tokens / (numbers[1] * numbers[2]))
                if pmi >= min_pmi:
                    yield bigram, pmi

    return ranked(scored(), most)


@cache
def _words() -> re.Pattern[str]:
    """Matches words. Combining marks are letters here, unlike in Python's \\w.

    Without them, words of Hindi, Thai and many other languages would be split.
    """
    marks = "".join(chr(c) for c in _MARKS if unicodedata.category(chr(c))[0] == "M")
    joiners = "['\u2019\u200c\u200d-]"  # the zero-width ones: Persian, Indic scripts
    letters = r"[^\W_]+"
    return re.compile(rf"{letters}(?:[{marks}]+(?:{letters})?|{joiners}{letters})*")
