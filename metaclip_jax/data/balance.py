"""Balancing, for curation and for training.

A match of entry e is accepted with probability min(1, t / count_e), and a text is kept
if any of its matches is accepted. So an entry with a count below t (the tail) keeps all
its texts, and one with a higher count (the head) gets about t accepted draws. More than
t of its texts are kept, because texts that are kept for other entries match it too.

The rules, all from MetaCLIP, differ in which texts are drawn:

v1      every text; an image keeps the texts that survive.
v2      one text of each image (`choose_texts`), so an image keeps one text or none.
        Counts still include all texts, as in MetaCLIP 2. So where images have several
        texts, a head entry gets fewer accepted draws than t: with three texts for each
        image, about t / 3.
online  as v2, in the trainer, with new draws in each epoch (data/online.py).

With scores, texts exchange their keys before they are drawn (`keys_by_score`).

A draw is a hash of (seed, text key, entry id), not the next number of a generator. So
the result does not depend on the order of the texts, their split over workers, retries
or other texts. With a smaller p, a subset is kept of what a larger p keeps; so images
can be fetched for slack * t before the final balancing.

In all functions, text i matches entry_ids[offsets[i] : offsets[i + 1]].
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from metaclip_jax.data import draws

# Matches that are drawn at a time, so that the arrays stay in the CPU cache.
_BLOCK = 1 << 16
_ENTRY_STEP = np.uint64(0x9E3779B97F4A7C15)

_ID_DIGITS = 24
_HEX_VALUES = np.zeros(256, np.uint8)
_HEX_VALUES[list(b"0123456789abcdef")] = range(16)


def lead(counts: Mapping[str, ArrayLike]) -> str:
    """Returns the code of the lead metadata, whose t is given: "en" or the first."""
    return "en" if "en" in counts else min(counts)


def thresholds(
    counts: Mapping[str, ArrayLike], *, t: int, tail_share: float
) -> dict[str, int]:
    """Returns t for each metadata (MetaCLIP 2, Algorithm 1).

    Args:
      counts: [entries] for each metadata code.
      t: of the lead metadata; the others get the t with which their tail has the same
        share of their matches. 0 = all get t from `tail_share`.
      tail_share: the tail's share of all matches, used if t = 0.
    """
    if t > 0:
        tail_share = share_below(counts[lead(counts)], t)
    result = {code: threshold(counts[code], tail_share) for code in counts}
    return result | {lead(counts): t} if t > 0 else result


def threshold(counts: ArrayLike, tail_share: float) -> int:
    """Returns the t of one metadata whose tail has `tail_share` of its matches.

    MetaCLIP 2's rule: the count at which the cumulative share of matches, in ascending
    order of counts, is nearest to `tail_share` (on ties the smaller). It is at least 1,
    even if that count is 0 or there are no matches, so that small languages keep their
    matches. It is not the exact inverse of `share_below`, which excludes entries with a
    count of exactly t.

    Raises:
      ValueError: `tail_share` is not within 0 to 1.
    """
    if not 0 <= tail_share <= 1:
        raise ValueError(f"the tail share must be within 0 to 1, got {tail_share}")
    ascending = np.sort(_checked_counts(counts))
    total = ascending.sum() if ascending.size else 0
    if total == 0:
        return 1
    nearest = np.argmin(np.abs(np.cumsum(ascending) / total - tail_share))
    return max(1, int(ascending[nearest]))


def share_below(counts: ArrayLike, t: float) -> float:
    """Returns the share of all matches that entries with a count below t have.

    It is 0.0 if there are no matches. Raises ValueError if t is below 1.
    """
    counts = _checked_counts(counts)
    total = counts.sum()
    tail = counts[counts < _checked_t(t)].sum()
    return float(tail / total) if total else 0.0


def keep_probabilities(
    counts: Mapping[str, ArrayLike], t: Mapping[str, float], *, slack: float = 1.0
) -> dict[str, NDArray[np.float64]]:
    """Returns f64[entries] for each metadata: min(1, slack * t / count).

    A metadata without a t is not balanced: all its matches are accepted.
    """
    return {
        code: keep_probability(vector, slack * t[code])
        if code in t
        else np.ones(np.size(vector))
        for code, vector in counts.items()
    }


def keep_probability(counts: ArrayLike, t: float) -> NDArray[np.float64]:
    """Returns f64[entries], the probability that a match of each entry is accepted.

    Args:
      counts: [entries], the matches of each entry in the pool.
      t: the threshold, at least 1; may be fractional (slack * t).

    Raises:
      ValueError: t is below 1, which would drop whole languages.
    """
    t = _checked_t(t)
    return t / np.maximum(_checked_counts(counts), t)


def match_probabilities(
    keep_probability: NDArray[np.float64], entry_ids: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Returns f64[matches], the keep probability of each match's entry.

    Raises:
      ValueError: an entry id is out of range, or a probability is not from 0 to 1.
    """
    size = keep_probability.size
    if entry_ids.size and not 0 <= entry_ids.min() <= entry_ids.max() < size:
        raise ValueError(
            f"entry ids must be below the {size} entries of keep_probability, got "
            f"{entry_ids.min()} to {entry_ids.max()}; take both from one metadata"
        )
    p = keep_probability[entry_ids]
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(
            f"keep probabilities must be numbers from 0 to 1, got {p.min()} to "
            f"{p.max()}; make them with balance.keep_probability"
        )
    return p


