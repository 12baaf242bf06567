"""Beam's portable runner, the nearest to a cluster that runs on one machine.

It runs all pipelines of the quick start. The later stages read only files whose bytes
are compared here, so they give the same tokenizer, model and report.
"""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests import waiting
from tests.conftest import server_program

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = 6  # of build_metadata one, of curate five


def run(command, environment=None):
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]


def quick_start(finished, address, place, engine, *, source=None, environment=None):
    """Runs the quick start's commands that have pipelines, by the engine, in `place`.

    The others have made their files already; `source` has them.
    """
    folder, printed = finished
    source = source or folder
    host = "sample-web.example"
    own = {
        "build_metadata": {
            "warc": f"{source}/crawl/*.warc.gz",
            "pageviews": f"{source}/site/pageviews.txt",
            "output": f"{place}/metadata",
        },
        "curate": {
            "config.source.paths": f"{source}/crawl/*.warc.gz",
            "config.metadata": f"{place}/metadata",
            "config.download.host_map": f"{host}={address},images.{host}={address}",
            "workdir": f"{place}/curation",
            "output": f"{place}/dataset",
        },
    }
    shown = re.findall(r"^  (\S+ -m data_prep\..*[^\\])$", printed, re.MULTILINE)
    for name, flags in own.items():
        (line,) = [line for line in shown if f" -m data_prep.{name} " in line]
        python, *command = shlex.split(line)
        given = [arg for arg in command if arg[2:].partition("=")[0] not in flags]
        assert len(given) == 3  # -m, the module, --config
        named = [f"--{flag}={value}" for flag, value in flags.items()]
        run([python, *given, *named, "--", *engine], environment)


def made(folder):
    """All bytes that the later stages read of those that the pipelines wrote."""
    places = ("metadata", "dataset", "curation/rejects")
    found = [path for place in places for path in folder.glob(f"{place}/*")]
    assert len(found) > 20
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if p.is_file()}


def test_prism_runs_the_quick_start_to_the_same_bytes(finished, site_address, tmp_path):
    engine = ["--runner=PrismRunner", f"--prism_location={server_program('prism')}"]
    quick_start(finished, site_address, tmp_path, engine)
    assert made(tmp_path) == made(finished[0])


@pytest.fixture
def other_python(tmp_path):
    """The Python of an environment that has only our wheel and what that needs."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        pytest.skip("no uv on PATH or in the environment of the tests")
    source = tmp_path / "source"
    for package in ("metaclip_jax", "data_prep"):
        shutil.copytree(ROOT / package, source / package)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    folder = tmp_path / "environment"
    venv.create(folder)
    # Hard links to what `make` has installed before, which take a second; only where
    # uv's cache is gone, the network.
    install = [uv, "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    install.append(f"{source}[data]")  # builds the wheel
    environment = os.environ | {"VIRTUAL_ENV": str(folder)}
    if subprocess.run([*install, "--offline"], env=environment).returncode:
        run(install, environment)
    shutil.rmtree(source)
    yield folder / "bin/python"
    shutil.rmtree(folder)


def test_workers_that_have_only_our_wheel_and_a_bucket_write_the_same_bytes(
    finished, site_address, tmp_path, other_python, cloud_storage
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outside = tmp_path / "outside"
    outside.mkdir()
    log = tmp_path / "log"

    def is_open():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    engine = [
        "--runner=PrismRunner",
        f"--prism_location={server_program('prism')}",
        "--environment_type=EXTERNAL",
        f"--environment_config=localhost:{port}",
    ]
    folder, _ = finished
    with cloud_storage(tmp_path / "buckets") as storage, log.open("w") as file:
        storage.upload(folder / "crawl")
        (tmp_path / "site").mkdir()
        shutil.copy(folder / "site/pageviews.txt", tmp_path / "site")
        storage.upload(tmp_path / "site")
        # The pool starts workers as `python`, of the first folder on the path.
        alone = storage.environment | {
            "PATH": f"{other_python.parent}:{os.environ['PATH']}"
        }
        alone.pop("PYTHONPATH", None)
        asked = "import data_prep, importlib.util as u; print(data_prep.__file__)"
        place = subprocess.check_output(
            ["python", "-c", f"{asked}; assert u.find_spec('jax') is None"],
            cwd=outside,
            env=alone,
            text=True,
        )
        assert Path(place).is_relative_to(other_python.parents[1])
        module = "apache_beam.runners.worker.worker_pool_main"
        pool = subprocess.Popen(
            [other_python, "-m", module, f"--service_port={port}"],
            cwd=outside,
            env=alone,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
        try:
            waiting.until(is_open, pool)
            bucket = "gs://bucket1"
            quick_start(
                *(finished, site_address, bucket, engine),
                source=bucket,
                environment=storage.environment,
            )
        finally:
            pool.terminate()
            pool.wait()
    assert made(tmp_path / "buckets/bucket1") == made(folder)
    assert log.read_text().count("Starting worker with command") >= PIPELINES
