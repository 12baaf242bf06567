"""Draws the text that an image is trained with in an epoch, weighted by text source.

An image may have several texts: alt text, caption, synthetic description. Each epoch
uses one of them. Balancing uses a text drawn from the original ones; training then
replaces it by a synthetic one with a set probability. So synthetic texts do not change
an image's probability to be kept.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaclip_jax.data import balance, draws

_FULL = 1 << 20  # the largest weight, scaled to an integer so that sums are exact


@dataclass(frozen=True)
class Choice:
    """How texts are drawn.

    Attributes:
      text_source_weights: (text source, weight) pairs; other sources have weight 1. A
        source with weight 0 is never used.
      synthetic_sources: the text sources that are synthetic.
      synthetic_share: the probability of a synthetic text if an image has both kinds;
        an image with one kind uses that.
    """

    text_source_weights: tuple[tuple[str, float], ...] = ()
    synthetic_sources: tuple[str, ...] = ()
    synthetic_share: float = 0.0

    def __post_init__(self) -> None:
        pairs = self.text_source_weights
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names) or any(not w >= 0 for _, w in pairs):
            raise ValueError(
                "data.text_source_weights must name each text source once, with a "
                f"weight of at least 0, got {pairs}"
            )
        if pairs and not sum(weight for _, weight in pairs) < np.inf:
            raise ValueError(f"data.text_source_weights must be finite, got {pairs}")
        if not 0 <= self.synthetic_share <= 1:
            raise ValueError(
                f"data.synthetic_share must be within 0 to 1, got "
                f"{self.synthetic_share}"
            )
        if self.synthetic_share and not self.synthetic_sources:
            raise ValueError(
                f"data.synthetic_share={self.synthetic_share} needs "
                "data.synthetic_sources, the text sources that are synthetic"
            )

    def check_sources(self, counts: Sequence[Mapping[str, int]]) -> None:
        """Checks that the datasets have the named sources and some weight is above 0.

        Args:
          counts: the number of texts by source, from the data card of each dataset. If
            a card has no counts, nothing is checked.

        Raises:
          ValueError: they do not; the message names the keys and the sources.
        """
        known = set().union(*counts)
        wrong = [
            f"config.data.{key}: wanted text sources that the data card counts"
            f" ({', '.join(sorted(known))}), got {', '.join(unknown)}; correct the name"
            " or remove it"
            for key, named in (
                ("text_source_weights", [name for name, _ in self.text_source_weights]),
                ("synthetic_sources", self.synthetic_sources),
            )
            if (unknown := [name for name in named if name not in known])
        ]
        if known and not any(
            dict(self.text_source_weights).get(name, 1) for name in known
        ):
            wrong.append(
                "config.data.text_source_weights: wanted a weight above 0 for some text"
                f" source of the data, got {self.text_source_weights}"
            )
        if wrong and all(counts):
            raise ValueError("\n".join(wrong))

    @property
    def needs_sources(self) -> bool:
        """Whether the draw depends on the texts' sources."""
        return bool(self.text_source_weights or self.synthetic_sources)

    def kinds(self, sources: Sequence[str]) -> tuple[NDArray, NDArray]:
        """Returns (int64[n] weights, bool[n] is synthetic) for texts' sources."""
        largest = max(1.0, *(weight for _, weight in self.text_source_weights), 1.0)
        table = {
            name: max(1, round(weight / largest * _FULL)) if weight else 0
            for name, weight in self.text_source_weights
        }
        other = max(1, round(_FULL / largest))
        weights = np.array([table.get(name, other) for name in sources], np.int64)
        synthetic = [name in self.synthetic_sources for name in sources]
        return weights, np.array(synthetic, bool)


def draw(
    image_keys: NDArray[np.uint64],
    text_counts: NDArray[np.int64],
    *,
    epochs: NDArray[np.int64] | int,
    seed: int,
    kinds: tuple[NDArray, NDArray] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws an original and a synthetic text of each image for an epoch.

    The draw depends on the image, not on the position of its record.

    Args:
      image_keys: uint64[n], from balance.image_keys.
      text_counts: int64[n], the number of texts of each image.
      epochs: int64[n] or one for all.
      seed: of the draws.
      kinds: `Choice.kinds` of all texts, grouped by image; None = all texts are
        original and have equal weights.

    Returns:
      (int64[n], int64[n]): the index, among the image's texts, of the text for
      balancing (an original one, or a synthetic one if there is no original), and of a
      synthetic text; -1 if no such text has a weight above 0.
    """
    choose = functools.partial(
        balance.choose_texts, image_keys, text_counts, epochs=epochs, seed=seed
    )
    if kinds is None:
        return choose(), np.full(text_counts.shape, -1)
    weights, synthetic = kinds
    original = choose(weights=np.where(synthetic, 0, weights))
    made = choose(weights=np.where(synthetic, weights, 0), purpose=draws.SYNTHETIC)
    return np.where(original >= 0, original, made), made


def shown(
    image_keys: NDArray[np.uint64],
    text_counts: NDArray[np.int64],
    *,
    epochs: NDArray[np.int64] | int,
    seed: int,
    kinds: tuple[NDArray, NDArray] | None = None,
    synthetic_share: float = 0.0,
) -> NDArray[np.int64]:
    """Returns int64[n], the index of the text that training uses; -1 = none.

    With probability `synthetic_share` it is the synthetic text of `draw`, otherwise the
    text for balancing.
    """
    chosen, made = draw(image_keys, text_counts, epochs=epochs, seed=seed, kinds=kinds)
    if not synthetic_share:
        return chosen
    bits = draws.mix(seed, draws.SYNTHETIC, epochs, image_keys, 1)
    replaced = (draws.uniform(bits) < synthetic_share) & (made >= 0)
    return np.where(replaced, made, chosen)
