"""Retrieval, zero-shot and intervals against cases that can be worked out by hand."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaclip_jax.evaluation import (
    classification,
    examples,
    prompts,
    retrieval,
    statistics,
    zero_shot,
)
from metaclip_jax.evaluation.examples import Examples, Statistic


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def random_unit(n, width=16, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(n, width)))


# Intervals.


def share(hits, *, name="a", resamples, unit_of_hit=None, seed=""):
    found = statistics.share(hits, 0.0, unit_of_hit=unit_of_hit, seed=seed)
    return SimpleNamespace(**statistics.result(name, found, resamples=resamples).cell())


def test_the_value_is_the_share_of_hits_and_lies_in_its_interval():
    hits = np.arange(200) < 60
    interval = share(hits, resamples=500)
    assert interval.value == pytest.approx(0.3)
    assert interval.low < 0.3 < interval.high


def halves(hits):
    """Two equal hits in a unit: the interval is that of the units."""
    return np.repeat(hits, 2), np.repeat(np.arange(len(hits)), 2)


@pytest.mark.parametrize("together", [False, True])
def test_the_interval_is_as_wide_as_the_binomial_says(together):
    hits, units = np.arange(400) % 4 == 0, None
    if together:
        hits, units = halves(hits)
    interval = share(hits, resamples=4000, unit_of_hit=units)
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert interval.low == pytest.approx(0.25 - half, abs=0.006)
    assert interval.high == pytest.approx(0.25 + half, abs=0.006)


@pytest.mark.parametrize("together", [False, True])
def test_the_interval_covers_the_truth_about_95_times_in_100(together):
    rng = np.random.default_rng(1)
    covered = 0
    for i in range(200):
        hits, units = rng.random(150) < 0.4, None
        if together:
            hits, units = halves(hits)
        interval = share(hits, name=str(i), resamples=300, unit_of_hit=units)
        covered += interval.low <= 0.4 <= interval.high
    assert 0.90 < covered / 200 < 0.985


def test_all_hits_leave_room_for_a_miss():
    """After n hits in a row, Wilson's lower end is n / (n + z^2)."""
    interval = share(np.ones(40, bool), resamples=2)
    assert interval.value == interval.high == 1
    assert interval.low == pytest.approx(40 / (40 + 1.959964**2))


def test_one_resample_gives_the_value_without_an_interval():
    hits = np.arange(200) < 60
    value = share(hits, resamples=500).value
    alone = share(hits, resamples=1)
    assert (alone.low, alone.value, alone.high) == (value, value, value)


def test_one_unit_has_an_interval_without_width():
    hits, units = np.array([True, False]), np.zeros(2, int)
    interval = share(hits, resamples=5, unit_of_hit=units)
    assert (interval.low, interval.value, interval.high) == (0.5, 0.5, 0.5)


def test_equal_seed_and_name_draw_the_same_units_and_others_do_not():
    hits, units = halves(np.arange(101) % 3 == 0)
    options = {"resamples": 50, "unit_of_hit": units}
    first = share(hits, name="a", **options)
    assert share(hits, name="a", **options) == first
    assert share(hits, name="b", **options) != first
    assert share(hits, name="b", seed="a", **options) == first


def test_hits_of_one_unit_are_drawn_together():
    hits = np.repeat(np.arange(50) % 2 == 0, 20)
    alone = share(hits, resamples=500)
    together = share(hits, resamples=500, unit_of_hit=np.repeat(np.arange(50), 20))
    assert together.value == alone.value == 0.5
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_mean_per_class_weighs_classes_alike():
    labels = np.array([0] * 90 + [1] * 10)
    always_0 = np.tile(np.float32([1, 0]), (100, 1))
    (name,) = names = ("zero_shot/mean_per_class",)
    found = classification.of_scores(names, always_0, labels, labels[:0])[name]
    result = statistics.result(name, found, resamples=50)
    assert result.value == pytest.approx(0.5)


def test_no_results_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        share(np.zeros(0, bool), resamples=10)
    with pytest.raises(ValueError, match="resamples=0"):
        share(np.ones(3, bool), resamples=0)
    with pytest.raises(ValueError, match="units=0"):
        statistics.result("a", Statistic(lambda w: 0.0, 0, None), resamples=1)


# Retrieval.


