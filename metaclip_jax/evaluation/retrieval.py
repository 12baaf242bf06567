"""Retrieval: does an image find its text among all texts, and a text its image?

Recall at k is the share of queries with a right answer among their k best. An image may
have several texts; each of them is a right answer.
"""

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

# Scores closer than the rounding error of f32 cosines are a tie. Ties count against the
# model: one that maps everything to one point has a recall of 0.
TIE = 1e-6
MEAN = "retrieval/mean_R@1"  # over both directions; only on request
KS = (1, 5, 10)  # the k of recall at k
# Images and texts scored at a time, to limit memory.
ROWS, COLUMNS = 1024, 1 << 14


def ranks(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_of_text: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rank of each query's best right answer; 0 is the top.

    Args:
        image_embeddings: f32[N, E], unit norm.
        text_embeddings: f32[M, E], unit norm.
        image_of_text: int[M], the row of each text's image.

    Returns:
        image_to_text int64[N], the rank of each image's best text among the texts, and
        text_to_image int64[M], the rank of each text's image among the images.

    Raises:
        ValueError: an embedding is not finite, or an image has no text.
    """
    images, texts = len(image_embeddings), len(text_embeddings)
    if image_of_text.shape != (texts,) or not np.array_equal(
        np.unique(image_of_text), np.arange(images)
    ):
        raise ValueError(
            f"wanted one image row per text and at least one text per image, got"
            f" {images} images, {texts} texts, and"
            f" {len(np.unique(image_of_text))} different rows in image_of_text"
        )
    for name, embeddings in (("image", image_embeddings), ("text", text_embeddings)):
        broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(broken):
            raise ValueError(
                f"wanted finite {name} embeddings, got {len(broken)} with NaN or inf"
                f" (first row {broken[0]}); the parameters have diverged, so take an"
                " earlier checkpoint"
            )

    order = np.argsort(image_of_text, kind="stable")  # texts by image
    starts = np.searchsorted(image_of_text[order], np.arange(images))
    own = np.einsum("me,me->m", text_embeddings, image_embeddings[image_of_text])
    best = np.maximum.reduceat(own[order], starts)  # of each image's own texts
    image_to_text = np.zeros(images, np.int64)
    text_to_image = np.zeros(texts, np.int64)
    for first in range(0, images, ROWS):
        rows = slice(first, min(first + ROWS, images))
        for start in range(0, texts, COLUMNS):
            columns = slice(start, min(start + COLUMNS, texts))
            scores = image_embeddings[rows] @ text_embeddings[columns].T
            numbers = np.arange(rows.start, rows.stop)
            wrong = numbers[:, None] != image_of_text[None, columns]
            image_to_text[rows] += ((scores >= best[rows, None] - TIE) & wrong).sum(1)
            text_to_image[columns] += ((scores >= own[columns] - TIE) & wrong).sum(0)
    return image_to_text, text_to_image


def chance(right_answers: np.ndarray, *, candidates: int, k: int) -> float:
    """Returns the expected recall at k of random answers without replacement.

    A query with r right answers among n misses all of them with probability
    C(n - r, k) / C(n, k); with one right answer, recall is k / n.

    Args:
        right_answers: int[queries], the right answers of each query.
        candidates: n, the number of answers.
        k: the number of draws.
    """
    drawn = min(k, candidates)
    missed = np.ones(len(right_answers))
    for i in range(drawn):
        missed *= np.maximum(candidates - right_answers - i, 0) / (candidates - i)
    return float(np.mean(1 - missed))


def names(examples: Examples) -> tuple[str, ...]:
    """Returns the names of the results of `run`; () if texts have no images."""
    if not len(examples.image_of_text):
        return ()
    ways = ("image_to_text", "text_to_image")
    wanted = tuple(name for name in examples.metrics if name == MEAN)
    return (*(f"{way}/R@{k}" for way in ways for k in KS), *wanted)


def run(
    encoder: Encoder,
    examples: Examples,
    embeddings: Embeddings,
    *,
    resamples: int,
) -> Iterator[Result]:
    """Yields recall at KS in both directions, with intervals (over images) and chance.

    Args:
        encoder: not used.
        examples: every image has a text.
        embeddings: of images and texts.
        resamples: of the bootstrap.
    """
    del encoder
    found = ranks(embeddings.image, embeddings.text, examples.image_of_text)
    yield from recall(*found, examples.image_of_text, resamples=resamples)
    if MEAN in examples.metrics:
        mean = mean_recall(*found, examples.image_of_text)
        yield statistics.result(MEAN, mean, resamples=resamples)


def statistic(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, name: str
) -> Statistic:
    """Returns MEAN as a function of the images' weights; see `run`."""
    del encoder
    if name != MEAN:
        raise ValueError(f"wanted {MEAN}, got {name}")
    found = ranks(embeddings.image, embeddings.text, examples.image_of_text)
    return mean_recall(*found, examples.image_of_text)


def mean_recall(
    image_to_text: np.ndarray, text_to_image: np.ndarray, image_of_text: np.ndarray
) -> Statistic:
    """Returns the mean of R@1 over both directions; see `recall` for the arrays."""
    found = image_to_text < 1
    texts = np.bincount(image_of_text)
    shown = np.bincount(image_of_text, weights=text_to_image < 1)

    def mean(weight: np.ndarray) -> float:
        image, text = weight @ found / weight.sum(), weight @ shown / (weight @ texts)
        return float(image + text) / 2

    by_chance = (
        chance(texts, candidates=len(image_of_text), k=1)
        + chance(np.ones(len(image_of_text)), candidates=len(found), k=1)
    ) / 2
    return Statistic(mean, len(found), by_chance)


def recall(
    image_to_text: np.ndarray,
    text_to_image: np.ndarray,
    image_of_text: np.ndarray,
    *,
    resamples: int,
) -> Iterator[Result]:
    """Yields "image_to_text/R@1" and so on; see `run`.

    Args:
        image_to_text: int64[N], see `ranks`.
        text_to_image: int64[M].
        image_of_text: int[M], the row of the image each text belongs to.
        resamples: of the bootstrap.
    """
    texts_per_image = np.bincount(image_of_text)
    one_image = np.ones(len(image_of_text), np.int64)
    for way, rank, units, right, candidates in (
        ("image_to_text", image_to_text, None, texts_per_image, len(image_of_text)),
        ("text_to_image", text_to_image, image_of_text, one_image, len(image_to_text)),
    ):
        for k in KS:
            found = statistics.share(
                rank < k,
                name=f"retrieval/{way}/{k}",
                unit_of_hit=units,
                resamples=resamples,
            )
            yield Result(
                f"{way}/R@{k}",
                found.value,
                (found.low, found.high),
                chance(right, candidates=candidates, k=k),
            )


def best_texts(
    image_embeddings: np.ndarray, text_embeddings: np.ndarray, *, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the texts with the highest cosines for each image, best first.

    On ties, the texts keep their order.

    Args:
        image_embeddings: f32[N, E], unit norm.
        text_embeddings: f32[M, E], unit norm.
        count: at most M.

    Returns:
        Text rows int64[N, count] and their cosines f32[N, count].
    """
    scores = image_embeddings @ text_embeddings.T  # [N, M]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(scores, order, axis=1)
