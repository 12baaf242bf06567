"""Retrieval: does an image find its text among all texts, and a text its image?

Recall at k is the share of queries that have a right answer among their k best. An
image may have several texts; any of them is a right answer.
"""

from collections.abc import Sequence

import numpy as np

from metaclip_jax.evaluation import statistics

# Cosines of f32 vectors are not surer than this, so closer scores are a tie. Ties count
# against the model: one that maps everything to one point finds nothing.
TIE = 1e-6
KS = (1, 5, 10)  # ranks that recall is told for
# Queries scored at a time, which bounds memory to ROWS x candidates.
ROWS = 1024


def ranks(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_of_text: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """How many wrong answers come before each query's best right answer.

    Args:
        image_embeddings: f32[N, E], unit norm.
        text_embeddings: f32[M, E], unit norm.
        image_of_text: int[M], the row of the image each text belongs to.

    Returns:
        image_to_text int64[N], the rank of each image's best text among the texts, and
        text_to_image int64[M], the rank of each text's image among the images; 0 is
        the top.

    Raises:
        ValueError: an embedding is not finite, or an image has no text.
    """
    images, texts = len(image_embeddings), len(text_embeddings)
    if image_of_text.shape != (texts,) or not np.array_equal(
        np.unique(image_of_text), np.arange(images)
    ):
        raise ValueError(
            f"want one image row per text and at least one text per image, got"
            f" {images} images, {texts} texts, and"
            f" {len(np.unique(image_of_text))} different rows in image_of_text"
        )
    for name, embeddings in (("image", image_embeddings), ("text", text_embeddings)):
        broken = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(broken):
            raise ValueError(
                f"want finite {name} embeddings, got {len(broken)} with NaN or inf"
                f" (first row {broken[0]}); the parameters have diverged"
            )

    image_to_text = np.empty(images, np.int64)
    for start in range(0, images, ROWS):
        rows = np.arange(start, min(start + ROWS, images))
        scores = image_embeddings[rows] @ text_embeddings.T  # [rows, M]
        right = image_of_text[None, :] == rows[:, None]
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        image_to_text[rows] = ((scores >= best - TIE) & ~right).sum(axis=1)

    text_to_image = np.empty(texts, np.int64)
    for start in range(0, texts, ROWS):
        rows = np.arange(start, min(start + ROWS, texts))
        scores = text_embeddings[rows] @ image_embeddings.T  # [rows, N]
        right = image_of_text[rows][:, None] == np.arange(images)[None, :]
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        text_to_image[rows] = ((scores >= best - TIE) & ~right).sum(axis=1)
    return image_to_text, text_to_image


def chance(right_answers: np.ndarray, *, candidates: int, k: int) -> float:
    """Expected recall at k of answers drawn at random without repetition.

    A query with r right answers among n misses all of them with probability
    C(n - r, k) / C(n, k); with one right answer this leaves k / n.

    Args:
        right_answers: int[queries], how many right answers each query has.
        candidates: n, how many answers there are.
        k: how many are drawn.
    """
    drawn = min(k, candidates)
    missed = np.ones(len(right_answers))
    for i in range(drawn):
        missed *= np.maximum(candidates - right_answers - i, 0) / (candidates - i)
    return float(np.mean(1 - missed))


def recall(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_of_text: np.ndarray,
    *,
    resamples: int,
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Recall at each k both ways, with 95% intervals (over images) and chance.

    Args:
        image_embeddings: f32[N, E], unit norm.
        text_embeddings: f32[M, E], unit norm.
        image_of_text: int[M], the row of the image each text belongs to.
        resamples: of the bootstrap.
        ks: how many best answers count.
        seed: of the bootstrap.

    Returns:
        {"image_to_text": {"R@1": {"value", "low", "high", "chance"}, ...},
        "text_to_image": {...}}.
    """
    image_to_text, text_to_image = ranks(
        image_embeddings, text_embeddings, image_of_text
    )
    texts_per_image = np.bincount(image_of_text)
    one_image = np.ones(len(image_of_text), np.int64)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for direction, rank, units, right, candidates in (
        ("image_to_text", image_to_text, None, texts_per_image, len(image_of_text)),
        ("text_to_image", text_to_image, image_of_text, one_image, len(image_to_text)),
    ):
        result[direction] = {}
        for k in ks:
            interval = statistics.share(
                rank < k,
                name=f"retrieval/{direction}/{k}",
                unit_of_hit=units,
                resamples=resamples,
                seed=seed,
            )
            result[direction][f"R@{k}"] = {
                "value": interval.value,
                "low": interval.low,
                "high": interval.high,
                "chance": chance(right, candidates=candidates, k=k),
            }
    return result


def best_texts(
    image_embeddings: np.ndarray, text_embeddings: np.ndarray, *, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best texts of each image, best first; equal scores in the texts' order.

    Args:
        image_embeddings: f32[N, E], unit norm.
        text_embeddings: f32[M, E], unit norm.
        count: how many, at most M.

    Returns:
        Text rows int64[N, count] and their cosines f32[N, count].
    """
    scores = image_embeddings @ text_embeddings.T  # [N, M]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(scores, order, axis=1)