def recall(images, texts, image_of_text, *, resamples):
    ranks = retrieval.ranks(images, texts, image_of_text)
    found = retrieval.recall(*ranks, image_of_text)
    return examples.nested(
        statistics.result(name, one, resamples=resamples)
        for name, one in found.items()
        if name != retrieval.MEAN
    )


def test_equal_embeddings_of_each_pair_are_all_found():
    embeddings = random_unit(30)
    found = recall(embeddings, embeddings, np.arange(30), resamples=20)
    for direction in ("image_to_text", "text_to_image"):
        assert found[direction]["R@1"]["value"] == 1.0
        assert found[direction]["R@1"]["chance"] == pytest.approx(1 / 30)
        assert found[direction]["R@10"]["chance"] == pytest.approx(10 / 30)


def test_a_collapsed_model_finds_nothing():
    embeddings = np.repeat(random_unit(1), 40, axis=0)
    found = recall(embeddings, embeddings, np.arange(40), resamples=20)
    assert found["image_to_text"]["R@10"]["value"] == 0.0
    assert found["text_to_image"]["R@10"]["value"] == 0.0


def test_ranks_equal_those_of_sorted_scores(monkeypatch):
    monkeypatch.setattr(retrieval, "ROWS", 7)
    monkeypatch.setattr(retrieval, "COLUMNS", 11)
    images, texts = random_unit(23, seed=1), random_unit(50, seed=2)
    image_of_text = np.concatenate([np.arange(23), np.arange(23), [0, 0, 5, 22]])
    image_to_text, text_to_image = retrieval.ranks(images, texts, image_of_text)
    scores = images @ texts.T
    for image in range(23):
        order = list(image_of_text[np.argsort(-scores[image])])
        assert image_to_text[image] == order.index(image)
    for text in range(50):
        order = list(np.argsort(-scores[:, text]))
        assert text_to_image[text] == order.index(image_of_text[text])


def test_any_text_of_an_image_is_right_and_its_other_texts_do_not_count_as_wrong():
    images = unit([[1, 0], [0, 1]])
    # Two texts of image 0: one is nearly on it, the other far; image 1 comes between.
    texts = unit([[1, 0.1], [-1, 0.0], [0.5, 1]])
    image_to_text, text_to_image = retrieval.ranks(images, texts, np.array([0, 0, 1]))
    assert image_to_text.tolist() == [0, 0]
    assert text_to_image.tolist() == [0, 1, 0]


@settings(max_examples=60)
@given(n=st.integers(1, 7), right=st.integers(1, 7), k=st.integers(1, 9))
def test_chance_equals_one_minus_the_hypergeometric_miss(n, right, k):
    right = min(right, n)
    k_ = min(k, n)
    expected = 1 - math.comb(n - right, k_) / math.comb(n, k_)
    assert retrieval.chance(np.array([right]), candidates=n, k=k) == pytest.approx(
        expected
    )


def test_random_embeddings_score_about_chance():
    images, texts = random_unit(800, seed=3), random_unit(1600, seed=4)
    found = recall(images, texts, np.repeat(np.arange(800), 2), resamples=200)
    for direction in found.values():
        assert direction["R@10"]["low"] <= direction["R@10"]["chance"] * 1.3
        assert direction["R@10"]["high"] >= direction["R@10"]["chance"] * 0.7


def test_embeddings_that_are_not_finite_are_refused():
    images = random_unit(4)
    texts = images.copy()
    texts[2, 0] = np.nan
    with pytest.raises(ValueError, match="text embeddings, got 1 .* row 2"):
        retrieval.ranks(images, texts, np.arange(4))


def test_an_image_without_a_text_is_refused():
    images = random_unit(4)
    with pytest.raises(ValueError, match="at least one text per image"):
        retrieval.ranks(images, images, np.array([0, 1, 2, 2]))


def test_best_texts_come_best_first_and_equal_ones_in_order():
    images = unit([[1, 0]])
    texts = unit([[0, 1], [1, 1], [1, 0], [1, 1]])
    rows, scores = retrieval.best_texts(images, texts, count=3)
    assert rows.tolist() == [[2, 1, 3]]
    assert scores[0, 0] == pytest.approx(1.0)
    assert scores[0, 1] == scores[0, 2]


# Zero-shot.

ANIMALS = prompts.Prompts((("cat",), ("dog", "hound")), ("a {}.", "the {}"))


