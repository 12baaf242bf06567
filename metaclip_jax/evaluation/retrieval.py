"""Retrieval: does an image find its text among all texts, and a text its image?

Recall at k is the share of queries with a right answer among their k best. An image may
have several texts; each of them is a right answer.
"""

import numpy as np

from metaclip_jax.evaluation import statistics
from metaclip_jax.evaluation.encoder import Encoder
from metaclip_jax.evaluation.examples import Embeddings, Examples, Statistic

# Scores closer than the rounding error of f32 cosines are a tie. Ties count against the
# model: one that maps everything to one point has a recall of 0.
TIE = 1e-6
MEAN = "retrieval/mean_R@1"  # over both directions; only on request
WAYS = ("image_to_text", "text_to_image")
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
    """Returns the names of the results of `measure`; () if texts have no images."""
    if not len(examples.image_of_text):
        return ()
    wanted = tuple(name for name in examples.metrics if name == MEAN)
    return (*(f"{way}/R@{k}" for way in WAYS for k in KS), *wanted)


def measure(
    encoder: Encoder, examples: Examples, embeddings: Embeddings
) -> dict[str, Statistic]:
    """Returns recall at KS in both directions, and their mean at 1 (MEAN), by name.

    Args:
        encoder: not used.
        examples: every image has a text; the images are the units.
        embeddings: of images and texts.
    """
    del encoder
    found = ranks(embeddings.image, embeddings.text, examples.image_of_text)
    of_name = recall(*found, examples.image_of_text)
    return {name: of_name[name] for name in names(examples)}


def recall(
    image_to_text: np.ndarray, text_to_image: np.ndarray, image_of_text: np.ndarray
) -> dict[str, Statistic]:
    """Returns all results of retrieval by name, such as "image_to_text/R@1".

    Args:
        image_to_text: int64[N], see `ranks`.
        text_to_image: int64[M].
        image_of_text: int[M], the row of the image each text belongs to.
    """
    images, texts = len(image_to_text), len(image_of_text)
    texts_of_image = np.bincount(image_of_text)
    one_image = np.ones(texts, np.int64)
    of_name = {}
    for k in KS:
        by_chance = chance(texts_of_image, candidates=texts, k=k)
        of_name[f"image_to_text/R@{k}"] = statistics.share(image_to_text < k, by_chance)
        of_name[f"text_to_image/R@{k}"] = statistics.share(
            text_to_image < k,
            chance(one_image, candidates=images, k=k),
            unit_of_hit=image_of_text,
            seed=f"retrieval/text_to_image/{k}",
        )
    ways = [of_name[f"{way}/R@1"] for way in WAYS]
    of_name[MEAN] = Statistic(
        lambda weight: sum(way.value(weight) for way in ways) / 2,
        images,
        sum(way.chance or 0.0 for way in ways) / 2,
    )
    return of_name


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
