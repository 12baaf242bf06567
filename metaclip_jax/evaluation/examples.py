"""What a model is measured on, and what comes out: the types that evaluations share."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Rows int64[n], ascending, to n images as `Encoder.encode_images` takes them.
ReadImages = Callable[[np.ndarray], list[Any]]
UNLABELLED = -1


class Choice(NamedTuple):
    """Among which images a text chooses: their rows int64[n], and right bool[n]."""

    images: np.ndarray
    right: np.ndarray


class Examples(NamedTuple):
    """N images, read when they are asked for, and what is known of them.

    Attributes:
      source: where they are, for messages.
      names: N names, for messages and answers.
      read: gives the images of some rows.
      class_names: K tuples of names; () where there are no classes.
      templates: texts with {} for the name.
      labels: int64[N], the class of each image or UNLABELLED; or bool[N, K] where an
        image may have several classes.
      texts: M texts; () where there are none.
      image_of_text: int64[M], the row of each text's image; empty where texts are of
        no single image.
      choices: of each text, among which images it chooses; () where there are none.
      groups: int64[N], the group of each image, for numbers of the worst group; empty
        where there are none.
      metrics: names of numbers that are wanted beside the usual ones.
      whole: the images that these are a part of, which are embedded once for several
        parts; None = these are no part.
      rows: int64[N], which of them.
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
        """int64[L], the rows of the images whose class is known."""
        if self.labels.ndim == 2:
            return np.arange(len(self.labels))
        return np.flatnonzero(self.labels != UNLABELLED)

    @property
    def size(self) -> int:
        """How many examples a task counts: its texts with a choice, or its images."""
        return len(self.choices) or len(self.names)

    def texts_of(self, rows: np.ndarray) -> np.ndarray:
        """int64[m], the texts that need no image but those of these rows int64[n]."""
        if self.choices:
            return np.flatnonzero([np.isin(c.images, rows).all() for c in self.choices])
        return np.flatnonzero(np.isin(self.image_of_text, rows))

    def take(self, rows: np.ndarray) -> "Examples":
        """Only the images of these rows int64[n], ascending, and their texts."""
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

    def part(self, rows: np.ndarray) -> "Examples":
        """Images of these, without what is known of them; see `whole`."""
        return Examples(
            source=self.source,
            names=[self.names[row] for row in rows.tolist()],
            read=lambda places: self.read(rows[places]),
            whole=self,
            rows=rows,
        )


class Embeddings(NamedTuple):
    """Of all images f32[N, E] and all texts f32[M, E], unit norm."""

    image: np.ndarray
    text: np.ndarray


class Result(NamedTuple):
    """One number of an evaluation, such as "zero_shot/accuracy".

    interval: its 95% confidence interval; chance: the value of guessing. None where
    there is none.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    chance: float | None = None


class Statistic(NamedTuple):
    """How a number follows from how often each of its units (images) counts.

    value: f64[units], the weights, to the number; chance: its value by guessing.
    """

    value: Callable[[np.ndarray], float]
    units: int
    chance: float


def nested(results: Iterable[Result]) -> dict[str, Any]:
    """As JSON files hold them: {group: {name: {"value", "low", "high", "chance"}}}."""
    found: dict[str, Any] = {}
    for name, value, interval, chance in results:
        group, _, last = name.partition("/")
        cell = {"value": value}
        if interval is not None:
            cell["low"], cell["high"] = interval
        if chance is not None:
            cell["chance"] = chance
        found.setdefault(group, {})[last] = cell
    return found
