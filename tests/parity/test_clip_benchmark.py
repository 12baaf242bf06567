"""Our numbers beside clip_benchmark's own functions on the same scores."""

import json
from importlib import resources

import numpy as np
import pytest

from metaclip_jax.evaluation import (
    languages,
    prompts,
    retrieval,
    scores,
    tasks,
)
from tests import image_layouts

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
their_retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")


def unit(rng, count):
    rows = rng.normal(size=(count, 32)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_top_1_and_top_5_are_equal():
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(300, 20)), rng.integers(0, 20, 300)
    # Their function makes a number of an array of one, which NumPy 2.4 refuses.
    for k in (1, 5):
        best = torch.from_numpy(values).topk(k, 1).indices.numpy()
        expected = (best == labels[:, None]).any(axis=1).mean()
        found = np.mean(scores.ranks(values, labels) < k)
        assert found == pytest.approx(expected)


def test_average_precision_per_class_is_equal():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(300, 20)).astype(np.float32)
    positive = rng.random((300, 20)) < 0.2
    expected = theirs.average_precision_per_class(
        torch.from_numpy(values), torch.from_numpy(positive)
    )
    for k in range(20):
        found = scores.average_precision(values[:, k], positive[:, k])
        assert found == pytest.approx(float(expected[k]), abs=1e-6)


def test_recall_with_several_texts_per_image_is_equal_both_ways():
    """Theirs sums hits over positives; it reports the share of queries with any."""
    rng = np.random.default_rng(2)
    images, image_of_text = unit(rng, 60), np.arange(300) // 5
    texts = unit(rng, 300)
    text_scores = torch.from_numpy(texts @ images.T)
    positive = torch.from_numpy(image_of_text[:, None] == np.arange(60)[None, :])
    ranks = retrieval.ranks(images, texts, image_of_text)
    of_name = retrieval.recall(*ranks, image_of_text)
    found = {name: one.value(np.ones(one.units)) for name, one in of_name.items()}
    for k in (1, 5, 10):
        to_image = their_retrieval.recall_at_k(text_scores, positive, k)
        to_text = their_retrieval.recall_at_k(text_scores.T, positive.T, k)
        assert found[f"text_to_image/R@{k}"] == pytest.approx(
            (to_image > 0).float().mean().item()
        )
        assert found[f"image_to_text/R@{k}"] == pytest.approx(
            (to_text > 0).float().mean().item()
        )


# By their names of the data sets: the task of the paper.
SAME = {
    "flowers": "flowers102",
    "gtsrb": "gtsrb",
    "country211": "country211",
    "eurosat": "eurosat",
    "fer2013": "fer2013",
    "caltech101": "caltech101",
    "caltech101_vtab": "caltech101",
    "imagenet1k": "imagenet",
    "clevr_count_all": "clevr_counts",
    "mnist": "mnist",
    "kitti_closest_vehicle_distance": "kitti_distance",
    "pets": "oxford_pets",
    "pcam": "pcam",
}


@pytest.mark.parametrize("name", SAME)
def test_their_class_names_are_found_among_the_paper_s(name):
    """The repositories of the hub have these lists, in this order."""
    folder = resources.files("clip_benchmark.datasets")
    own = json.loads(folder.joinpath("en_classnames.json").read_text())[name]
    (task,) = tasks.find([SAME[name]])
    found = prompts.match_classes(name, own, tasks.paper_prompts(task))
    assert sorted(found.label_of) == list(range(task.classes))
    if name in ("caltech101_vtab", "pets"):  # TFDS's order, which was found by hand
        assert found.label_of.tolist() == tasks.tfds_order(task)
    elif name != "clevr_count_all":
        assert found.label_of.tolist() == list(range(task.classes))


def test_babel_imagenet_s_lists_are_the_installed_ones(tmp_path):
    """All 90 languages that have both class names and prompts."""
    folder = resources.files("clip_benchmark.datasets")
    classes, templates = (
        json.loads(folder.joinpath(name).read_text())
        for name in ("babel_imagenet.json", "nllb_dist13b_prompts.json")
    )
    table = {task.id.upper(): task for task in tasks.table("babel")}
    assert set(table) == set(classes) & set(templates)
    (imagenet,) = tasks.find(["clip26/imagenet"])
    names = [own[0] for own in tasks.paper_prompts(imagenet).class_names]
    picture = image_layouts.png(np.zeros((8, 8, 3), np.uint8))
    rows = [str(label).encode() for label in range(1000)]
    image_layouts.write_webdataset(
        tmp_path / imagenet.folder, [picture] * 1000, rows, names
    )
    open_language = languages.open_suite("babel", str(tmp_path))
    for language, task in table.items():
        shown = open_language(task)  # checks the fingerprints
        labels, own = classes[language]
        assert [name for (name,) in shown.class_names] == own
        assert len(shown.class_names) == task.classes
        assert shown.rows.tolist() == sorted(labels)
        assert [labels[k] for k in shown.labels] == sorted(labels)
