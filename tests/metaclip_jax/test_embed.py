"""The commands on a dataset: embeddings that survive a kill, search, predict."""

import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from metaclip_jax import config as keys
from metaclip_jax import embed, files, search
from metaclip_jax.data import images, records, sheet
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.inference import model as inference
from metaclip_jax.models import clip
from metaclip_jax.training import checkpoint, run_config
from tests import stopping

SHARDS = 30


@pytest.fixture(scope="module")
def dataset(write_dataset, tmp_path_factory):
    return write_dataset(
        tmp_path_factory.mktemp("data") / "dataset",
        record_count=6 * SHARDS,
        shard_count=SHARDS,
        images={7: b"\xff\xd8\xff no picture"},
        texts={0: ("<script>alert('x')</script>", "a & b"), 3: ("tabs\tand \x1b[31m",)},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's workdir with a checkpoint of an untrained model."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "tokenizer.json").write_text(
        train_tokenizer(["picture told as 0 1 2"] * 3, 600).to_str()
    )
    config = keys.default()
    with config.unlocked():
        config.tokenizer = str(workdir / "tokenizer.json")
        config.image_size, config.dtype = 16, "float32"
        model = config.model
        model.patch_size, model.embed_dim, model.context_length = 8, 16, 12
        model.vision_width = model.text_width = 32
        model.vision_layers = model.text_layers = 2
        model.vision_heads = model.text_heads = 2
    tokenize = load_tokenizer(config.tokenizer, family="clip")
    architecture = keys.architecture(
        config,
        vocab_size=tokenize.vocab_size,
        eos_id=tokenize.eos_id,
        pad_id=tokenize.pad_id,
    )
    run_config.claim(str(workdir), config.to_dict(), write=True)
    manager = checkpoint.open_manager(str(workdir), keep_last=1, keep_every_steps=0)
    params = clip.init(architecture, jax.random.key(1))
    meta = checkpoint.describe(
        architecture=architecture,
        preprocess=images.Preprocess(16),
        inputs={"tokenizer": tokenize.fingerprint},
    )
    checkpoint.save(manager, 1, {"params": params}, meta=meta)
    manager.close()
    return str(workdir)


@pytest.fixture(scope="module")
def model(run):
    return inference.load(run, batch=8)


@pytest.fixture(scope="module")
def embedded(model, dataset, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("embeddings") / "all")
    embed.embed_dataset(model, dataset, output)
    return output


def command(module, *options):
    return [sys.executable, "-m", f"metaclip_jax.{module}", *options]


def read_rows(folder):
    return pq.read_table(sorted(files.path(folder).glob("part-*"))).to_pylist()


def contents(folder):
    paths = sorted(files.path(folder).iterdir())
    return {p.name: p.read_bytes() for p in paths if not p.name.startswith(".")}


def test_rows_hold_what_the_model_says_in_the_dataset_s_order(embedded, model, dataset):
    opened = records.open_dataset(dataset)
    rows = read_rows(embedded)
    stored = [records.decode(d) for d in records.read(opened, range(len(opened)))]
    assert [row["image_id"] for row in rows] == [record.image_id for record in stored]
    assert [n for n, row in enumerate(rows) if row["status"] != "ok"] == [7]
    assert not any(rows[7]["embedding"]) and rows[7]["text_scores"] is None
    whole = [n for n in range(40) if n != 7]
    images = model.embed_images([stored[n].image for n in whole])
    for n, image in zip(whole, images, strict=True):
        np.testing.assert_allclose(rows[n]["embedding"], image, atol=1e-6)
        cosines = model.embed_texts(stored[n].texts) @ image
        np.testing.assert_allclose(rows[n]["text_scores"], cosines, atol=1e-6)
        ids = [stored[n].image_id] * len(stored[n].texts)
        assert rows[n]["text_keys"] == records.text_keys(ids, stored[n].texts).tolist()
    field = pq.read_schema(f"{embedded}/part-00000-of-{SHARDS:05d}.parquet").field(1)
    assert str(field.type) == "fixed_size_list<element: float>[16]"
    manifest = files.read_json(f"{embedded}/manifest.json")
    assert manifest["status"]["ok"] == len(opened) - 1


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(
    run, dataset, embedded, tmp_path
):
    output = tmp_path / "killed"
    options = [f"--model={run}", f"--dataset={dataset}", f"--output={output}"]
    killed = stopping.command(
        *("metaclip_jax.embed", *options, "--batch=8"),
        function="metaclip_jax.files.publish",
        argument="part-00003-of",
    )
    assert subprocess.run(killed).returncode == -signal.SIGKILL
    done = {p.name: p.stat().st_mtime_ns for p in output.glob("part-*")}
    assert len(done) == 4 and not (output / "manifest.json").exists()
    subprocess.run(command("embed", *options, "--batch=8"), check=True)
    assert {n: (output / n).stat().st_mtime_ns for n in done} == done
    found, expected = contents(output), contents(embedded)
    assert found == expected


