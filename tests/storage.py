"""Cloud Storage on loopback: a server, and a proxy that fails or delays requests.

A fault comes before a request is applied. Which requests fail is decided by a hash of
the seed, the request and how often it was made, not by the order in which they arrive.
"""

import asyncio
import collections
import contextlib
import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web
from yarl import URL

from tests import waiting

FAULTS = ("503", "429", "reset", "cut", "stall")
_IN_A_ROW = 4  # faults of one request; gcsfs gives up after six
# Headers that belong to one connection, or that the proxy makes itself.
_NOT_FORWARDED = {"host", "connection", "transfer-encoding", "keep-alive", "expect"}
# What differs between two runs of the same program.
_RANDOM = re.compile(r"upload_id=[^&]*|[0-9a-f]{12,}|\d{9,}")

_UPLOAD = """
import pathlib, sys
from metaclip_jax import files
for given in map(pathlib.Path, sys.argv[1:]):
    for path in [given, *given.rglob("*")]:
        if path.is_file():
            target = f"gs://bucket1/{path.relative_to(given.parent)}"
            files.write_bytes(target, path.read_bytes())
"""


def program(name: str) -> str | None:
    """Returns the path of a server that tests start, None if it is not installed."""
    folder = os.environ.get("METACLIP_TEST_SERVERS", "")
    return shutil.which(name) or shutil.which(name, path=folder)


