"""Untrusted folders: only files are read, and no name ends a run."""

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
    lost = [
        counts.get(("images", reason), 0) for reason in ("no_image", "outside_link")
    ]
    assert len(found) + sum(lost) == 1


@pytest.mark.parametrize("what", OTHERS)
def test_a_text_that_is_no_file_is_not_read(tmp_path, what):
    root = fill(tmp_path / "in")
    make(root / "good.txt", what)
    found, counts = read(root)
    lost = ("images", "outside_link") if what == "device" else ("texts", "empty_text")
    assert not found and counts[lost] == 1


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


def test_links_are_read_within_a_folder_and_not_out_of_it(tmp_path):
    root = fill(tmp_path / "in")
    private = fill(tmp_path / "private")
    (private / "secret.txt").write_text("a secret")
    (root / "sub").mkdir()
    (root / "sub" / "real.txt").write_text("a real cat")
    (root / "good.txt").symlink_to("sub/real.txt")
    for stem, image, text in (
        ("1", private / "good.jpg", root / "good.txt"),
        ("2", root / "good.jpg", private / "secret.txt"),
        ("3", "../private/good.jpg", "good.txt"),
        ("4", "good.jpg", "sub/../../private/secret.txt"),
        ("5", "good.jpg", "sub/real.txt"),
    ):
        (root / f"{stem}.jpg").symlink_to(image)
        (root / f"{stem}.txt").symlink_to(text)
    found, counts = read(root)
    assert found == {"a real cat": ("ok", b"picture")}
    assert counts["images", "outside_link"] == 4
    assert counts["texts", "<out"] == 2
    linked = tmp_path / "linked"  # the source itself may be a link
    linked.symlink_to(root)
    assert read(linked) == (found, counts)


def test_captions_reach_no_file_behind_a_link_out_of_the_folder(tmp_path):
    root, private = fill(tmp_path / "in"), fill(tmp_path / "private")
    (root / "out").symlink_to(private)
    rows = [{"file_name": f"{name}good.jpg", "text": "a cat"} for name in ("", "out/")]
    captions = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "metadata.jsonl").write_text(captions)
    found, counts = read(root)
    assert found == {"a cat": ("ok", b"picture")}
    assert counts["images", "outside_link"] == 1
    (private / "captions").write_text(captions)
    (root / "metadata.jsonl").unlink()
    (root / "metadata.jsonl").symlink_to(private / "captions")
    found, counts = read(root)
    assert not found and counts["files", "outside_link"] == 1


def test_pictures_that_share_a_text_are_counted(tmp_path):
    root = fill(tmp_path / "in")
    (root / "good.PNG").write_bytes(b"another")
    (root / "good.txt").write_text("a cat")
    found, counts = read(root)
    assert len(found) == 1 and counts["images", "repeated_name"] == 1
    assert counts["images", ">in"] == 2 and counts["images", "<out"] == 1
