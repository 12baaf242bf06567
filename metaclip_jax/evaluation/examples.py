"""The types of evaluations: examples, embeddings and results."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Ascending rows int64[n] -> n images for `Encoder.encode_images`.
ReadImages = Callable[[np.ndarray], Sequence[Any]]
UNLABELLED = -1


class Choice(NamedTuple):
    """The candidate images of a text: their rows int64[n], and `right` bool[n]."""

    images: np.ndarray
    right: np.ndarray


class Examples(NamedTuple):
    """N images, read on demand, with classes or texts.

    Attributes:
      source: the folder or data set, for messages.
      names: N names, for messages and results.
      read: returns the images of some rows.
      class_names: K tuples of names; () = no classes.
      templates: prompts with {} for the name.
      labels: int64[N], the class of each image or UNLABELLED; or bool[N, K] if an image
        may have several classes.
      texts: M texts; () = none.
      image_of_text: int64[M], the row of each text's image; empty if a text does not
        belong to one image.
      choices: the candidate images of each text; () = none.
      groups: int64[N], the group of each image, for metrics of the worst group; empty =
        none.
      metrics: names of additional results that are wanted.
      whole: the image set of which these are a subset, which is embedded once for all
        its subsets; None = not a subset.
      rows: int64[N], the images' rows in `whole`.
    """

    source: str
    names: Sequence[str]
    read: ReadImages
    class_names: tuple[tuple[str, ...], ...] = ()
    templates: tuple[str, ...] = ()
    labels: np.ndarray = np.zeros(0, np.int64)
    texts: Sequence[str] = ()
    image_of_text: np.ndarray = np.zeros(0, np.int64)
    choices: Sequence[Choice] = ()
    groups: np.ndarray = np.zeros(0, np.int64)
    metrics: tuple[str, ...] = ()
    whole: "Examples | None" = None
    rows: np.ndarray = np.zeros(0, np.int64)

    @property
    def labelled(self) -> np.ndarray:
        """int64[L], the rows of the images with a label."""
        if self.labels.ndim == 2:
            return np.arange(len(self.labels))
        return np.flatnonzero(self.labels != UNLABELLED)

    @property
    def size(self) -> int:
        """The number of a task's examples: texts if they have choices, else images."""
        return len(self.choices) or len(self.names)

    def texts_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns int64[m], the texts that need only the images of rows int64[n]."""
        if self.choices:
            return np.flatnonzero([np.isin(c.images, rows).all() for c in self.choices])
        return np.flatnonzero(np.isin(self.image_of_text, rows))

    def take(self, rows: np.ndarray) -> "Examples":
        """Returns the images of ascending rows int64[n], and their texts."""
        texts = self.texts_of(rows)
        of = self.image_of_text[texts] if len(self.image_of_text) else texts[:0]
        chosen = [self.choices[row] for row in texts.tolist()] if self.choices else ()
        return self._replace(
            names=[self.names[row] for row in rows.tolist()],
            read=lambda places: self.read(rows[places]),
            labels=self.labels[rows] if len(self.labels) else self.labels,
            texts=[self.texts[row] for row in texts.tolist()],
            image_of_text=np.searchsorted(rows, of),
            choices=[Choice(np.searchsorted(rows, c.images), c.right) for c in chosen],
            groups=self.groups[rows] if len(self.groups) else self.groups,
            rows=self.rows[rows] if self.whole is not None else self.rows,
        )

    def with_texts(self, texts_of: Sequence[Sequence[str]]) -> "Examples":
        """Returns the images with the texts of each."""
        return self._replace(
            texts=[text for texts in texts_of for text in texts],
            image_of_text=np.repeat(np.arange(len(texts_of)), [*map(len, texts_of)]),
        )

    def part(self, rows: np.ndarray) -> "Examples":
        """Returns a subset of the images without classes and texts; see `whole`."""
        return Examples(
            source=self.source,
            names=[self.names[row] for row in rows.tolist()],
            read=lambda places: self.read(rows[places]),
            whole=self,
            rows=rows,
        )


class Embeddings(NamedTuple):
    """Embeddings of all images f32[N, E] and all texts f32[M, E], unit norm."""

    image: np.ndarray
    text: np.ndarray


class Result(NamedTuple):
    """One result of an evaluation, such as "zero_shot/accuracy".

    interval: its 95% confidence interval, or None; chance: the expected value of
    guessing, or None.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    chance: float | None = None

    def cell(self) -> dict[str, float]:
        """Returns the result as JSON: "value", and what it has of low, high, chance."""
        cell = {"value": self.value}
        if self.interval is not None:
            cell["low"], cell["high"] = self.interval
        if self.chance is not None:
            cell["chance"] = self.chance
        return cell


class Statistic(NamedTuple):
    """A result as a function of the weights of its units (images or texts).

    Attributes:
      value: maps the weights f64[units], how often each unit counts, to the result.
      units: the number of independent units: texts of one image are dependent, so the
        image is the unit. None = the result has no interval.
      chance: the expected value of guessing, or None.
      hits: bool[units], if the result is the share of independent hits; else None.
      seed: of the bootstrap; "" = the result's name.
    """

    value: Callable[[np.ndarray], float]
    units: int | None
    chance: float | None
    hits: np.ndarray | None = None
    seed: str = ""


def nested(results: Iterable[Result]) -> dict[str, Any]:
    """Returns results as JSON: {group: {name: {"value", "low", "high", "chance"}}}."""
    found: dict[str, Any] = {}
    for result in results:
        group, _, last = result.name.partition("/")
        found.setdefault(group, {})[last] = result.cell()
    return found
