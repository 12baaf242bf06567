"""Which files a pattern finds: as a shell would, locally and on gs://."""

import glob
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaclip_jax import patterns

ROOT = Path(__file__).parents[2]
TREE = (
    "segments/1/warc/a.warc.gz", "segments/1/warc/b.warc.gz", "segments/1/wat/a.wat.gz",
    "segments/2/warc/c.warc.gz", "segments/2/warc/deep/er/d.warc.gz",
    "segments/10/warc/a.warc.gz", "segments/folder.warc.gz/e.warc.gz", "top.warc.gz",
    "segments/.hidden/warc/h.warc.gz", "segments/1/warc/.tmp-a.warc.gz",
    "run[1]/f.warc.gz", "run1/g.warc.gz", "odd[x].warc.gz", "oddx.warc.gz",
    "with space/é.warc.gz", "with space/#%3F.warc.gz",
)  # fmt: skip
FOUND = {
    "top.warc.gz": ["top.warc.gz"],
    "*.warc.gz": ["odd[x].warc.gz", "oddx.warc.gz", "top.warc.gz"],
    "segments/*/warc/*.warc.gz": [TREE[0], TREE[1], TREE[5], TREE[3]],
    "segments/?/warc/[ac].warc.gz": [TREE[0], TREE[3]],
    "segments/[!1]/warc/*": [TREE[3]],
    "segments/1*/warc/a.warc.gz": [TREE[0], TREE[5]],
    "segments/**/*.warc.gz": [TREE[0], TREE[1], TREE[5], TREE[3], TREE[4], TREE[6]],
    "**/deep/**/*.gz": [TREE[4]],
    "segments/2/**": [TREE[3], TREE[4]],
    "segments/**/warc/**/d.warc.gz": [TREE[4]],
    "segments/.h*/*/*": [TREE[8]],
    "segments/1/warc/.*": [TREE[9]],
    "run[1]/*.warc.gz": ["run[1]/f.warc.gz"],
    "run[0-9]/*.warc.gz": ["run1/g.warc.gz"],
    "odd[x].warc.gz": ["odd[x].warc.gz"],
    "with space/*": [TREE[15], TREE[14]],
    "*e/é*": [TREE[14]],
    "segments/*": [],
    "segments/*.warc.gz": [],
    "segments": [],
    "segments/1": [],
    "none/*.warc.gz": [],
    "**/none": [],
    "top.warc.gz/*": [],
    "*/*/*/*/*/*/*/*": [],
    "": [],
}


def write(folder):
    for name in TREE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize("pattern", FOUND)
def test_wildcards_count_in_any_part(tmp_path, monkeypatch, pattern):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert patterns.find(pattern) == FOUND[pattern]
    assert patterns.find(f"./{pattern}") == FOUND[pattern]
    if pattern:
        absolute = [str(tmp_path / name) for name in FOUND[pattern]]
        assert patterns.find(tmp_path / pattern) == absolute
        assert patterns.find(f"{tmp_path}//{pattern}") == absolute


REMOTE = """
import json, sys
from metaclip_jax import files, patterns
tree, asked = json.loads(sys.argv[1])
for name in tree:
    files.write_bytes(f"gs://bucket1/crawl/{name}", b"x")
files.write_bytes("gs://bucket1/other.warc.gz", b"x")
print(json.dumps([patterns.find(f"gs://bucket1/crawl/{p}") for p in asked]))
print(json.dumps(patterns.find("gs://bucket1/**/top*")))
print(json.dumps(patterns.find("gs://bucket1/*")))
"""


def test_patterns_find_the_same_on_gs(cloud_storage):
    patterns = [pattern for pattern in FOUND if pattern]
    with cloud_storage() as storage:
        done = subprocess.run(
            [sys.executable, "-c", REMOTE, json.dumps([TREE, patterns])],
            env={**storage.environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    first, second, third = map(json.loads, done.stdout.splitlines())
    for pattern, found in zip(patterns, first, strict=True):
        assert found == [f"gs://bucket1/crawl/{n}" for n in FOUND[pattern]], pattern
    assert second == ["gs://bucket1/crawl/top.warc.gz"]
    assert third == ["gs://bucket1/other.warc.gz"]


NAMES = st.text("ab.", min_size=1, max_size=3).filter(lambda n: n.strip("."))
PARTS = st.one_of(
    st.just("**"), st.just("*"), NAMES, st.text("ab.*?[]!", min_size=1, max_size=4)
).filter(lambda part: part.strip("."))


@given(
    st.sets(st.lists(NAMES, min_size=1, max_size=4).map(tuple), max_size=8),
    st.lists(PARTS, min_size=1, max_size=4).map("/".join),
)
def test_pythons_glob_finds_the_same(tmp_path_factory, tree, pattern):
    folder = tmp_path_factory.mktemp("tree")
    for parts in tree:
        try:
            (folder.joinpath(*parts).parent).mkdir(parents=True, exist_ok=True)
            folder.joinpath(*parts).write_bytes(b"x")
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            pass  # a file where another's folder would be
    # Python takes a file "a" for what "a/**" means.
    theirs = f"{pattern}/*" if pattern.endswith("**") else pattern
    wanted = glob.glob(theirs, root_dir=folder, recursive=True)
    wanted = {name for name in wanted if (folder / name).is_file()}
    assert patterns.find(f"{glob.escape(str(folder))}/{pattern}") == sorted(
        str(folder / name) for name in wanted
    )


def test_a_link_is_followed_once_and_what_it_leads_to_is_read(tmp_path):
    write(tmp_path)
    (tmp_path / "segments" / "2" / "loop").symlink_to(tmp_path / "segments")
    (tmp_path / "linked").symlink_to(tmp_path / "segments" / "1")
    (tmp_path / "gone.warc.gz").symlink_to(tmp_path / "none")
    assert len(patterns.find(tmp_path / "segments" / "**" / "a.warc.gz")) == 2
    assert len(patterns.find(tmp_path / "linked" / "*" / "*.warc.gz")) == 2
    # Left out, its pages would be lost without a word.
    assert str(tmp_path / "gone.warc.gz") in patterns.find(tmp_path / "*.warc.gz")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    write(tmp_path)
    closed = tmp_path / "segments" / "1"
    closed.chmod(0)
    try:
        if os.access(closed, os.R_OK):
            pytest.skip("root may list any folder")
        with pytest.raises(PermissionError, match="segments/1"):
            patterns.find(tmp_path / "segments" / "*" / "*" / "*.gz")
    finally:
        closed.chmod(0o755)
