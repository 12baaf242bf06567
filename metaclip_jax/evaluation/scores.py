"""The standard metrics of classification, from any model's scores.

Each function takes scores (higher = more likely) and the truth, and returns a metric.
They agree with scikit-learn and clip_benchmark on the same scores.
"""

import numpy as np


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns int64[N], the rank of each example's class; 0 is the top.

    On ties, the class with the lower index comes first, so a model that maps everything
    to one point always predicts class 0.

    Args:
        scores: f[N, K].
        labels: int[N].

    Raises:
        ValueError: a score is not finite, or a label is not below K.
    """
    _check(scores, labels)
    classes = scores.shape[1]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise ValueError(f"wanted labels from 0 to {classes - 1}, got {wrong[0]}")
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(classes)[None, :] < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def roc_auc(
    scores: np.ndarray, positive: np.ndarray, weight: np.ndarray | None = None
) -> float:
    """Returns the probability that a positive example scores above a negative one.

    Ties count half. For two classes, the score is that of class 1 minus that of class
    0.

    Args:
        scores: f[N].
        positive: bool[N], with at least one true and one false.
        weight: f[N], how often each example counts; None = once.

    Raises:
        ValueError: all counted examples are of one kind, or a score is not finite.
    """
    _check(scores, positive)
    weight = np.ones(len(scores)) if weight is None else weight
    _, place = np.unique(scores, return_inverse=True)
    above = np.bincount(place, weights=weight * positive)  # by score, ascending
    below = np.bincount(place, weights=weight * ~positive.astype(bool))
    positives, negatives = above.sum(), below.sum()
    if not positives or not negatives:
        raise ValueError(
            f"wanted positive and negative examples, got {positives:g} and"
            f" {negatives:g}"
        )
    won = above @ (np.cumsum(below) - below / 2)
    return float(won / (positives * negatives))


def macro_f1(
    answers: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None
) -> float:
    """Returns the mean of F1 over the classes that occur in the labels, as WILDS does.

    Args:
        answers: int[N].
        labels: int[N].
        weight: f[N], how often each example counts; None = once.
    """
    weight = np.ones(len(labels)) if weight is None else weight
    classes = int(max(answers.max(), labels.max())) + 1
    right = np.bincount(labels, weights=weight * (answers == labels), minlength=classes)
    truth = np.bincount(labels, weights=weight, minlength=classes)
    answered = np.bincount(answers, weights=weight, minlength=classes)
    there = truth > 0
    return float(np.mean(2 * right[there] / (truth + answered)[there]))


def shares(
    hits: np.ndarray, groups: np.ndarray, weight: np.ndarray | None = None
) -> np.ndarray:
    """Returns f64[groups], the share of hits in each group that is not empty.

    Args:
        hits: bool[N].
        groups: int[N], for example the labels.
        weight: f[N], how often each example counts; None = once.
    """
    weight = np.ones(len(hits)) if weight is None else weight
    size = np.bincount(groups, weights=weight)
    right = np.bincount(groups, weights=weight * hits)
    return right[size > 0] / size[size > 0]


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the mean of the precisions at each positive example, not interpolated.

    Examples with equal scores are one threshold, as in scikit-learn.

    Args:
        scores: f[N].
        positive: bool[N], at least one true.
    """
    precision, recall = _precision_recall(scores, positive)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def average_precision_11_point(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the mean of the best precision at recalls of at least 0, 0.1, ..., 1.

    PASCAL VOC 2007 and the CLIP paper report this.

    Args:
        scores: f[N].
        positive: bool[N], at least one true.
    """
    precision, recall = _precision_recall(scores, positive)
    best_from = np.maximum.accumulate(precision[::-1])[::-1]
    # Compare whole examples: in floating point, 0.3 * 10 is not 3.
    positives = int(np.sum(positive))
    found = np.rint(recall * positives).astype(np.int64)
    needed = -(-np.arange(11) * positives // 10)
    return float(np.mean(best_from[np.searchsorted(found, needed)]))


def mean_average_precision(
    scores: np.ndarray, positive: np.ndarray, *, points: int = 0
) -> float:
    """Returns the mean over classes of average precision.

    Classes without a positive example are excluded.

    Args:
        scores: f[N, K].
        positive: bool[N, K]; an image may have several classes.
        points: 0 = not interpolated, 11 = VOC 2007's.
    """
    if points not in (0, 11):
        raise ValueError(f"points must be 0 or 11, got {points}")
    of_class = average_precision_11_point if points else average_precision
    seen = np.flatnonzero(positive.any(axis=0))
    if not seen.size:
        raise ValueError(f"wanted at least one positive example of {len(scores)}")
    return float(np.mean([of_class(scores[:, k], positive[:, k]) for k in seen]))


def _precision_recall(
    scores: np.ndarray, positive: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns precision and recall f64[thresholds], from the highest score down."""
    _check(scores, positive)
    if not np.any(positive):
        raise ValueError(f"wanted at least one positive example of {len(scores)}")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of its run of equal scores
    found = np.cumsum(positive[order].astype(np.float64))[last]
    taken = np.flatnonzero(last) + 1.0
    return found / taken, found / found[-1]


def _check(scores: np.ndarray, right: np.ndarray) -> None:
    if len(scores) != len(right) or not len(scores):
        raise ValueError(
            f"wanted scores and labels of equally many examples, at least one; got"
            f" {scores.shape} and {right.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            "wanted finite scores, got NaN or inf; the parameters have diverged, so"
            " take an earlier checkpoint"
        )
