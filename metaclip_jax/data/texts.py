"""Which text of an image is shown in an epoch: a draw by hash, weighted by source.

An image has several texts: its alt text, a caption, a synthetic description. One of
them stands for it in each epoch. Balancing looks at the text that was drawn among the
original ones; a synthetic one then takes its place in a set share of cases, so that a
share of synthetic texts changes no image's chance to be kept.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaclip_jax.data import balance, draws

_FULL = 1 << 20  # the largest weight as an integer: sums are exact in any grouping


@dataclass(frozen=True)
class Choice:
    """How texts are drawn.

    Attributes:
      weights: (text source, weight) pairs; sources that are not named weigh 1. A source
        of weight 0 is never shown.
      synthetic_sources: the text sources that are synthetic.
      synthetic_share: in this share of draws a synthetic text is shown, if the image
        has both kinds; with one kind, that is shown.
    """

    weights: tuple[tuple[str, float], ...] = ()
    synthetic_sources: tuple[str, ...] = ()
    synthetic_share: float = 0.0

    def __post_init__(self) -> None:
        names = [name for name, _ in self.weights]
        if len(set(names)) < len(names) or any(not w >= 0 for _, w in self.weights):
            raise ValueError(
                "data.text_source_weights must name each text source once, with a "
                f"weight of at least 0, got {self.weights}"
            )
        if self.weights and not sum(weight for _, weight in self.weights) < np.inf:
            raise ValueError(f"data.text_source_weights: not finite: {self.weights}")
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
        """Refuses text sources that no dataset has, and weights that show no text.

        Args:
          counts: texts by source, as the data card of each dataset has them; where one
            counts none, nothing is known.

        Raises:
          ValueError: names the keys, and the sources that occur.
        """
        known = set().union(*counts)
        wrong = [
            f"config.data.{key}: wanted text sources that the data card counts"
            f" ({', '.join(sorted(known))}), got {', '.join(unknown)}; correct the name"
            " or leave it out"
            for key, named in (
                ("text_source_weights", [name for name, _ in self.weights]),
                ("synthetic_sources", self.synthetic_sources),
            )
            if (unknown := [name for name in named if name not in known])
        ]
        if known and not any(dict(self.weights).get(name, 1) for name in known):
            wrong.append(
                "config.data.text_source_weights: wanted a weight above 0 for some text"
                f" source of the data, got {self.weights}"
            )
        if wrong and all(counts):
            raise ValueError("\n".join(wrong))

    @property
    def needs_sources(self) -> bool:
        """Whether a text's source matters at all."""
        return bool(self.weights or self.synthetic_sources)

    def kinds(self, sources: Sequence[str]) -> tuple[NDArray, NDArray]:
        """Returns (int64[n] weights, bool[n] synthetic) of texts by their source."""
        largest = max(1.0, *(weight for _, weight in self.weights), 1.0)
        table = {
            name: max(1, round(weight / largest * _FULL)) if weight else 0
            for name, weight in self.weights
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
    """Draws the text of each image for its epoch, with chances by weight.

    The draw goes by image, not by where a record stands.

    Args:
      image_keys: uint64[n], the identity of each image.
      text_counts: int64[n], how many texts each has.
      epochs: int64[n] or one for all.
      seed: of the draws.
      kinds: what `Choice.kinds` says of all texts, image by image; None = all texts are
        original and weigh the same.

    Returns:
      (int64[n], int64[n]): the number of the text that balancing looks at (an original
      one where there is one), and of a synthetic text; -1 where an image has none that
      weighs anything. They are counted from the image's first text.
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
    """Returns int64[n], the text of each image that the model sees; -1 where none.

    It is the one of `draw` that balancing looks at, or the synthetic one with chance
    `synthetic_share`.
    """
    chosen, made = draw(image_keys, text_counts, epochs=epochs, seed=seed, kinds=kinds)
    if not synthetic_share:
        return chosen
    bits = draws.mix(seed, draws.SYNTHETIC, epochs, image_keys, 1)
    replaced = (draws.uniform(bits) < synthetic_share) & (made >= 0)
    return np.where(replaced, made, chosen)
