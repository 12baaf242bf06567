"""Curation by a user id that has no name, as containers have."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.data_prep import tiny_web

ROOT = Path(__file__).resolve().parents[2]
UNNAMED = 54_321
UNREADABLE = 77

# The first child curates as root, and says which modules that takes: Python itself may
# lie where no other user can read. Then the second one curates as another user.
CODE = r"""
import contextlib, importlib, os, sys, tempfile

from absl import app

from data_prep import curate

user, unreadable, first, second, *arguments = sys.argv[1:]


def run(place):
    sys.argv = ["curate", f"--workdir={place}/work", f"--output={place}/dataset"]
    sys.argv += arguments
    curate.define_flags()
    app.run(curate.main)


with tempfile.TemporaryFile("w+") as loaded:
    if os.fork() == 0:
        try:
            run(first)
        finally:
            loaded.write("\n".join(sys.modules))
            loaded.flush()
    assert os.wait()[1] == 0
    loaded.seek(0)
    for name in loaded.read().splitlines():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
if os.fork() == 0:
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    if not os.access("configs/curate.py", os.R_OK):
        os._exit(int(unreadable))
    run(second)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_user_without_a_name_curates_the_same_bytes():
    with pytest.raises(KeyError):
        pwd.getpwuid(UNNAMED)
    alts = [(f"/{n}.jpg", f"a cat and dog number {n}") for n in range(6)]
    bodies = {path: tiny_web.picture(n) for n, (path, _) in enumerate(alts)}
    # Not below pytest's folder, which is root's alone.
    with tempfile.TemporaryDirectory() as folder, tiny_web.serve(bodies) as host_map:
        os.chmod(folder, 0o755)
        flags = tiny_web.write(Path(folder) / "web", alts)
        flags["config.download.host_map"] = host_map
        places = [f"{folder}/{name}" for name in ("root", "unnamed")]
        os.mkdir(places[1])
        os.chown(places[1], UNNAMED, UNNAMED)
        numbers = map(str, (UNNAMED, UNREADABLE))
        named = [f"--{name}={value}" for name, value in flags.items()]
        done = subprocess.run(
            [sys.executable, "-c", CODE, *numbers, *places, *named],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode == UNREADABLE:
            pytest.skip(f"other users cannot read {ROOT}")
        assert done.returncode == 0, done.stderr[-4000:]
        root, unnamed = (
            {path.name: path.read_bytes() for path in Path(place, "dataset").iterdir()}
            for place in places
        )
        assert Path(places[1], "dataset", "manifest.json").stat().st_uid == UNNAMED
    assert root == unnamed
