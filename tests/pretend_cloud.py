"""A stand-in for gcloud, whose workers are folders here, and launch_tpu.sh with it."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from tests import waiting

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [  # of training, with what shells take for their own
    "--config=configs/metaclip.py:vit_b32_400m",
    '--workdir=gs://b/a "folder" that\'s $HOME',
]

# Writes a file that others never see half written.
PUT = """
def put(place, text):
    new = cloud / f"put_{os.getpid()}"
    new.write_text(text)
    new.replace(place)
"""
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
{put}
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
        put(place, " ".join(states[1:]))
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
        put(queued, "WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    put(vm, "CREATING READY" if group == "tpu-vm" else "READY")
elif verb == "delete" and not (vm.exists() or queued.exists()):
    sys.exit("ERROR: NOT_FOUND: no such resource")
elif verb == "delete":
    vm.unlink(missing_ok=True)
    queued.unlink(missing_ok=True)
elif verb == "start":
    put(vm, "READY")
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
{put}
if sys.argv[1] == "-c":
    sys.exit(not (cloud / "complete").exists())
said = "training", os.environ["WORKER"], *sys.argv[3:]
if os.environ["WORKER"] != "worker_0":
    print(*said, flush=True)
    while not (cloud / "complete").exists() and (cloud / "vm").exists():
        time.sleep(0.05)
    sys.exit()
plan = json.loads((cloud / "training.json").read_text())
act = plan.pop(0) if plan else "complete"
(cloud / "training.json").write_text(json.dumps(plan))
if act == "run":
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit()))
print(*said, flush=True)  # from here on it may be killed
if act == "complete":
    print("step 20", flush=True)
    (cloud / "complete").touch()
elif act == "fail":
    sys.exit("Error: wanted a dataset, got none")
elif act == "preempt":
    put(cloud / "queued", "SUSPENDED")
    put(cloud / "vm", "PREEMPTED")
    while not (cloud / "complete").exists():  # as good as gone
        time.sleep(0.05)
elif act == "run":
    while True:
        time.sleep(0.05)
"""


class Cloud:
    """The folder of a stand-in for gcloud, and starts of the launcher in it."""

    install_seconds = 100

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        names = {"python": sys.executable, "cloud": str(folder), "put": PUT}
        for place, text in (
            (folder / "gcloud", GCLOUD),
            (folder / "bin/python3", PYTHON3),  # the workers' alone
            (folder / "bin/trainer", TRAINER),
        ):
            place.write_text(text.format(**names))
            place.chmod(place.stat().st_mode | stat.S_IXUSR)
        self.plan({}, [])

    def plan(self, errors, training):
        (self.folder / "plan.json").write_text(json.dumps(errors))
        (self.folder / "training.json").write_text(json.dumps(training))

    def start(self, *options, flags=FLAGS):
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
