"""Loaded models measured on labelled images, wherever those are stored."""

import io
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from metaclip_jax import convert, files
from metaclip_jax.data import records
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.evaluation import evaluator
from metaclip_jax.inference import loading
from metaclip_jax.inference import model as inference
from metaclip_jax.training import sharding
from tests import small_models, waiting

CLASSES = ["blue_dog", "green bird", "red_cat"]
PER_CLASS = 9


def png(number):
    pixels = np.random.default_rng(number).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((40, 30)).save(out, "PNG")
    return out.getvalue()


IMAGES = [(png(n), n // PER_CLASS) for n in range(PER_CLASS * len(CLASSES))]


class Pictures(tfds.core.GeneratorBasedBuilder):
    """The same images as TFDS prepares them."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # no files of its own beside it

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for n, (image, label) in enumerate(IMAGES):
            yield n, {"image": io.BytesIO(image), "label": label}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for n, (image, label) in enumerate(IMAGES):
        (root / CLASSES[label]).mkdir(exist_ok=True)
        (root / CLASSES[label] / f"{n:02d}.png").write_bytes(image)
    (root / ".cache").mkdir()
    return str(root)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS dataset folder."""
    root = tmp_path_factory.mktemp("tfds")
    builder = Pictures(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
    return str(root / "pictures" / "1.0.0")


@pytest.fixture(scope="module")
def curated(write_dataset, tmp_path_factory):
    """A dataset folder as curation writes it, that labels its images."""
    path = write_dataset(
        tmp_path_factory.mktemp("curated") / "dataset",
        record_count=len(IMAGES),
        images={n: image for n, (image, _) in enumerate(IMAGES)},
    )
    dataset = records.open_dataset(path)
    stored = [records.decode(d) for d in records.read(dataset, range(len(dataset)))]
    label_of = dict(IMAGES)
    files.write_json(
        f"{path}/zero_shot.json",
        {
            "class_names": [name.replace("_", " ") for name in CLASSES],
            "templates": ["a photo of a {}."],
            "labels": {r.image_id: label_of[r.image] for r in stored},
        },
    )
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A random model's folder."""
    root = tmp_path_factory.mktemp("model")
    (root / "t.json").write_text(train_tokenizer(CLASSES * 3, 600).to_str())
    tokenizer = load_tokenizer(root / "t.json", family="clip")
    architecture = small_models.architecture(tokenizer)
    params = small_models.random_params(architecture)
    preprocess = loading.Preprocess(16, squash=False)
    loaded = loading.Loaded("tiny", architecture, params, tokenizer, preprocess)
    convert.convert(loaded, "huggingface", str(root / "hf"))
    return str(root / "hf")


@pytest.fixture(scope="module")
def model(saved):
    return inference.load(saved, batch=8)


def by_hand(model, templates, classes_names=tuple((name,) for name in CLASSES)):
    """Accuracy from the embeddings alone."""
    classes = []
    for names in classes_names:
        prompts = [t.format(n.replace("_", " ")) for n in names for t in templates]
        mean = model.embed_texts(prompts).astype(np.float64).mean(axis=0)
        classes.append(mean / np.linalg.norm(mean))
    scores = model.embed_images([image for image, _ in IMAGES]) @ np.stack(classes).T
    right = scores.argmax(axis=1) == np.array([label for _, label in IMAGES])
    return right.mean()


def evaluate(model, data, **options):
    examples = evaluator.open_data(data, **options)
    return evaluator.evaluate(model.encoder, examples, resamples=50)


def test_a_folder_a_tfds_dataset_and_a_curated_one_give_the_same(
    model, folder, prepared, curated
):
    found = [evaluate(model, data)["zero_shot"] for data in (folder, prepared, curated)]
    want = by_hand(model, ["a photo of a {}."])
    assert want != pytest.approx(1 / 3)  # something else than one answer for all
    for numbers in found:
        assert numbers["images"] == len(IMAGES) and numbers["classes"] == 3
        # Equally many of each class: both means are one.
        assert numbers["accuracy"]["value"] == pytest.approx(want)
        assert numbers["mean_per_class"]["value"] == pytest.approx(want)
        assert numbers["accuracy"]["chance"] == pytest.approx(1 / 3)
        assert numbers["accuracy"]["low"] <= want <= numbers["accuracy"]["high"]


def test_a_curated_dataset_is_measured_by_retrieval_too(model, curated):
    found = evaluate(model, curated)
    assert found.keys() == {"zero_shot", "image_to_text", "text_to_image"}
    assert 0 <= found["image_to_text"]["R@1"]["value"] <= 1


def test_numbers_do_not_depend_on_batch_or_devices(saved, model, folder):
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    other = inference.load(saved, batch=5, mesh=mesh)
    assert evaluate(other, folder) == evaluate(model, folder)


def test_prompts_come_from_a_json(model, folder, tmp_path):
    templates = ["{}", "it is a {}!"]
    names = {"red_cat": ["cat", "red"], "blue_dog": "dog", "green bird": "bird"}
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"templates": templates, "class_names": names}))
    found = evaluate(model, folder, prompts_path=str(path))["zero_shot"]
    want = by_hand(model, templates, [["dog"], ["bird"], ["cat", "red"]])
    assert found["accuracy"]["value"] == pytest.approx(want)
    path.write_text(json.dumps({"templates": templates}))
    found = evaluate(model, folder, prompts_path=str(path))["zero_shot"]
    assert found["accuracy"]["value"] == pytest.approx(by_hand(model, templates))


