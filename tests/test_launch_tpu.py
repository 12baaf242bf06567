"""launch_tpu.sh against a stand-in for gcloud, whose workers are folders here."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from absl import flags

from metaclip_jax import config as keys
from metaclip_jax import train
from tests import waiting
from tests.pretend_cloud import FLAGS, Cloud

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cloud(tmp_path):
    yield Cloud(tmp_path)
    (tmp_path / "complete").touch()  # workers that still train end


def test_a_run_is_installed_followed_and_complete(cloud):
    status, output = cloud.run("--type=v4-32", "--spot")
    assert status == 0, output
    assert cloud.asked("create", "delete") == ["create --spot"]
    installed = (cloud.folder / "installed").read_text()
    for worker in ("worker_0", "worker_1"):
        assert (
            f"{worker} -m uv pip install -q --python=.venv -c constraints" in installed
        )
        # Worker 1 may begin after worker 0 is done, as they do not wait for each other.
        log, said = cloud.folder / worker / "metaclip-jax.log", f"training {worker} "
        waiting.until(
            lambda log=log, said=said: log.exists() and said in log.read_text()
        )
        assert f"{said}--coordinator=auto {' '.join(FLAGS)}" in log.read_text()
        copied = cloud.folder / worker / "metaclip-jax" / "launch_tpu.sh"
        assert copied.read_bytes() == (ROOT / "launch_tpu.sh").read_bytes()
    assert output.count("step 20\n") == 1
    assert output.endswith("The run is complete.\n")


def test_a_second_start_only_follows(cloud):
    cloud.plan({}, ["run"])
    first = cloud.start("--type=v4-32")
    log = cloud.folder / "worker_0" / "metaclip-jax.log"
    waiting.until(lambda: log.exists() and "training" in log.read_text(), first)
    first.kill()  # as a terminal that is closed
    first.communicate()
    second = cloud.start("--type=v4-32")
    assert any("training worker_0" in line for line in second.stdout)
    status, output = cloud.run("--stop", flags=())
    assert status == 0, output
    output, _ = second.communicate(timeout=waiting.SECONDS)
    assert second.returncode == 0
    assert output.endswith("Training was stopped; the same command continues.\n")
    # One start of each worker, whose trainer was asked to save.
    assert log.read_text().count("training worker_0") == 1
    assert log.read_text().endswith("saved\n")
    assert (cloud.folder / "installed").read_text().count("uv venv") == 2


def test_a_vm_that_another_command_deletes_is_not_made_anew(cloud):
    cloud.plan({}, ["run"])
    first = cloud.start("--type=v4-32", "--queued")
    log = cloud.folder / "worker_0" / "metaclip-jax.log"
    waiting.until(lambda: log.exists() and "training" in log.read_text(), first)
    assert cloud.run("--queued", "--stop", "--delete", flags=())[0] == 0
    assert cloud.run("--queued", "--delete", flags=())[0] == 0  # once is enough
    output, _ = first.communicate(timeout=waiting.SECONDS)
    assert len(cloud.asked("queued-create")) == 1
    assert "stopped" in output or "deleted by another command" in output, output
    assert "WAITING_FOR_RESOURCES; waiting" in output


def test_a_second_start_with_other_flags_is_refused(cloud):
    cloud.plan({}, ["run"])
    first = cloud.start("--type=v4-32")
    log = cloud.folder / "worker_0" / "metaclip-jax.log"
    waiting.until(lambda: log.exists() and "training" in log.read_text(), first)
    status, output = cloud.run(
        "--type=v4-32", "--delete", flags=["--workdir=gs://b/c d"]
    )
    assert status == 1
    want, _, got = output.splitlines()[-1].partition(", but n trains with ")
    assert shlex.split(want)[-1] == "--workdir=gs://b/c d"
    assert shlex.split(got.partition(": --stop that first")[0]) == FLAGS
    assert cloud.run("--stop", flags=())[0] == 0
    output, _ = first.communicate(timeout=waiting.SECONDS)
    assert "stopped" in output, output
    assert log.read_text().count("training worker_0") == 1
    assert not cloud.asked("delete")


def test_a_queued_resource_that_is_deleted_while_it_waits_is_not_made_anew(cloud):
    (cloud.folder / "queued").write_text("WAITING_FOR_RESOURCES")
    first = cloud.start("--type=v4-32", "--queued")
    assert any("waiting" in line for line in first.stdout)
    assert cloud.run("--queued", "--delete", flags=())[0] == 0
    output, _ = first.communicate(timeout=waiting.SECONDS)
    assert first.returncode == 1 and "deleted by another command" in output
    assert not cloud.asked("queued-create")


def test_workers_on_which_training_is_killed_start_again(cloud):
    """Say by a reboot: worker 1's, which makes worker 0's fail, then that of both."""
    cloud.plan({}, ["run", "run", "complete"])
    first = cloud.start("--type=v4-32")

    def supervisor(number):
        pid = cloud.folder / f"worker_{number}" / "metaclip-jax.pid"
        waiting.until(lambda: pid.exists() and pid.read_text().strip(), first)
        return int(pid.read_text())

    log = cloud.folder / "worker_0" / "metaclip-jax.log"
    waiting.until(lambda: log.exists() and "training" in log.read_text(), first)
    zero, one = map(supervisor, range(2))
    os.killpg(one, signal.SIGKILL)
    children = Path(f"/proc/{zero}/task/{zero}/children")
    os.kill(int(children.read_text().split()[0]), signal.SIGTERM)
    waiting.until(lambda: supervisor(1) != one, first)
    assert supervisor(0) == zero
    waiting.until(lambda: log.read_text().count("training worker_0") == 2, first)
    for number in range(2):
        os.killpg(supervisor(number), signal.SIGKILL)
    output, _ = first.communicate(timeout=waiting.SECONDS)
    assert first.returncode == 0, output
    assert "Training was killed on worker 0; it starts again." in output
    assert "step 20" in output and "The run is complete." in output
    assert supervisor(0) != zero and len(cloud.asked("create")) == 1


@pytest.mark.slow
def test_a_launcher_that_is_killed_after_each_of_its_calls_gets_there(cloud):
    for calls in range(1, 30):
        (cloud.folder / "kill").write_text(str(calls))
        status, output = cloud.run("--type=v4-32", "--queued")
        if status == 0:
            break
        assert status == -signal.SIGKILL, output
    assert output.endswith("The run is complete.\n")
    assert calls > 8 and len(cloud.asked("queued-create")) == 1
    assert len(list(cloud.folder.glob("*worker_*"))) == 2


def test_two_launchers_at_once_train_one_run(cloud):
    cloud.plan({}, ["run"])
    both = [cloud.start("--type=v4-32") for _ in range(2)]
    log = cloud.folder / "worker_0" / "metaclip-jax.log"
    waiting.until(lambda: log.exists() and "training" in log.read_text())
    for launcher in both:
        assert any("training worker_0" in line for line in launcher.stdout)
    assert cloud.run("--stop", flags=())[0] == 0
    for launcher in both:
        output, _ = launcher.communicate(timeout=waiting.SECONDS)
        assert launcher.returncode == 0, output
    assert log.read_text().count("training worker_0") == 1


@pytest.mark.parametrize(
    "queued", [(), pytest.param(("--queued",), marks=pytest.mark.slow)]
)
def test_a_preempted_vm_is_made_anew_until_the_run_is_complete(cloud, queued):
    cloud.plan({}, ["preempt", "preempt", "complete"])
    options = "--type=v5p-256", "--delete", *queued
    status, output = cloud.run(*options)
    assert status == 0, output
    # All of it was in a dry run, and there also what a VM that was stopped gets.
    kinds = {"tpu-vm": "", "queued-resources": "queued-"}
    calls = [words for words in dry_lines(*options) if words[0] == "gcloud"]
    asked = (cloud.folder / "asked").read_text().split()
    assert {kinds[words[3]] + words[4] for words in calls} == {*asked, "start"}
    prefix = "queued-" if queued else ""
    made = [f"{prefix}create", f"{prefix}delete"]
    assert cloud.asked(*made) == 3 * made  # the last by --delete
    assert output.count("The VM is gone") == 2
    assert "step 20" in output


def test_several_slices_train_one_run(cloud):
    cloud.plan({"create": ["ERROR: no more capacity"]}, ["preempt", "complete"])
    options = ("--type=v5p-256", "--slices=3", "--reserved")
    status, output = cloud.run(*options, "--delete")
    assert status == 0, output
    created = ["queued-create --reserved"]
    wanted = [*created, *created, "queued-delete", *created, "queued-delete"]
    assert cloud.asked(*(line.split()[0] for line in wanted)) == wanted
    assert (cloud.folder / "nodes").read_text() == "n-0 n-1 n-2"
    installed = (cloud.folder / "installed").read_text()
    for number in range(6):
        assert installed.count(f"worker_{number} -m uv venv") == 2
        log = cloud.folder / f"worker_{number}" / "metaclip-jax.log"
        waiting.until(lambda log=log: log.exists() and "training" in log.read_text())
    assert "The run is complete." in output


def test_a_trainer_that_fails_starts_again(cloud):
    cloud.plan({}, ["fail", "fail", "complete"])
    status, output = cloud.run("--type=v4-32")
    assert status == 0, output
    assert output.count("Error: wanted a dataset") == 2
    assert output.count("it starts again") == 2
    assert len(cloud.asked("create")) == 1


def test_a_trainer_that_always_fails_ends_the_launcher_and_keeps_the_vm(cloud):
    cloud.plan({}, ["fail"] * 9)
    status, output = cloud.run("--type=v4-32", "--delete")
    assert status == 1
    assert output.count("Error: wanted a dataset") == 5
    assert "failed five times in a row" in output
    assert not cloud.asked("delete")


def test_capacity_is_waited_for_and_other_errors_end(cloud):
    none = "ERROR: There is no more capacity in the zone"
    cloud.plan({"create": [none, none]}, [])
    status, output = cloud.run("--type=v4-32")
    assert status == 0, output
    assert len(cloud.asked("create")) == 3 and output.count(none) == 2


@pytest.mark.parametrize(
    "error",
    [
        "ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV4' has been exceeded",
        "ERROR: PERMISSION_DENIED: you may not create",
    ],
)
def test_an_error_that_waiting_does_not_cure_ends(cloud, error):
    cloud.plan({"create": [error]}, [])
    status, output = cloud.run("--type=v4-32")
    assert status == 1 and error in output
    assert len(cloud.asked("create")) == 1


def test_a_state_that_cannot_be_asked_makes_no_vm(cloud):
    cloud.plan({"describe": ["ERROR: UNAUTHENTICATED: log in"]}, [])
    status, output = cloud.run("--type=v4-32")
    assert status == 1 and "UNAUTHENTICATED" in output
    assert not cloud.asked("create")


def test_a_worker_that_fails_to_install_is_tried_again(cloud):
    cloud.plan({"scp": ["scp: lost", "scp: lost"], "ssh": ["ssh: no connection"]}, [])
    status, output = cloud.run("--type=v4-32")
    assert status == 0, output
    assert output.count("scp: lost") == 2 and output.count("ssh: no connection") == 1

    cloud.plan({"ssh": ["ssh: no connection"] * 9}, [])
    status, output = cloud.run("--type=v4-32")
    assert status == 1 and output.count("ssh: no connection") == 5
    assert "got what is above 5 times" in output


def test_a_worker_that_hangs_while_it_installs_is_named_and_tried_again(cloud):
    (cloud.folder / "hangs").touch()
    cloud.install_seconds = 5
    status, output = cloud.run("--type=v4-32")
    assert status == 0, output
    assert f"{os.uname().nodename} did not install" in output
    assert output.endswith("The run is complete.\n")


def test_a_state_that_cannot_be_asked_while_it_trains_is_no_lost_vm(cloud):
    cloud.plan({}, ["run"])
    first = cloud.start("--type=v4-32")
    log = cloud.folder / "worker_0" / "metaclip-jax.log"
    waiting.until(lambda: log.exists() and "training" in log.read_text(), first)
    cloud.plan({"describe": ["ERROR: UNAVAILABLE"] * 3}, [])
    left = cloud.folder / "plan.json"
    waiting.until(lambda: json.loads(left.read_text() or "{}") == {"describe": []})
    assert cloud.run("--stop", flags=())[0] == 0
    output, _ = first.communicate(timeout=waiting.SECONDS)
    assert first.returncode == 0 and "The VM is gone" not in output
    assert len(cloud.asked("create")) == len(cloud.asked("scp")) == 1


def test_a_worker_that_does_not_answer_is_named(cloud):
    cloud.plan({}, ["run"])
    first = cloud.start("--type=v4-32")
    log = cloud.folder / "worker_0" / "metaclip-jax.log"
    waiting.until(lambda: log.exists() and "training" in log.read_text(), first)
    cloud.plan({"ssh": ["ssh: no answer"] * 99}, [])
    output, _ = first.communicate(timeout=waiting.SECONDS)
    assert first.returncode == 1
    assert "wanted an answer of worker 0, got none ten times" in output
    cloud.plan({}, [])
    assert cloud.run("--stop", "--delete", flags=())[0] == 0


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ("READY", []),
        ("PREEMPTED", ["delete", "create"]),
        ("TERMINATED", ["delete", "create"]),
        ("STOPPED", ["start"]),
    ],
)
def test_a_vm_in_any_state_is_made_ready(cloud, state, wanted):
    for number in range(2):
        (cloud.folder / f"worker_{number}").mkdir()
    (cloud.folder / "vm").write_text(state)
    status, output = cloud.run("--type=v4-32")
    assert status == 0, output
    assert cloud.asked("create", "delete", "start") == wanted


def dry_lines(*options):
    command = ["./launch_tpu.sh", "--dry_run", "--name=n", "--zone=z", *options]
    done = subprocess.run(
        [*command, "--", *FLAGS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [
        subprocess.check_output(["bash", "-c", f"printf '%s\\0' {line}"], text=True)
        .rstrip("\0")
        .split("\0")
        for line in done.stdout.splitlines()
        if not line.startswith("#")
    ]


def test_a_dry_run_prints_the_commands():
    pack, describe, create, _, _, install, start, *later = dry_lines("--type=v4-32")
    assert "archive" in pack
    assert "describe" in describe
    assert "--version=tpu-ubuntu2204-base" in create
    assert "-c constraints.txt" in install[-1]
    assert "--worker=all" in start
    flags = shlex.split(start[-1].partition("--on_worker ")[2].partition(">")[0])
    assert flags == FLAGS  # the workers' shells split once more
    worker, log, preempted, stopped, stop, delete = later
    assert worker[3:] == ["--coordinator=auto", *FLAGS]
    assert "tail" in log[-1] and "start" in stopped and "kill -TERM" in stop[-1]
    assert "delete" in preempted and preempted == delete


def test_a_file_that_was_written_again_is_no_change(tmp_path):
    script = tmp_path / "launch_tpu.sh"
    shutil.copy(ROOT / "launch_tpu.sh", script)
    me = ["-c", "user.name=me", "-c", "user.email=me@my.example"]
    for command in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "Add"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    os.utime(script, (0, 0))
    command = [script, "--dry_run", "--name=n", "--zone=z", "--type=v4-32", "--"]
    printed = subprocess.check_output([*command, *FLAGS], text=True)
    assert re.search("^git archive .* HEAD $", printed, re.MULTILINE)


def commands_of(guide, program):
    """The commands of a program in a guide's blocks that need the cloud."""
    text = (ROOT / "docs" / guide).read_text()
    blocks = "".join(re.findall(r"```text\n(.*?)```", text, re.S)).replace("\\\n", "")
    lines = [part for line in blocks.splitlines() for part in line.split("&&")]
    return [shlex.split(line) for line in lines if line.split()[:1] == [program]]


