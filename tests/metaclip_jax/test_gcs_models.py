"""Models are written to gs:// and used from there, in every format, and nothing is left
on the local disk."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from metaclip_jax import convert, files
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.inference import loading
from metaclip_jax.models import clip
from tests import small_models, waiting

ROOT = Path(__file__).resolve().parents[2]

USE = """
import sys
import numpy as np
from metaclip_jax.training import checkpoint
from metaclip_jax import convert, embed, evaluate, files, search
from metaclip_jax.inference import model as inference, loading
from metaclip_jax.conversion import huggingface, table, weights
from metaclip_jax.data import records

source, dataset, picture, bucket = sys.argv[1:]
loaded = loading.load(source)
here = inference.load(source)
texts = ["a red cat", "</s> blue!"]
wanted = here.embed_texts(texts), here.embed_images([picture])
files.write_bytes(f"{bucket}/picture.png", files.path(picture).read_bytes())

for kind in convert.FORMATS:
    folder = f"{bucket}/models/{kind}"
    convert.convert(loaded, kind, folder)
    again = loading.load(folder)
    for path, leaf in loading.flat_params(loaded.params).items():
        np.testing.assert_array_equal(loading.flat_params(again.params)[path], leaf)
    assert again.preprocess == loaded.preprocess, kind
    model = inference.load(folder)
    np.testing.assert_allclose(model.embed_texts(texts), wanted[0], atol=1e-6)
    np.testing.assert_allclose(
        model.embed_images([f"{bucket}/picture.png"]), wanted[1], atol=1e-6
    )

# From there to there, in parts with an index.
tensors = dict(table.to_theirs(
    loading.flat_params(again.params), huggingface.rules(again.architecture),
    again.architecture,
))
weights.write_folder(f"{bucket}/parts", iter(tensors.items()), max_file_bytes=4_000)
index = files.read_json(f"{bucket}/parts/model.safetensors.index.json")
assert len(set(index["weight_map"].values())) > 2
read = weights.open_weights(f"{bucket}/parts")
for name, tensor in tensors.items():
    np.testing.assert_array_equal(read.read(name), tensor)

# What a model says of a dataset, and how good it is.
run = f"{bucket}/models/checkpoint"
model = inference.load(run, batch=16)
embed.embed_dataset(model, dataset, f"{bucket}/embeddings")
hits = search.nearest(f"{bucket}/embeddings", wanted[0][0], count=3)
assert len(search.read_pictures(records.open_dataset(dataset), hits)) == 3
found = evaluate.evaluate_run(
    run, model, 0, held_out_folder=dataset, seed=0, resamples=10
)
assert files.read_json(f"{run}/evaluation/0.json") == found

try:
    loading.load(f"{bucket}/models/none")
except FileNotFoundError as error:
    assert "models/none" in str(error)
else:
    raise AssertionError("there is no such model")
"""


def make(folder):
    """A small model's folder of ours."""
    (folder / "own.json").write_text(train_tokenizer(["red cat"] * 3, 600).to_str())
    tokenizer = load_tokenizer(folder / "own.json", family="clip")
    architecture = small_models.architecture(
        tokenizer,
        vision_width=16,
        vision_mlp_width=24,
        text_width=16,
        text_mlp_width=32,
        context_length=8,
        embed_dim=8,
    )
    params = jax.device_get(clip.init(architecture, jax.random.key(0)))
    preprocess = loading.Preprocess(16, squash=True, resample=2)
    loaded = loading.Loaded("small", architecture, params, tokenizer, preprocess)
    convert.convert(loaded, "huggingface", str(folder / "model"))
    return str(folder / "model")


@pytest.fixture(scope="module")
def used(tmp_path_factory, cloud_storage, write_dataset):
    """What a process left on the local disk, and where gs:// is."""
    folder = tmp_path_factory.mktemp("models")
    dataset = write_dataset(folder / "dataset", record_count=12)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    for name in ("work", "temporary"):
        (folder / name).mkdir()
    with cloud_storage() as storage:
        environment = storage.environment | {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder / "temporary"),
        }
        done = subprocess.run(
            [sys.executable, "-c", USE, make(folder), dataset]
            + [str(folder / "picture.png"), "gs://bucket1/some where"],
            cwd=folder / "work",
            env=environment,
            capture_output=True,
            text=True,
            timeout=waiting.SECONDS,
        )
        assert done.returncode == 0, done.stderr[-4_000:]
        yield folder, environment


def test_a_model_on_gs_is_the_same_in_every_format(used):
    """The process has compared it."""
    assert used


def test_nothing_is_left_on_the_local_disk(used):
    folder, _ = used
    for name in ("work", "temporary"):
        assert os.listdir(folder / name) == [], name


def test_commands_use_models_on_gs(used):
    folder, environment = used
    commands = [
        ["convert", "--to=huggingface", "--output=gs://bucket1/again"],
        ["predict", f"--image={folder}/picture.png", "--labels=cat,dog"],
    ]
    for name, *flags in commands:
        model = "--model=gs://bucket1/some where/models/checkpoint"
        done = subprocess.run(
            [sys.executable, "-m", f"metaclip_jax.{name}", model, *flags],
            cwd=folder / "work",
            env=environment,
            capture_output=True,
            text=True,
            timeout=waiting.SECONDS,
        )
        assert done.returncode == 0, done.stderr[-4_000:]
    assert os.listdir(folder / "work") == []
    assert done.stdout.count("%") == 2  # predict's two labels


def test_the_config_of_an_export_names_no_local_folder(tmp_path):
    """Its tokenizer is beside it wherever it is written or moved."""
    loaded = loading.load(make(tmp_path))
    convert.convert(loaded, "open_clip", str(tmp_path / "open_clip"))
    written = files.read_json(tmp_path / "open_clip" / "open_clip_config.json")
    assert written["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "."
    for path in (tmp_path / "open_clip").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
