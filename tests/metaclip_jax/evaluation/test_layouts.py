"""Real images give one number, whatever layout they are kept in."""

import json

import numpy as np
import pytest

from metaclip_jax.data import records
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.evaluation import evaluator, zero_shot
from tests import image_layouts, real_images, small_models

SETS = {
    "fashion_mnist": lambda: real_images.fashion_mnist(500),
    "digits": lambda: real_images.digits(200),
    "pictures": lambda: real_images.pictures(64),
}
TEMPLATES = ["a photo of a {}.", "the {}"]


@pytest.fixture(scope="module", params=SETS)
def labelled(request):
    return SETS[request.param]()


@pytest.fixture(scope="module")
def encoder(labelled, tmp_path_factory):
    """A random model whose answers differ: what all inputs share is projected out."""
    texts = [t.format(name) for t in TEMPLATES for name in labelled.class_names]
    path = tmp_path_factory.mktemp("tokenizer") / "t.json"
    path.write_text(train_tokenizer(texts * 3, 600).to_str())
    tokenizer = load_tokenizer(path, family="clip")
    return small_models.with_different_answers(
        small_models.random_encoder(tokenizer), labelled.images, texts
    )


@pytest.fixture(scope="module")
def folders(labelled, tmp_path_factory, write_dataset):
    """A folder for each layout, all with the same images."""
    images, labels, names = labelled
    root = tmp_path_factory.mktemp("layouts")
    # Their lists are in another order: the name says the class.
    last, backwards = len(names) - 1, names[::-1]
    turned = [last - label for label in labels]
    rows = [str(label).encode() for label in turned]
    image_layouts.write_webdataset(root / "webdataset", images, rows, backwards)
    features = {"label": {"names": list(backwards), "_type": "ClassLabel"}}
    image_layouts.write_parquet(root / "parquet", images, turned, features)
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / "folder" / names[label].replace("/", " ")
        folder.mkdir(parents=True, exist_ok=True)
        ending = "png" if image.startswith(b"\x89PNG") else "jpg"
        (folder / f"{n:05d}.{ending}").write_bytes(image)
    image_layouts.write_tfds(root / "tfds", images, turned, list(backwards))
    (found,) = (root / "tfds").glob("*/*/features.json")
    dataset = write_dataset(
        root / "dataset", record_count=len(images), images=dict(enumerate(images))
    )
    opened = records.open_dataset(dataset)
    ids = [
        records.decode(data).image_id
        for data in records.read(opened, np.arange(len(opened)))
    ]
    of_image = {
        records.image_id(f"http://images.example/{n}.jpg"): label
        for n, label in enumerate(labels)
    }
    task = {
        "class_names": list(names),
        "templates": TEMPLATES,
        "labels": {image_id: of_image[image_id] for image_id in ids},
    }
    (root / "dataset" / "zero_shot.json").write_text(json.dumps(task))
    asked = {"templates": TEMPLATES, "class_names": list(names)}
    (root / "prompts.json").write_text(json.dumps(asked))
    layouts = {name: root / name for name in ("webdataset", "parquet", "folder")}
    layouts |= {"tfds": found.parent, "dataset": root / "dataset"}
    return layouts, root / "prompts.json"


def test_every_layout_gives_the_same_number(encoder, labelled, folders):
    layouts, prompts_path = folders
    found = {}
    for layout, folder in layouts.items():
        shown = evaluator.open_data(str(folder), prompts_path=str(prompts_path))
        assert len(shown.names) == len(labelled.images)
        evaluator.check_headers(shown)
        numbers = evaluator.evaluate(encoder, shown, resamples=20)["zero_shot"]
        found[layout] = {
            name: cell["value"] if isinstance(cell, dict) else cell
            for name, cell in numbers.items()
        }
    for layout, numbers in found.items():
        assert numbers == pytest.approx(found["folder"]), layout
    # And it is the number of the images as they came.
    embedded = encoder.encode_images(
        lambda rows: [labelled.images[row] for row in rows],
        names=str,
        total=len(labelled.images),
    )
    names = [(name,) for name in labelled.class_names]
    classes = zero_shot.class_embeddings(encoder.encode_texts, names, tuple(TEMPLATES))
    answers = (embedded @ classes.T).argmax(axis=1)
    assert len(set(answers.tolist())) > 1
    share = (answers == labelled.labels).mean()
    assert found["folder"]["accuracy"] == pytest.approx(share)
