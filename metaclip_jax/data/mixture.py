"""Several datasets in one endless order, each with its share of the positions.

Positions are dealt in cycles: each cycle holds as many of each dataset as its share
asks for, give or take one, in an order of its own. So the dataset of a position can be
computed, each dataset is read in its own order, epoch by epoch, and after any number of
positions the counts are within a cycle of the shares.
"""

import hashlib
import json
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from metaclip_jax.data import draws, records

CYCLE = 4_096  # positions
_LEAST = 2 / CYCLE  # a share below this could have less than one position in a cycle


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Returns the weights as shares of 1.

    Raises ValueError for a weight that is not positive, or too small to be dealt.
    """
    if not weights or any(not 0 < weight < float("inf") for weight in weights):
        raise ValueError(
            f"data.mixture: wanted finite weights above 0, got {list(weights)}; give"
            " each dataset one"
        )
    result = tuple(weight / sum(weights) for weight in weights)
    if (least := min(result)) < _LEAST:
        raise ValueError(
            f"data.mixture has a share of {least:.2g}, but positions are dealt in "
            f"cycles of {CYCLE} and the least share is {_LEAST:.2g}; raise its weight "
            "or leave the dataset out"
        )
    return result


def deal(
    positions: NDArray[np.int64], *, shares: Sequence[float], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (dataset, position in that dataset's own order), int64 each.

    Args:
      positions: int64[n], of the mixture.
      shares: of the datasets, from `shares`.
      seed: of the deal.
    """
    if len(shares) == 1:
        return np.zeros_like(positions), positions
    datasets, own = np.empty_like(positions), np.empty_like(positions)
    cycles, inside = np.divmod(positions, CYCLE)
    for cycle in np.unique(cycles).tolist():
        here = cycles == cycle
        before, after = (_dealt(c, shares, seed) for c in (cycle, cycle + 1))
        starts = np.concatenate([[0], np.cumsum(after - before)])
        key = draws.mix(seed, draws.MIXTURE, cycle)
        place = draws.permute(
            inside[here], n=CYCLE, key=np.full(here.sum(), key, np.uint64)
        )
        datasets[here] = which = np.searchsorted(starts, place, side="right") - 1
        own[here] = place - starts[which] + before[which]
    return datasets, own


def examples_seen(
    position: int, *, shares: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Returns int64[datasets], how many of the first `position` examples each gives."""
    if len(shares) == 1:
        return np.array([position], np.int64)
    cycle, rest = divmod(position, CYCLE)
    tail = np.arange(position - rest, position, dtype=np.int64)
    which = deal(tail, shares=shares, seed=seed)[0]
    return _dealt(cycle, shares, seed) + np.bincount(which, minlength=len(shares))


def fingerprint(folders: Sequence[str], weights: Sequence[float]) -> str:
    """Returns the sha256 over the file lists in the datasets' manifests.

    That of several datasets is over their weights too, in their order.

    Raises:
      FileNotFoundError: a folder is not a finished dataset.
    """
    prints = [records.fingerprint(folder) for folder in folders]
    if len(prints) == 1:
        return prints[0]
    facts = list(zip(prints, map(float, weights), strict=True))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def members(
    dataset: str, mixture: Sequence[tuple[str, float]]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Returns (folders, weights) of config.dataset and config.data.mixture.

    Raises:
      ValueError: both are given, or none, or a folder twice.
    """
    if not mixture:
        if not dataset:
            raise ValueError(
                "wanted a dataset to train on, got none; give config.dataset, or"
                " datasets with weights as config.data.mixture"
            )
        return (dataset,), (1.0,)
    folders = tuple(folder for folder, _ in mixture)
    if dataset:
        raise ValueError(
            f"config.dataset={dataset!r} and config.data.mixture of {len(folders)} are "
            "both given; empty one of them (the mixture names all its datasets)"
        )
    if len(set(folders)) < len(folders):
        raise ValueError(
            f"config.data.mixture names a folder twice: {folders}; give it one weight"
        )
    weights = tuple(float(weight) for _, weight in mixture)
    shares(weights)
    return folders, weights


def _dealt(cycle: int, shares: Sequence[float], seed: int) -> NDArray[np.int64]:
    """Returns int64[datasets], positions of each before a cycle.

    Exact in integers of any size. The offset, drawn once, makes each dataset's chance
    at each position its share, and not that share rounded.
    """
    shift = Fraction(int(draws.mix(seed, draws.MIXTURE)), 2**64)
    counts, before = [], 0
    running = Fraction(0)
    for share in shares[:-1]:
        running += Fraction(share)
        end = int(cycle * CYCLE * running + shift)
        counts.append(end - before)
        before = end
    return np.array([*counts, cycle * CYCLE - before], np.int64)
