"""Describes a metadata as a JSON object: counts, score curves and samples.

The manifest has the object; the page and the printed summary show it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from data_prep.matching import spacing
from data_prep.metadata.ranking import Merged

SAMPLES = 8  # entries of each kind
_CURVE_POINTS = 40  # ranks of a source, evenly spaced on a log axis


def describe(merged: Merged) -> dict[str, Any]:
    """Returns a JSON object without NaN.

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
