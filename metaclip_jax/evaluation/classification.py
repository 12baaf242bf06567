"""Zero-shot classification: is an image nearest to the prompts of its own class?"""

from collections.abc import Iterator

import numpy as np

from metaclip_jax.evaluation import prompts, scores, statistics, zero_shot
from metaclip_jax.evaluation.encoder import Encoder
from metaclip_jax.evaluation.examples import Embeddings, Examples, Result


def names(examples: Examples) -> tuple[str, ...]:
    """What `run` measures on these examples; () where they have no classes."""
    classes = len(examples.class_names)
    if not classes:
        return ()
    found = ["accuracy", "mean_per_class"]
    if classes > 5:
        found.insert(1, "top5")
    if _has_both(classes, examples.labels[examples.labelled]):
        found.append("roc_auc")
    if examples.labels.ndim == 2:
        found = ["mean_average_precision", "mean_average_precision_11_point"]
    return tuple(f"zero_shot/{name}" for name in found)


def run(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, *, resamples: int
) -> Iterator[Result]:
    """Measures the answers on the images whose class is known.

    Args:
      encoder: embeds the classes.
      examples: with class names, templates and labels.
      embeddings: of the images.
      resamples: of the bootstrap behind each interval.

    Yields:
      For images of one class: accuracy, mean_per_class and, with more than 5 classes,
      top5; with 2 classes also roc_auc. For images of several classes: both mean
      average precisions.

    Raises:
      ValueError: there is no labelled image, or an embedding is not finite.
    """
    task = prompts.make_task(examples.class_names, examples.templates)
    classes = zero_shot.encode_classes(encoder, task)
    rows = examples.labelled
    cosines = embeddings.image[rows] @ classes.T  # [L, K]
    yield from measure(cosines, examples.labels[rows], resamples=resamples)


def measure(
    cosines: np.ndarray, labels: np.ndarray, *, resamples: int
) -> Iterator[Result]:
    """The numbers of the field on the answers; see `run`.

    Args:
      cosines: f32[N, K] of the images with the classes.
      labels: int64[N], or bool[N, K] for images of several classes.
      resamples: of the bootstrap.
    """
    if labels.ndim == 2:
        for name, points in (("", 0), ("_11_point", 11)):
            value = scores.mean_average_precision(cosines, labels, points=points)
            yield Result(f"zero_shot/mean_average_precision{name}", value)
        return
    count = cosines.shape[1]
    rank = scores.ranks(cosines, labels)
    for name, k in (("accuracy", 1), ("top5", 5)):
        if k < count:
            name = f"zero_shot/{name}"
            found = statistics.share(rank < k, name=name, resamples=resamples)
            yield Result(name, found.value, (found.low, found.high), k / count)
    name = "zero_shot/mean_per_class"
    found = statistics.mean_share_per_class(
        rank < 1, labels, name=name, resamples=resamples
    )
    yield Result(name, found.value, (found.low, found.high), 1 / count)
    if _has_both(count, labels):
        area = scores.roc_auc(cosines[:, 1] - cosines[:, 0], labels == 1)
        yield Result("zero_shot/roc_auc", area, chance=0.5)


def _has_both(classes: int, labels: np.ndarray) -> bool:
    """Whether there are two classes, and images of each."""
    return classes == 2 and len(np.unique(labels)) == 2
