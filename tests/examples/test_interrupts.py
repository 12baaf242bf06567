"""What is left of a quick start that is told to end: nothing that runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import waiting

ROOT = Path(__file__).resolve().parents[2]
# A stage that saves its work at SIGTERM, which takes some time, as the trainer does.
_STAGE = """
import pathlib, signal, sys, time

folder = pathlib.Path(sys.argv[1].partition("=")[2])

def save(*_):
    time.sleep(0.5)
    (folder / "saved").touch()
    sys.exit()

signal.signal(signal.SIGTERM, save)
(folder / "started").touch()
time.sleep(900)
"""
# The quick start with one stage of its own, which needs the server.
_RUN = """
from examples.quickstart import run
from metaclip_jax.cli import command

def stages(workdir, configs, **sizes):
    slow = {"folder": workdir}
    return [run.Stage("Sleep", "slow_stage", slow, "result", needs_server=True)]

run.stages = stages
run.define_flags()
command.run(run.main)
"""


@pytest.fixture
def running(tmp_path):
    """Such a quick start whose stage sleeps, its folder, its children's ids."""
    (tmp_path / "slow_stage.py").write_text(_STAGE)
    workdir = tmp_path / "workdir"
    (workdir / "site" / "www").mkdir(parents=True)
    (workdir / "quickstart.json").write_text("{}")
    site = {"responses": {}, "date": "Sat, 01 Mar 2025 12:00:00 GMT"}
    (workdir / "site" / "site.json").write_text(json.dumps(site))
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, f"--workdir={workdir}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    waiting.until((workdir / "started").exists, process)
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    yield process, workdir, [int(pid) for pid in pids.split()]
    with process:
        process.kill()


def interrupt_one(process, number):
    process.send_signal(number)


def interrupt_all(process, number):
    """As a terminal and a scheduler do."""
    os.killpg(process.pid, number)


@pytest.mark.parametrize(
    ("number", "interrupt"),
    [
        (signal.SIGTERM, interrupt_one),
        (signal.SIGTERM, interrupt_all),
        (signal.SIGINT, interrupt_all),
    ],
)
def test_an_interrupt_lets_the_stage_save_and_leaves_no_process(
    running, number, interrupt
):
    process, workdir, pids = running
    assert len(pids) == 2  # the server and the stage
    interrupt(process, number)
    output, _ = process.communicate(timeout=waiting.SECONDS)
    assert output.splitlines()[-1] == "interrupted; the same command continues"
    assert "Traceback" not in output
    assert process.returncode == 128 + number
    assert (workdir / "saved").exists()
    assert not any(map(waiting.is_running, pids))
    assert json.loads((workdir / "quickstart.json").read_text()) == {}


def test_the_stage_of_a_killed_quick_start_ends(running):
    process, _, pids = running
    process.kill()
    waiting.until(lambda: not any(map(waiting.is_running, pids)))


def test_a_second_sigint_kills_a_command_that_ignores_sigterm():
    code = (
        "from examples.quickstart import children\n"
        "stubborn = \"trap '' TERM; while :; do kill -INT $PPID; sleep 0.1; done\"\n"
        "with children.interruptible() as call:\n"
        "    try:\n"
        "        call(['sh', '-c', stubborn])\n"
        "    except children.Interrupted as error:\n"
        "        print(error.received.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )
    assert done.stdout == "SIGINT\n", done.stderr
