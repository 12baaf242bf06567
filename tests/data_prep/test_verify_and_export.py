"""A curated dataset is found whole, and every damage is named; other tools read it."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import export, verify
from data_prep.sinks import array_record as sink
from metaclip_jax import files
from metaclip_jax.data import records
from tests.data_prep import tiny_web
from tests.data_prep.test_curate_sources import ROOT, curated, read, without_source

ALTS = [(f"/{i}.jpg", f"a cat number {i}") for i in range(30)]
ALTS += [(f"/{i}.jpg", f"a dog number {i}") for i in range(0, 30, 3)]
BODIES = {path: tiny_web.picture(int(path[1:-4])) for path, _ in ALTS}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    values = {"balance.rule": "online", "partitions": 2}
    return tiny_web.run(folder, ALTS, BODIES, **values)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run.output, tmp_path / "copy")


def command(module, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_dataset_as_it_was_written_has_no_fault(run):
    assert list(verify.faults(run.output)) == []


def shard_of(folder):
    return sorted(folder.glob("*.array_record-00000-*"))[0]


def flip(folder):
    data = bytearray(shard_of(folder).read_bytes())
    data[len(data) // 2] ^= 1
    shard_of(folder).write_bytes(bytes(data))


def cut(folder):
    shard_of(folder).write_bytes(shard_of(folder).read_bytes()[:-10])


def lose_sidecar(folder):
    next(folder.glob("*.entries-00001-*")).unlink()


def swap_sidecars(folder):
    one, two = sorted(folder.glob("*.entries-*"))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def other_card(folder):
    card = files.read_json(folder / "data_card.json")
    files.write_json(folder / "data_card.json", card | {"texts": card["texts"] + 1})


def other_counts(folder):
    table = pq.read_table(folder / "counts.parquet")
    kept = table["kept_count"].to_numpy() + np.uint64(1)
    at = table.column_names.index("kept_count")
    table = table.set_column(at, "kept_count", pa.array(kept))
    pq.write_table(table, folder / "counts.parquet")


def rewrite(folder, change):
    """Changes the first record, and all that is said of its file."""
    dataset = records.open_dataset(folder)
    found = [records.decode(r) for r in records.read(dataset, range(len(dataset)))]
    length = dataset.shard_lengths[0]
    found[0] = change(found)
    facts = sink.write_shard(str(shard_of(folder)), found[:length])
    manifest = files.read_json(folder / files.MANIFEST)
    manifest["shards"][0] = facts
    files.write_json(folder / files.MANIFEST, manifest)


def lose_urls(folder):
    Path(folder, "urls-00001-of-00002.parquet").unlink()


def other_urls(folder):
    path = Path(folder, "urls-00000-of-00002.parquet")
    pq.write_table(pq.read_table(path).slice(1), path)


def other_image(folder):
    def change(found):
        body = tiny_web.picture(999, side=40)
        return dataclasses.replace(found[0], image=body)

    rewrite(folder, change)


def repeat(folder):
    rewrite(folder, lambda found: found[1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, ["00000-of-00002: ", "sha256"]),
        (cut, ["bytes, got", "0 can be read"]),
        (lose_sidecar, ["entries-00001-of-00002.arrow is missing", "cannot be read"]),
        (swap_sidecars, ["its row in the sidecar differs"]),
        (other_card, ["data_card.json: says 41 texts, but there are 40"]),
        (other_counts, ["counts.parquet: says that"]),
        (lose_urls, ["urls-00001-of-00002.parquet"]),
        (other_urls, ["urls-00000-of-00002.parquet: wanted"]),
        (other_image, ["wanted an image of sha256", "got (40, 40)"]),
        (repeat, ["is in the dataset twice"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_damage_is_named(copy, damage, words):
    damage(copy)
    text = "\n".join(verify.faults(copy))
    assert all(word in text for word in words), text


def wrong_values(found, rng):
    """Yields copies of what JSON holds, in each of which something is wrong."""
    places = [found]
    for place in places:
        keys = place if isinstance(place, dict) else range(len(place))
        for key in list(keys):
            if isinstance(place[key], dict | list):
                places.append(place[key])
            held = place[key]
            place[key] = rng.choice((None, -1, 10**30, "x\0", "../x", [], {}, 1.5))
            yield json.dumps(found)
            place[key] = held


@pytest.mark.parametrize("name", ["dataset_info.json", "manifest.json"])
def test_wrong_values_are_faults_or_an_error_with_the_file(copy, monkeypatch, name):
    monkeypatch.setattr(verify, "_record_faults", lambda *_: [])  # slow
    monkeypatch.setattr(verify, "tqdm", lambda found, **_: found)
    found = files.read_json(copy / name)
    for text in wrong_values(found, random.Random(name)):
        (copy / name).write_text(text)
        try:
            list(verify.faults(copy))
        except (ValueError, FileNotFoundError) as error:
            assert str(copy) in str(error)


def test_records_are_counted_beyond_the_faults_that_are_named(copy, monkeypatch):
    monkeypatch.setattr(verify, "_SHOWN", 3)
    swap_sidecars(copy)
    found = list(verify.faults(copy))
    assert sum(": and more" in fault for fault in found) == 2
    assert not [fault for fault in found if "there are" in fault or "says" in fault]


def test_the_command_ends_as_it_finds_the_dataset(copy):
    status, said, _ = command("data_prep.verify", copy)
    assert status == 0 and "is as it was written" in said
    flip(copy)
    status, said, errors = command("data_prep.verify", copy)
    assert status == 1 and "sha256" in said and "fault" in errors
    assert "Traceback" not in errors


def read_by_webdataset(tars):
    """Image, text and texts of each sample; by itself, since it leaves files open."""
    code = """import hashlib, json, sys, webdataset
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False):
    texts = json.loads(sample["json"])["texts"]
    digest = hashlib.sha256(sample["jpg"]).hexdigest()
    print(json.dumps([digest, sample["txt"].decode(), texts]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, tars)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(map(json.loads, done.stdout.splitlines()))


def test_exported_tars_are_read_by_webdataset_and_by_us(run, tmp_path):
    output = tmp_path / "tars"
    status, said, errors = command(
        "data_prep.export", "--format=webdataset", f"--output={output}", run.output
    )
    assert status == 0, errors
    wanted, _ = read(run)
    assert f"{len(wanted)} records in 2 files" in said
    assert read_by_webdataset(sorted(output.glob("*.tar"))) == [
        [r.sha256, r.texts[0], list(r.texts)] for r in wanted
    ]
    sizes = files.read_json(output / "sizes.json")
    assert list(sizes) == ["00000.tar", "00001.tar"]
    assert sum(sizes.values()) == len(wanted)
    source = {"kind": "webdataset", "paths": output / "*.tar"}
    again(run, tmp_path, source)


def test_exported_parquet_is_read_by_us(run, tmp_path):
    dataset = records.open_dataset(run.output)
    names = export.export(dataset, str(tmp_path / "hub"), form="parquet")
    assert names == [f"data/train-0000{i}-of-00002.parquet" for i in range(2)]
    source = {"kind": "parquet", "paths": tmp_path / "hub/data/*.parquet"}
    again(run, tmp_path, source | {"url_column": "image_url"})


def again(run, tmp_path, source):
    """Curates what was exported, and compares the records."""
    source |= {"text_columns": ("texts",), "language_column": "languages"}
    found, _ = read(curated(tmp_path, source))
    wanted, _ = read(run)
    assert [without_source(r) for r in found] == [without_source(r) for r in wanted]


@pytest.mark.parametrize("form", export.FORMATS)
def test_an_export_that_was_killed_makes_no_file_again(run, tmp_path, form):
    dataset = records.open_dataset(run.output)
    names = export.export(dataset, str(tmp_path / "a"), form=form)
    first = {name: (tmp_path / "a" / name).read_bytes() for name in names}
    (tmp_path / "a" / files.MANIFEST).unlink()
    (tmp_path / "a" / names[1]).unlink()
    before = (tmp_path / "a" / names[0]).stat().st_mtime_ns
    export.export(dataset, str(tmp_path / "a"), form=form)
    assert (tmp_path / "a" / names[0]).stat().st_mtime_ns == before
    assert first == {name: (tmp_path / "a" / name).read_bytes() for name in names}