class CloudStorage(NamedTuple):
    """A running fake-gcs-server with one bucket, gs://bucket1."""

    url: str
    environment: dict[str, str]  # in which gs:// is this server
    log: Path  # a line a request

    def requests(self) -> list[str]:
        """Returns what the server logged."""
        return self.log.read_text().splitlines()

    def upload(self, *given: Path) -> None:
        """Copies files, and folders with all that is in them, into the bucket."""
        command = [sys.executable, "-c", _UPLOAD, *map(str, given)]
        path = {"PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run(command, env=self.environment | path, check=True)


def environment(url: str) -> dict[str, str]:
    """Returns the environment in which gs:// is the server at `url`."""
    return {
        **os.environ,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # array_record looks here
        "STORAGE_EMULATOR_HOST": url,  # gcsfs, and so files.path, looks here
        "TENSORSTORE_GCS_HTTP_URL": url,  # Orbax's arrays
    }


@contextlib.contextmanager
def serve(server: str, log: Path, folder: Path | None = None) -> Iterator[CloudStorage]:
    """Starts a `CloudStorage`.

    Args:
      server: path of fake-gcs-server.
      log: its log.
      folder: where objects are files; None = in memory.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    command = [server, "-backend=memory"]
    if folder is not None:
        command[1:] = ["-backend=filesystem", f"-filesystem-root={folder}"]
    command += ["-scheme=http", "-host=127.0.0.1", f"-port={port}"]
    command += [f"-public-host={address}", "-log-level=info"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        waiting.until(lambda: "server started" in log.read_text(), process)
        url = f"http://{address}"
        bucket = urllib.request.Request(
            f"{url}/storage/v1/b?project=test",
            data=b'{"name": "bucket1"}',
            headers={"Content-Type": "application/json"},
        )
        if folder is None or not (folder / "bucket1").exists():
            urllib.request.urlopen(bucket).close()
        yield CloudStorage(url, environment(url), log)
    finally:
        process.kill()
        process.wait()


class Proxy:
    """A proxy before the server, which counts requests and makes some of them fail.

    Attributes:
      url: its address.
      environment: in which gs:// is the server behind it.
      asked: (method, path with query, fault or "") of each request.
      most_at_once: requests that were in flight together, at most.
    """

    def __init__(
        self,
        target: str,
        *,
        share: float,
        seed: int,
        kinds: Sequence[str],
        delay_seconds: float,
        stall_seconds: float,
    ) -> None:
        self.url = ""
        self.environment: dict[str, str] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.most_at_once = 0
        self._target, self._share, self._seed = target, share, seed
        self._kinds, self._delay, self._stall = kinds, delay_seconds, stall_seconds
        self._times: collections.Counter[str] = collections.Counter()
        self._in_a_row: collections.Counter[str] = collections.Counter()
        self._at_once = 0

    def faults(self) -> collections.Counter[str]:
        """Returns how many requests failed, by kind."""
        return collections.Counter(fault for _, _, fault in self.asked if fault)

    def _fault(self, request: web.BaseRequest) -> str:
        name = _RANDOM.sub("N", f"{request.method} {request.raw_path}")
        name += request.headers.get("Range", "")
        self._times[name] += 1
        key = f"{self._seed} {self._times[name]} {name}".encode()
        bits = int.from_bytes(hashlib.sha256(key).digest()[:8])
        draw, kind = bits / 2**64, bits % len(self._kinds)
        if draw >= self._share or self._in_a_row[name] == _IN_A_ROW:
            self._in_a_row[name] = 0
            return ""
        self._in_a_row[name] += 1
        return self._kinds[kind]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        fault = self._fault(request)
        self.asked.append((request.method, request.raw_path, fault))
        try:
            return await self._pass_on(request, fault)
        except ConnectionError:  # the client has what it wanted
            return web.Response()
        finally:
            self._at_once -= 1

    async def _pass_on(self, request: web.Request, fault: str) -> web.StreamResponse:
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        body = await request.content.read()
        await asyncio.sleep(self._delay + self._stall * (fault == "stall"))
        if fault in ("503", "429"):
            return web.json_response(
                {"error": {"code": int(fault), "message": "a fault of the proxy"}},
                status=int(fault),
            )
        async with self._session.request(
            request.method,
            URL(self._target + request.raw_path, encoded=True),
            headers=_forwarded(request.headers),
            data=io.BytesIO(body) if body else None,  # bytes > 1 MiB are warned of
            allow_redirects=False,
        ) as got:
            headers = _forwarded(got.headers)
            if "Location" in headers:
                location = headers["Location"]
                headers["Location"] = location.replace(self._target, self.url)
            response = web.StreamResponse(status=got.status, headers=headers)
            await response.prepare(request)
            if fault == "cut" and request.method == "GET":
                data = await got.read()
                await response.write(data[: len(data) // 2])
                assert request.transport is not None
                request.transport.close()  # after what was written
                return response
            async for piece in got.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.environment = environment(self.url)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            skip_auto_headers={"Content-Type", "User-Agent", "Accept-Encoding"},
        ) as self._session:
            started.set()
            await self._stop.wait()
            await runner.cleanup()


def _forwarded(headers: Any) -> dict[str, str]:
    return {k: v for k, v in headers.items() if k.lower() not in _NOT_FORWARDED}


@contextlib.contextmanager
def proxy(
    target: str,
    *,
    share: float = 0.0,
    seed: int = 0,
    kinds: Sequence[str] = FAULTS,
    delay_seconds: float = 0.0,
    stall_seconds: float = 2.0,
) -> Iterator[Proxy]:
    """Starts a proxy in a thread.

    Args:
      target: address of the server behind it.
      share: of the requests that fail.
      seed: of which requests fail, and how. The same request fails at most four
        times in a row.
      kinds: of the faults, among FAULTS. A "cut" is of answers to GET only.
      delay_seconds: that each request takes longer.
      stall_seconds: that a "stall" takes longer.
    """
    made = Proxy(
        target,
        share=share,
        seed=seed,
        kinds=kinds,
        delay_seconds=delay_seconds,
        stall_seconds=stall_seconds,
    )
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(made._serve(started)))
    thread.start()
    try:
        assert started.wait(waiting.SECONDS)
        yield made
    finally:
        made._loop.call_soon_threadsafe(made._stop.set)
        thread.join()
