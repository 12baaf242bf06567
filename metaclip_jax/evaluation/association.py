"""Association: does a text find, among a few images, those that people chose for it?

WinoGAViL's. As many images as are right are answered, those nearest to the text; the
number is the Jaccard index of the answered and the right ones, averaged over texts.
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

# Numbers, and from how many to how many images their texts choose among.
SIZES = {
    "association/jaccard": (0, 1 << 30),
    "association/jaccard_5_6": (5, 6),
    "association/jaccard_10_12": (10, 12),
}


def names(examples: Examples) -> tuple[str, ...]:
    """What `run` measures on these examples; () where no text has a choice."""
    return tuple(name for name in SIZES if len(_rows(examples, name)))


def run(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, *, resamples: int
) -> Iterator[Result]:
    """Yields the Jaccard index over all texts and by the number of images.

    Args:
      encoder: what embedded; nothing more is embedded here.
      examples: with a choice for each text.
      embeddings: of both.
      resamples: of the bootstrap behind each interval, over texts.
    """
    for name in names(examples):
        found = statistic(encoder, examples, embeddings, name)
        interval = statistics.bootstrap(
            found.value, units=found.units, name=name, resamples=resamples
        )
        yield Result(name, interval.value, (interval.low, interval.high), found.chance)


def statistic(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, name: str
) -> Statistic:
    """How the number `name` follows from the texts; see `run` for the arguments."""
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
    """Of the images with the highest scores, as many as are right, with those.

    Args:
      scores: f[n].
      right: bool[n], at least one true.
    """
    count = int(right.sum())
    hits = int(right[np.argsort(scores)[-count:]].sum())
    return hits / (2 * count - hits)


def chance(images: int, right: int) -> float:
    """Expected Jaccard index of `right` images drawn at random from all."""
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
    """The texts that a number is over."""
    least, most = SIZES[name]
    sizes = [len(choice.images) for choice in examples.choices]
    return np.flatnonzero([least <= size <= most for size in sizes])
