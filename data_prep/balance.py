"""Balancing: thin out the matches of frequent entries so that none dominates.

Each match of entry e is accepted with probability min(1, t / count_e), and a text is
kept if any of its matches is. So an entry that counts fewer than t (the tail) loses
nothing, and one that counts more (the head) keeps about t accepted draws; its texts
in the kept set are more than t, since texts kept for other entries bring it along.

There are two rules, both from MetaCLIP:

v1  `keep_texts`: each text is drawn by itself; an image keeps the texts that survive.
v2  `keep_images`: one text of each image is chosen, then kept with probability
    1 - Π(1 - p) over its matches. An image keeps one text or is dropped. Counts are
    still of all texts, as in MetaCLIP 2, so where images have several texts a head
    entry gets fewer accepted draws than t: t times the chosen part of its matches.

A draw is a hash of (seed, text key, entry id), never a generator's state. So the
result does not depend on the order of the texts, on how they are split over workers or
on retries; no text changes another's fate; and a smaller p keeps a subset of what a
larger p keeps, which lets images be fetched for slack * t before the final balancing.

In all functions, text i matches entry_ids[offsets[i] : offsets[i + 1]].
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Draws are computed for this many matches at a time, to stay in the cache.
_BLOCK = 1 << 16

_ENTRY_STEP = np.uint64(0x9E3779B97F4A7C15)
_CHOICE_STREAM = 0x632BE59BD9B4E019  # keeps v2's choice apart from its acceptance


def keep_probability(counts: ArrayLike, t: float) -> NDArray[np.float64]:
    """Returns f64[M], the chance that one match of each entry is accepted.

    Args:
      counts: [M], matches of each entry over the pool.
      t: the threshold, at least 1. May be fractional (slack * t).

    Raises:
      ValueError: t is below 1; it would drop whole languages.
    """
    t = _checked_t(t)
    return t / np.maximum(_checked_counts(counts), t)


def tail_share(counts: ArrayLike, t: float) -> float:
    """Returns the part of all matches that belongs to entries counting below t.

    0.0 where nothing matched at all.
    """
    counts = _checked_counts(counts)
    total = counts.sum()
    tail = counts[counts < _checked_t(t)].sum()
    return float(tail / total) if total else 0.0


def threshold(counts: ArrayLike, share: float) -> int:
    """Returns the t of a language whose tail should hold `share` of its matches.

    MetaCLIP 2's rule: of the sorted counts, the one whose cumulative share is nearest
    (the smaller of two equally near). It is at least 1, also where that count is 0 or
    nothing matched, so that small languages keep their matches. Not an exact inverse
    of `tail_share`, which leaves out the entries that count exactly t.

    Raises:
      ValueError: `share` is not within 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the tail share must be within 0 to 1, got {share}")
    ascending = np.sort(_checked_counts(counts))
    total = ascending.sum() if ascending.size else 0
    if total == 0:
        return 1
    nearest = np.argmin(np.abs(np.cumsum(ascending) / total - share))
    return max(1, int(ascending[nearest]))


def draws(
    seed: int,
    text_keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    entry_ids: NDArray[np.int32],
) -> NDArray[np.float64]:
    """Returns f64[matches] in [0, 1): the draw of each match, the same for ever.

    53 bits of the hash are used: 64 could round to 1.0 and lose a tail match.
    """
    offsets, entry_ids = _checked_matches(text_keys, offsets, entry_ids)
    out = np.empty(entry_ids.size, np.float64)
    per_text = _mixed(text_keys ^ _stream(seed, 0))
    lengths = np.diff(offsets)
    first = 0
    while first < lengths.size:  # a block of texts; a long one may exceed it
        last = int(np.searchsorted(offsets, offsets[first] + _BLOCK, "right")) - 1
        last = min(max(last, first + 1), lengths.size)
        begin, end = offsets[first], offsets[last]
        states = np.repeat(per_text[first:last], lengths[first:last])
        steps = entry_ids[begin:end].astype(np.uint64) + np.uint64(1)
        hashes = _mixed(states + steps * _ENTRY_STEP)
        out[begin:end] = (hashes >> np.uint64(11)) * 2.0**-53
        first = last
    return out


