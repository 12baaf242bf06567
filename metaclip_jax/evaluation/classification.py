"""Zero-shot classification: is an image nearest to the prompts of its class?"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from metaclip_jax.evaluation import prompts, scores, statistics, zero_shot
from metaclip_jax.evaluation.encoder import Encoder
from metaclip_jax.evaluation.examples import (
    Embeddings,
    Examples,
    Result,
    Statistic,
)


def names(examples: Examples) -> tuple[str, ...]:
    """Returns the names of the results of `run`; () if there are no classes."""
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
    wanted = [name for name in examples.metrics if name in EXTRA]
    return (*(f"zero_shot/{name}" for name in found), *wanted)


def run(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, *, resamples: int
) -> Iterator[Result]:
    """Measures the predictions for the labelled images.

    Args:
      encoder: embeds the classes.
      examples: with class names, templates and labels.
      embeddings: of the images.
      resamples: of each interval's bootstrap.

    Yields:
      For images of one class: accuracy, mean_per_class, top5 with more than 5 classes,
      and roc_auc with 2 classes. For images of several classes: both mean average
      precisions. And those of EXTRA in `examples.metrics`.

    Raises:
      ValueError: there is no labelled image, or an embedding is not finite.
    """
    cosines = _cosines(encoder, examples, embeddings)
    rows = examples.labelled
    labels = examples.labels[rows]
    yield from measure(cosines, labels, resamples=resamples)
    groups = examples.groups[rows] if len(examples.groups) else examples.groups
    for name in examples.metrics:
        if name in EXTRA:
            yield extra(name, cosines, labels, groups, resamples=resamples)


def statistic(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, name: str
) -> Statistic:
    """Returns the result `name` as a function of the images' weights; see `run`."""
    cosines = _cosines(encoder, examples, embeddings)
    rows = examples.labelled
    groups = examples.groups[rows] if len(examples.groups) else examples.groups
    return of_scores(name, cosines, examples.labels[rows], groups)


def _cosines(
    encoder: Encoder, examples: Examples, embeddings: Embeddings
) -> np.ndarray:
    """Returns f32[L, K], of the labelled images with the classes."""
    # Not `make_task`, which refuses empty names: one of CLEVR's distances has one.
    task = prompts.Task(examples.class_names, examples.templates, labels={})
    return (
        embeddings.image[examples.labelled] @ zero_shot.encode_classes(encoder, task).T
    )


class Confusion(NamedTuple):
    """Images of the class `right` that the model predicts as `answered`.

    They are `images` of the class's `total`; `row` has the highest cosine of them.
    """

    right: str
    answered: str
    images: int
    total: int
    row: int


def confusions(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, *, most: int
) -> list[Confusion]:
    """Returns the most frequent confusions, by share of the right class's images.

    The images must have one class each; the arguments are those of `run`.
    """
    cosines = _cosines(encoder, examples, embeddings)
    rows = examples.labelled
    labels, answers = examples.labels[rows], cosines.argmax(axis=1)
    wrong = np.flatnonzero(answers != labels)
    total = np.bincount(labels, minlength=cosines.shape[1])
    pairs, place, count = np.unique(
        np.stack([labels[wrong], answers[wrong]]),
        axis=1,
        return_inverse=True,
        return_counts=True,
    )
    found = []
    order = np.lexsort((np.arange(len(count)), -count / total[pairs[0]]))
    for k in order[:most]:
        right, answered = pairs[:, k]
        of_pair = wrong[place == k]
        row = rows[of_pair[cosines[of_pair, answered].argmax()]]
        names = examples.class_names
        found.append(
            Confusion(
                names[right][0],
                names[answered][0],
                int(count[k]),
                int(total[right]),
                int(row),
            )
        )
    return found


def measure(
    cosines: np.ndarray, labels: np.ndarray, *, resamples: int
) -> Iterator[Result]:
    """Yields the standard metrics of the predictions; see `run`.

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
        none = np.zeros(0, np.int64)
        yield extra("zero_shot/roc_auc", cosines, labels, none, resamples=resamples)


def _roc_auc(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    if len(np.unique(positive[weight > 0])) < 2:
        return 0.5  # a resample with one class has no ROC curve
    return scores.roc_auc(score, positive, weight)


# The group of the region "Other", which WILDS excludes from FMoW's regions. DataComp
# includes it, though it has only a few images.
_OTHER_REGION = 5
# Metrics that `run` yields only on request, in `Examples.metrics`.
EXTRA = (
    "zero_shot/mean_of_top1_and_top5",
    "zero_shot/macro_f1",
    "zero_shot/worst_group",
    "zero_shot/worst_group_top5",
    "zero_shot/worst_group_without_other",
)


def extra(
    name: str,
    cosines: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    resamples: int,
) -> Result:
    """Returns one metric with its bootstrap interval, from `resamples` resamples.

    The other arguments are those of `of_scores`.
    """
    found = of_scores(name, cosines, labels, groups)
    return statistics.result(name, found, resamples=resamples)


def of_scores(
    name: str, cosines: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> Statistic:
    """Returns a metric as a function of the images' weights; each has one class.

    Args:
      name: "zero_shot/accuracy" and so on, or one of EXTRA.
      cosines: f32[N, K].
      labels: int64[N].
      groups: int64[N], for metrics of the worst group; else empty.

    Raises:
      ValueError: the metric needs groups, and there are none.
    """
    rank, count = scores.ranks(cosines, labels), cosines.shape[1]
    first, five = rank < 1, rank < 5
    if name == "zero_shot/roc_auc":
        difference, positive = cosines[:, 1] - cosines[:, 0], labels == 1
        value = functools.partial(_roc_auc, difference, positive)
        return Statistic(value, len(labels), 0.5)
    if name == "zero_shot/mean_per_class":
        return Statistic(
            lambda weight: float(np.mean(scores.shares(first, labels, weight))),
            len(labels),
            1 / count,
        )
    if name == "zero_shot/macro_f1":
        answers = cosines.argmax(axis=1)
        value = functools.partial(scores.macro_f1, answers, labels)
        return Statistic(value, len(labels), 1 / count)
    if "worst_group" in name:
        if not len(groups):
            raise ValueError(f"wanted the groups of the images for {name}, got none")
        kept = np.arange(len(labels))
        if name == "zero_shot/worst_group_without_other":
            kept = np.flatnonzero(groups != _OTHER_REGION)
        hits = (five if "top5" in name else first)[kept]
        return Statistic(
            lambda weight: float(np.min(scores.shares(hits, groups[kept], weight))),
            len(kept),
            min(1.0, (5 if "top5" in name else 1) / count),
        )
    of_image = {
        "zero_shot/accuracy": (first, 1 / count),
        "zero_shot/top5": (five, 5 / count),
        "zero_shot/mean_of_top1_and_top5": (
            (first + five.astype(float)) / 2,
            3 / count,
        ),
    }
    each, chance = of_image[name]
    value = functools.partial(np.average, each.astype(np.float64), None)
    return Statistic(value, len(each), min(1.0, chance))


def _has_both(classes: int, labels: np.ndarray) -> bool:
    """Whether there are exactly two classes, and both have images."""
    return classes == 2 and len(np.unique(labels)) == 2
