"""Metadata from Wikipedia-like pages: words, bigrams by PMI, titles by views.

These are the paper's sources (Table 1) except WordNet. Case matters, as in matching:
"Apple" and "apple" are two words with separate counts, and each becomes an entry if it
is frequent enough.
"""

import gzip
import heapq
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from data_prep.metadata.store import Metadata
from metaclip_jax import files

_ROUNDING = 1e-6  # nats
COLUMNS = ("key", "count")  # of counted words, bigrams and titles
Ranked = list[tuple[str, float]]  # entries with their scores, best first

# Wikimedia counts mobile page views separately: en.m, and formerly en.zero.
_DOMAIN = re.compile(r"([a-z0-9-]+)(?:\.m|\.zero)?")
_NAMESPACES = Path(__file__).with_name("namespaces.txt")
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


class Source(NamedTuple):
    """A source of entries: its name, ranked entries, and how many it may add."""

    name: str
    ranked: Ranked
    max_entries: int


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


def select_frequent(counted: Iterable[pa.Table], *, most: int) -> Ranked:
    """Returns the `most` most frequent words, or titles; the score is the count.

    Best first; equal scores in alphabetical order.

    Args:
      counted: `key` and `count` of those that are frequent enough.
      most: how many at most.
    """
    return _ranked(
        (
            pair
            for table in counted
            for pair in zip(*(table[c].to_pylist() for c in COLUMNS), strict=True)
        ),
        most,
    )


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

    return _ranked(scored(), most)


def read_pageviews(
    path: epath.PathLike, *, languages: Collection[str]
) -> tuple[dict[str, Counter[str]], int]:
    """Reads a Wikimedia page view file, plain or .gz.

    A line is "domain_code page_title count_views total_response_size". Counts the
    Wikipedias (desktop and mobile) of `languages`, which are their domain codes.
    Underscores of titles become spaces. Pages in a namespace of the wiki
    ("File:Cat.jpg", "User talk:...") are skipped; other titles with a colon are kept.

    Returns:
      Views by title for each of the languages, and the number of malformed lines.
    """
    views: dict[str, Counter[str]] = {language: Counter() for language in languages}
    malformed = 0
    with files.path(path).open("rb") as raw:
        data = gzip.open(raw) if str(path).endswith(".gz") else raw
        for line in data:
            parts = line.decode("utf-8", "replace").rstrip("\r\n").split(" ")
            domain = _DOMAIN.fullmatch(parts[0])
            if len(parts) != 4 or not parts[2].isdecimal():
                malformed += 1
            elif domain and domain[1] in views:
                title = " ".join(unquote(parts[1]).replace("_", " ").split())
                if _is_title(title, domain[1]):
                    views[domain[1]][title] += int(parts[2])
    return views, malformed


def merge(code: str, sources: Sequence[Source]) -> Metadata:
    """Joins sources into one metadata, in the order of the sources.

    An entry belongs to the first source that has it. A source adds up to `max_entries`
    entries, best first, not counting those that an earlier source added.
    """
    entries: dict[str, tuple[str, float]] = {}
    for source in sources:
        room = source.max_entries
        for entry, score in source.ranked:
            if room <= 0:
                break
            if entry not in entries:
                entries[entry] = (source.name, score)
                room -= 1
    if not entries:
        raise ValueError(
            f"metadata {code!r}: wanted entries, got none above the thresholds of "
            f"{', '.join(source.name for source in sources)}; lower the thresholds or "
            "give more text"
        )
    return Metadata(
        code,
        tuple(entries),
        tuple(name for name, _ in entries.values()),
        tuple(score for _, score in entries.values()),
    )


def _ranked(scored: Iterable[tuple[str, float]], most: int) -> Ranked:
    best = heapq.nsmallest(most, scored, key=lambda pair: (-pair[1], pair[0]))
    return [(entry, float(score)) for entry, score in best]


def _is_title(title: str, language: str) -> bool:
    namespace, colon, _ = title.lstrip(": ").partition(":")
    if colon and _folded(namespace) in _namespaces(language):
        return False
    return any(map(str.isalnum, title))


@cache
def _namespaces(language: str) -> frozenset[str]:
    """Returns a Wikipedia's namespaces, case-folded: its own and the shared ones."""
    names: set[str] = set()
    for line in _NAMESPACES.read_text("utf-8").splitlines():
        code, _, listed = line.partition("\t")
        if code in ("*", language.replace("_", "-")):
            names.update(map(_folded, listed.split("|")))
    return frozenset(names)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


@cache
def _words() -> re.Pattern[str]:
    """Matches words. Combining marks are letters here, unlike in Python's \\w.

    Without them, words of Hindi, Thai and many other languages would be split.
    """
    marks = "".join(chr(c) for c in _MARKS if unicodedata.category(chr(c))[0] == "M")
    joiners = "['\u2019\u200c\u200d-]"  # the zero-width ones: Persian, Indic scripts
    letters = r"[^\W_]+"
    return re.compile(rf"{letters}(?:[{marks}]+(?:{letters})?|{joiners}{letters})*")
