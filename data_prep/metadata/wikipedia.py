"""Metadata from Wikipedia-like pages: words, bigrams by PMI, titles by views.

The three sources of the paper's Table 1 beside WordNet. Everything is case-sensitive,
as matching is: "Apple" and "apple" are two words with their own counts, and each
becomes an entry if it is frequent enough as it stands.
"""

import gzip
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from etils import epath

from data_prep.metadata.store import Metadata
from metaclip_jax import files

Ranked = list[tuple[str, float]]  # entries with their scores, best first

# Wikimedia's page views name mobile visits apart: en.m, and formerly en.zero.
_DOMAIN = re.compile(r"([a-z0-9-]+)(?:\.m|\.zero)?")
_NAMESPACES = Path(__file__).with_name("namespaces.txt")
# Marks above the basic plane belong to a few rare scripts; with them, Python's re falls
# back from a bitmap to a search, several times slower.
_MARKS = range(0x300, 0x10000)


@dataclass
class NgramCounts:
    """How often words and pairs of neighbouring words occur.

    A bigram's key is both words with one space between. `tokens` is the number of words
    in all.
    """

    unigrams: Counter[str] = field(default_factory=Counter)
    bigrams: Counter[str] = field(default_factory=Counter)
    tokens: int = 0


class Source(NamedTuple):
    """One source of entries: its name, its ranking, how many it may add."""

    name: str
    ranked: Ranked
    max_entries: int


def count_ngrams(
    texts: Iterable[str], *, into: NgramCounts | None = None
) -> NgramCounts:
    """Counts words and bigrams of texts, on top of `into` if there is one.

    A word is a run of letters, digits and combining marks; hyphens and apostrophes
    inside belong to it, so that "T-shirt" is one word, as it is for the matching. A
    bigram is two words with nothing but one space between: words that a comma or the
    end of a line separates never match as one entry. Languages written without spaces
    need their words separated before.

    All counts are held in memory: about 100 bytes for each distinct bigram.
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


def select_unigrams(counts: NgramCounts, *, min_count: int) -> Ranked:
    """Returns the words that occur `min_count` times or more; the score is the count.

    Best first; equal scores in the order of their text.
    """
    return _ranked((w, n) for w, n in counts.unigrams.items() if n >= min_count)


def select_bigrams(counts: NgramCounts, *, min_pmi: float, min_count: int) -> Ranked:
    """Returns the bigrams whose words go together more than chance has it.

    The score is the pointwise mutual information in nats,
    ln(count(a b) · tokens / (count(a) · count(b))), best first; equal scores in the
    order of their text. It cannot exceed ln(tokens / min_count): below that many
    occurrences it says more about chance than about the words.

    Args:
      counts: of the language.
      min_pmi: nats.
      min_count: occurrences.
    """
    scored = []
    for bigram, n in counts.bigrams.items():
        if n < min_count:
            continue
        first, _, second = bigram.partition(" ")
        expected = counts.unigrams[first] * counts.unigrams[second]
        pmi = math.log(n * counts.tokens / expected)
        if pmi >= min_pmi:
            scored.append((bigram, pmi))
    return _ranked(scored)


def select_titles(views: Mapping[str, int], *, min_views: int) -> Ranked:
    """Returns the titles with `min_views` or more; the score is the number of views."""
    return _ranked((title, n) for title, n in views.items() if n >= min_views)


def read_pageviews(
    path: epath.PathLike, *, languages: Collection[str]
) -> tuple[dict[str, Counter[str]], int]:
    """Reads a Wikimedia page view file, plain or .gz.

    A line is "domain_code page_title count_views total_response_size". Counted are the
    Wikipedias (desktop and mobile) of `languages`, which are codes of their domains;
    titles get spaces for underscores. Pages in a namespace of the wiki ("File:Cat.jpg",
    "User talk:...") are no titles; other titles with a colon are.

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

    An entry belongs to the first source that has it; a source adds its best entries up
    to its `max_entries`, not counting those that are there already.
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
            f"metadata {code!r} would be empty: none of "
            f"{', '.join(source.name for source in sources)} has an entry above its "
            "threshold; lower the thresholds or give more text"
        )
    return Metadata(
        code,
        tuple(entries),
        tuple(name for name, _ in entries.values()),
        tuple(score for _, score in entries.values()),
    )


def _ranked(scored: Iterable[tuple[str, float]]) -> Ranked:
    ranked = [(entry, float(score)) for entry, score in scored]
    ranked.sort(key=lambda pair: (-pair[1], pair[0]))
    return ranked


def _is_title(title: str, language: str) -> bool:
    namespace, colon, _ = title.lstrip(": ").partition(":")
    if colon and _folded(namespace) in _namespaces(language):
        return False
    return any(map(str.isalnum, title))


@cache
def _namespaces(language: str) -> frozenset[str]:
    """Returns the folded names of a Wikipedia's namespaces: its own and the shared."""
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

    Without them the words of Hindi, Thai and many others fall into pieces.
    """
    marks = "".join(chr(c) for c in _MARKS if unicodedata.category(chr(c))[0] == "M")
    joiners = "['\u2019\u200c\u200d-]"  # the zero-width ones: Persian, Indic scripts
    letters = r"[^\W_]+"
    return re.compile(rf"{letters}(?:[{marks}]+(?:{letters})?|{joiners}{letters})*")
