"""Datasets as written: equal bytes, readable by TFDS, never half done."""

import dataclasses
import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep.sinks import array_record
from metaclip_jax import files
from metaclip_jax.data import records
from tests import small_records

COUNTS = pa.table({"metadata": ["en", "en"], "entry_id": [0, 4], "pool_count": [9, 1]})


def make_picture(index, image_format="JPEG"):
    pixels = np.full((12, 16, 3), index * 20, np.uint8)
    pixels[:6] = (200, 30, index)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def make_record(index, image_format="JPEG"):
    texts = [f"text {k} of {index}" for k in range(index % 3)]
    return small_records.record(
        f"http://images.example/{index}",
        texts,
        image=make_picture(index, image_format),
        entry_ids=[(2 * k, 2 * k + 1) for k in range(len(texts))],
        height=12,
    )


def write(folder, *, shards=(5, 4), inputs=None):
    position = 0
    facts = []
    for index, length in enumerate(shards):
        path = str(folder / records.shard_name("tiny", index, len(shards)))
        some = (make_record(p) for p in range(position, position + length))
        facts.append(array_record.write_shard(path, some))
        position += length
    array_record.write_dataset(
        str(folder),
        name="tiny",
        shard_facts=facts,
        data_card={"name": "tiny", "records": position},
        counts=COUNTS,
        inputs=inputs or {"seed": 0},
    )
    return facts


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).iterdir())
    }


def test_our_reader_reads_what_was_written(tmp_path):
    facts = write(tmp_path)
    dataset = records.open_dataset(str(tmp_path))
    assert dataset.shard_lengths == (5, 4)
    assert dataset.data_card == {"name": "tiny", "records": 9}
    found = records.read(dataset, np.arange(9))
    assert found == [records.encode(make_record(index)) for index in range(9)]
    assert [f["count"] for f in facts] == [5, 4]
    assert sum(f["texts"] for f in facts) == sum(index % 3 for index in range(9))
    assert pq.read_table(tmp_path / array_record.COUNTS).equals(COUNTS)


def test_the_sidecar_tells_each_records_texts_and_entries(tmp_path):
    write(tmp_path, shards=(3, 4))
    dataset = records.open_dataset(str(tmp_path))
    sidecar = records.read_entries(dataset, 1).to_pylist()
    for row, index in zip(sidecar, range(3, 7), strict=True):
        record = make_record(index)
        keys = [records.text_key(record.image_id, text) for text in record.texts]
        ids = [[2 * k, 2 * k + 1] for k in range(len(record.texts))]
        assert row == {
            "image_id": record.image_id,
            "text_keys": keys,
            "metadata": ["en"] * len(keys),
            "entry_ids": ids,
            "text_sources": list(record.text_sources),
        }


def test_the_sidecar_of_a_local_dataset_is_mapped_not_read(tmp_path):
    write(tmp_path, shards=(3,))
    dataset = records.open_dataset(str(tmp_path))
    before = pa.total_allocated_bytes()
    sidecar = records.read_entries(dataset, 0)
    assert sidecar.num_rows == 3
    assert pa.total_allocated_bytes() == before


def test_tfds_reads_the_dataset_without_tensorflow(tmp_path):
    write(tmp_path)
    source = tfds.builder_from_directory(str(tmp_path)).as_data_source("train")
    assert len(source) == 9
    for index in (0, 5, 8):
        example, record = source[index], make_record(index)
        texts = [text.decode() for text in example["texts"]]
        assert texts == list(record.texts)
        assert example["image_id"].decode() == record.image_id
        assert example["width"] == 16
        np.testing.assert_array_equal(example["entry_ids"], record.entry_ids)
        np.testing.assert_array_equal(example["entry_offsets"], record.entry_offsets)
        pixels = np.asarray(Image.open(io.BytesIO(record.image)))
        assert example["image"].shape == (12, 16, 3)
        assert np.abs(example["image"].astype(int) - pixels).max() <= 4
    assert "tensorflow" not in sys.modules


