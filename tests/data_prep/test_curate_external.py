"""Prism with workers of another environment and no shared disk, as a cluster has."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests import waiting
from tests.conftest import server_program
from tests.data_prep import tiny_web

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ALTS = [(f"/{n}.jpg", f"a red cat and dog number {n}") for n in range(30)]
BODIES = {path: tiny_web.picture(n % 25) for n, (path, _) in enumerate(ALTS)}


@pytest.fixture
def other_python(tmp_path):
    """The Python of an environment that has our packages from a wheel only.

    Other packages are those of this environment; ours cannot come from there, since an
    editable install works by hooks that only its own environment runs.
    """
    source = tmp_path / "source"
    for package in ("metaclip_jax", "data_prep"):
        shutil.copytree(ROOT / package, source / package)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", tmp_path]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    shutil.rmtree(source)
    (wheel,) = tmp_path.glob("*.whl")
    folder = tmp_path / "environment"
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "bin/python"


def test_workers_that_have_only_our_wheel_and_a_bucket_write_the_same_bytes(
    tmp_path, other_python, cloud_storage
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outside = tmp_path / "outside"
    outside.mkdir()
    # The pool starts workers as `python`, of the first folder on the path.
    path = f"{other_python.parent}:{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    asked = [other_python, "-c", "import data_prep; print(data_prep.__file__)"]
    place = subprocess.check_output(asked, cwd=outside, env=environment, text=True)
    assert Path(place).is_relative_to(other_python.parents[1])
    module = "apache_beam.runners.worker.worker_pool_main"
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
    flags = tiny_web.write(tmp_path / "web", ALTS, warcs=3) | {"config.partitions": 2}
    with (
        cloud_storage(tmp_path / "buckets") as storage,
        tiny_web.serve(BODIES) as flags["config.download.host_map"],
        log.open("w") as file,
    ):
        storage.upload(tmp_path / "web")
        there = flags | {"config.source.paths": "gs://bucket1/web/pages-*.warc.gz"}
        pool = subprocess.Popen(
            [other_python, "-m", module, f"--service_port={port}"],
            cwd=outside,
            env={k: v for k, v in storage.environment.items() if k != "PYTHONPATH"}
            | {"PATH": path},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
        try:
            waiting.until(is_open, pool)
            curated(flags, tmp_path, os.environ)
            curated(there, "gs://bucket1", storage.environment, "--", *engine)
        finally:
            pool.terminate()
            pool.wait()
    here, in_bucket = map(content, (tmp_path, tmp_path / "buckets/bucket1"))
    assert here == in_bucket
    assert log.read_text().count("Starting worker with command") >= 4  # pipelines


def curated(flags, folder, environment, *more):
    values = flags | {"workdir": f"{folder}/work", "output": f"{folder}/dataset"}
    named = [f"--{name}={value}" for name, value in values.items()]
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.curate", *named, *more],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def content(folder):
    return {path.name: path.read_bytes() for path in (folder / "dataset").iterdir()}