def test_another_model_s_parts_are_refused(run, dataset, model, embedded, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    part = f"part-00000-of-{SHARDS:05d}.parquet"
    (half / part).write_bytes((files.path(embedded) / part).read_bytes())
    other = inference.load(run, batch=8, dtype="bfloat16")
    with pytest.raises(ValueError, match="belongs to another run.*another folder"):
        embed.embed_dataset(other, dataset, str(half))
    with pytest.raises(ValueError, match="model: wanted"):
        embed.embed_dataset(other, dataset, embedded)


def test_search_finds_what_sorting_all_cosines_finds(embedded, dataset, model):
    query = model.embed_texts(["picture 5"])[0]
    hits = search.nearest(embedded, query, count=10)
    rows = read_rows(embedded)
    cosines = np.array([np.dot(row["embedding"], query) for row in rows])
    cosines[7] = -9
    order = np.argsort(-cosines, kind="stable")[:10]
    assert [hit.position for hit in hits] == order.tolist()
    assert [hit.image_id for hit in hits] == [rows[n]["image_id"] for n in order]
    everything = search.nearest(embedded, query, count=10_000)
    assert len(everything) == len(rows) - 1  # all but the one without an embedding


def test_the_contact_sheet_escapes_what_strangers_wrote(embedded, dataset, model):
    image = records.decode(records.read(records.open_dataset(dataset), [0])[0]).image
    query = model.embed_images([image])[0]
    hits = search.nearest(embedded, query, count=6 * SHARDS)
    assert hits[0].position == 0
    found = search.read_pictures(records.open_dataset(dataset), hits)
    page = sheet.render_html(search.to_sheet("<b>me</b>", found))
    assert "<script>" not in page and "&lt;script&gt;alert" in page
    assert "<b>me" not in page and page.count("<figure>") == len(hits)
    assert "\x1b" not in search.table(found) and "tabs and" in search.table(found)
    picture = sheet.render(search.to_sheet("<b>me</b>", found[:7]), png=True)
    assert picture[:4] == b"\x89PNG"


def test_search_in_another_dataset_is_refused(
    embedded, model, write_dataset, tmp_path_factory
):
    other = write_dataset(tmp_path_factory.mktemp("other") / "d", record_count=4)
    hits = search.nearest(embedded, model.embed_texts(["a"])[0], count=20)
    with pytest.raises(ValueError, match="not the dataset that was embedded"):
        search.read_pictures(records.open_dataset(other), hits)


def test_commands_print_tables(run, dataset, embedded, tmp_path):
    (tmp_path / "a.jpg").write_bytes(
        records.decode(records.read(records.open_dataset(dataset), [2])[0]).image
    )
    done = subprocess.run(
        command("predict", f"--model={run}", "--image=a.jpg", "--labels=cat,dog"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    head, *lines = done.stdout.splitlines()
    assert head == "a.jpg"
    assert {line.split()[0] for line in lines} == {"cat", "dog"}
    shares = [float(line.split()[1].rstrip("%")) for line in lines]
    assert shares[0] >= shares[1] and sum(shares) == pytest.approx(100, abs=0.02)
    page = tmp_path / "sheet.html"
    options = [f"--embeddings={embedded}", f"--dataset={dataset}", "--top=3"]
    done = subprocess.run(
        command("search", *options, "--query=picture 1", f"--output={page}"),
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
        check=True,
    )
    assert len(done.stdout.splitlines()) == 1 + 3
    assert page.read_text().count("<figure>") == 3
