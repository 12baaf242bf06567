"""Counts of words and bigrams of texts.

A word is a run of letters, digits and combining marks; hyphens and apostrophes inside
belong to it, so "T-shirt" is one word, as in matching. A bigram is two words with
exactly one space between, since words separated by a comma or a line end never match as
one entry. Languages written without spaces must be segmented before.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.metadata import ngram_kernel as kernel

WORDS = pa.schema([("word", pa.string()), ("count", pa.int64())])
# `first` and `second` are positions in the WORDS of the same run.
BIGRAMS = pa.schema(
    [("first", pa.uint32()), ("second", pa.uint32()), ("count", pa.int64())]
)

_JOINERS = "'\u2019\u200c\u200d-"  # the zero-width ones: Persian, Indic scripts
_MARKS = range(0x300, 0x10000)  # further ones are of a few rare scripts
_BUFFER_CHARS = 1 << 18  # of texts that are counted in one call of the kernel
_CHAR_BYTES = 4  # at most
_FEWEST = 1 << 10  # words of an empty table
_WORD_BYTES = 8  # of a word, on average: only the first guess


class Run(NamedTuple):
    """The counts of some texts of one language: tables of WORDS and BIGRAMS."""

    words: pa.Table
    bigrams: pa.Table


class Counter:
    """Counts the words and bigrams of texts in memory."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._chars = 0
        self._reset()

    def _reset(self) -> None:
        self._words = kernel.no_words(_FEWEST, _FEWEST * _WORD_BYTES)
        self._bigrams = kernel.no_bigrams(_FEWEST)
        self._known = self._pairs = 0  # words and bigrams in the tables

    @property
    def nbytes(self) -> int:
        """Bytes of the tables in memory, and of texts that wait."""
        tables = sum(array.nbytes for array in (*self._words, self._bigrams))
        return tables + _CHAR_BYTES * self._chars

    def add(self, texts: Iterable[str]) -> None:
        """Counts texts; there are no bigrams across two of them."""
        for text in texts:
            self._texts.append(text)
            self._chars += len(text)
        if self._chars >= _BUFFER_CHARS:
            self._count()

    def take(self) -> Run:
        """Returns the counts, words in the order of their first occurrence; clears."""
        self._count()
        counts, ends = self._words.facts[: self._known + 1].T
        if ends[-1] > np.iinfo(np.int32).max:
            raise ValueError(
                f"wanted words of at most 2 GiB in one run, got {ends[-1]:,} bytes; "
                "lower config.memory_gib"
            )
        words = pa.StringArray.from_buffers(
            self._known,
            pa.py_buffer(ends.astype(np.int32)),
            pa.py_buffer(self._words.arena[: ends[-1]].copy()),
        )
        used = self._bigrams[self._bigrams[:, kernel.TIMES] > 0]
        keys, times = used.T
        columns = [
            (keys >> np.uint64(32)).astype(np.uint32),
            keys.astype(np.uint32),
            times.astype(np.int64),
        ]
        run = Run(
            pa.Table.from_arrays([words, pa.array(counts[:-1])], schema=WORDS),
            pa.Table.from_arrays(list(map(pa.array, columns)), schema=BIGRAMS),
        )
        self._reset()
        return run

    def _count(self) -> None:
        text = "\n".join([*self._texts, "\n" * kernel.PADDING])
        self._texts, self._chars = [], 0
        data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)  # surrogates
        block, classes, at, last = kernel.new_block(), character_classes(), 0, 0
        while at < data.size:
            n, after = kernel.find_words(data, at, classes, block)
            self._make_room(n, after - at)
            self._known, _ = kernel.look_up(data, block, n, self._words, self._known)
            new, _ = kernel.pair(block, n, last, self._bigrams)
            self._pairs += new
            at, last = after, block.word[n - 1]

    def _make_room(self, n: int, size: int) -> None:
        """Makes room for n words of `size` bytes and n bigrams."""
        old, known = self._words, self._known
        used = old.facts[known, kernel.END]
        sizes = old.hashes.size, old.arena.size - kernel.PADDING
        capacity = max(sizes[0], _power_of_two(known + n))
        arena = max(sizes[1], _power_of_two(used + size))
        if (capacity, arena) != sizes:
            new = kernel.no_words(capacity, arena)
            new.hashes[:known] = old.hashes[:known]
            new.facts[: known + 1] = old.facts[: known + 1]
            new.arena[:used] = old.arena[:used]
            kernel.place_words(new.hashes[:known], new.slots)
            self._words = new
        if 2 * (self._pairs + n) > len(self._bigrams):
            bigrams = kernel.no_bigrams(self._pairs + n)
            kernel.place_bigrams(self._bigrams, bigrams)
            self._bigrams = bigrams


def _power_of_two(least: int) -> int:
    return 1 << (int(least) - 1).bit_length()


@cache
def character_classes() -> NDArray[np.uint8]:
    """Returns u8[0x110000], the class of each character in words.

    Letters and digits are those of Python's \\w without the underscore. Combining marks
    belong to words too, unlike in \\w: without them, words of Hindi, Thai and many
    other languages would be split.
    """
    classes = np.full(0x110000, kernel.OTHER, np.uint8)
    for code in _MARKS:
        if unicodedata.category(chr(code))[0] == "M":
            classes[code] = kernel.MARK
    classes[list(map(ord, _JOINERS))] = kernel.JOINER
    every = "".join(map(chr, range(classes.size)))
    for letters in re.finditer(r"[^\W_]+", every):
        classes[letters.start() : letters.end()] = kernel.LETTER
    return classes
