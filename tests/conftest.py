"""Eight virtual CPU devices for whatever test starts jax; jax is not imported here.

The quick start on a small web, run once for all tests that look at its results; and
Cloud Storage on loopback.
"""

import contextlib
import fcntl
import gc
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest

from tests import waiting

ROOT = Path(__file__).resolve().parents[1]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Tests compile much and compute little: this takes a third of the time to compile.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):  # later ones refuse the flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    # The other core has its own tests: a program in one piece takes a tenth less.
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"

# On a busy machine an example takes as long as it takes.
hypothesis.settings.register_profile(
    "untimed",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")


def pytest_make_parametrize_id(val, argname):
    """Names cases of bytes by number: gzip writes the time into its own."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    """Commands before their parts, and long files before short ones.

    So no long file is left at the end, when one process works and the other waits.
    """
    sizes = {path: path.stat().st_size for path in {item.path for item in items}}

    def place(item):
        return len(item.path.relative_to(ROOT).parts), -sizes[item.path], item.path

    items.sort(key=place)


def pytest_collection_finish():
    """Spares the garbage collector the libraries: tracing takes a tenth less time."""
    gc.freeze()


@pytest.fixture(scope="session")
def quickstart():
    """Runs it, with fewer pictures and steps, in a folder; returns what it prints."""

    # Here most time goes into steps.
    optimised = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    def run(workdir, *extra):
        command = [sys.executable, "-m", "examples.quickstart.run"]
        small = [f"--workdir={workdir}", "--pictures=400", "--steps=6"]
        done = subprocess.run(
            [*command, *small, *extra],
            cwd=ROOT,
            env=optimised,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=waiting.SECONDS,
        )
        assert done.returncode == 0, done.stdout[-12_000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def finished(quickstart, tmp_path_factory):
    """A finished quick start: its folder, and what it printed.

    The processes of one test run share it: the first that asks makes it.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    printed = folder / "quickstart.txt"
    with (folder / "quickstart.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            printed.write_text(quickstart(folder / "quickstart"))
    return folder / "quickstart", printed.read_text()


_UPLOAD = """
import pathlib, sys
from metaclip_jax import files
for given in map(pathlib.Path, sys.argv[1:]):
    for path in [given, *given.rglob("*")]:
        if path.is_file():
            target = f"gs://bucket1/{path.relative_to(given.parent)}"
            files.write_bytes(target, path.read_bytes())
"""


class CloudStorage(NamedTuple):
    """A running fake-gcs-server with one empty bucket, gs://bucket1."""

    url: str
    environment: dict[str, str]  # in which gs:// is this server
    log: Path  # a line a request

    def requests(self) -> list[str]:
        return self.log.read_text().splitlines()

    def upload(self, *given: Path) -> None:
        """Copies files, and folders with all that is in them, into the bucket."""
        command = [sys.executable, "-c", _UPLOAD, *map(str, given)]
        path = {"PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run(command, env=self.environment | path, check=True)


def server_program(name):
    """The path of a server that tests start, or a skip that says where it is sought."""
    folder = os.environ.get("METACLIP_TEST_SERVERS", "")
    found = shutil.which(name) or shutil.which(name, path=folder)
    if found is None:
        pytest.skip(f"no {name} on PATH or in the folder $METACLIP_TEST_SERVERS")
    return found


@pytest.fixture(scope="session")
def cloud_storage(tmp_path_factory):
    """Returns a context manager that starts a `CloudStorage` of its own.

    It holds its objects in memory, or as the files of a folder if one is given.
    """

    @contextlib.contextmanager
    def serve(folder=None):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [server_program("fake-gcs-server"), "-backend=memory"]
        if folder is not None:
            command[1:] = ["-backend=filesystem", f"-filesystem-root={folder}"]
        command += ["-scheme=http", "-host=127.0.0.1", f"-port={address.split(':')[1]}"]
        command += [f"-public-host={address}", "-log-level=info"]
        log = tmp_path_factory.mktemp("storage") / "log"
        with log.open("w") as file:
            server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            waiting.until(lambda: "server started" in log.read_text(), server)
            url = f"http://{address}"
            bucket = urllib.request.Request(
                f"{url}/storage/v1/b?project=test",
                data=b'{"name": "bucket1"}',
                headers={"Content-Type": "application/json"},
            )
            urllib.request.urlopen(bucket).close()
            environment = {
                **os.environ,
                "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # array_record looks here
                "STORAGE_EMULATOR_HOST": url,  # gcsfs, and so files.path, looks here
                "TENSORSTORE_GCS_HTTP_URL": url,  # Orbax's arrays
            }
            yield CloudStorage(url, environment, log)
        finally:
            server.kill()
            server.wait()

    return serve
