"""Processes of a machine map one copy of a matcher on gs://."""

import subprocess
import sys
from pathlib import Path

from data_prep.matching import Matcher

ROOT = Path(__file__).resolve().parents[3]

# Two processes at a time open each of the files; all print the pages that they map.
MAP = r"""
import os, pathlib, sys
from data_prep.matching import Matcher

for path in sys.argv[1:]:
    children = []
    for _ in range(2):
        children.append(os.fork())
        if not children[-1]:
            matcher = Matcher.load(path)
            maps = pathlib.Path("/proc/self/maps").read_text().splitlines()
            mapped = {line.split()[4] for line in maps if "/metaclip_jax-" in line}
            os.write(1, f"{path} {mapped} {matcher.mode}\n".encode())
            os._exit(0)
    for child in children:
        assert not os.waitpid(child, 0)[1]
"""


def test_a_matcher_is_copied_once_for_all_processes(tmp_path, cloud_storage):
    for name in ("first", "second"):
        Matcher([name, "cat"], mode="v2").save(tmp_path / name)
    (tmp_path / "temporary").mkdir()
    with cloud_storage() as storage:
        storage.upload(tmp_path / "first", tmp_path / "second")
        names = ["gs://bucket1/first", "gs://bucket1/second"]
        done = subprocess.run(
            [sys.executable, "-c", MAP, *names],
            cwd=ROOT,
            env=storage.environment | {"TMPDIR": str(tmp_path / "temporary")},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and len(set(lines)) == 2  # each file has one inode
    assert all(line.endswith(" v2") for line in lines)
    # The first was not in use any more when the second was copied.
    (folder,) = (tmp_path / "temporary").glob("metaclip_jax-*")
    assert len([path for path in folder.iterdir() if path.name != ".lock"]) == 1
