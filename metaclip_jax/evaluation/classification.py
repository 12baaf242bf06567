"""Zero-shot classification: is an image nearest to the prompts of its class?"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from metaclip_jax.evaluation import scores, statistics, zero_shot
from metaclip_jax.evaluation.encoder import Encoder
from metaclip_jax.evaluation.examples import Embeddings, Examples, Statistic


def names(examples: Examples) -> tuple[str, ...]:
    """Returns the names of the results of `measure`; () if there are no classes."""
    classes = len(examples.class_names)
    if not classes:
        return ()
    found = ["accuracy", "mean_per_class"]
    if classes > 5:
        found.insert(1, "top5")
    if classes == 2 and len(np.unique(examples.labels[examples.labelled])) == 2:
        found.append("roc_auc")
    if examples.labels.ndim == 2:
        found = ["mean_average_precision", "mean_average_precision_11_point"]
    wanted = [name for name in examples.metrics if name in EXTRA]
    return (*(f"zero_shot/{name}" for name in found), *wanted)


def measure(
    encoder: Encoder, examples: Examples, embeddings: Embeddings
) -> dict[str, Statistic]:
    """Returns the results of the predictions for the labelled images, by name.

    For images of one class: accuracy, mean_per_class, top5 with more than 5 classes,
    and roc_auc with 2 classes. For images of several classes: both mean average
    precisions. And those of EXTRA in `examples.metrics`.

    Args:
      encoder: embeds the classes.
      examples: with class names, templates and labels.
      embeddings: of the images, which are the units.

    Raises:
      ValueError: there is no labelled image, or an embedding is not finite.
    """
    rows = examples.labelled
    groups = examples.groups[rows] if len(examples.groups) else examples.groups
    cosines = _cosines(encoder, examples, embeddings)
    return of_scores(names(examples), cosines, examples.labels[rows], groups)


def _cosines(
    encoder: Encoder, examples: Examples, embeddings: Embeddings
) -> np.ndarray:
    """Returns f32[L, K], of the labelled images with the classes."""
    classes = zero_shot.encode_classes(
        encoder, examples.class_names, examples.templates
    )
    return embeddings.image[examples.labelled] @ classes.T


def confusions(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, *, most: int
) -> list[dict[str, Any]]:
    """Returns the most frequent confusions, by share of the right class's images.

    The images must have one class each; the arguments are those of `measure`.

    Returns:
      Of each, the names of the class that is "right" and of the one "answered"; the
      "count" of such images, of the right class's "total"; and the "row" of the one
      with the highest cosine.
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
        found.append(
            {
                "right": examples.class_names[right][0],
                "answered": examples.class_names[answered][0],
                "count": int(count[k]),
                "total": int(total[right]),
                "row": int(row),
            }
        )
    return found


def _roc_auc(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> float:
    if len(np.unique(positive[weight > 0])) < 2:
        return 0.5  # a resample with one class has no ROC curve
    return scores.roc_auc(score, positive, weight)


# The group of the region "Other", which WILDS excludes from FMoW's regions. DataComp
# includes it, though it has only a few images.
_OTHER_REGION = 5
# Metrics only on request, in `Examples.metrics`.
EXTRA = (
    "zero_shot/mean_of_top1_and_top5",
    "zero_shot/macro_f1",
    "zero_shot/worst_group",
    "zero_shot/worst_group_top5",
    "zero_shot/worst_group_without_other",
)


def of_scores(
    names: Sequence[str], cosines: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> dict[str, Statistic]:
    """Returns metrics as functions of the images' weights.

    Args:
      names: "zero_shot/accuracy" and so on, or of EXTRA.
      cosines: f32[N, K] of the images with the classes.
      labels: int64[N], or bool[N, K] for images of several classes.
      groups: int64[N], for metrics of the worst group; else empty.

    Raises:
      ValueError: a metric needs groups, and there are none.
    """
    if labels.ndim == 2:
        of_name = {}
        for name in names:
            points = 11 if name.endswith("11_point") else 0
            value = functools.partial(_mean_precision, cosines, labels, points)
            of_name[name] = Statistic(value, None, None)
        return of_name
    rank = scores.ranks(cosines, labels)
    return {name: _of_ranks(name, rank, cosines, labels, groups) for name in names}


def _of_ranks(
    name: str,
    rank: np.ndarray,
    cosines: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
) -> Statistic:
    """Returns a metric of images of one class, from `scores.ranks` and `of_scores`."""
    most = 5 if "top5" in name else 1
    hits, chance = rank < most, min(1.0, most / cosines.shape[1])
    value: Callable[[np.ndarray], float]
    match name.removeprefix("zero_shot/"):
        case "accuracy" | "top5":
            return statistics.share(hits, chance)
        case "mean_of_top1_and_top5":
            each = ((rank < 1) + (rank < 5).astype(float)) / 2
            chance = min(1.0, 3 / cosines.shape[1])
            value = functools.partial(np.average, each, None)
        case "mean_per_class":
            value = functools.partial(_mean_share, hits, labels)
        case "roc_auc":
            difference, chance = cosines[:, 1] - cosines[:, 0], 0.5
            value = functools.partial(_roc_auc, difference, labels == 1)
        case "macro_f1":
            value = functools.partial(scores.macro_f1, cosines.argmax(axis=1), labels)
        case _:  # of the worst group
            if not len(groups):
                raise ValueError(
                    f"wanted the groups of the images for {name}, got none"
                )
            if name.endswith("without_other"):
                kept = np.flatnonzero(groups != _OTHER_REGION)
                hits, groups = hits[kept], groups[kept]
            value = functools.partial(_worst_share, hits, groups)
    return Statistic(value, len(hits), chance)


def _mean_precision(
    cosines: np.ndarray, labels: np.ndarray, points: int, weight: np.ndarray
) -> float:
    del weight  # it has no interval
    return scores.mean_average_precision(cosines, labels, points=points)


def _mean_share(hits: np.ndarray, groups: np.ndarray, weight: np.ndarray) -> float:
    return float(np.mean(scores.shares(hits, groups, weight)))


def _worst_share(hits: np.ndarray, groups: np.ndarray, weight: np.ndarray) -> float:
    return float(np.min(scores.shares(hits, groups, weight)))
