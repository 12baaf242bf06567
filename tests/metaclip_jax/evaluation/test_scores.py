"""The field's numbers: equal to scikit-learn's on the same scores, ties included."""

import numpy as np
import pytest
from sklearn import metrics

from metaclip_jax.evaluation import scores, statistics


def drawn(seed, n=200, classes=9, *, levels=None):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, classes)).astype(np.float32)
    if levels:  # few different scores, so many ties
        values = np.round(values * levels) / levels
    return values, rng.integers(0, classes, n)


@pytest.mark.parametrize("seed", range(3))
def test_top_k_and_mean_per_class_equal_scikit_learn(seed):
    values, labels = drawn(seed)
    for k in (1, 5):
        expected = metrics.top_k_accuracy_score(labels, values, k=k, labels=range(9))
        found = np.mean(scores.ranks(values, labels) < k)
        assert found == pytest.approx(expected)
    for kept in (labels >= 0, labels != 4):  # also where a class has no example
        expected = metrics.recall_score(
            labels[kept],
            values[kept].argmax(axis=1),
            labels=np.unique(labels[kept]),
            average="macro",
        )
        found = statistics.mean_share_per_class(
            scores.ranks(values[kept], labels[kept]) < 1,
            labels[kept],
            name="mean per class",
            resamples=2,
        )
        assert found.value == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [-1, 9, 10**6])
def test_labels_that_are_no_class_are_refused(wrong):
    values, labels = drawn(0)
    labels[17] = wrong
    with pytest.raises(ValueError, match=f"from 0 to 8, got {wrong}"):
        scores.ranks(values, labels)


@pytest.mark.parametrize("levels", [None, 3])
def test_roc_auc_and_average_precision_equal_scikit_learn_with_ties(levels):
    for seed in range(5):
        values, labels = drawn(seed, levels=levels)
        one, positive = values[:, 0], labels < 3
        expected = metrics.roc_auc_score(positive, one)
        assert scores.roc_auc(one, positive) == pytest.approx(expected, abs=1e-12)
        expected = metrics.average_precision_score(positive, one)
        found = scores.average_precision(one, positive)
        assert found == pytest.approx(expected, abs=1e-12)


def test_eleven_points_are_the_best_precisions_from_each_recall_on():
    for seed in range(5):
        values, labels = drawn(seed, n=73)
        one, positive = values[:, 0], labels < 3
        precision, recall, _ = metrics.precision_recall_curve(positive, one)
        # Without its last point, precision 1 at recall 0, which no threshold reaches.
        precision, recall = precision[:-1], recall[:-1]
        count = positive.sum()
        expected = np.mean(
            [
                precision[recall * count >= r * count / 10 - 1e-9].max()
                for r in range(11)
            ]
        )
        found = scores.average_precision_11_point(one, positive)
        assert found == pytest.approx(expected, abs=1e-12)


def test_mean_average_precision_is_scikit_learn_s_macro_average():
    values, _ = drawn(0)
    positive = np.random.default_rng(1).random(values.shape) < 0.3
    expected = metrics.average_precision_score(positive, values, average="macro")
    assert scores.mean_average_precision(values, positive) == pytest.approx(expected)
    positive[:, 2] = False  # a class that no image has does not count
    kept = [k for k in range(9) if k != 2]
    assert scores.mean_average_precision(values, positive) == pytest.approx(
        metrics.average_precision_score(positive[:, kept], values[:, kept])
    )
    eleven = scores.mean_average_precision(values, positive, points=11)
    single = [
        scores.average_precision_11_point(values[:, k], positive[:, k]) for k in kept
    ]
    assert eleven == pytest.approx(np.mean(single))


def test_what_has_no_answer_is_refused():
    values = np.zeros(4)
    with pytest.raises(ValueError, match="got 0 and 4"):
        scores.roc_auc(values, np.zeros(4, bool))
    with pytest.raises(ValueError, match="at least one positive"):
        scores.average_precision(values, np.zeros(4, bool))
    with pytest.raises(ValueError, match="diverged"):
        scores.ranks(np.full((2, 2), np.nan), np.array([0, 1]))
