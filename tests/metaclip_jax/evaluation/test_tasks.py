"""The tasks of the paper and of DataComp: prompts, label orders, layouts, averages."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import app
from sklearn import datasets

from metaclip_jax import evaluate
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.evaluation import (
    downloads,
    evaluator,
    label_names,
    page,
    plan,
    prompts,
    suite,
    tasks,
    webdataset,
)
from tests import browser, image_layouts, small_models, waiting

COUNT = 120
PAPER = {task.id: task for task in tasks.table("clip26")}
DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def digits():
    """Real pictures of handwritten digits and their labels."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8)[:COUNT] * 15.9).astype(np.uint8)
    return [image_layouts.png(image) for image in images], labels[:COUNT].tolist()


@pytest.fixture(scope="module")
def encoder(digits, tmp_path_factory):
    """A random model whose answers differ: what all inputs share is projected out."""
    path = tmp_path_factory.mktemp("tokenizer") / "t.json"
    path.write_text(train_tokenizer(["a photo of the number 1 2 3"] * 9, 600).to_str())
    tokenizer = load_tokenizer(path, family="clip")
    encoder = small_models.random_encoder(tokenizer, context_length=24)
    images, _ = digits
    asked = tasks.paper_prompts(PAPER["mnist"])
    texts = [asked.templates[0].replace("{}", names[0]) for names in asked.class_names]
    return small_models.with_different_answers(encoder, images, texts)


@pytest.fixture(scope="module")
def layouts(digits, tmp_path_factory):
    """A data_dir for each layout, all with the same images."""
    images, labels = digits
    root = tmp_path_factory.mktemp("layouts")
    turned = [9 - label for label in labels]  # their lists are in another order
    backwards = DIGITS[::-1]
    rows = [str(label).encode() for label in turned]
    image_layouts.write_webdataset(
        root / "wds" / "wds_mnist_test", images, rows, backwards
    )
    features = {"label": {"names": list(backwards), "_type": "ClassLabel"}}
    image_layouts.write_parquet(root / "parquet" / "mnist", images, turned, features)
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / "folder" / "mnist" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n:05d}.png").write_bytes(image)
    image_layouts.write_tfds(root / "tfds", images, labels, list(DIGITS))
    return {name: root / name for name in ("wds", "parquet", "folder", "tfds")}


# Prompts and label orders.


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_prompts_have_their_fingerprints(name):
    task = PAPER[name]
    asked = tasks.paper_prompts(task)  # checks them
    assert len(asked.class_names) == task.classes
    assert all(prompts.SLOT in template for template in asked.templates)
    assert task.metric in tasks.METRICS


def test_there_are_26_and_38_tasks_and_each_is_found_by_its_id():
    assert [len(tasks.table(s)) for s in tasks.SUITES] == [26, 38, 2, 36, 90]
    assert tasks.find(["clip26"]) == list(tasks.table("clip26"))
    both = tasks.find(["cifar10", "datacomp38/cifar10", "cifar10", "misc/winogavil"])
    assert [task.suite for task in both] == ["clip26", "datacomp38", "datacomp38"]
    assert len(tasks.find(["retrieval", "datacomp38"])) == 38
    with pytest.raises(ValueError, match="single ones .food101, .* got 'cifar'"):
        tasks.find(["cifar"])


# What folders are called, in the order of the paper's classes. The others have the
# names of the prompts, with "_" for spaces and slashes.
FOLDERS = {
    "clevr_counts": "count_10 count_3 count_4 count_5 count_6 count_7 count_8 count_9",
    "country211": " ".join(label_names._COUNTRIES),
    "eurosat": "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture"
    " PermanentCrop Residential River SeaLake",
    "fer2013": "angry disgust fear happy neutral sad surprise",
    "flowers102": " ".join(map(str, range(1, 103))),
    "gtsrb": " ".join(f"{n:05d}" for n in range(43)),
    "kitti_distance": "below_8 below_20 above_20 no_vehicle",
    "pcam": "no_tumor tumor",
}