def test_a_class_is_found_by_its_name_and_never_by_its_rank(
    model, folder, prepared, curated, tmp_path
):
    path = tmp_path / "prompts.json"

    def accuracy(data, class_names):
        given = {"templates": ["a {}"], "class_names": class_names}
        path.write_text(json.dumps(given))
        found = evaluate(model, data, prompts_path=str(path))["zero_shot"]
        assert found["images"] == len(IMAGES)
        return found["accuracy"]["value"], found["classes"]

    names = [["Red Cat"], ["blue-dog"], ["green bird"]]
    want = by_hand(model, ["a {}"], [["blue-dog"], ["green bird"], ["Red Cat"]])
    for data in (folder, prepared, curated):
        for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
            assert accuracy(data, [names[n] for n in order]) == (want, 3)
        # A class without an image is one to be mistaken for.
        assert accuracy(data, [["a wolf"], *names])[1] == 4
        for wrong in (["a", "b"], ["red cat", "blue dog", "bird"]):
            with pytest.raises(ValueError, match="wanted each label .* do not match"):
                accuracy(data, wrong)
        with pytest.raises(ValueError, match="'red.cat' .several classes"):
            accuracy(data, ["red cat", ["a", "RED CAT"], "blue dog", "green bird"])


def copied(folder, to):
    return shutil.copytree(folder, to)


def test_images_are_found_at_any_depth_and_what_is_no_image_is_counted(
    model, folder, tmp_path, caplog
):
    want = evaluate(model, folder)
    root = copied(folder, tmp_path / "images")
    paths = sorted((root / "red_cat").iterdir())
    (root / "red_cat" / "inner" / "most").mkdir(parents=True)
    paths[0].rename(root / "red_cat" / "inner" / "most" / paths[0].name)
    with Image.open(paths[1]) as image:
        image.save(root / "red_cat" / "other.PPM")
    paths[1].unlink()
    # What macOS and Windows leave.
    for name in (f"._{paths[2].name}", ".DS_Store"):
        (root / "red_cat" / name).write_bytes(b"\0\5\x16\7")
    (root / "__MACOSX" / "red_cat").mkdir(parents=True)
    assert caplog.messages == []
    (root / "red_cat" / "notes.txt").write_text("x")
    (root / "list.csv").write_text("x")
    assert evaluate(model, str(root)) == want
    assert "skipped 2 files without the name of an image" in caplog.text


def test_a_link_to_a_folder_around_it_is_refused(folder, tmp_path):
    root = copied(folder, tmp_path / "images")
    (root / "red_cat" / "again").symlink_to("..")
    with pytest.raises(ValueError, match="red_cat/again links to .*; remove the link"):
        evaluator.open_data(str(root))


def test_a_grey_map_is_an_image(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (5, 4), 7).save(tmp_path / name / "x.pgm")
    examples = evaluator.open_data(str(tmp_path))
    evaluator.check_headers(examples)
    assert list(examples.names) == ["a/x.pgm", "b/x.pgm"]


@pytest.mark.parametrize("how", ["cut", "page", "empty", "gone", "endless"])
def test_a_broken_image_is_named_before_anything_is_computed_or_left_out(
    model, folder, tmp_path, how
):
    root = copied(folder, tmp_path / "images")
    path = sorted((root / "red_cat").iterdir())[3]
    data = path.read_bytes()
    if how in ("gone", "endless"):
        path.unlink()
        path.symlink_to("nowhere.png" if how == "gone" else "/dev/zero")
    else:
        path.write_bytes({"cut": data[:90], "page": b"<html>", "empty": b""}[how])
    examples = evaluator.open_data(str(root))
    name = f"red_cat/{path.name}"
    with pytest.raises(ValueError, match=f"1 of 27 images are broken: {name} "):
        evaluator.check_headers(examples)
    with pytest.raises((ValueError, FileNotFoundError), match=path.name):
        evaluator.evaluate(model.encoder, examples, resamples=50)
    found = evaluator.evaluate(model.encoder, examples, resamples=50, skip_broken=True)
    assert list(found["skipped"]) == [name]
    path.unlink()
    assert {"zero_shot": found["zero_shot"]} == evaluate(model, str(root))


