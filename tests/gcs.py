"""Cloud Storage on loopback: fake-gcs-server, which Go developers have.

Tests find it on PATH, or in the folder that METACLIP_TEST_SERVERS names, and skip
without it: go install github.com/fsouza/fake-gcs-server@v1.56.1
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

BUCKET = "bucket1"


def server(name: str) -> str:
    """Returns the path of a test server; skips the test where there is none."""
    folders = [os.environ.get("METACLIP_TEST_SERVERS"), os.environ.get("PATH")]
    found = shutil.which(name, path=os.pathsep.join(filter(None, folders)))
    if found is None:
        pytest.skip(f"no {name} on PATH or in $METACLIP_TEST_SERVERS")
    return found


@contextlib.contextmanager
def emulator(folder: Path) -> Iterator[dict[str, str]]:
    """Yields an environment in which gs://bucket1 holds the files of folder/bucket1."""
    (folder / BUCKET).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, port = address.split(":")
    command = [server("fake-gcs-server"), "-scheme=http", f"-host={host}"]
    command += [f"-port={port}", f"-public-host={address}", "-log-level=warn"]
    command += ["-backend=filesystem", f"-filesystem-root={folder}"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://{address}"
    try:
        _wait(f"{url}/storage/v1/b/{BUCKET}", running)
        yield {
            **os.environ,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # array_record looks here
            "STORAGE_EMULATOR_HOST": url,  # gcsfs, and so files.path, looks here
            "TENSORSTORE_GCS_HTTP_URL": url,  # Orbax's arrays
        }
    finally:
        running.terminate()
        running.wait()


def _wait(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "fake-gcs-server ended"
        assert time.monotonic() < deadline, f"{url} does not answer"
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.05)
