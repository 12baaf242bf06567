"""The size of a dataset, predicted from a sample of images, with its interval."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_Z95 = 1.959964  # 97.5% quantile of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A predicted number with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Size:
    """The predicted size after balancing, and the size of the pool."""

    texts: Estimate
    images: Estimate
    pool_texts: float
    pool_images: float


def size(
    sample: pa.Table,
    chance: NDArray[np.float64],
    selected: NDArray[np.bool_] | None = None,
) -> Size:
    """Predicts how many texts and images are kept in the whole pool, or in a part.

    The sample has whole images, uniform within each partition. So the variance of an
    estimate is the sum of that of stratified sampling of images (Cochran, Sampling
    Techniques, 5.3) and that of the independent draws.

    Args:
      sample: schema.SAMPLE, the texts of an image together.
      chance: f64[n], the probability that each text is kept.
      selected: bool[n], the texts to predict for; all by default.
    """
    if sample.num_rows == 0:
        nothing = Estimate(0.0, 0.0, 0.0)
        return Size(nothing, nothing, 0.0, 0.0)
    ids = sample["image_id"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    selected = np.ones(ids.size, bool) if selected is None else selected
    chance = chance * selected
    weight = sample["weight"].to_numpy()[starts]
    partition = sample["partition"].to_numpy()[starts]
    texts = np.add.reduceat(selected.astype(np.int64), starts)
    kept_texts = np.add.reduceat(chance, starts)
    kept_image = 1 - np.multiply.reduceat(1 - chance, starts)
    _, stratum = np.unique(partition, return_inverse=True)
    n = np.bincount(stratum).astype(np.float64)
    total = np.bincount(stratum, weight)

    def estimate(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> Estimate:
        """Estimates the pool's sum of a number per image, with its variance."""
        value = float(np.sum(weight * mean))
        spread = float(np.sum(weight * variance))
        apart = (mean - (np.bincount(stratum, mean) / n)[stratum]) ** 2
        square = np.bincount(stratum, apart) / np.maximum(n - 1, 1)
        spread += float(np.sum(total**2 * (1 - n / total) * square / n))
        reach = _Z95 * np.sqrt(spread)
        return Estimate(value, max(0.0, value - reach), value + reach)

    return Size(
        texts=estimate(kept_texts, np.add.reduceat(chance * (1 - chance), starts)),
        images=estimate(kept_image, kept_image * (1 - kept_image)),
        pool_texts=float(np.sum(weight * texts)),
        pool_images=float(np.sum(weight[texts > 0])),
    )
