"""The files of launch/: Kubernetes and Slurm train until a run is complete."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from absl import flags

from metaclip_jax import config as keys
from metaclip_jax import train
from tests import waiting

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
MANIFESTS = sorted(LAUNCH.glob("*.yaml"))

# Plays python: training as "acts" lists it, and the question whether it is complete.
PYTHON = """\
#!{python}
import json, pathlib, signal, sys, time
folder = pathlib.Path({folder!r})
with (folder / "asked").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "-c":
    assert "files.MANIFEST" in sys.argv[2]
    sys.exit(0 if (folder / "complete").exists() else "not complete")
acts = json.loads((folder / "acts").read_text())
(folder / "acts").write_text(json.dumps(acts[1:]))
if acts[0] == "complete":
    (folder / "complete").touch()
elif acts[0] == "fail":
    sys.exit(3)
elif acts[0] == "run":
    def save(*_):
        (folder / "saved").touch()
        sys.exit()
    signal.signal(signal.SIGTERM, save)
    (folder / "running").touch()
    while True:
        time.sleep(0.05)
"""
SRUN = """\
#!/bin/bash
echo "$@" >> {folder}/srun
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """\
#!/bin/bash
echo "$@" >> {folder}/scontrol
"""


@pytest.fixture
def place(tmp_path):
    """A folder with the stand-ins, and a function that starts a script there."""
    (tmp_path / "bin").mkdir()
    for name, text in (("python", PYTHON), ("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.write_text(text.format(python=sys.executable, folder=str(tmp_path)))
        path.chmod(0o755)

    def start(script, *acts, **environment):
        (tmp_path / "acts").write_text(json.dumps(acts))
        flags = ["--config=configs/siglip.py", "--workdir=gs://b/a folder"]
        return subprocess.Popen(
            [LAUNCH / script, *flags],
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
                "SLURM_JOB_ID": "7",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(script, *acts, **environment):
        process = start(script, *acts, **environment)
        output, _ = process.communicate(timeout=waiting.SECONDS)
        return process.returncode, output

    return tmp_path, start, run


def test_a_complete_run_succeeds(place):
    folder, _, run = place
    status, output = run("train.sh", "complete")
    assert status == 0, output
    trained, asked = map(json.loads, (folder / "asked").read_text().splitlines())
    assert trained == ["-m", "metaclip_jax.train", "--coordinator=auto"] + [
        *("--config=configs/siglip.py", "--workdir=gs://b/a folder")
    ]
    assert asked[-1] == "gs://b/a folder"


def test_a_run_that_fails_fails(place):
    _, _, run = place
    assert run("train.sh", "fail")[0] == 3


def test_a_run_that_is_stopped_saves_and_is_no_success(place):
    folder, start, _ = place
    process = start("train.sh", "run")
    waiting.until((folder / "running").exists, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=waiting.SECONDS)
    assert process.returncode == 1 and "not complete" in output
    assert (folder / "saved").exists()


def test_slurm_ends_with_the_run(place):
    folder, _, run = place
    status, output = run("slurm.sh", "complete")
    assert status == 0 and output == "The run is complete.\n"
    assert not (folder / "scontrol").exists()
    assert "--gpu-bind=none" in (folder / "srun").read_text()


def test_slurm_requeues_a_run_that_ends_before_it_is_complete(place):
    folder, _, run = place
    status, output = run("slurm.sh", "fail", LAUNCH_LEAST_SECONDS="0")
    assert status == 0, output
    assert (folder / "scontrol").read_text() == "requeue 7\n"


def test_slurm_does_not_requeue_what_fails_at_once(place):
    folder, _, run = place
    status, output = run("slurm.sh", "fail")
    assert status == 1 and "Training failed within 600 seconds" in output
    assert not (folder / "scontrol").exists()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
def test_shellcheck_finds_nothing():
    subprocess.run(["shellcheck", *LAUNCH.glob("*.sh")], check=True)


def job_sets(path):
    return [one for one in yaml.safe_load_all(path.read_text()) if is_job_set(one)]


def is_job_set(document):
    return document["kind"] == "JobSet"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_job_set_has_a_process_for_each_host(path):
    (job_set,) = job_sets(path)
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["completionMode"] == "Indexed"  # the process's index
    assert job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert job_set["spec"]["failurePolicy"]["maxRestarts"] >= 1000
    assert pod["terminationGracePeriodSeconds"] >= 30
    (container,) = pod["containers"]
    assert os.access(ROOT / container["command"][0], os.X_OK)
    topology = pod["nodeSelector"].get("cloud.google.com/gke-tpu-topology")
    if topology:
        chips = container["resources"]["limits"]["google.com/tpu"]
        assert math.prod(map(int, topology.split("x"))) == chips * job["parallelism"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_training_knows_the_flags_of_a_job_set(path, monkeypatch):
    (job_set,) = job_sets(path)
    (job,) = job_set["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        sys, "argv", ["train", "--coordinator=auto", *container["args"]]
    )
    values = flags.FlagValues()
    train.define_flags(values)
    values(sys.argv)
    keys.check(values.config)
    assert values.workdir.startswith("gs://BUCKET/")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_knows_the_fields(path):
    """By its own schemas: of a JobSet, those of the jobs in it."""
    validate = pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all(path.read_text()):
        if is_job_set(document):
            (job,) = document["spec"]["replicatedJobs"]
            document = {"apiVersion": "batch/v1", "kind": "Job", **job["template"]}
        validate.validate(document, validate.latest_version(), strict=True)
