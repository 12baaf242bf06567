"""Merges ranked sources into the entries of a metadata, and describes the result.

These are the paper's sources (Table 1): synsets of WordNet, words and bigrams of
Wikipedia, titles. Case matters, as in matching: "Apple" and "apple" are two entries.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from data_prep.matching import spacing
from data_prep.metadata.store import Metadata

Ranked = list[tuple[str, float]]  # entries with their scores, best first
ANY = "any"  # in place of a mode of matching: all of them
SAMPLES = 8  # entries of each kind in a description
_CURVE_POINTS = 40  # ranks of a source, evenly spaced on a log axis


class Source(NamedTuple):
    """A source of entries, and how many it may add.

    `ranked` has the entries with their scores: best first, equal scores in the order of
    their code points. It may end early if it has all that can be added; then `offered`
    is the number of all entries that reach `threshold`, the least score.
    """

    name: str
    ranked: Iterable[tuple[str, float]]
    max_entries: int
    threshold: float | None = None
    offered: int | None = None


@dataclass(frozen=True)
class Share:
    """What became of a source's entries; offered = the sum of the four after it.

    `already` were added by an earlier source, `never_matching` were left out since no
    text can match them, and `cut` came after the source had added all that it may. The
    first three are counted among the entries before that point.
    """

    source: str
    threshold: float | None
    max_entries: int
    offered: int
    added: int
    already: int
    never_matching: int
    cut: int


@dataclass(frozen=True)
class Merged:
    """Metadata, and what each source contributed.

    `overlap[i][j]` is how many entries sources i and j both have, of those that each
    added or found added already. `left_out` are the never matching entries.
    """

    metadata: Metadata
    shares: tuple[Share, ...]
    overlap: tuple[tuple[int, ...], ...]
    left_out: tuple[str, ...]


def merge(code: str, sources: Sequence[Source], *, mode: str = ANY) -> Merged | None:
    """Joins sources into one metadata, in the order of the sources; None if empty.

    An entry belongs to the first source that has it. A source adds up to `max_entries`
    entries, best first, not counting those that an earlier source added.

    Args:
      code: of the metadata.
      sources: in the order of their entries' ids.
      mode: of matching, see `never_matches`. Entries that never match in it are left
        out and do not count towards `max_entries`.

    Raises:
      ValueError: a source is not in its order.
    """
    entries, source_bits, left_out, shares = _join(code, sources, mode)
    if not entries:
        return None
    names, scores = zip(*entries.values(), strict=True)
    metadata = Metadata(code, tuple(entries), names, scores)
    overlap = _overlap(source_bits, len(sources))
    return Merged(metadata, tuple(shares), overlap, tuple(left_out))


def _join(
    code: str, sources: Sequence[Source], mode: str
) -> tuple[dict[str, tuple[str, float]], dict[str, int], dict[str, None], list[Share]]:
    """Returns source and score of each entry, and what `Merged` has; see `merge`."""
    entries: dict[str, tuple[str, float]] = {}
    source_bits: dict[str, int] = {}  # bit i: source i has the entry
    left_out: dict[str, None] = {}
    shares = []
    for i, source in enumerate(sources):
        seen = added = already = never = 0
        last = (-math.inf, "")
        for entry, score in source.ranked:
            if not last < (-score, entry):
                raise ValueError(
                    f"source {source.name!r} of metadata {code!r}: wanted entries best "
                    f"first, equal scores in the order of code points, got {entry!r} "
                    f"with {score:g} after {last[1]!r} with {-last[0]:g}; sort them"
                )
            last = (-score, entry)
            seen += 1
            if added >= source.max_entries:
                continue
            if never_matches(entry, mode=mode):
                never += 1
                left_out[entry] = None
                continue
            source_bits[entry] = source_bits.get(entry, 0) | 1 << i
            if entry in entries:
                already += 1
            else:
                entries[entry] = (source.name, score)
                added += 1
        offered = seen if source.offered is None else source.offered
        shares.append(
            Share(
                source=source.name,
                threshold=source.threshold,
                max_entries=source.max_entries,
                offered=offered,
                added=added,
                already=already,
                never_matching=never,
                cut=offered - added - already - never,
            )
        )
    return entries, source_bits, left_out, shares


def limit(
    sources: Sequence[Source],
    *,
    unigram_share: float,
    bigrams_per_unigram: float | None,
    title_share: float,
) -> list[Source]:
    """Returns the sources of an edition with `max_entries` lowered to shares.

    Args:
      sources: "unigram", "bigram" and "title" among them; with `offered`.
      unigram_share: of the words, the most frequent.
      bigrams_per_unigram: of the number of words that may be entries; None: no limit.
      title_share: of the titles, those with the most views.
    """
    most = {source.name: source.max_entries for source in sources}
    offered = {source.name: source.offered or 0 for source in sources}
    for name, share in (("unigram", unigram_share), ("title", title_share)):
        if share < 1:
            most[name] = min(most[name], int(share * offered[name]))
    if bigrams_per_unigram is not None:
        bigrams = int(bigrams_per_unigram * most["unigram"])
        most["bigram"] = min(most["bigram"], bigrams)
    return [source._replace(max_entries=most[source.name]) for source in sources]


def union(
    code: str, editions: Sequence[Sequence[Source]], *, mode: str = ANY
) -> list[Source]:
    """Returns sources with the entries that each edition's metadata would have.

    An entry that several editions have in a source has the highest of its scores. An
    edition without entries adds none.

    Args:
      code: of the metadata, for errors.
      editions: the sources of each, of the same names in the same order.
      mode: as in `merge`.
    """
    if len(editions) == 1:
        return list(editions[0])
    best: dict[str, dict[str, float]] = {source.name: {} for source in editions[0]}
    for sources in editions:
        for entry, (name, score) in _join(code, sources, mode)[0].items():
            best[name][entry] = max(score, best[name].get(entry, -math.inf))
    return [
        same[0]._replace(
            ranked=best_first(best[same[0].name].items()),
            max_entries=sum(source.max_entries for source in same),
            offered=None,
        )
        for same in zip(*editions, strict=True)
    ]


def best_first(scored: Iterable[tuple[str, float]]) -> Ranked:
    """Returns entries in the order of a source: equal scores by code points."""
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))


def never_matches(entry: str, *, mode: str) -> bool:
    """Whether no text of curation can match an entry.

    Args:
      entry: any string.
      mode: a mode of `spacing`, or ANY: in none of the modes.
    """
    modes = spacing.MODES if mode == ANY else (mode,)
    return all(spacing.why_never_matches(entry, mode=each) for each in modes)


def _overlap(source_bits: dict[str, int], n: int) -> tuple[tuple[int, ...], ...]:
    bits = np.fromiter(source_bits.values(), np.int64, len(source_bits))
    has = bits[:, None] >> np.arange(n) & 1  # [entries, sources]
    return tuple(map(tuple, (has.T @ has).tolist()))


def describe(merged: Merged) -> dict[str, Any]:
    """Returns a JSON object without NaN, for the manifest, the page and the terminal.

    `shares` has, for each source, the fields of `ranking.Share`, its score `curve`
    (pairs of rank and score) and `samples` (pairs of entry and score) of its head,
    middle and tail. `never_matching` has, for each mode of matching, the number and
    samples of the entries that no text can match, by reason; entries that were left out
    are in `left_out`.
    """
    metadata = merged.metadata
    ends = np.cumsum([share.added for share in merged.shares]).tolist()
    shares = []
    for share, end in zip(merged.shares, ends, strict=True):
        rows = slice(end - share.added, end)
        entries, scores = metadata.entries[rows], metadata.scores[rows]
        pairs = list(zip(entries, scores, strict=True))
        ranks = np.geomspace(1, len(pairs), _CURVE_POINTS) if pairs else np.empty(0)
        curve = [
            [r, scores[r - 1]] for r in np.unique(ranks.round()).astype(int).tolist()
        ]
        shares.append(asdict(share) | {"curve": curve, "samples": _samples(pairs)})
    return {
        "shares": shares,
        "overlap": merged.overlap,
        "never_matching": {
            mode: _never_matching(metadata.entries, mode) for mode in spacing.MODES
        },
        "left_out": {
            "entries": len(merged.left_out),
            "samples": merged.left_out[:SAMPLES],
        },
    }


def _samples(pairs: list[tuple[str, float]]) -> dict[str, list[tuple[str, float]]]:
    """Returns samples of the head, the middle and the tail, which do not overlap."""
    if len(pairs) <= 3 * SAMPLES:
        return {"head": pairs, "middle": [], "tail": []}
    start = (len(pairs) - SAMPLES) // 2
    middle = pairs[start : start + SAMPLES]
    return {"head": pairs[:SAMPLES], "middle": middle, "tail": pairs[-SAMPLES:]}


def _never_matching(entries: Sequence[str], mode: str) -> dict[str, Any]:
    """Returns the number and the first entries that never match, by reason."""
    entries_of: dict[str, list[str]] = {}
    for entry in entries:
        if reason := spacing.why_never_matches(entry, mode=mode):
            entries_of.setdefault(reason, []).append(entry)
    return {
        reason: {
            "entries": len(entries_of[reason]),
            "samples": entries_of[reason][:SAMPLES],
        }
        for reason in sorted(entries_of)
    }