def test_a_class_is_the_mean_of_its_unit_prompts_brought_back_to_unit_norm():
    asked = []
    vectors = {
        "a cat.": [3, 0, 0],
        "the cat": [0, 7, 0],
        "a dog.": [1, 0, 0],
        "a hound.": [1, 0, 0],
        "the dog": [0, 0, 2],
        "the hound": [0, 0, 2],
    }

    def encode(texts):
        asked.extend(texts)
        return np.array([vectors[text] for text in texts], np.float32)

    classes = zero_shot.class_embeddings(encode, ANIMALS.class_names, ANIMALS.templates)
    assert asked == list(vectors)
    root = math.sqrt(0.5)
    np.testing.assert_allclose(classes, [[root, root, 0], [root, 0, root]], rtol=1e-6)


def accuracy(images, classes, labels):
    names = [f"zero_shot/{kind}" for kind in ("accuracy", "top5", "mean_per_class")]
    found = classification.of_scores(names, images @ classes.T, labels, labels[:0])
    return examples.nested(
        statistics.result(name, one, resamples=20) for name, one in found.items()
    )["zero_shot"]


def test_accuracy_top5_and_mean_per_class_agree_with_counting():
    classes = np.eye(8, dtype=np.float32)
    labels = np.array([0, 0, 0, 1])
    # The second image of class 0 puts it fourth; the only image of class 1 last.
    images = unit(
        [
            [1, 0, 0, 0, 0, 0, 0, 0],
            [0.2, 0.3, 0.4, 0.5, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 0, 0],
            [1, -1, 1, 1, 1, 1, 1, 1],
        ]
    )
    found = accuracy(images, classes, labels)
    assert found["accuracy"]["value"] == 0.5
    assert found["top5"]["value"] == 0.75
    assert found["mean_per_class"]["value"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["accuracy"]["chance"] == 1 / 8
    assert found["top5"]["chance"] == 5 / 8


def test_a_collapsed_classifier_has_the_accuracy_of_guessing_class_0():
    classes = np.repeat(random_unit(1), 4, axis=0)
    images = np.repeat(random_unit(1, seed=1), 8, axis=0)
    labels = np.array([0, 1, 2, 3] * 2)
    found = accuracy(images, classes, labels)
    assert found["accuracy"]["value"] == 0.25


def test_top5_is_measured_if_there_are_more_than_5_classes():
    for classes in (5, 6):
        shown = Examples(
            "here", ["x"], list, (("cat",),) * classes, labels=np.zeros(1, np.int64)
        )
        assert ("zero_shot/top5" in classification.names(shown)) == (classes > 5)


# Tasks.


def write(tmp_path, task):
    path = tmp_path / "zero_shot.json"
    path.write_text(json.dumps(task))
    return str(path)


def test_a_task_is_read_with_one_or_several_names_a_class(tmp_path):
    path = write(
        tmp_path,
        {
            "class_names": ["cat", ["dog", "hound"]],
            "templates": ["a {}.", "the {}"],
            "labels": {"x": 0},
        },
    )
    assert prompts.load_task(path) == (ANIMALS, {"x": 0})
    assert prompts.prompts(("dog", "{x}"), ("a {}",)) == ["a dog", "a {x}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {}}, "at least one image id"),
        ({"labels": {"x": 2}}, "image x must be a class index from 0 to 1, got 2"),
        ({"labels": {"x": True}}, "got True"),
        ({"class_names": ["cat"]}, "at least 2 classes"),
        ({"class_names": ["cat", " "]}, r"class_names\[1\]"),
        ({"class_names": ["cat", []]}, r"class_names\[1\]"),
        ({"templates": []}, "list of texts"),
        ({"templates": ["a photo"]}, r"templates\[0\] must hold \{\}"),
    ],
)
def test_a_task_with_a_wrong_part_is_refused_naming_it(tmp_path, change, message):
    task = {"class_names": ["cat", "dog"], "templates": ["{}"], "labels": {"x": 0}}
    with pytest.raises(ValueError, match=message):
        prompts.load_task(write(tmp_path, task | change))


def test_a_task_without_a_key_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="add templates, labels"):
        prompts.load_task(write(tmp_path, {"class_names": ["cat", "dog"]}))
    with pytest.raises(ValueError, match="wanted an object"):
        prompts.load_task(write(tmp_path, ["cat"]))
