"""embed and search as commands, on a real dataset and a model in a folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import metaclip_jax
from metaclip_jax import convert, files, loading
from metaclip_jax.data import records
from metaclip_jax.data import tokenizer as tokenizers
from metaclip_jax.models import clip

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<script>alert(1)</script> \x1b[2J"
BROKEN = 7


def command(module, **flags):
    named = [f"--{name}={value}" for name, value in flags.items()]
    return [sys.executable, "-m", module, *named]


def run(module, *, succeeds=True, **flags):
    done = subprocess.run(
        command(module, **flags), cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode == 0) == succeeds, done.stderr[-3000:]
    return done.stdout if succeeds else done.stderr


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A random model as a Hugging Face folder, with a licence."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "t.json").write_text(
        tokenizers.train([f"picture {i} told as" for i in range(30)], 600).to_str()
    )
    tokenizer = tokenizers.load(folder / "t.json")
    architecture = clip.Architecture(
        image_size=16,
        patch_size=8,
        vision_width=32,
        vision_layers=1,
        vision_heads=2,
        vision_mlp_width=64,
        text_width=32,
        text_layers=1,
        text_heads=2,
        text_mlp_width=64,
        context_length=12,
        vocab_size=tokenizer.vocab_size,
        embed_dim=16,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    loaded = loading.Loaded(
        name="random",
        architecture=architecture,
        params=jax.tree.map(np.asarray, clip.init(architecture, jax.random.key(0))),
        tokenizer=tokenizer,
        preprocess=loading.Preprocess(16, squash=False),
        licence="cc-by-nc-4.0",
    )
    convert.convert(loaded, "huggingface", str(folder / "hf"))
    return folder / "hf"


@pytest.fixture(scope="module")
def dataset(write_dataset, tmp_path_factory):
    return write_dataset(
        tmp_path_factory.mktemp("dataset") / "tiny",
        record_count=90,
        shard_count=3,
        images={BROKEN: b"no image"},
        texts={3: (HOSTILE,)},
    )


@pytest.fixture(scope="module")
def embedded(model_folder, dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("embedded") / "out"
    run("metaclip_jax.embed", model=model_folder, dataset=dataset, output=output)
    return output


def rows_of(folder):
    parts = sorted(folder.glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_rows_hold_what_the_model_says_of_each_record(embedded, model_folder, dataset):
    opened = records.open_dataset(dataset)
    read = [records.decode(d) for d in records.read(opened, np.arange(90))]
    rows = rows_of(embedded)
    assert [row["image_id"] for row in rows] == [r.image_id for r in read]
    assert rows[BROKEN]["embedding"] is None and rows[BROKEN]["status"] != "ok"
    good = [i for i in range(90) if i != BROKEN]
    model = metaclip_jax.load(model_folder)
    images = model.embed_images([read[i].image for i in good])
    found = np.array([rows[i]["embedding"] for i in good], np.float32)
    np.testing.assert_allclose(found, images, atol=1e-5)
    for i, image in zip(good[:10], images, strict=False):
        cosines = model.embed_texts(read[i].texts) @ image
        np.testing.assert_allclose(rows[i]["text_scores"], cosines, atol=1e-5)
        keys = records.text_keys([read[i].image_id] * len(read[i].texts), read[i].texts)
        assert rows[i]["text_keys"] == keys.tolist()
    manifest = files.read_json(embedded / "manifest.json")
    assert manifest["licence"] == "cc-by-nc-4.0" and manifest["status"]["ok"] == 89


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(
    embedded, model_folder, dataset, tmp_path
):
    flags = {"model": model_folder, "dataset": dataset, "output": tmp_path / "out"}
    process = subprocess.Popen(
        command("metaclip_jax.embed", **flags),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not list((tmp_path / "out").glob("part-*")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run("metaclip_jax.embed", **flags)
    for path in sorted(embedded.glob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    error = run("metaclip_jax.embed", succeeds=False, **flags | {"dtype": "bfloat16"})
    assert "another run" in error


def test_search_finds_an_image_by_itself_and_escapes_strangers(
    embedded, dataset, tmp_path
):
    opened = records.open_dataset(dataset)
    record = records.decode(records.read(opened, [3])[0])
    (tmp_path / "query.jpg").write_bytes(record.image)
    flags = {"embeddings": embedded, "dataset": dataset, "top": 5}
    sheet = tmp_path / "sheet.html"
    shown = run(
        "metaclip_jax.search", image=tmp_path / "query.jpg", output=sheet, **flags
    )
    first = shown.splitlines()[1].split()
    assert first[2] == record.image_id and float(first[1]) > 0.999
    assert "\x1b" not in shown
    assert "<script>" not in sheet.read_text()
    assert "&lt;script&gt;" in sheet.read_text()
    run("metaclip_jax.search", query="picture 4", output=tmp_path / "s.png", **flags)
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size == (5 * 256, 276)
