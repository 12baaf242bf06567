"""Segments of shared memory go with their owner, however it ends."""

import os
import signal
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest

from metaclip_jax.data import shared_memory

pytestmark = pytest.mark.skipif(
    not shared_memory.FOLDER.is_dir(), reason="segments cannot be listed here"
)

# An owner with a segment that was just made, a lock that other processes may share, and
# a child that uses its prefix.
OWNER = """
import multiprocessing, subprocess, sys, time
import numpy as np
from metaclip_jax.data import shared_memory

if len(sys.argv) > 1:
    kept = shared_memory.share(sys.argv[1], (np.ones(1000),))
    print(sys.argv[1], flush=True)
else:
    owner = shared_memory.Owner()
    kept = shared_memory.share(owner.prefix, (np.ones(1000),))
    with owner.naming_semaphores():
        lock = multiprocessing.get_context("spawn").Lock()
    subprocess.Popen([sys.executable, __file__, owner.prefix])
time.sleep(6_000)
"""


def segments(prefix):
    return sorted(path.name for path in shared_memory.FOLDER.glob(f"*{prefix}*"))


@pytest.fixture
def owner(tmp_path):
    """The prefix of an owner in another process, and that process."""
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd()},
    )
    yield process.stdout.readline().decode().strip(), process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_the_next_owner_removes_what_a_killed_group_left(owner, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory.tempfile, "tempdir", str(tmp_path))
    prefix, process = owner
    folder = tmp_path / prefix.rstrip("-")
    # The owner's own lock, a segment of each process, and the lock that they share.
    assert len(segments(prefix)) == 4
    shared_memory.Owner().close()
    assert len(segments(prefix)) == 4 and folder.is_dir()  # its owner lives
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(segments(prefix)) == 4
    shared_memory.Owner().close()
    assert not segments(prefix) and not folder.exists()


def test_a_segment_made_while_its_owner_was_cleared_away_goes_too():
    late = f"{shared_memory.PREFIX}0123abcd-"
    kept = shared_memory.share(late, np.ones(3))
    assert segments(late)
    shared_memory.Owner().close()
    assert not segments(late)
    assert kept.tolist() == [1, 1, 1]


# In a process of its own: names of semaphores are a state of the whole process.
CLOSED = """
import multiprocessing, sys
import numpy as np
from metaclip_jax.data import shared_memory

def names():
    return [p.name for p in shared_memory.FOLDER.glob(f"*{owner.prefix}*")]

owner = shared_memory.Owner()
kept = shared_memory.share(owner.prefix, {"a": np.ones(3)})
with owner.naming_semaphores():
    lock = multiprocessing.get_context("spawn").Lock()
assert len(names()) == 3, names()
del lock
owner.close()
assert not names(), names()
assert kept["a"].tolist() == [1, 1, 1]
"""


def test_an_owner_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CLOSED],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_shared_is_equal():
    pair = namedtuple("pair", "batch other")
    made = pair(
        {"image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "none": np.ones(0)},
        ("text", 3, np.array([b"id"]), np.array(["object"], object)),
    )
    owner = shared_memory.Owner()
    got = shared_memory.share(owner.prefix, made)
    owner.close()
    assert type(got) is pair and got.other[:2] == made.other[:2]
    np.testing.assert_array_equal(got.batch["image"], made.batch["image"])
    np.testing.assert_array_equal(got.other[2], made.other[2])
    assert got.batch["none"] is made.batch["none"]  # nothing to share
    assert got.other[3] is made.other[3]
