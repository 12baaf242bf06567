"""Confidence intervals of metrics, by scipy.

A share of independent hits has Wilson's interval, which has a width even if all hits
are right or all are wrong. Dependent hits and means over classes are bootstrapped. A
hash of (seed, metric's name) seeds the resampling, so the interval is equal on every
machine, and two models on the same examples get the same resamples.
"""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from metaclip_jax.evaluation.examples import Result, Statistic


@dataclasses.dataclass(frozen=True)
class Interval:
    """A measured value and its confidence interval."""

    value: float
    low: float
    high: float


def result(name: str, statistic: Statistic, *, resamples: int) -> Result:
    """Returns a statistic of the given examples, with its bootstrap interval."""
    interval = bootstrap(
        statistic.value, units=statistic.units, name=name, resamples=resamples
    )
    return Result(name, interval.value, (interval.low, interval.high), statistic.chance)


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    *,
    units: int,
    name: str,
    resamples: int,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Returns the percentile bootstrap interval of a statistic of weighted units.

    Args:
        statistic: maps f64[units], how often each unit was drawn, to the metric. All
            ones give the measured value.
        units: the number of independent units, for example images: texts of one image
            are dependent, so they are drawn together.
        name: of the metric; seeds the draws, together with `seed`.
        resamples: the number of resampled data sets; 1 = no interval, as in training.
        seed: another seed gives other draws.
        confidence: the share of resamples inside the interval.

    Returns:
        The value with the interval's ends. If all units are equal (all right or all
        wrong), the interval has no width, a limit of the bootstrap.

    Raises:
        ValueError: no units, no resamples, or a confidence outside (0, 1).
    """
    if units < 1 or resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"wanted units >= 1, resamples >= 1 and 0 < confidence < 1 for {name!r},"
            f" got units={units}, resamples={resamples}, confidence={confidence}"
        )
    value = float(statistic(np.ones(units)))
    # scipy requires at least two of both.
    if min(units, resamples) == 1:
        return Interval(value, value, value)
    from scipy import stats  # a slow import that few commands need

    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
    found = stats.bootstrap(
        (np.arange(units),),
        lambda drawn: statistic(np.bincount(drawn, minlength=units).astype(np.float64)),
        n_resamples=resamples,
        batch=1,  # holds one resample in memory
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
    """Returns the share of hits with its 95% interval.

    This is Wilson's interval if every unit has one hit, else a bootstrap over units.

    Args:
        hits: bool[n].
        name: of the metric, for example "zero_shot/accuracy".
        resamples: see `bootstrap`.
        unit_of_hit: int[n], the independent unit (0, 1, ...) of each hit; None = every
            hit is a unit.
        seed: see `bootstrap`.

    Raises:
        ValueError: `hits` is empty.
    """
    if len(hits) == 0:
        raise ValueError(f"{name}: wanted at least one result, got none")
    units = np.arange(len(hits)) if unit_of_hit is None else unit_of_hit
    right = np.bincount(units, weights=hits.astype(np.float64))
    size = np.bincount(units).astype(np.float64)
    occupied = size > 0
    right, size = right[occupied], size[occupied]
    if size.max() == 1 and resamples > 1:
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
    """Returns the mean over classes of the share of hits, with its 95% interval.

    Classes without an example, in the data or in a resample, are excluded.

    Args:
        hits: bool[n].
        labels: int[n], the class of each hit.
        name: of the metric.
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