def folders_of(task):
    """What the folders of a data set are called, as its archive or VISSL has them."""
    if task.id in FOLDERS:
        return FOLDERS[task.id].split()
    names = [names[0] for names in tasks.paper_prompts(task).class_names]
    if task.id == "cub200":
        return [f"{n:03d}.{name.replace(' ', '_')}" for n, name in enumerate(names, 1)]
    if task.id == "stanford_cars":
        return [f"{n:03d}_{name.replace(' ', '_')}" for n, name in enumerate(names)]
    if task.id in ("imagenet", "caltech101"):
        found = dict(enumerate(tasks.paper_prompts(task).labels))
        return [found[n][-1] for n in range(task.classes)]
    if task.id == "sun397":
        return [f"{name[0]}/{name.replace(' ', '_')}" for name in names]
    if task.id == "ucf101":
        return [name.title().replace(" ", "") for name in names]
    return [re.sub("[ /]", "_", name) for name in names]


@pytest.mark.parametrize("name", PAPER)
def test_folders_give_their_class_by_name(name, digits, tmp_path):
    task = PAPER[name]
    called = folders_of(task)
    asked = tasks.paper_prompts(task)
    assert len({prompts.plain(word) for word in called}) == task.classes
    turned = sorted(called)
    found = prompts.match_classes("here", turned, asked).label_of
    assert [called[label] for label in found] == turned
    with pytest.raises(ValueError, match="got 'no such' .no class."):
        prompts.match_classes("here", ["no such", *turned[1:]], asked)
    few = called[:: max(1, task.classes // 5)]
    root = tmp_path / name / ("val" if name == "pcam" else "test") / "outer"
    for n, folder in enumerate(few):
        (root / folder).mkdir(parents=True)
        (root / folder / f"{n}.png").write_bytes(digits[0][n])
    (tmp_path / name / "train" / "x").mkdir(parents=True)
    examples = tasks.open_task(task, tasks.locate(task, str(tmp_path)))
    assert len(examples.class_names) == task.classes
    by_file = {
        folder.rsplit("/", 1)[0]: called[label]
        for folder, label in zip(examples.names, examples.labels, strict=True)
    }
    assert by_file == {folder: folder for folder in few}


@pytest.mark.parametrize(
    ("name", "called", "label"),
    [
        ("clevr_counts", ["three", "four", "five", "ten"], [1, 2, 3, 0]),
        ("cub200", ["001.Black_footed_Albatross", "002.Laysan_Albatross"], [0, 1]),
        ("imagenet", ["n01443537", "n01440764", "n15075141"], [1, 0, 999]),
        ("caltech101", ["BACKGROUND_Google", "Faces_easy", "Faces"], [0, 2, 1]),
        ("caltech101", ["airplanes", "Motorbikes", "yin_yang"], [6, 4, 101]),
        ("country211", ["ZW", "AD", "XK", "GB"], [210, 0, 206, 65]),
        ("gtsrb", ["42", "1"], [42, 1]),
        ("fer2013", ["sad", "smiling"], [5, 3]),
        ("fgvc_aircraft", ["BAE-125", "BAE-146-200"], [39, 37]),
        ("kitti_distance", ["no_vehicle", "below_8"], [3, 0]),
    ],
)
def test_what_data_sets_call_a_class_is_known(name, called, label):
    asked = tasks.paper_prompts(PAPER[name])
    found = prompts.match_classes("here", called, asked)
    assert found.label_of.tolist() == label


def test_countries_are_called_as_iso_3166_does():
    """By the names that the time zone database has, where they are the same."""
    pytz = pytest.importorskip("pytz")
    asked = tasks.paper_prompts(PAPER["country211"])
    found = {prompts.plain(name): code for code, name in pytz.country_names.items()}
    same = 0
    for names in asked.class_names:
        code = found.get(prompts.plain(names[0]))
        if code:
            places = prompts.match_classes("here", [code], asked)
            assert asked.class_names[places.label_of[0]] == names
            same += 1
    assert same == 180


def test_tfds_orders_are_permutations_and_exchange_what_was_found():
    for task in tasks.table("clip26"):
        order = tasks.tfds_order(task)
        assert sorted(order) == list(range(task.classes)), task.id
    assert tasks.tfds_order(PAPER["food101"])[15:19] == [15, 17, 16, 18]
    assert tasks.tfds_order(PAPER["oxford_pets"])[:9] == [
        0,
        12,
        13,
        14,
        15,
        1,
        2,
        3,
        16,
    ]
    caltech = tasks.tfds_order(PAPER["caltech101"])
    assert caltech[:6] == [5, 6, 7, 8, 0, 9] and caltech[36:40] == [40, 1, 2, 41]
    assert caltech[57:59] == [3, 59] and caltech[66:68] == [4, 67]


# Layouts.


def test_every_layout_gives_the_same_number(encoder, layouts):
    found = {}
    for layout, data_dir in layouts.items():
        opened = suite.open_tasks(tasks.find(["mnist"]), str(data_dir))
        said = []
        found[layout] = suite.run(encoder, opened, resamples=50, report=said.append)
        assert "120 of 10,000" in said[1]
    numbers = {layout: one["tasks"]["clip26/mnist"] for layout, one in found.items()}
    # Folders and TFDS have another order, which the draws of a bootstrap depend on.
    assert numbers["wds"]["results"] == numbers["parquet"]["results"]
    for one in numbers.values():
        for key in ("value", "low", "high", "chance", "images"):
            assert one[key] == numbers["wds"][key], key
    value = numbers["wds"]["value"]
    assert 0 < value < 1
    (task,) = tasks.find(["mnist"])
    shown = tasks.open_task(task, tasks.locate(task, str(layouts["wds"])))
    cosines = (
        encoder.encode_images(shown.read, names=str, total=COUNT)
        @ class_embeddings(encoder, shown).T
    )
    assert len(set(cosines.argmax(axis=1).tolist())) > 1
    assert value == (cosines.argmax(axis=1) == shown.labels).mean()


def class_embeddings(encoder, shown):
    rows = []
    for names in shown.class_names:
        texts = [t.replace("{}", name) for t in shown.templates for name in names]
        mean = encoder.encode_texts(texts).mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.stack(rows)


def test_a_folder_of_one_s_own_in_the_hub_s_layout_has_its_own_prompts(layouts):
    shown = evaluator.open_data(str(layouts["wds"] / "wds_mnist_test"))
    assert shown.class_names == tuple((name,) for name in DIGITS[::-1])
    assert shown.templates == ("a {}", "the {}")
    shown = evaluator.open_data(str(layouts["parquet"] / "mnist"))
    assert shown.templates == prompts.DEFAULT_TEMPLATES
    assert len(shown.names) == COUNT


def test_spaces_around_a_class_name_are_no_part_of_it(digits, tmp_path):
    images, labels = digits
    rows = [str(label % 2).encode() for label in labels]
    image_layouts.write_webdataset(tmp_path, images, rows, [" cat\t", "dog "])
    (tmp_path / "zeroshot_classification_templates.txt").write_bytes(b" a {c} \r\n")
    shown = evaluator.open_data(str(tmp_path))
    assert shown.class_names == (("cat",), ("dog",)) and shown.templates == ("a {}",)


def test_texts_are_read_for_retrieval_in_both_layouts(encoder, digits, tmp_path):
    images, labels = digits
    texts = [[f"number {label}", f"digit {n}"] for n, label in enumerate(labels)]
    rows = ["\n".join(lines).encode() for lines in texts]
    (task,) = tasks.find(["retrieval/mscoco_2014_5k_test_image_text_retrieval"])
    name = "wds_mscoco_captions"
    image_layouts.write_webdataset(
        tmp_path / "a" / name, images, rows, ["x"], ending="txt"
    )
    image_layouts.write_parquet(
        tmp_path / "b" / name, images, texts, {}, name="caption"
    )
    found = []
    for data_dir in ("a", "b"):
        shown = tasks.open_task(task, tasks.locate(task, str(tmp_path / data_dir)))
        assert len(shown.texts) == 2 * COUNT
        found.append(evaluator.evaluate(encoder, shown, resamples=50))
    assert found[0] == found[1]
    both = [found[0][way]["R@1"] for way in ("image_to_text", "text_to_image")]
    mean = found[0]["retrieval"]["mean_R@1"]
    assert mean["value"] == pytest.approx(np.mean([one["value"] for one in both]))
    assert mean["low"] <= mean["value"] <= mean["high"]


def test_images_of_several_classes_and_groups_are_read_from_arrays(digits, tmp_path):
    images, _ = digits
    several = [image_layouts.npy([n % 2, n % 3 == 0, 1]) for n in range(COUNT)]
    path = image_layouts.write_webdataset(
        tmp_path / "a", images, several, "abc", ending="npy"
    )
    shown = evaluator.open_data(path)
    assert shown.labels.shape == (COUNT, 3) and shown.labels[:, 2].all()
    # Their npy holds region, year and class; the label is in the cls.
    for n, tar in enumerate(sorted((tmp_path / "a" / "test").glob("*.tar"))):
        samples = {}
        for k in range(4):
            key = f"x{n}{k}"
            samples |= {f"{key}.webp": images[k], f"{key}.cls": b"1"}
            samples |= {f"{key}.npy": image_layouts.npy([k % 2, 2016, 1])}
        image_layouts.write_tar(tar, samples)
    shown = webdataset.open_folder(path, group_column=0)
    assert shown.groups.tolist() == [0, 1] * 4 and shown.labels.tolist() == [1] * 8


def test_what_is_damaged_in_a_layout_is_named(digits, tmp_path):
    images, labels = digits
    rows = [str(label).encode() for label in labels]
    path = tmp_path / "wds"
    image_layouts.write_webdataset(path, images, rows, DIGITS[:5])
    with pytest.raises(ValueError, match="lines, 5, got labels up to 9"):
        webdataset.open_folder(str(path))
    image_layouts.write_webdataset(path, images, [b"one"] * COUNT, DIGITS)
    with pytest.raises(ValueError, match="wanted a number in each .cls"):
        webdataset.open_folder(str(path))
    image_layouts.write_webdataset(path, images, [b"9" * 20] * COUNT, DIGITS)
    with pytest.raises(ValueError, match="wanted a number in each .cls, .* too large"):
        webdataset.open_folder(str(path))
    for values in ([], [np.nan], ["a"], [1j]):
        rows_ = [image_layouts.npy(values)] * COUNT
        image_layouts.write_webdataset(path, images, rows_, DIGITS[:1], ending="npy")
        with pytest.raises(ValueError, match="wanted (numbers|a .cls)|lines, 1"):
            webdataset.open_folder(str(path), group_column=0)
    (path / "classnames.txt").unlink()
    with pytest.raises(ValueError, match="classnames.txt, found no such file"):
        image_layouts.write_webdataset(tmp_path / "other", images, rows, DIGITS)
        (tmp_path / "other" / "classnames.txt").unlink()
        webdataset.open_folder(str(tmp_path / "other"))
    tar = path / "test" / "1.tar"
    tar.write_bytes(tar.read_bytes()[: 40 * 512 + 700])
    with pytest.raises(ValueError, match="1.tar is (damaged|truncated).* download"):
        webdataset.open_folder(str(path))
    image_layouts.write_parquet(tmp_path / "parquet", images, labels, {})
    with pytest.raises(ValueError, match="write the files with datasets"):
        evaluator.open_data(str(tmp_path / "parquet"))
    first = next((tmp_path / "parquet" / "data").iterdir())
    first.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(ValueError, match="parquet is damaged"):
        evaluator.open_data(str(tmp_path / "parquet"))


def test_images_that_do_not_allow_a_task_s_metric_are_refused_at_once(digits, tmp_path):
    (memes,) = tasks.find(["hateful_memes"])
    for name in ("meme", "hatespeech meme"):
        (tmp_path / "hateful_memes" / name).mkdir(parents=True)
        (tmp_path / "hateful_memes" / name / "a.png").write_bytes(digits[0][0])
    assert suite.open_tasks([memes], str(tmp_path))[0].examples
    rows = [b"0"] * len(digits[0])
    names = [name for (name,) in tasks.paper_prompts(memes).class_names]
    image_layouts.write_webdataset(tmp_path / "hateful_memes", digits[0], rows, names)
    with pytest.raises(ValueError, match="wanted images for zero_shot/roc_auc, got"):
        suite.open_tasks([memes], str(tmp_path))


def test_a_download_that_is_not_complete_is_refused(digits, tmp_path, caplog):
    images, labels = digits
    rows = [str(label).encode() for label in labels]
    path = image_layouts.write_webdataset(tmp_path, images, rows, DIGITS)
    (tmp_path / "test" / "nshards.txt").write_text("2\n")
    assert len(webdataset.open_folder(path).names) == COUNT and not caplog.text
    tar = tmp_path / "test" / "1.tar"
    tar.write_bytes(tar.read_bytes().rstrip(b"\0") + bytes(-1 % 512))
    assert len(webdataset.open_folder(path).names) == COUNT
    assert "1.tar has no mark of its end; it may be cut off" in caplog.text
    tar.unlink()
    with pytest.raises(ValueError, match="wanted '2' tar files, .* says, got 1"):
        webdataset.open_folder(path)


def test_datacomp_s_numbers_are_of_its_own_texts(layouts):
    """The paper's task of the same name may lie there in any layout."""
    (paper, theirs) = tasks.find(["clip26/mnist", "datacomp38/mnist"])
    for layout in layouts.values():
        assert tasks.locate(paper, str(layout))
    for layout in ("folder", "parquet", "tfds"):
        assert tasks.locate(theirs, str(layouts[layout])) is None
        with pytest.raises(ValueError, match="which has DataComp's class names"):
            tasks.open_task(theirs, tasks.locate(paper, str(layouts[layout])))
    (opened,) = suite.open_tasks([theirs], str(layouts["wds"]))
    assert opened.examples.templates == ("a {}", "the {}")


def test_a_config_of_tfds_is_found_in_its_builder_s_folder(tmp_path):
    (sun,) = tasks.find(["sun397"])
    for version in ("9.0.0", "10.0.0"):
        (tmp_path / "sun397/tfds" / version).mkdir(parents=True)
        (tmp_path / "sun397/tfds" / version / "features.json").touch()
    assert tasks.locate(sun, str(tmp_path)) == f"{tmp_path}/sun397/tfds/10.0.0"


def test_a_class_of_datacomp_may_have_no_name(encoder, digits, tmp_path):
    images, labels = digits
    names = ["very nearby", "nearby", "near", "", "distant", "very distant"]
    name = "vtab/clevr_closest_object_distance"
    rows = [str(label % 6).encode() for label in labels]
    image_layouts.write_webdataset(tmp_path / name, images, rows, names)
    opened = suite.open_tasks(tasks.find([name]), str(tmp_path))
    found = suite.run(encoder, opened, resamples=2, report=str)
    number = found["tasks"][f"datacomp38/{name}"]
    assert number["chance"] == 1 / 6 and number["results"]["zero_shot"]["classes"] == 6


def test_regions_are_measured_as_datacomp_and_as_wilds_do(encoder, digits, tmp_path):
    images, _ = digits
    samples = {}
    for n, image in enumerate(images):
        samples |= {f"{n}.png": image, f"{n}.cls": b"%d" % (n % 62)}
        samples[f"{n}.npy"] = image_layouts.npy([n % 6, 2016, n % 62])
    folder = tmp_path / "wds_wilds-fmow_test"
    names = [f"kind {n}" for n in range(62)]
    image_layouts.write_webdataset(folder, [], [], names)
    image_layouts.write_tar(folder / "test" / "0.tar", samples)
    said = []
    opened = suite.open_tasks(tasks.find(["wilds/fmow"]), str(tmp_path))
    found = suite.run(encoder, opened, resamples=2, report=said.append)
    number = found["tasks"]["datacomp38/wilds/fmow"]
    assert number["value"] == number["results"]["zero_shot"]["worst_group"]["value"]
    (other,) = number["others"]
    lines = [*said[1].splitlines(), *suite.summary(found).splitlines()]
    assert [line.split()[0] for line in lines[:2]] == ["datacomp38/wilds/fmow", other]
    assert f"{other} is WILDS's" in lines[-1]
    assert other in page.render({"model": "a"} | found).decode()


def test_another_number_of_classes_is_no_copy_of_a_task(digits, tmp_path):
    images, labels = digits
    (task,) = tasks.find(["datacomp38/mnist"])
    rows = [str(label).encode() for label in labels]
    path = image_layouts.write_webdataset(
        tmp_path / "mnist", images, rows, [*DIGITS, "10"]
    )
    with pytest.raises(ValueError, match="wanted the 10 classes of mnist, got 11"):
        tasks.open_task(task, path)


# Averages, and what is missing.


def test_averages_say_over_how_many_and_how_sure():
    def number(value, half, chance, images):
        found = {"value": value, "low": value - half, "high": value + half}
        return found | {
            "chance": chance,
            "images": images,
            "images_of_the_task": images,
        }

    numbers = [number(0.5, 0.03, 0.1, 100), number(0.9, 0.04, 0.5, 300)]
    found = suite.averages(numbers, of=26)
    assert (found["tasks"], found["of"], found["other_images"]) == (2, 26, 0)
    for images in (99, 101):  # too many are another test set, too
        averages = suite.averages([numbers[0] | {"images": images}], of=1)
        assert averages["other_images"] == 1
    assert found["mean"]["value"] == pytest.approx(0.7)
    assert found["mean"]["high"] - 0.7 == pytest.approx(0.025)  # a 3-4-5 triangle
    assert found["mean_by_images"]["value"] == pytest.approx(0.8)
    above = (0.4 / 0.9 + 0.4 / 0.5) / 2
    assert found["mean_above_chance"]["value"] == pytest.approx(above)
    assert suite.averages([], of=26) == {"tasks": 0, "of": 26, "other_images": 0}


def test_what_is_missing_is_named_and_never_averaged_over(encoder, layouts):
    opened = suite.open_tasks(tasks.find(["clip26"]), str(layouts["wds"]))
    found = suite.run(encoder, opened, resamples=5, report=lambda line: None)
    assert list(found["tasks"]) == ["clip26/mnist"]
    assert len(found["missing"]) == 25
    said = suite.summary(found)
    over = "over 1 of the 26 tasks of clip26, 1 of them with more or fewer images than"
    assert f"{over} their test sets (not comparable" in said
    assert "hf download djghosh/wds_cifar10_test --repo-type dataset --revision" in said
    assert "10,000 images, size: 56 MB, licence: none stated: hf download" in said
    json.dumps(found)


def test_each_task_has_a_size_a_licence_a_revision_and_a_way_to_get_it():
    for task in (one for suite_ in tasks.SUITES for one in tasks.table(suite_)):
        said = downloads.missing(task, "a b")
        assert re.search(r"size: (~|about |more than )?[\d.]+ [MG]B", said), said
        assert task.licence and "a b" in said or task.suite == "babel"
        assert not task.repo or re.fullmatch("[0-9a-f]{40}", task.revision), task.id
        if task.is_on_hub:
            assert said.endswith(f"--local-dir 'a b/{task.folder}'")
    (memes, cub) = tasks.find(["hateful_memes", "cub200"])
    assert "size: ~189 MB" in downloads.missing(memes, "a")
    assert "tfds build caltech_birds2011 --file_format" in downloads.how(cub, "a")


def test_only_test_sets_are_downloaded(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **given: asked.append(given)
    )
    coco, cifar = tasks.find(
        ["retrieval/mscoco_2014_5k_test_image_text_retrieval", "cifar10"]
    )
    downloads.download(coco, str(tmp_path))
    assert asked[0]["ignore_patterns"] == "train/*"
    assert "--exclude 'train/*'" in downloads.how(coco, "DIR")
    assert "--exclude" not in downloads.how(cifar, "DIR")


def test_a_download_that_was_interrupted_goes_on(digits, tmp_path):
    images, labels = digits
    mnist, sun = tasks.find(["mnist", "sun397"])
    assert downloads.wanted(mnist, str(tmp_path))
    assert not downloads.wanted(sun, str(tmp_path))  # the hub has another
    (tmp_path / mnist.folder / "test").mkdir(parents=True)
    assert downloads.wanted(mnist, str(tmp_path))
    with pytest.raises(ValueError, match="wanted the tar files of djghosh/wds_mnist_t"):
        suite.open_tasks([mnist], str(tmp_path))
    rows = [str(label).encode() for label in labels]
    image_layouts.write_webdataset(tmp_path / mnist.folder, images, rows, DIGITS)
    for shards, want in (("3", True), ("2", False)):
        (tmp_path / mnist.folder / "test" / "nshards.txt").write_text(shards)
        assert downloads.wanted(mnist, str(tmp_path)) is want
    (tmp_path / "mnist").mkdir()  # somebody's own
    assert not downloads.wanted(mnist, str(tmp_path))


def test_the_plan_is_made_without_a_model(layouts):
    command = [sys.executable, "-m", "metaclip_jax.evaluate", "--tasks=clip26"]
    done = subprocess.run(
        [*command, f"--data_dir={layouts['wds']}", "--plan"],
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "120 (the task has 10,000) images in" in done.stdout
    assert "1 of 26 tasks: 120 images and 10 texts to embed" in done.stdout
    assert done.stdout.count("  missing  ") == 25
    assert "images and 10 texts to embed, about 10 s" in done.stdout
    assert "267,142 images are missing, about 6 h 5 min more" in done.stdout
    assert "times are with ViT-B/32 at 100 GFLOP/s" in done.stdout


def test_the_plan_of_a_model_takes_its_time(encoder, layouts):
    opened = suite.open_tasks(tasks.find(["mnist", "kinetics700"]), str(layouts["wds"]))
    estimate = plan.measured(encoder)
    assert estimate.seconds(2_000, 0) > estimate.seconds(1_000, 0) > 0
    said = plan.describe(opened, estimate._replace(seconds=lambda n, m: 60 * n + m))
    assert "120 images and 10 texts to embed, about 2 h 0 min\n" in said
    assert said.endswith("this model on this machine, decoding not included")
    assert "are missing," not in said  # copies of Kinetics differ


def test_models_are_compared_on_the_same_draws(encoder, layouts):
    opened = suite.open_tasks(tasks.find(["mnist"]), str(layouts["parquet"]))
    rng = np.random.default_rng(8)
    near = encoder.with_params(
        jax.tree.map(
            lambda leaf: leaf + rng.normal(scale=1e-3, size=leaf.shape).astype("f"),
            jax.device_get(encoder.params),
        )
    )
    found = {}
    for name, other in (("itself", encoder), ("near", near)):
        found[name] = suite.run(
            encoder,
            opened,
            resamples=200,
            against=other,
            paper="B/32-400M",
            report=lambda line: None,
        )
    task = found["itself"]["tasks"]["clip26/mnist"]
    assert task["paper"] == pytest.approx(0.415)
    assert task["against"]["value"] == task["value"]
    assert set(task["against"]["difference"].values()) == {0.0}
    task = found["near"]["tasks"]["clip26/mnist"]
    by = task["against"]["difference"]
    assert by["value"] == pytest.approx(task["value"] - task["against"]["value"])
    assert by["low"] <= by["value"] <= by["high"]
    # They are right and wrong on nearly the same images.
    assert by["high"] - by["low"] < task["high"] - task["low"]
    mean = found["near"]["averages"]["clip26"]["mean_difference"]
    assert mean["value"] == by["value"]


def test_the_paper_s_rows_have_their_averages():
    """The published averages of the 26, in per cent."""
    published = {"B/32-400M": 58.2, "B/16-400M": 61.1, "L/14-400M": 67.1}
    published |= {"B/32-2.5B": 59.8, "B/16-2.5B": 63.5, "L/14-2.5B": 69.8}
    published |= {"H/14-2.5B": 72.4, "bigG-2.5B": 73.2}
    for model, mean in published.items():
        row = tasks.paper_row(model)
        assert set(row) == set(PAPER)
        assert np.mean(list(row.values())) * 100 == pytest.approx(mean, abs=0.051)
    with pytest.raises(ValueError, match="--paper one of B/32-400M, .* got 'B'"):
        tasks.paper_row("B")


def test_the_page_shows_each_number_and_escapes_what_strangers_wrote(encoder, layouts):
    opened = suite.open_tasks(tasks.find(["mnist", "cifar10"]), str(layouts["wds"]))
    found = suite.run(
        encoder, opened, resamples=20, against=encoder, paper="B/32-400M", report=str
    )
    number = found["tasks"]["clip26/mnist"]
    assert number["confusions"]
    for one in number["confusions"]:
        assert one["right"] != one["answered"] and 0 < one["count"] <= one["total"]
    number["confusions"][0]["right"] = "<script>alert(1)</script>"
    names = {"model": "<b>model", "against": "<b>other", "paper": "B/32-400M"}
    text = page.render(names | found).decode()
    assert "<script" not in text and "<b>model" not in text and "<b>oth" not in text
    assert "&lt;b&gt;other" in text and "number of B/32-400M in" in text
    assert f"{100 * number['value']:.2f}%" in text and "41.5%" in text
    assert text.count("data:image/jpeg;base64,") == len(number["confusions"])
    assert "wds_cifar10_test" in text  # how to get it


@pytest.mark.slow
@browser.wanted
def test_a_browser_shows_values_and_bars_at_desktop_and_phone_width(
    encoder, layouts, digits, tmp_path
):
    data_dir = layouts["wds"]
    name = "retrieval/mscoco_2014_5k_test_image_text_retrieval"
    texts = [f"number {label}".encode() for label in digits[1]]
    image_layouts.write_webdataset(
        data_dir / "wds_mscoco_captions", digits[0], texts, ["x"], ending="txt"
    )
    opened = suite.open_tasks(tasks.find(["clip26", name]), str(data_dir))
    found = suite.run(
        encoder, opened, resamples=20, against=encoder, paper="B/32-400M", report=str
    )
    file = tmp_path / "page.html"
    file.write_bytes(
        page.render({"model": "A", "against": "B", "paper": "B/32-400M"} | found)
    )
    ends = "[...document.querySelectorAll('.interval')].map(e => e.getBoundingClient"
    ends += "Rect().right)"

    async def measure(tab):
        return await tab.evaluate(browser.MEASURE), await tab.evaluate(ends)

    with browser.chromium(tmp_path / "profile") as port:
        for width in (1280, 390):
            (seen, bars), tab = browser.look_at(port, file, measure, width=width)
            assert seen["width"] == width and seen["wide"] == []
            assert seen["images"] > 3 and seen["broken"] == 0
            assert len(bars) == 2 and max(bars) <= width
            assert tab.requests() == [file.as_uri()] and tab.complaints() == []


def evaluate_flags(**given):
    names = "model tasks data data_dir workdir step plan download paper skip_broken"
    return SimpleNamespace(**dict.fromkeys(names.split(), "") | given)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, "--workdir=RUN, or --model=.* --data=DIR or with --tasks=.*, got neither"),
        ({"workdir": "a", "model": "b"}, "got both"),
        ({"model": "b"}, "wanted --data=DIR, or --tasks"),
        ({"tasks": ["mnist"], "model": "b"}, "wanted --data_dir=DIR with --tasks"),
        ({"tasks": ["mnist"], "plan": True}, "wanted --data_dir=DIR with --tasks"),
        ({"tasks": ["mnist"], "data_dir": "a"}, r"wanted --model=\S+ .or --plan. with"),
        ({"tasks": ["mnist"]}, r"wanted --data_dir=DIR and --model=\S+ .or --plan. w"),
        ({"model": "b", "data": "a", "plan": True}, "with --data none .*, got --plan;"),
        ({"workdir": "a", "data_dir": "b"}, "with --workdir none .*, got --data_dir"),
        (
            {"tasks": ["mnist"], "data_dir": "a", "model": "b", "data": "c", "step": 0},
            "with --tasks none but .*, got --data, --step; leave",
        ),
    ],
)
def test_flags_that_are_missing_are_named_and_no_others(given, wanted):
    with pytest.raises(app.UsageError, match=wanted):
        evaluate.check_flags(vars(evaluate_flags(**{"step": None} | given)))


