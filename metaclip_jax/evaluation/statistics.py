"""Confidence intervals of metrics, by scipy.

A share of independent hits has Wilson's interval, which has a width even if all hits
are right or all are wrong. Dependent hits and means over classes are bootstrapped. A
hash of the metric's name seeds the resampling, so the interval is equal on every
machine, and two models on the same examples get the same resamples.
"""

import hashlib

import numpy as np

from metaclip_jax.evaluation.examples import Result, Statistic


def result(name: str, statistic: Statistic, *, resamples: int) -> Result:
    """Returns a statistic of the given examples, with its 95% interval.

    This is Wilson's interval of independent hits, else the percentile bootstrap's. If
    all units are equal, the bootstrap's has no width, a limit of the method.

    Args:
      name: of the result; seeds the draws if the statistic has no seed of its own.
      statistic: to measure.
      resamples: the number of resampled data sets; 1 = an interval without width, as
        in training.

    Raises:
      ValueError: no units or no resamples.
    """
    units = statistic.units
    if units is None:
        return Result(name, statistic.value(np.ones(0)), None, statistic.chance)
    if units < 1 or resamples < 1:
        raise ValueError(
            f"wanted units >= 1 and resamples >= 1 for {name!r}, got units={units},"
            f" resamples={resamples}"
        )
    value = float(statistic.value(np.ones(units)))
    interval = value, value
    if statistic.hits is not None and resamples > 1:
        from scipy import stats  # a slow import that few commands need

        test = stats.binomtest(int(statistic.hits.sum()), units)
        found = test.proportion_ci(0.95, method="wilson")
        interval = float(found.low), float(found.high)
    elif min(units, resamples) > 1:  # scipy requires at least two of both
        seed = statistic.seed or name
        interval = _bootstrap(statistic, units, seed=seed, resamples=resamples)
    return Result(name, value, interval, statistic.chance)


def _bootstrap(
    statistic: Statistic, units: int, *, seed: str, resamples: int
) -> tuple[float, float]:
    from scipy import stats

    digest = hashlib.blake2b(f"0:{seed}".encode(), digest_size=16).digest()
    found = stats.bootstrap(
        (np.arange(units),),
        lambda drawn: statistic.value(
            np.bincount(drawn, minlength=units).astype(np.float64)
        ),
        n_resamples=resamples,
        batch=1,  # holds one resample in memory
        vectorized=False,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8"))),
    )
    low, high = found.confidence_interval
    return float(low), float(high)


def share(
    hits: np.ndarray,
    chance: float,
    *,
    unit_of_hit: np.ndarray | None = None,
    seed: str = "",
) -> Statistic:
    """Returns the share of hits as a function of the units' weights.

    Args:
      hits: bool[n].
      chance: the expected share of guessing.
      unit_of_hit: int[n], the independent unit (0, 1, ...) of each hit; None = every
        hit is a unit.
      seed: see `Statistic`.

    Raises:
      ValueError: `hits` is empty.
    """
    if len(hits) == 0:
        raise ValueError("wanted at least one result, got none")
    units = np.arange(len(hits)) if unit_of_hit is None else unit_of_hit
    right = np.bincount(units, weights=hits.astype(np.float64))
    size = np.bincount(units).astype(np.float64)
    right, size = right[size > 0], size[size > 0]
    return Statistic(
        lambda weight: float(weight @ right / (weight @ size)),
        len(size),
        chance,
        hits=right > 0 if size.max() == 1 else None,
        seed=seed,
    )