def match_draws(
    seed: int,
    text_keys: NDArray[np.uint64],
    offsets: NDArray[np.integer],
    entry_ids: NDArray[np.int32],
) -> NDArray[np.float64]:
    """Returns f64[matches] in [0, 1), the draw of each match.

    A draw uses 53 bits of the hash: 64 could round to 1.0 and lose a tail match.

    Args:
      seed: of the run; another seed gives another subset.
      text_keys: u64[n], records.text_key of each text.
      offsets: int[n + 1].
      entry_ids: i32[matches].

    Raises:
      ValueError: the lengths contradict each other.
      TypeError: the text keys are not uint64.
    """
    offsets = _checked_offsets(offsets, text_keys, entry_ids.size)
    out = np.empty(entry_ids.size, np.float64)
    per_text = _mixed(text_keys ^ _mixed_seed(seed))
    lengths = np.diff(offsets)
    first = 0
    while first < lengths.size:  # whole texts; a single text may exceed the block
        last = int(np.searchsorted(offsets, offsets[first] + _BLOCK, "right")) - 1
        last = min(max(last, first + 1), lengths.size)
        begin, end = offsets[first], offsets[last]
        states = np.repeat(per_text[first:last], lengths[first:last])
        steps = entry_ids[begin:end].astype(np.uint64) + np.uint64(1)
        out[begin:end] = draws.uniform(_mixed(states + steps * _ENTRY_STEP))
        first = last
    return out