def test_an_image_without_pixels_behind_its_header_is_left_out_too(
    model, curated, write_dataset, tmp_path
):
    """In a dataset with texts, which go with it."""
    pixels = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    broken = out.getvalue()[:-400] + bytes(388) + out.getvalue()[-12:]
    path = write_dataset(tmp_path / "d", record_count=12, images={4: broken})
    examples = evaluator.open_data(path)
    found = evaluator.evaluate(model.encoder, examples, resamples=50, skip_broken=True)
    (name,) = found["skipped"]
    rows = np.flatnonzero(np.array(examples.names) != name)
    kept = examples.take(rows)
    assert len(kept.texts) < len(examples.texts)
    want = evaluator.evaluate(model.encoder, kept, resamples=50)
    assert {k: v for k, v in found.items() if k != "skipped"} == want


def test_what_cannot_be_measured_is_named(tmp_path, prepared):
    for missing in (str(tmp_path / "typo"), "typo/folder", "./typo", "typo"):
        with pytest.raises(FileNotFoundError, match="wanted a folder or .*typo"):
            evaluator.open_data(missing)
    with pytest.raises(FileNotFoundError, match="prepared in .*tfds build mnist"):
        evaluator.open_data("mnist", data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder --data_dir=.*typo"):
        evaluator.open_data("mnist", data_dir=str(tmp_path / "typo"))
    with pytest.raises(ValueError, match="--split one of test, got 'tset'"):
        evaluator.open_data(prepared, split="tset")
    for split in ("train", "val"):
        (tmp_path / "splits" / split).mkdir(parents=True)
    with pytest.raises(ValueError, match="got the splits .*train.*give one of them"):
        evaluator.open_data(str(tmp_path / "splits"))
    (tmp_path / "images" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="at least 2 folders"):
        evaluator.open_data(str(tmp_path / "images"))
    (tmp_path / "images" / "dog").mkdir()
    with pytest.raises(ValueError, match="cat holds no image"):
        evaluator.open_data(str(tmp_path / "images"))
    (tmp_path / "file.png").write_bytes(IMAGES[0][0])
    with pytest.raises(FileNotFoundError, match="wanted a folder.*got the file"):
        evaluator.open_data(str(tmp_path / "file.png"))


def prepare_tfds(root, labels):
    """The folder of a TFDS dataset with these labels; lists are of several classes."""
    label = tfds.features.ClassLabel(names=CLASSES)
    several = isinstance(labels[0], list)
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        **({"labels": tfds.features.Sequence(label)} if several else {"label": label}),
    }

    class Given(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for n, given in enumerate(labels):
                image = io.BytesIO(IMAGES[n][0])
                yield n, {"image": image, "labels" if several else "label": given}

    Given(data_dir=str(root), file_format="array_record").download_and_prepare()
    return str(root / "given" / "1.0.0")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1] * 6, "label from 0 to 2, got -1 .*this split has no labels"),
        ([0, 1, 2, 0, -1, 1], "got -1 for example . .*split 'test'"),
        ([[-1]] * 6, "labels from 0 to 2, got -1 .*this split has no labels"),
        ([[0, 1], [2], [-1, 1], [1]], "got -1 for example ."),
        ([[]] * 6, "got none in its 6 examples: this split has no labels"),
    ],
)
def test_hidden_labels_are_refused(model, tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, prepare_tfds(tmp_path, labels))


def test_images_of_several_classes_are_measured_by_average_precision(model, tmp_path):
    labels = [[0, 1], [2], [], [1], [0], [2, 0]]
    found = evaluate(model, prepare_tfds(tmp_path, labels))["zero_shot"]
    assert 0 < found["mean_average_precision"]["value"] <= 1
    assert found["images"] == 6


def test_the_command_prints_and_writes_the_numbers(saved, model, prepared, tmp_path):
    command = [sys.executable, "-m", "metaclip_jax.evaluate", f"--model={saved}"]
    output = tmp_path / "numbers.json"
    done = subprocess.run(
        [*command, f"--data={prepared}", f"--output={output}"],
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    written = files.read_json(output)
    want = evaluate(model, prepared)["zero_shot"]
    assert written["zero_shot"]["accuracy"]["value"] == want["accuracy"]["value"]
    assert f"{want['accuracy']['value']:.2%}" in done.stdout
    assert f"{prepared}: 27 images of 3 classes\n" in done.stdout
    assert written["fingerprint"] == model.fingerprint
