"""The numbers of the field, from scores that any model gave.

Each function takes scores (higher = more likely) and what is right, and returns one
number. They agree with scikit-learn's and clip_benchmark's on the same scores.
"""

import numpy as np


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before each example's own, int64[N]; 0 is the top.

    Of equal scores the class with the lower index comes first, so a model that maps
    everything to one point has the accuracy of guessing class 0.

    Args:
        scores: f[N, K].
        labels: int[N].

    Raises:
        ValueError: a score is not finite, or a label is none of the K.
    """
    _check_labels(scores, labels)
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def roc_auc(
    scores: np.ndarray, positive: np.ndarray, weight: np.ndarray | None = None
) -> float:
    """The chance that a positive example has a higher score than a negative one.

    Equal scores count half. For two classes the score is that of class 1 less that of
    class 0.

    Args:
        scores: f[N].
        positive: bool[N], at least one of each kind.
        weight: f[N], how often each example counts; None = once.

    Raises:
        ValueError: all examples that count are of one kind, or a score is not finite.
    """
    _check(scores, positive)
    weight = np.ones(len(scores)) if weight is None else weight
    _, place = np.unique(scores, return_inverse=True)
    above = np.bincount(place, weights=weight * positive)  # by score, ascending
    below = np.bincount(place, weights=weight * ~positive.astype(bool))
    positives, negatives = above.sum(), below.sum()
    if not positives or not negatives:
        raise ValueError(
            f"want positive and negative examples, got {positives:g} and {negatives:g}"
        )
    won = above @ (np.cumsum(below) - below / 2)
    return float(won / (positives * negatives))


def macro_f1(
    answers: np.ndarray, labels: np.ndarray, weight: np.ndarray | None = None
) -> float:
    """The mean of F1 over the classes that the labels hold, as WILDS has it.

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
    """The share of hits in each group that is not empty, f64[groups].

    Args:
        hits: bool[N].
        groups: int[N]; with the labels, the mean is over classes.
        weight: f[N], how often each example counts; None = once.
    """
    weight = np.ones(len(hits)) if weight is None else weight
    size = np.bincount(groups, weights=weight)
    right = np.bincount(groups, weights=weight * hits)
    return right[size > 0] / size[size > 0]


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """The mean of the precisions at each positive example, not interpolated.

    Examples of equal score are one threshold, as in scikit-learn.

    Args:
        scores: f[N].
        positive: bool[N], at least one true.
    """
    precision, recall = _precision_recall(scores, positive)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def average_precision_11_point(scores: np.ndarray, positive: np.ndarray) -> float:
    """The mean over recalls 0, 0.1, ..., 1 of the best precision from there on.

    What PASCAL VOC 2007 and the CLIP paper report.

    Args:
        scores: f[N].
        positive: bool[N], at least one true.
    """
    precision, recall = _precision_recall(scores, positive)
    best_from = np.maximum.accumulate(precision[::-1])[::-1]
    # Compared in whole examples: 0.3 * 10 is not quite 3.
    positives = int(np.sum(positive))
    found = np.rint(recall * positives).astype(np.int64)
    needed = -(-np.arange(11) * positives // 10)
    return float(np.mean(best_from[np.searchsorted(found, needed)]))


def mean_average_precision(
    scores: np.ndarray, positive: np.ndarray, *, points: int = 0
) -> float:
    """The mean over classes of average precision, for images of several classes.

    Classes without a positive example do not count.

    Args:
        scores: f[N, K].
        positive: bool[N, K].
        points: 0 for the plain one, 11 for VOC 2007's.
    """
    if points not in (0, 11):
        raise ValueError(f"points must be 0 (plain) or 11, got {points}")
    of_class = average_precision_11_point if points else average_precision
    seen = np.flatnonzero(positive.any(axis=0))
    if not seen.size:
        raise ValueError(f"want at least one positive example of {len(scores)}")
    return float(np.mean([of_class(scores[:, k], positive[:, k]) for k in seen]))


def _precision_recall(
    scores: np.ndarray, positive: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """At each threshold, from the highest score down: f64[thresholds] each."""
    _check(scores, positive)
    if not np.any(positive):
        raise ValueError(f"want at least one positive example of {len(scores)}")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of its run of equal scores
    found = np.cumsum(positive[order].astype(np.float64))[last]
    taken = np.flatnonzero(last) + 1.0
    return found / taken, found / found[-1]


def _check_labels(scores: np.ndarray, labels: np.ndarray) -> None:
    _check(scores, labels)
    classes = scores.shape[1]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise ValueError(f"want labels from 0 to {classes - 1}, got {wrong[0]}")


def _check(scores: np.ndarray, right: np.ndarray) -> None:
    if len(scores) != len(right) or not len(scores):
        raise ValueError(
            f"want scores and answers of as many examples, at least one; got"
            f" {scores.shape} and {right.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            "want finite scores, got NaN or inf; the parameters have diverged"
        )
