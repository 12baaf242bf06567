"""launch_tpu.sh against a stand-in for gcloud, whose workers are folders here."""

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import waiting

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--config=configs/metaclip.py:vit_b32_400m",
    '--workdir=gs://b/a "folder" that\'s $HOME',
]

# Plays Google's side. "plan.json" holds, by what is asked, the errors to give first;
# "vm" the VM's state, "queued" the queued resource's; "asked" all that was asked, and
# "kill" after how many answers the launcher is killed.
GCLOUD = """\
#!{python}
import fcntl, json, os, pathlib, shutil, signal, subprocess, sys

cloud = pathlib.Path({cloud!r})
words = sys.argv[1:]
group, verb = words[2:4]
options = dict(w[2:].split("=", 1) for w in words if w.startswith("--") and "=" in w)
with (cloud / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with (cloud / "asked").open("a") as file:
        short = "queued-" if group == "queued-resources" else ""
        kinds = [word for word in words if word in ("--spot", "--reserved")]
        print(short + verb, *kinds, file=file)
    plan = json.loads((cloud / "plan.json").read_text())
    errors = plan.get(verb, [])
    error = errors.pop(0) if errors else ""
    (cloud / "plan.json").write_text(json.dumps(plan))
if error:
    sys.exit(error)
vm, queued, nodes = cloud / "vm", cloud / "queued", cloud / "nodes"
names = nodes.read_text().split() if nodes.exists() else []
if verb == "describe":
    place = vm if group == "tpu-vm" else queued
    unknown = group == "tpu-vm" and names and words[4] not in names
    if unknown or not place.exists():
        sys.exit("ERROR: NOT_FOUND: no such resource")
    states = place.read_text().split()
    print(states[0])
    if len(states) > 1:
        place.write_text(" ".join(states[1:]))
elif verb == "create":
    new = cloud / f"new_{{os.getpid()}}"
    new.write_text("CREATING")
    try:
        os.link(new, vm if group == "tpu-vm" else queued)
    except FileExistsError:
        sys.exit("ERROR: ALREADY_EXISTS: such a resource")
    for old in cloud.glob("worker_*"):
        old.rename(cloud / f"gone_{{os.getpid()}}_{{old.name}}")  # it may write still
    count = int(options.get("node-count", 1))
    made = [options.get("node-id", words[4])]
    if count > 1:
        made = [f"{{options['node-prefix']}}-{{number}}" for number in range(count)]
    nodes.write_text(" ".join(made))
    for number in range(2 * count):
        (cloud / f"worker_{{number}}").mkdir()
    if group == "queued-resources":
        queued.write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    vm.write_text("CREATING READY" if group == "tpu-vm" else "READY")
elif verb == "delete" and not (vm.exists() or queued.exists()):
    sys.exit("ERROR: NOT_FOUND: no such resource")
elif verb == "delete":
    vm.unlink(missing_ok=True)
    queued.unlink(missing_ok=True)
elif verb == "start":
    vm.write_text("READY")
elif verb in ("scp", "ssh"):
    if vm.read_text().split()[0] != "READY":
        sys.exit("ERROR: the VM cannot be reached")
    wanted = {{"worker"}} if group == "tpu-vm" else {{"worker", "node"}}
    assert (len(names) > 1) == ("node" in wanted), words
    (one,) = {{options[key] for key in wanted}}
    every = sorted(cloud.glob("worker_*"))
    chosen = every if one == "all" else every[: 1]
    for home in chosen:
        if verb == "scp":
            shutil.copy(words[4], home / words[5].partition(":")[2])
            continue
        environment = os.environ | {{"HOME": str(home), "WORKER": home.name}}
        environment["PATH"] = f"{{cloud}}/bin:" + os.environ["PATH"]
        command = words[words.index("--command") + 1]
        done = subprocess.run(["bash", "-c", command], cwd=home, env=environment)
        if done.returncode:
            sys.exit(done.returncode)
sys.stdout.flush()
kill = cloud / "kill"
if kill.exists():
    left = int(kill.read_text()) - 1
    kill.write_text(str(left))
    if not left:
        os.killpg(os.getpgrp(), signal.SIGKILL)
"""
# A worker's python3: it "installs" a python that plays training.
PYTHON3 = """\
#!/bin/bash
echo "$WORKER $*" >> {cloud}/installed
if [[ $WORKER == worker_1 && -e {cloud}/hangs ]]; then
  rm {cloud}/hangs
  sleep 1000
fi
if [[ $* == "-m uv venv"* ]]; then
  mkdir -p .venv/bin && cp {cloud}/bin/trainer .venv/bin/python
fi
"""
# Plays what "training" in the plan lists: how each start of worker 0 ends.
TRAINER = """\
#!{python}
import json, os, pathlib, signal, sys, time
cloud = pathlib.Path({cloud!r})
if sys.argv[1] == "-c":
    sys.exit(not (cloud / "complete").exists())
print("training", os.environ["WORKER"], *sys.argv[3:], flush=True)
if os.environ["WORKER"] != "worker_0":
    while not (cloud / "complete").exists() and (cloud / "vm").exists():
        time.sleep(0.05)
    sys.exit()
plan = json.loads((cloud / "training.json").read_text())
act = plan.pop(0) if plan else "complete"
(cloud / "training.json").write_text(json.dumps(plan))
if act == "complete":
    print("step 20", flush=True)
    (cloud / "complete").touch()
elif act == "fail":
    sys.exit("Error: wanted a dataset, got none")
elif act == "preempt":
    (cloud / "queued").write_text("SUSPENDED")
    (cloud / "vm").write_text("PREEMPTED")
    while not (cloud / "complete").exists():  # as good as gone
        time.sleep(0.05)
elif act == "run":
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit()))
    while True:
        time.sleep(0.05)
"""


class Cloud:
    """The folder of a stand-in for gcloud, and starts of the launcher in it."""

    install_seconds = 100

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        names = {"python": sys.executable, "cloud": str(folder)}
        for name, text in (
            ("gcloud", GCLOUD),
            ("python3", PYTHON3),
            ("trainer", TRAINER),
        ):
            place = folder / "bin" / name
            place.write_text(text.format(**names))
            place.chmod(place.stat().st_mode | stat.S_IXUSR)
        self.plan({}, [])

    def plan(self, errors, training):
        (self.folder / "plan.json").write_text(json.dumps(errors))
        (self.folder / "training.json").write_text(json.dumps(training))

    def start(self, *options, flags=FLAGS):
        # python3 is the workers' alone.
        shutil.copy(self.folder / "bin" / "gcloud", self.folder / "gcloud")
        command = ["./launch_tpu.sh", "--name=n", "--zone=z", *options]
        return subprocess.Popen(
            [*command, "--", *flags] if flags else command,
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{self.folder}:{os.environ['PATH']}",
                "LAUNCH_POLL_SECONDS": "0.1",
                "LAUNCH_PAUSE_SECONDS": "0.1",
                "LAUNCH_INSTALL_SECONDS": str(self.install_seconds),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *options, **values):
        process = self.start(*options, **values)
        output, _ = process.communicate(timeout=waiting.SECONDS)
        return process.returncode, output

    def asked(self, *verbs):
        lines = (self.folder / "asked").read_text().splitlines()
        return [line for line in lines if line.split()[0] in verbs]


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
    assert "stopped" in first.communicate(timeout=waiting.SECONDS)[0]
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
    """It parses the command line before it asks for a login."""
    for line in dry_lines("--type=v4-32", *options):
        if line[0] != "gcloud":
            continue
        done = subprocess.run(
            line,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path)},
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