def test_tfds_reads_webp_and_grey_images_too(tmp_path):
    grey = io.BytesIO()
    Image.new("L", (16, 12), 99).save(grey, "JPEG")
    webp = make_record(1, "WEBP")
    some = [webp, dataclasses.replace(make_record(2), image=grey.getvalue())]
    path = str(tmp_path / records.shard_name("tiny", 0, 1))
    facts = array_record.write_shard(path, some)
    array_record.write_dataset(
        str(tmp_path),
        name="tiny",
        shard_facts=[facts],
        data_card={},
        counts=None,
        inputs={},
    )
    source = tfds.builder_from_directory(str(tmp_path)).as_data_source("train")
    assert [example["image"].shape for example in source] == [(12, 16, 3)] * 2


def test_equal_input_gives_equal_bytes_in_every_process(tmp_path):
    write(tmp_path / "here")
    code = (
        "import pathlib, sys\n"
        "from tests.data_prep.sinks import test_array_record\n"
        "test_array_record.write(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "there"],
        cwd=Path(__file__).parents[3],
        env={"PYTHONHASHSEED": "11"},
        check=True,
    )
    assert digests(tmp_path / "here") == digests(tmp_path / "there")
    assert set(digests(tmp_path / "here")) == {
        "counts.parquet",
        "data_card.json",
        "dataset_info.json",
        "features.json",
        "manifest.json",
        "tiny-train.array_record-00000-of-00002",
        "tiny-train.array_record-00001-of-00002",
        "tiny-train.entries-00000-of-00002.arrow",
        "tiny-train.entries-00001-of-00002.arrow",
    }


def test_the_manifest_holds_the_inputs_and_each_files_hash(tmp_path):
    write(tmp_path, inputs={"seed": 3})
    manifest = files.finished(tmp_path, {"seed": 3})
    assert manifest is not None
    assert manifest["records"] == 9
    on_disk = digests(tmp_path)
    for facts in manifest["shards"]:
        assert on_disk[facts["file"]] == facts["sha256"]
        assert on_disk[facts["entries"]["file"]] == facts["entries"]["sha256"]


def test_an_empty_shard_and_an_empty_dataset_can_be_read(tmp_path):
    write(tmp_path, shards=(0,))
    dataset = records.open_dataset(str(tmp_path))
    assert len(dataset) == 0
    assert records.read_entries(dataset, 0).num_rows == 0


def test_a_source_that_raises_leaves_no_file(tmp_path):
    def some():
        yield make_record(0)
        raise RuntimeError("the pipeline broke")

    path = str(tmp_path / records.shard_name("tiny", 0, 1))
    with pytest.raises(RuntimeError, match="broke"):
        array_record.write_shard(path, some())
    assert list(tmp_path.iterdir()) == []


def test_shards_of_a_killed_run_are_removed(tmp_path):
    write(tmp_path, shards=(2, 2, 2))
    (tmp_path / files.MANIFEST).unlink()
    write(tmp_path, shards=(3, 3))
    assert len(list(tmp_path.glob("*-of-00003*"))) == 0
    assert len(records.open_dataset(str(tmp_path))) == 6


def test_shards_that_are_not_the_written_ones_are_refused(tmp_path):
    facts = write(tmp_path)

    def complete(shard_facts, name="tiny"):
        array_record.write_dataset(
            str(tmp_path),
            name=name,
            shard_facts=shard_facts,
            data_card={},
            counts=None,
            inputs={},
        )

    with pytest.raises(ValueError, match="wanted tiny-train.*00000-of-00002"):
        complete(facts[::-1])
    with pytest.raises(ValueError, match="at least one"):
        complete([])
    with pytest.raises(ValueError, match="lower-case letters"):
        complete(facts, name="No-Good")
    (tmp_path / facts[1]["file"]).write_bytes(b"short")
    with pytest.raises(ValueError, match="wanted .*00001-of-00002 with"):
        complete(facts)


def test_a_shard_must_be_named_like_one(tmp_path):
    with pytest.raises(ValueError, match="should be named like NAME-train"):
        array_record.write_shard(str(tmp_path / "shard.bin"), [])
