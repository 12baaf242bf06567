"""Settings and fixtures of all tests.

Tests that start jax get eight virtual CPU devices; jax is not imported here. The quick
start runs once, on a small web, for all tests of its results. Cloud Storage is a server
on loopback.
"""

import fcntl
import gc
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import hypothesis
import pytest

from tests import storage, waiting

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


def pytest_configure():
    """A job in the background of a shell ignores SIGINT, and so would what it starts.

    Not at import: workers of Beam import this module in a thread.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val, argname):
    """Names cases of bytes by number: gzip writes the time into its own."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    """Puts tests of commands before those of their parts, and long files first.

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
    """Returns a function that runs a small quick start, and returns what it printed."""

    def run(workdir, *extra):
        command = [sys.executable, "-m", "examples.quickstart.run"]
        small = [f"--workdir={workdir}", "--pictures=400", "--steps=6"]
        done = subprocess.run(
            [*command, *small, *extra],
            cwd=ROOT,
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

    All processes of a test run share it; the first that needs it runs it.
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


@pytest.fixture
def site_address(finished, tmp_path):
    """HOST:PORT of a server of the finished quick start's web."""
    port = tmp_path / "port"
    serve = [f"--site={finished[0]}/site", f"--port_file={port}"]
    server = subprocess.Popen(
        [sys.executable, "-m", "examples.quickstart.serve", *serve], cwd=ROOT
    )
    try:
        waiting.until(port.exists, server)
        yield f"127.0.0.1:{port.read_text().strip()}"
    finally:
        server.kill()
        server.wait()


def server_program(name):
    """Returns the path of a server that tests start; skips if it is not installed."""
    path = storage.program(name)
    if path is None:
        pytest.skip(f"no {name} on PATH or in the folder $METACLIP_TEST_SERVERS")
    return path


@pytest.fixture(scope="session")
def cloud_storage(tmp_path_factory):
    """Returns a context manager that starts a `storage.CloudStorage` of its own.

    It holds its objects in memory, or as the files of a folder if one is given.
    """

    def serve(folder=None):
        log = tmp_path_factory.mktemp("storage") / "log"
        return storage.serve(server_program("fake-gcs-server"), log, folder)

    return serve
