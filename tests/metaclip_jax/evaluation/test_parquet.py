"""Folders of Parquet files that would fill the memory, or are damaged, are refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metaclip_jax.evaluation import evaluator, parquet

ROWS = 1_000


def repeated(value):
    return pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), [value])


def many_texts():
    offsets = pa.array([0, 5_000_000], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.nulls(5_000_000, pa.string()))


IMAGE = pa.array([b"image"])
REFUSED = {
    "texts of at most": {"image": repeated(b"x"), "text": repeated("x" * 3_000_000)},
    "5,000,000 rows or values": {"image": IMAGE, "text": many_texts()},
    "bytes of images": {"image": repeated(b"x" * 3_000_000), "text": repeated("cat")},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_fill_the_memory_is_refused(tmp_path, monkeypatch, message):
    monkeypatch.setattr(parquet, "_MAX_GROUP", 1 << 20)
    pq.write_table(
        pa.table(REFUSED[message]),
        tmp_path / "test.parquet",
        dictionary_pagesize_limit=1 << 30,
    )
    with pytest.raises(ValueError, match=message):
        parquet.open_folder(str(tmp_path)).read(pa.array([0]).to_numpy())


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "test.parquet"
    pq.write_table(pa.table({"image": IMAGE, "text": ["cat"]}), path)
    path.write_bytes(path.read_bytes()[:-9] + b"\xff" * 9)
    with pytest.raises(ValueError, match=r"test.parquet is damaged .* download it"):
        parquet.open_folder(str(tmp_path))


LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}
INFO = {"huggingface": json.dumps({"info": {"features": {"label": LABEL}}})}
NO_IMAGES = {
    "wanted images as bytes, .* got string": {"image": ["/etc/hosts"], "label": [0]},
    "wanted a label in each row, got 1 without of 2": {
        "image": [b"x", b"x"],
        "label": [0, None],
    },
    r"texts in row 1, got '\[None\]'": {"image": [b"x"] * 2, "text": [["a"], [None]]},
    "texts in row 0, got '7'": {"image": [b"x"], "text": [7]},
    "wanted rows, got none": {"image": pa.array([], pa.binary()), "label": []},
    "wanted lists of candidate_images, got binary": {
        "candidate_images": [b"x"],
        "cue": ["a"],
        "candidates": [["a"]],
        "associations": [["a"]],
    },
}


@pytest.mark.parametrize("message", NO_IMAGES)
def test_what_is_no_image_label_or_text_is_refused(tmp_path, message):
    """A text as the image above all: it would name a file of the reader's machine."""
    table = pa.table(NO_IMAGES[message]).replace_schema_metadata(INFO)
    pq.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=message):
        parquet.open_folder(str(tmp_path))


@pytest.mark.parametrize(
    "given", ["no JSON", "[1]", "{}", json.dumps(INFO), "[" * 9_999, '{"info": null}']
)
def test_files_without_the_names_of_labels_are_refused(tmp_path, given):
    table = pa.table({"image": [b"x"], "label": [0]})
    table = table.replace_schema_metadata({"huggingface": given})
    pq.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="wanted the names of the column label"):
        parquet.open_folder(str(tmp_path))


def test_a_row_without_an_image_is_a_broken_one(tmp_path):
    table = pa.table({"image": [None, b"x"], "label": [0, 1]})
    table = table.cast(pa.schema([("image", pa.binary()), ("label", pa.int64())]))
    pq.write_table(table.replace_schema_metadata(INFO), tmp_path / "test.parquet")
    shown = parquet.open_folder(str(tmp_path))
    assert shown.read(np.arange(2)) == [b"", b"x"]
    with pytest.raises(ValueError, match="2 of 2 images are broken"):
        evaluator.check_headers(shown)
