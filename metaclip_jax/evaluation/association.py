"""Association (WinoGAViL): does a text find the images that people chose for it?

If n of the candidate images are right, the answer is the n with the highest cosine. The
metric is the Jaccard index of answered and right images, averaged over texts.
"""

import functools
import math

import numpy as np

from metaclip_jax.evaluation.encoder import Encoder
from metaclip_jax.evaluation.examples import Embeddings, Examples, Statistic

# Metrics, and the least and most candidate images of their texts.
SIZES = {
    "association/jaccard": (0, 1 << 30),
    "association/jaccard_5_6": (5, 6),
    "association/jaccard_10_12": (10, 12),
}


def names(examples: Examples) -> tuple[str, ...]:
    """Returns the names of the results of `measure`; () if no text has a choice."""
    return tuple(name for name in SIZES if len(_rows(examples, name)))


def measure(
    encoder: Encoder, examples: Examples, embeddings: Embeddings
) -> dict[str, Statistic]:
    """Returns the Jaccard index over all texts and by the number of candidates.

    Args:
      encoder: not used.
      examples: with a choice for each text; the texts are the units.
      embeddings: of images and texts.
    """
    del encoder
    each = np.array(
        [
            jaccard(embeddings.image[choice.images] @ text, choice.right)
            for choice, text in zip(examples.choices, embeddings.text, strict=True)
        ]
    )
    guessed = np.array(
        [chance(len(c.images), int(c.right.sum())) for c in examples.choices]
    )
    return {
        name: Statistic(
            functools.partial(np.average, each[rows], None),
            len(rows),
            float(np.mean(guessed[rows])),
        )
        for name in names(examples)
        for rows in [_rows(examples, name)]
    }


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
