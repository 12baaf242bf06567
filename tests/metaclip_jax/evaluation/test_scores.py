"""Standard metrics equal scikit-learn's on the same scores, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from metaclip_jax.evaluation import classification, scores


def drawn(seed, n=200, classes=9, *, levels=None):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, classes)).astype(np.float32)
    if levels:  # few different scores, so many ties
        values = np.round(values * levels) / levels
    return values, rng.integers(0, classes, n)


@pytest.mark.parametrize("levels", [None, 3])
def test_ranks_count_the_classes_that_come_before(levels):
    values, labels = drawn(0, levels=levels)
    order = np.argsort(-values, axis=1, kind="stable")
    expected = [list(row).index(k) for row, k in zip(order, labels, strict=True)]
    np.testing.assert_array_equal(scores.ranks(values, labels), expected)


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


def measured(names, values, labels, groups=()):
    found = classification.of_scores(names, values, labels, np.array(groups))
    return {name: one.value(np.ones(one.units)) for name, one in found.items()}


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 12), n=st.integers(2, 60))
def test_the_numbers_of_classification_equal_scikit_learn_s(seed, classes, n):
    values, labels = drawn(seed, n=n, classes=classes)
    kinds = ("accuracy", "top5", "mean_per_class")
    found = measured([f"zero_shot/{kind}" for kind in kinds], values, labels)
    answers, every = values.argmax(axis=1), range(classes)
    assert found["zero_shot/accuracy"] == pytest.approx(
        metrics.accuracy_score(labels, answers)
    )
    if classes > 5:
        assert found["zero_shot/top5"] == pytest.approx(
            metrics.top_k_accuracy_score(labels, values, k=5, labels=every)
        )
    # Classes without an example do not count.
    there = np.unique(labels)
    assert found["zero_shot/mean_per_class"] == pytest.approx(
        metrics.recall_score(labels, answers, labels=there, average="macro")
    )


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 9), n=st.integers(2, 60))
def test_the_numbers_of_single_tasks_equal_their_definitions(seed, classes, n):
    values, labels = drawn(seed, n=n, classes=classes, levels=3)
    groups = np.random.default_rng(seed).integers(0, 7, n)
    names = [
        name
        for name in classification.EXTRA
        if "without_other" not in name or (groups != 5).any()
    ]
    found = measured(names, values, labels, groups)
    answers = values.argmax(axis=1)
    first = answers == labels
    five = scores.ranks(values, labels) < 5
    assert found["zero_shot/mean_of_top1_and_top5"] == pytest.approx(
        (first.mean() + five.mean()) / 2
    )
    # As WILDS has it: over the classes that the truth holds.
    assert found["zero_shot/macro_f1"] == pytest.approx(
        metrics.f1_score(labels, answers, average="macro", labels=np.unique(labels))
    )
    there = np.unique(groups)
    worst = min(first[groups == g].mean() for g in there)
    assert found["zero_shot/worst_group"] == pytest.approx(worst)
    worst = min(five[groups == g].mean() for g in there)
    assert found["zero_shot/worst_group_top5"] == pytest.approx(worst)
    if (groups != 5).any():
        worst = min(first[groups == g].mean() for g in there if g != 5)
        name = "zero_shot/worst_group_without_other"
        assert found[name] == pytest.approx(worst)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 60))
def test_weighted_areas_equal_scikit_learn_s(seed, n):
    values, labels = drawn(seed, n=n, classes=2, levels=3)
    weight = np.random.default_rng(seed).integers(0, 4, n).astype(float)
    positive, score = labels == 1, values[:, 1] - values[:, 0]
    if len(np.unique(positive[weight > 0])) < 2:
        with pytest.raises(ValueError, match="wanted positive and negative"):
            scores.roc_auc(score, positive, weight)
    else:
        expected = metrics.roc_auc_score(positive, score, sample_weight=weight)
        assert scores.roc_auc(score, positive, weight) == pytest.approx(expected)


def test_what_has_no_answer_is_refused():
    values = np.zeros(4)
    with pytest.raises(ValueError, match="got 0 and 4"):
        scores.roc_auc(values, np.zeros(4, bool))
    with pytest.raises(ValueError, match="at least one positive"):
        scores.average_precision(values, np.zeros(4, bool))
    with pytest.raises(ValueError, match="diverged"):
        scores.ranks(np.full((2, 2), np.nan), np.array([0, 1]))
