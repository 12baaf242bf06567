"""How sure a measured share is: confidence intervals by scipy.

Independent hits have Wilson's interval, which has a width even where all are right or
all are wrong. Hits that hang together, and means over classes, are bootstrapped: the
draws are seeded by a hash of (seed, name of the number), so the same results give the
same interval on every machine, and two models measured on the same examples are
resampled alike.
"""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """A measured value and its confidence interval."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    *,
    units: int,
    name: str,
    resamples: int,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap of a statistic of weighted units.

    Args:
        statistic: maps f64[units], how often each unit was drawn, to the number. All
            ones give the measured value.
        units: independent examples, for example images (texts of one image hang
            together, so they are drawn together).
        name: what is measured; with the seed it decides the draws.
        resamples: number of resampled data sets.
        seed: another seed gives other draws.
        confidence: share of resamples inside the interval.

    Returns:
        The value with the interval's ends. Where every unit agrees (all right or all
        wrong) the interval has no width: the bootstrap cannot see further.

    Raises:
        ValueError: no units, no resamples, or a confidence outside (0, 1).
    """
    if units < 1 or resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"want units >= 1, resamples >= 1 and 0 < confidence < 1 for {name!r}, got"
            f" units={units}, resamples={resamples}, confidence={confidence}"
        )
    value = float(statistic(np.ones(units)))
    # scipy wants two or more of both. One draw is asked for where nobody wants to know
    # how sure the value is, as while training.
    if min(units, resamples) == 1:
        return Interval(value, value, value)
    from scipy import stats  # it takes long to load, and few commands need it

    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
    found = stats.bootstrap(
        (np.arange(units),),
        lambda drawn: statistic(np.bincount(drawn, minlength=units).astype(np.float64)),
        n_resamples=resamples,
        batch=1,  # one draw of all units in memory
        vectorized=False,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8"))),
    )
    low, high = found.confidence_interval
    return Interval(value, float(low), float(high))


def share(
    hits: np.ndarray,
    *,
    name: str,
    resamples: int,
    unit_of_hit: np.ndarray | None = None,
    seed: int = 0,
) -> Interval:
    """The share of hits with its 95% interval.

    Wilson's interval if every unit has one hit, else a bootstrap over the units.

    Args:
        hits: bool[n].
        name: what is measured, for example "zero_shot/accuracy".
        resamples: see `bootstrap`.
        unit_of_hit: int[n], the independent unit (0, 1, ...) each hit belongs to;
            None where every hit is its own.
        seed: see `bootstrap`.

    Raises:
        ValueError: there are no hits to take a share of.
    """
    if len(hits) == 0:
        raise ValueError(f"{name}: want at least one result, got none")
    units = np.arange(len(hits)) if unit_of_hit is None else unit_of_hit
    right = np.bincount(units, weights=hits.astype(np.float64))
    size = np.bincount(units).astype(np.float64)
    occupied = size > 0
    right, size = right[occupied], size[occupied]
    if size.max() == 1:
        from scipy import stats

        found = stats.binomtest(int(right.sum()), len(size))
        low, high = found.proportion_ci(0.95, method="wilson")
        return Interval(found.statistic, float(low), float(high))
    return bootstrap(
        lambda weight: float(weight @ right / (weight @ size)),
        units=len(size),
        name=name,
        resamples=resamples,
        seed=seed,
    )


def mean_share_per_class(
    hits: np.ndarray,
    labels: np.ndarray,
    *,
    name: str,
    resamples: int,
    seed: int = 0,
) -> Interval:
    """The mean over classes of the share of hits in each, with its 95% interval.

    Classes without an example (in the data or in a resample) are left out of the mean.

    Args:
        hits: bool[n].
        labels: int[n], the class of each.
        name: what is measured.
        resamples: see `bootstrap`.
        seed: see `bootstrap`.
    """

    def mean_of_shares(weight: np.ndarray) -> float:
        size = np.bincount(labels, weights=weight)
        right = np.bincount(labels, weights=weight * hits)
        seen = size > 0
        return float(np.mean(right[seen] / size[seen]))

    return bootstrap(
        mean_of_shares, units=len(hits), name=name, resamples=resamples, seed=seed
    )
