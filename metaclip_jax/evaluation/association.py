"""Association (WinoGAViL): does a text find the images that people chose for it?

If n of the candidate images are right, the answer is the n with the highest cosine. The
metric is the Jaccard index of answered and right images, averaged over texts.
"""

import math
from collections.abc import Iterator

import numpy as np

from metaclip_jax.evaluation import statistics
from metaclip_jax.evaluation.encoder import Encoder
from metaclip_jax.evaluation.examples import (
    Embeddings,
    Examples,
    Result,
    Statistic,
)

# Metrics, and the least and most candidate images of their texts.
SIZES = {
    "association/jaccard": (0, 1 << 30),
    "association/jaccard_5_6": (5, 6),
    "association/jaccard_10_12": (10, 12),
}


def names(examples: Examples) -> tuple[str, ...]:
    """Returns the names of the results of `run`; () if no text has a choice."""
    return tuple(name for name in SIZES if len(_rows(examples, name)))


def run(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, *, resamples: int
) -> Iterator[Result]:
    """Yields the Jaccard index over all texts and by the number of candidates.

    Args:
      encoder: not used.
      examples: with a choice for each text.
      embeddings: of images and texts.
      resamples: of the bootstrap behind each interval, over texts.
    """
    for name in names(examples):
        found = statistic(encoder, examples, embeddings, name)
        yield statistics.result(name, found, resamples=resamples)


def statistic(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, name: str
) -> Statistic:
    """Returns the result `name` as a function of the texts' weights; see `run`."""
    del encoder
    rows = _rows(examples, name)
    each = np.array(
        [
            jaccard(embeddings.image[choice.images] @ text, choice.right)
            for choice, text in zip(
                [examples.choices[row] for row in rows.tolist()],
                embeddings.text[rows],
                strict=True,
            )
        ]
    )
    guessed = [
        chance(len(choice.images), int(choice.right.sum()))
        for choice in (examples.choices[row] for row in rows.tolist())
    ]
    return Statistic(
        lambda weight: float(np.average(each, weights=weight)),
        len(each),
        float(np.mean(guessed)),
    )


def jaccard(scores: np.ndarray, right: np.ndarray) -> float:
    """Returns the Jaccard index of the right images and as many with the best scores.

    Args:
      scores: f[n].
      right: bool[n], at least one true.
    """
    count = int(right.sum())
    hits = int(right[np.argsort(scores)[-count:]].sum())
    return hits / (2 * count - hits)


def chance(images: int, right: int) -> float:
    """Returns the expected Jaccard index of `right` images drawn at random."""
    drawn = math.comb(images, right)
    return sum(
        math.comb(right, hits)
        * math.comb(images - right, right - hits)
        / drawn
        * hits
        / (2 * right - hits)
        for hits in range(1, right + 1)
    )


def _rows(examples: Examples, name: str) -> np.ndarray:
    """Returns the rows of the texts of a metric."""
    least, most = SIZES[name]
    sizes = [len(choice.images) for choice in examples.choices]
    return np.flatnonzero([least <= size <= most for size in sizes])