def accepted_draws(
    seed: int,
    text_keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    entry_ids: NDArray[np.int32],
    keep_probability: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Returns bool[matches], whether each match is accepted: its draw is below p.

    Args:
      seed: of the run; another seed gives another subset.
      text_keys: u64[n], records.text_key of each text.
      offsets: i64[n + 1].
      entry_ids: i32[matches].
      keep_probability: f64[M], of each entry, within 0 to 1.

    Raises:
      ValueError: lengths do not fit together, an entry id is not below M, or a
        probability is not a number from 0 to 1.
      TypeError: the text keys are not uint64.
    """
    probability = _of_matches(entry_ids, keep_probability)
    return draws(seed, text_keys, offsets, entry_ids) < probability


def keep_texts(
    seed: int,
    text_keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    entry_ids: NDArray[np.int32],
    keep_probability: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Returns bool[n], v1: whether any match of each text is accepted.

    A text without matches is dropped. Arguments and errors as in `accepted_draws`.
    """
    accepted = accepted_draws(seed, text_keys, offsets, entry_ids, keep_probability)
    running = np.concatenate([[0], np.cumsum(accepted)])
    return np.diff(running[offsets]) > 0


def keep_images(
    seed: int,
    image_keys: NDArray[np.uint64],
    text_offsets: NDArray[np.int64],
    text_keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    entry_ids: NDArray[np.int32],
    keep_probability: NDArray[np.float64],
) -> NDArray[np.int32]:
    """Returns i32[m], v2: which of its texts each image keeps, -1 if it is dropped.

    The index counts within the image: 0 is its first text. All texts of an image are
    equally likely to be chosen, whatever p is; the chosen one is kept exactly where
    `keep_texts` keeps it, which has probability 1 - Π(1 - p).

    Args:
      seed: of the run.
      image_keys: u64[m].
      text_offsets: i64[m + 1]; image j has texts text_offsets[j] : text_offsets[j + 1].
      text_keys, offsets, entry_ids, keep_probability: as in `accepted_draws`.
    """
    chosen = choose_texts(seed, image_keys, text_offsets, text_keys)
    kept = keep_texts(seed, text_keys, offsets, entry_ids, keep_probability)
    survives = chosen >= 0
    survives[survives] = kept[chosen[survives]]
    return np.where(survives, chosen - text_offsets[:-1], -1).astype(np.int32)


def choose_texts(
    seed: int,
    image_keys: NDArray[np.uint64],
    text_offsets: NDArray[np.int64],
    text_keys: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """Returns i64[m], the text that v2 draws of each image, -1 where it has none.

    The index counts over all texts. Every text of an image is equally likely, and
    neither the order of the texts nor any keep probability sways the choice.
    Arguments as in `keep_images`.
    """
    text_offsets = _checked_offsets(text_offsets, image_keys, text_keys.size, "texts")
    sizes = np.diff(text_offsets)
    images = np.repeat(np.arange(sizes.size), sizes)
    per_image = _mixed(image_keys ^ _stream(seed, _CHOICE_STREAM))
    # The text with the smallest hash is chosen: the order of the texts does not count.
    hashes = _mixed(per_image[images] + _mixed(text_keys))
    order = np.lexsort((hashes, images))
    chosen = np.full(sizes.size, -1, np.int64)
    chosen[sizes > 0] = order[text_offsets[:-1][sizes > 0]]
    return chosen


def text_probability(
    offsets: NDArray[np.int64],
    entry_ids: NDArray[np.int32],
    keep_probability: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Returns f64[n], 1 - Π(1 - p): the chance that each text is kept.

    Its sum is the expected number of kept texts, its Σ q(1 - q) the variance.
    """
    lost = 1 - _of_matches(entry_ids, keep_probability)
    out = np.zeros(offsets.size - 1)
    some = np.diff(offsets) > 0
    if some.any():
        out[some] = 1 - np.multiply.reduceat(lost, offsets[:-1][some])
    return out


def final_probability(
    thin_probability: NDArray[np.float64], accepted: ArrayLike, target: ArrayLike
) -> NDArray[np.float64]:
    """Returns f64[M], the p that brings what survived the download down to `target`.

    Matches were first thinned with `thin_probability` (p at slack * t). Of the
    accepted ones, `accepted` per entry survived the download; they are cut to the
    target. It never exceeds `thin_probability`, so with the same seed the result is a
    subset.

    Args:
      thin_probability: f64[M].
      accepted: [M], accepted draws among the surviving texts, under thin_probability.
      target: accepted draws wanted: t, or one number of at least 0 for each entry.
    """
    accepted = _checked_counts(accepted)
    target = np.broadcast_to(np.asarray(target, np.float64), accepted.shape)
    over = accepted > target
    cut = np.where(over, target, 1.0) / np.where(over, accepted, 1.0)
    return thin_probability * cut


def short_entries(
    thin_probability: NDArray[np.float64], accepted: ArrayLike, target: ArrayLike
) -> NDArray[np.int64]:
    """Returns the ids of the head entries that lost more than the slack could bear.

    They were thinned before the download and have fewer accepted draws left than the
    target (see `final_probability`): more slack would have kept more of them.
    """
    short = _checked_counts(accepted) < np.asarray(target, np.float64)
    return np.flatnonzero(short & (thin_probability < 1))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijective mix of 64 bits, in which every input bit sways every output bit."""
    x = x ^ (x >> np.uint64(32))
    x *= np.uint64(0xD6E8FEB86659FD93)
    x ^= x >> np.uint64(32)
    x *= np.uint64(0xD6E8FEB86659FD93)
    x ^= x >> np.uint64(32)
    return x


def _stream(seed: int, stream: int) -> np.uint64:
    """Returns a hash of the seed, a different one for each kind of draw."""
    start = (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03 + stream) % 2**64
    return np.uint64(_mixed(np.array([start], np.uint64))[0])


def _checked_t(t: float) -> float:
    if not t >= 1:
        raise ValueError(f"t must be at least 1, got {t}")
    return t


def _checked_counts(counts: ArrayLike) -> NDArray[np.float64]:
    """Returns the counts as f64; exact up to 2**53 matches of one entry."""
    counts = np.asarray(counts)
    if counts.ndim != 1 or (counts.size and not counts.min() >= 0):
        raise ValueError(f"counts must be one list of numbers from 0, got {counts!r}")
    return counts.astype(np.float64)


def _of_matches(
    entry_ids: NDArray[np.int32], keep_probability: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns f64[matches], the probability of each match's entry."""
    p = np.asarray(keep_probability, np.float64)
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(
            "keep_probability must be numbers from 0 to 1, got some from "
            f"{p.min()} to {p.max()}; make it with balance.keep_probability"
        )
    if entry_ids.size and not 0 <= entry_ids.min() <= entry_ids.max() < p.size:
        raise ValueError(
            f"entry ids must be below the {p.size} entries of keep_probability, got "
            f"{entry_ids.min()} to {entry_ids.max()}; was it made of other metadata?"
        )
    return p[entry_ids]


def _checked_matches(
    text_keys: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    entry_ids: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    return _checked_offsets(offsets, text_keys, entry_ids.size, "matches"), entry_ids


def _checked_offsets(
    offsets: NDArray[np.int64], keys: NDArray[np.uint64], items: int, what: str
) -> NDArray[np.int64]:
    if keys.dtype != np.uint64:
        raise TypeError(f"keys must be uint64, got {keys.dtype}")
    offsets = np.asarray(offsets, np.int64)
    fits = offsets.size == keys.size + 1 and offsets[0] == 0 and offsets[-1] == items
    if not fits or (np.diff(offsets) < 0).any():
        raise ValueError(
            f"offsets must be {keys.size + 1} ascending numbers from 0 to the {items} "
            f"{what}, got {offsets.size}: {offsets}"
        )
    return offsets
