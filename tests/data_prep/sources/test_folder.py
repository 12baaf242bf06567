"""Folders of strangers: only files are read, and no name ends a run."""

import json
import os

import pyarrow as pa
import pytest

from data_prep import config, schema
from data_prep.sources import kinds

OTHERS = ("folder", "pipe", "device", "nowhere", "itself")


def read(root):
    """Returns {text: (status, body)} of a folder, and {(unit, reason): n}."""
    keys = config.curate()
    keys.update_from_flattened_dict(
        {"source.kind": "folder", "source.paths": str(root)}
    )
    wanted, flow = kinds.spec_of(keys), []
    folders = kinds.find(str(root), wanted)
    assert all(size >= 0 for _, size in kinds.describe(folders, wanted))
    batches = [b for one in folders for b in kinds.read(one, wanted, flow)]
    found = pa.Table.from_batches(batches, schema=schema.CANDIDATES)
    bodies = kinds.images(found["stored_at"].to_pylist(), wanted)
    by_text = {found["text"][i].as_py(): (status, body) for i, status, body in bodies}
    counts = {}
    for row in (row for part in flow for row in part.to_pylist()):
        key = row["unit"], row["reason"]
        counts[key] = counts.get(key, 0) + row["count"]
    return by_text, counts


def make(path, what):
    """Makes at `path` what is no file."""
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        targets = {"device": "/dev/zero", "nowhere": "not there", "itself": path.name}
        path.symlink_to(targets[what])


def fill(root):
    root.mkdir()
    (root / "good.jpg").write_bytes(b"picture")
    return root


@pytest.mark.parametrize("what", OTHERS)
def test_a_picture_that_is_no_file_is_missing(tmp_path, what):
    root = fill(tmp_path / "in")
    make(root / "bad.jpg", what)
    for stem in ("good", "bad"):
        (root / f"{stem}.txt").write_text(f"a {stem} cat")
    found, counts = read(root)
    assert found.pop("a good cat") == ("ok", b"picture")
    assert set(found.values()) <= {("missing_file", b"")}
    assert len(found) + counts["images", "no_image"] == 1


@pytest.mark.parametrize("what", OTHERS)
def test_a_text_that_is_no_file_is_not_read(tmp_path, what):
    root = fill(tmp_path / "in")
    make(root / "good.txt", what)
    found, counts = read(root)
    assert not found and counts["texts", "empty_text"] == 1


@pytest.mark.parametrize("what", OTHERS)
def test_a_row_whose_name_is_no_files_has_no_image(tmp_path, what):
    root = fill(tmp_path / "in")
    make(root / "bad", what)
    names = ("good.jpg", "bad", ".", "", "good.jpg/x", "x" * 300, "\ud800", "../in", 1)
    rows = [{"file_name": name, "text": f"cat {i}"} for i, name in enumerate(names)]
    (root / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found, counts = read(root)
    assert found == {"cat 0": ("ok", b"picture")}
    assert counts["images", "no_image"] + counts["images", "bad_name"] == 8


def test_a_name_that_is_not_utf8_is_a_bad_name(tmp_path):
    root = fill(tmp_path / "in")
    (root / "good.txt").write_text("a cat")
    for extension in (b"jpg", b"txt"):
        with open(os.fsencode(root) + b"/\xe4." + extension, "wb") as file:
            file.write(b"a dog")
    found, counts = read(root)
    assert set(found) == {"a cat"} and counts["images", "bad_name"] == 1


def test_only_the_beginning_of_a_huge_text_is_read(tmp_path):
    root = fill(tmp_path / "in")
    (root / "good.txt").write_text("cat " * 1_000)
    os.truncate(root / "good.txt", 1 << 40)
    found, counts = read(root)
    assert not found and counts["texts", "text_too_long"] == 1
