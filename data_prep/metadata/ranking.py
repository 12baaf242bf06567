"""Entries of a metadata out of ranked sources.

These are the paper's sources (Table 1): synsets of WordNet, words and bigrams of
Wikipedia, titles. Case matters, as in matching: "Apple" and "apple" are two entries.
"""

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa

from data_prep.metadata.store import Metadata

COLUMNS = ("key", "count")  # of counted words, bigrams and titles
Ranked = list[tuple[str, float]]  # entries with their scores, best first


class Source(NamedTuple):
    """A source of entries: its name, ranked entries, and how many it may add."""

    name: str
    ranked: Ranked
    max_entries: int


def select_frequent(counted: Iterable[pa.Table], *, most: int) -> Ranked:
    """Returns the `most` most frequent words, or titles; the score is the count.

    Best first; equal scores in alphabetical order.

    Args:
      counted: `key` and `count` of those that are frequent enough.
      most: how many at most.
    """
    return ranked(
        (
            pair
            for table in counted
            for pair in zip(*(table[c].to_pylist() for c in COLUMNS), strict=True)
        ),
        most,
    )


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


def ranked(scored: Iterable[tuple[str, float]], most: int) -> Ranked:
    """Returns the `most` best, equal scores in alphabetical order."""
    best = heapq.nsmallest(most, scored, key=lambda pair: (-pair[1], pair[0]))
    return [(entry, float(score)) for entry, score in best]