@pytest.mark.parametrize(
    "given",
    [
        {"workdir": "a"},
        {"model": "b", "data": "a"},
        {"tasks": ["mnist"], "data_dir": "a", "plan": True},
        {"tasks": ["mnist"], "data_dir": "a", "model": "b"},
    ],
)
def test_flags_that_are_enough_are_not_refused(given):
    evaluate.check_flags(vars(evaluate_flags(**{"step": None} | given)))


def test_to_measure_nothing_is_an_error_but_to_plan_it_is_not(tmp_path, capsys):
    asked = {"tasks": ["mnist", "cifar10"], "model": "no model is loaded"}
    with pytest.raises(FileNotFoundError, match="--data_dir, got .*none, which is not"):
        evaluate.evaluate_tasks(evaluate_flags(**asked, data_dir=f"{tmp_path}/none"))
    with pytest.raises(ValueError, match="wanted images of --tasks in .*, got none"):
        evaluate.evaluate_tasks(evaluate_flags(**asked, data_dir=str(tmp_path)))
    shown = capsys.readouterr().out
    assert shown.count("  missing  ") == 2 and "0 of 2 tasks" in shown
    for folder in (tmp_path, tmp_path / "none"):
        flags = evaluate_flags(**asked | {"model": ""}, data_dir=folder, plan=True)
        evaluate.evaluate_tasks(flags)
        assert "0 of 2 tasks" in capsys.readouterr().out