def accepted_draws(
    seed: int,
    text_keys: NDArray[np.uint64],
    offsets: NDArray[np.integer],
    entry_ids: NDArray[np.int32],
    probability: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Returns bool[matches], whether each match is accepted: its draw is below p.

    `probability` f64[matches] is from `match_probabilities`; the other arguments and
    the errors are those of `match_draws`.
    """
    return match_draws(seed, text_keys, offsets, entry_ids) < probability


def kept_texts(
    offsets: NDArray[np.integer], accepted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Returns bool[n], whether any match of each text is accepted (bool[matches])."""
    running = np.concatenate([[0], np.cumsum(accepted)])
    return running[offsets[1:]] > running[offsets[:-1]]


def keys_by_score(
    seed: int,
    text_keys: NDArray[np.uint64],
    offsets: NDArray[np.integer],
    entry_ids: NDArray[np.int32],
    scores: NDArray[np.float64],
) -> NDArray[np.uint64]:
    """Returns u64[n], the text keys, exchanged so that high scores get small draws.

    A text belongs to the entry of its matches that is rarest among these texts (of
    equally rare ones, the smallest id). Among the texts of an entry, the highest score
    gets the key whose draw for that entry is the smallest, the next the second, and so
    on. So with these keys an entry accepts as many matches of its own texts as before,
    for any p, but those with high scores; where p is 1 it still accepts all. A text's
    draws for its other entries are of another key, and so independent of its score: the
    expected number of kept texts is the same if scores do not depend on the number of a
    text's other entries.

    Args:
      seed: of the draws, as for `match_draws`.
      text_keys: u64[n].
      offsets: int[n + 1].
      entry_ids: i32[matches].
      scores: f64[n]; a text whose score is NaN keeps its key.

    Raises the errors of `match_draws`.
    """
    offsets = _checked_offsets(offsets, text_keys, entry_ids.size)
    _, number, counts = np.unique(entry_ids, return_inverse=True, return_counts=True)
    text = np.repeat(np.arange(text_keys.size), np.diff(offsets))
    rarest = np.lexsort((counts[number], text))  # stable: of equal ones the first
    rows = np.flatnonzero((np.diff(offsets) > 0) & ~np.isnan(scores))
    own = entry_ids[rarest[offsets[rows]]]
    keys = text_keys[rows]
    drawn = match_draws(seed, keys, np.arange(rows.size + 1), own)
    exchanged = text_keys.copy()
    by_score = np.lexsort((keys, -scores[rows], own))
    exchanged[rows[by_score]] = keys[np.lexsort((keys, drawn, own))]
    return exchanged


def image_keys(image_ids: pa.Array) -> NDArray[np.uint64]:
    """Returns u64[n], the keys by which draws identify images: an id's first 64 bits.

    Raises:
      ValueError: an id does not have 24 characters.
    """
    if not len(image_ids):
        return np.empty(0, np.uint64)
    if not pc.all(pc.equal(pc.binary_length(image_ids), _ID_DIGITS)).as_py():
        raise ValueError(f"image ids must be {_ID_DIGITS} hex digits, got others")
    start, letters = image_ids.offset * _ID_DIGITS, image_ids.buffers()[2]
    table = np.frombuffer(letters, np.uint8)[start:][: len(image_ids) * _ID_DIGITS]
    digits = _HEX_VALUES[table.reshape(-1, _ID_DIGITS)[:, :16]]
    packed = digits[:, ::2] << 4 | digits[:, 1::2]
    return packed.view(">u8").ravel().astype(np.uint64)


def choose_texts(
    image_keys: NDArray[np.uint64],
    text_counts: NDArray[np.integer],
    *,
    seed: int,
    epochs: NDArray[np.int64] | int = 0,
    weights: NDArray[np.int64] | None = None,
    purpose: int = draws.TEXT,
) -> NDArray[np.int64]:
    """Draws one text of each image, with probabilities proportional to the weights.

    The draw depends on the image, not on the position of its record, and not on keep
    probabilities.

    Args:
      image_keys: u64[n], from `image_keys`.
      text_counts: int[n], the number of texts of each image.
      seed: of the draws.
      epochs: i64[n], or one for all; each epoch has its own draw.
      weights: i64[texts], at least 0, grouped by image; None = equal weights.
      purpose: a key of data/draws.py that makes draws for other purposes independent.

    Returns:
      i64[n], the drawn text's index among the image's texts; -1 if no text has a
      weight.
    """
    bits = draws.mix(seed, purpose, epochs, image_keys)
    if weights is None:
        number = draws.below(np.maximum(text_counts, 1), bits)
        return np.where(text_counts > 0, number, -1)
    running = np.concatenate([[0], np.cumsum(weights)])
    ends = np.cumsum(text_counts)
    first = ends - text_counts
    total = running[ends] - running[first]
    target = running[first] + draws.below(np.maximum(total, 1), bits)
    number = np.searchsorted(running, target, side="right") - 1 - first
    return np.where(total > 0, number, -1)


def text_probability(
    offsets: NDArray[np.integer], probability: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns f64[n], q = 1 - Π(1 - p): the probability that each text is kept.

    Σ q is the expected number of kept texts, Σ q(1 - q) its variance. `probability`
    f64[matches] is from `match_probabilities`.
    """
    out = np.zeros(offsets.size - 1)
    some = np.diff(offsets) > 0
    if some.any():
        out[some] = 1 - np.multiply.reduceat(1 - probability, offsets[:-1][some])
    return out


def final_probability(
    thin_probability: NDArray[np.float64], accepted: ArrayLike, target: ArrayLike
) -> NDArray[np.float64]:
    """Returns f64[entries], the p that leaves `target` accepted draws after download.

    Before the download, matches were thinned with `thin_probability` (p at slack * t);
    `accepted` of each entry's accepted draws survived it. The result never exceeds
    `thin_probability`, so with the same seed the final set is a subset.

    Args:
      thin_probability: f64[entries].
      accepted: [entries], accepted draws under `thin_probability` among the texts that
        survived the download.
      target: accepted draws wanted: t, or a number of at least 0 for each entry.
    """
    accepted = _checked_counts(accepted)
    target = np.broadcast_to(np.asarray(target, np.float64), accepted.shape)
    over = accepted > target
    cut = np.where(over, target, 1.0) / np.where(over, accepted, 1.0)
    return thin_probability * cut


def short_entries(
    thin_probability: NDArray[np.float64], accepted: ArrayLike, target: ArrayLike
) -> NDArray[np.int64]:
    """Returns the ids of the entries for which the slack was too small.

    They were thinned before the download and then have fewer accepted draws than the
    target (see `final_probability`). More slack would have kept more of them.
    """
    short = _checked_counts(accepted) < np.asarray(target, np.float64)
    return np.flatnonzero(short & (thin_probability < 1))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mixes 64 bits bijectively; each input bit affects each output bit."""
    x = x ^ (x >> np.uint64(32))
    x *= np.uint64(0xD6E8FEB86659FD93)
    x ^= x >> np.uint64(32)
    x *= np.uint64(0xD6E8FEB86659FD93)
    x ^= x >> np.uint64(32)
    return x


def _mixed_seed(seed: int) -> np.uint64:
    start = (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64
    return np.uint64(_mixed(np.array([start], np.uint64))[0])


def _checked_t(t: float) -> float:
    if not t >= 1:
        raise ValueError(f"t must be at least 1, got {t}")
    return t


def _checked_counts(counts: ArrayLike) -> NDArray[np.float64]:
    """Returns the counts as f64, which is exact up to 2**53 matches of an entry."""
    counts = np.asarray(counts)
    if counts.ndim != 1 or (counts.size and not counts.min() >= 0):
        raise ValueError(f"counts must be one list of numbers from 0, got {counts!r}")
    return counts.astype(np.float64)


def _checked_offsets(
    offsets: NDArray[np.integer], keys: NDArray[np.uint64], matches: int
) -> NDArray[np.int64]:
    if keys.dtype != np.uint64:
        raise TypeError(f"keys must be uint64, got {keys.dtype}")
    ends = np.asarray(offsets, np.int64)
    fits = ends.size == keys.size + 1 and ends[0] == 0 and ends[-1] == matches
    if not fits or (np.diff(ends) < 0).any():
        raise ValueError(
            f"offsets must be {keys.size + 1} ascending numbers from 0 to the "
            f"{matches} matches, got {ends.size}: {ends}"
        )
    return ends