@pytest.mark.parametrize("guide", ["cloud.md", "training.md"])
def test_the_launches_of_a_guide_are_accepted(guide, cloud, monkeypatch):
    """Against the stand-in, with flags that training knows."""
    monkeypatch.chdir(ROOT)
    launches = commands_of(guide, "./launch_tpu.sh")
    assert launches
    for launch in launches:
        options = [
            one for one in launch[1:] if not one.startswith(("--name", "--zone"))
        ]
        trained = options[options.index("--") + 1 :] if "--" in options else []
        if trained:
            options = options[: options.index("--")]
            values = flags.FlagValues()
            train.define_flags(values)
            monkeypatch.setattr(sys, "argv", ["train", "--coordinator=auto", *trained])
            values(sys.argv)
            keys.check(values.config)
        status, output = cloud.run(*options, flags=trained)
        assert status == 0, output
    assert cloud.asked("create", "delete")


@pytest.mark.parametrize(
    ("options", "flags", "said"),
    [
        (["--zome=z"], FLAGS, "--zome=z"),
        (["--type=v4-8", "--name=My_VM"], FLAGS, "wanted --name of small letters"),
        (["--type=v4-8", "--slices=0"], FLAGS, "wanted --slices as a number"),
        (["--type=v99-8"], FLAGS, "no image is known for --type=v99-8"),
        ([], FLAGS, "wanted --type"),
        (["--version=v2-alpha-tpuv5"], FLAGS, "wanted --type"),
        (["--type=v4-32"], [], "wanted, after --"),
        (["--type=v4-32"], ["--workdir=run"], "--workdir on gs://"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_asked(cloud, options, flags, said):
    status, output = cloud.run(*options, flags=flags)
    assert status == 2 and said in output
    assert not (cloud.folder / "asked").exists()


def test_a_missing_gcloud_is_named():
    programs = {
        name: shutil.which(name) for name in ("bash", "dirname", "mktemp", "rm")
    }
    command = ["./launch_tpu.sh", "--name=n", "--zone=z", "--type=v4-8", "--", *FLAGS]
    with tempfile.TemporaryDirectory() as folder:
        for name, path in programs.items():
            (Path(folder) / name).symlink_to(path)
        done = subprocess.run(
            [programs["bash"], *command],
            cwd=ROOT,
            env={"PATH": folder},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("wanted gcloud on PATH, got none")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="no gcloud here")
@pytest.mark.parametrize(
    "options",
    [["--spot"], ["--reserved"], ["--queued", "--spot"], ["--slices=2", "--reserved"]],
)
def test_gcloud_itself_knows_the_options(options, tmp_path):
    assert_gcloud_knows(dry_lines("--type=v4-32", *options), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="no gcloud here")
def test_gcloud_itself_knows_the_commands_of_the_guide(tmp_path):
    lines = [
        line
        for line in commands_of("cloud.md", "gcloud")
        if line[1] != "config" and "login" not in line
    ]
    (tmp_path / "tasks").mkdir()
    assert len(lines) >= 3
    assert_gcloud_knows(lines, tmp_path)


def assert_gcloud_knows(lines, folder):
    """It parses a command line before it asks for a login."""
    for line in lines:
        if line[0] != "gcloud":
            continue
        done = subprocess.run(
            line,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, "CLOUDSDK_CONFIG": str(folder)},
            timeout=waiting.SECONDS,
        )
        assert done.returncode == 1, done.stderr  # 2 for a wrong command line
        assert "unrecognized arguments" not in done.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
def test_shellcheck_finds_nothing():
    done = subprocess.run(
        ["shellcheck", "launch_tpu.sh"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
