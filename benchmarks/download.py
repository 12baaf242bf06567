"""Downloads: curation's command against img2dataset's, from addresses to a dataset.

    python -m benchmarks.download                 # five minutes, once installed
    python -m benchmarks.download --img2dataset=VENV/bin/python

img2dataset gets an environment of its own: one that the flag names, or one that is made
below the folder for temporary files and kept. A process on loopback serves photographs
of 640 x 480 pixels, all different, to both, 64 requests at a time. Each writes its own
format: ours ArrayRecord, img2dataset tars. `scaled` scales them to a longest side of
512 and encodes them with quality 90; `kept` checks them and keeps their bytes.

A cost per image is the difference of a large and a small run of the whole command, so
it has no start. Ours also asks robots.txt, drops equal images, makes fingerprints and
checksums, and reads back what it wrote. Rounds alternate, and the median counts. The
limit is what the kept images cost without anything around: a request, and decoding at
the smallest scale, which reads all bytes and so finds what is damaged.

One worker screens images on all cores, so a second one finds no idle core. What counts
is what the machine does with its cores, and the server needs them too: `scaled` runs
again, in twice as many partitions as there are cores, with one worker beside the server
on one core, with one worker on all cores, and with a worker for each core.
"""

import asyncio
import contextlib
import functools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from absl import flags, logging

from benchmarks import photographs
from benchmarks.processes import Cost, measure
from data_prep.images import download as fetching
from metaclip_jax.cli import command
from metaclip_jax.data import records

_VERSION = "1.47.0"
_IN_FLIGHT = 64
_QUALITY = 60  # of the photographs: 47 kB each
_HOST = "photographs.example"
_KEPT_SIDE, _SCALED_SIDE = 640, 512  # pixels
_IMG2DATASET = """
import json, sys
from img2dataset import download
if __name__ == "__main__":
    download(**json.loads(sys.argv[1]))
"""


class Server(NamedTuple):
    """A process that serves the images on a port of loopback."""

    port: int
    process: int


class PerImage(NamedTuple):
    """What an image costs, without the command's start."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int  # of the whole command


def make_photographs(count: int) -> list[bytes]:
    """Returns that many different JPEGs, from 32 that are shifted."""
    rng = np.random.default_rng(0)
    bases = [simplejpeg.decode_jpeg(photographs.photograph(rng)) for _ in range(32)]
    shifts = rng.integers(0, (photographs.HEIGHT, photographs.WIDTH), (count, 2))
    return [
        simplejpeg.encode_jpeg(
            np.roll(bases[number % len(bases)], shift.tolist(), (0, 1)), _QUALITY
        )
        for number, shift in enumerate(shifts)
    ]


class _Answers(asyncio.Protocol):
    """Answers GET /NUMBER.jpg; anything else is not found."""

    def __init__(self, bodies: Sequence[bytes]) -> None:
        self._bodies, self._asked = bodies, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._asked += data
        while b"\r\n\r\n" in self._asked:
            head, _, self._asked = self._asked.partition(b"\r\n\r\n")
            name = head.split(b" ", 2)[1].removeprefix(b"/").removesuffix(b".jpg")
            body, status = b"", b"404 Not Found"
            if name.isdigit():
                body, status = self._bodies[int(name)], b"200 OK"
            close = b"connection: close" in head.lower()
            self._transport.write(
                b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s"
                % (status, len(body), b"Connection: close\r\n" if close else b"", body)
            )
            if close:
                self._transport.close()


def _serve(bodies: Sequence[bytes], port: Connection) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _Answers(bodies), "127.0.0.1", 0, backlog=1024
        )
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def serving(bodies: Sequence[bytes]) -> Iterator[Server]:
    """Serves the bodies from another process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(bodies, sender), daemon=True)
    process.start()
    try:
        assert process.pid is not None
        yield Server(receiver.recv(), process.pid)
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def on_cores(server: Server, cores: set[int]) -> Iterator[None]:
    """Holds the server, and the commands that are started meanwhile, to some cores."""
    processes = {0: os.sched_getaffinity(0)}
    processes[server.process] = os.sched_getaffinity(server.process)
    try:
        for process in processes:
            os.sched_setaffinity(process, cores)
        yield
    finally:
        for process, before in processes.items():
            os.sched_setaffinity(process, before)


def write_table(path: Path, host: str, count: int) -> None:
    """Writes `count` addresses and texts."""
    columns = {
        "url": [f"http://{host}/{number}.jpg" for number in range(count)],
        "text": [f"photograph {number}" for number in range(count)],
    }
    pq.write_table(pa.table(columns), path)


def ours(
    port: int, count: int, *, keep: bool, workers: int = 1, partitions: int = 1
) -> Cost:
    """Measures our command; raises if it did not write `count` records."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder / "table.parquet", _HOST, count)
        cost = measure(
            [
                *(sys.executable, "-m", "data_prep.curate"),
                "--config=configs/curate.py:tables",
                "--config.matching.mode=none",
                f"--config.source.paths={folder}/table.parquet",
                f"--config.download.host_map={_HOST}=127.0.0.1:{port}",
                f"--config.download.concurrency={_IN_FLIGHT}",
                f"--config.download.per_host={_IN_FLIGHT}",
                f"--config.images.max_side={_KEPT_SIDE if keep else _SCALED_SIDE}",
                f"--config.partitions={partitions}",
                f"--workers={workers}",
                f"--workdir={folder}/work",
                f"--output={folder}/dataset",
            ]
        )
        card = json.loads((folder / "dataset" / records.DATA_CARD).read_text())
        _check(card["records"], count)
        return cost


def img2dataset(
    python: str, port: int, count: int, *, keep: bool, processes: int
) -> Cost:
    """Measures img2dataset; raises if it did not write `count` images.

    Args:
      python: the interpreter of its environment.
      port: of the server.
      count: images to download.
      keep: whether the images keep their bytes.
      processes: how many it starts; they share the requests in flight.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder / "table.parquet", f"127.0.0.1:{port}", count)
        (folder / "download.py").write_text(_IMG2DATASET)
        options = {
            "url_list": f"{folder}/table.parquet",
            "input_format": "parquet",
            "url_col": "url",
            "caption_col": "text",
            "output_format": "webdataset",
            "output_folder": f"{folder}/tars",
            "processes_count": processes,
            "thread_count": _IN_FLIGHT // processes,
            "number_sample_per_shard": -(-count // (2 * processes)),
            "image_size": _KEPT_SIDE if keep else _SCALED_SIDE,
            "resize_mode": "keep_ratio_largest",
            "resize_only_if_bigger": True,
            "encode_quality": 90,
            "skip_reencode": keep,
        }
        cost = measure([python, str(folder / "download.py"), json.dumps(options)])
        stats = sorted((folder / "tars").glob("*_stats.json"))
        _check(sum(json.loads(x.read_text())["successes"] for x in stats), count)
        return cost


def _check(written: int, wanted: int) -> None:
    if written != wanted:
        raise RuntimeError(
            f"wanted {wanted} images, got {written}; the server was too slow"
        )


def environment() -> str:
    """Returns the Python of an environment with img2dataset, which is made once."""
    folder = Path(tempfile.gettempdir(), f"img2dataset-{_VERSION}")
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        logging.info("installing img2dataset %s in %s", _VERSION, folder)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "-q", f"img2dataset=={_VERSION}"]
        subprocess.run(install, check=True)
        (folder / "installed").touch()
    return str(python)


def per_image(costs: dict[int, list[Cost]]) -> PerImage:
    """Returns what an image of the larger run costs beyond those of the smaller."""
    small, large = sorted(costs)

    def difference(field: str) -> float:
        high, low = (
            statistics.median(getattr(cost, field) for cost in costs[count])
            for count in (large, small)
        )
        return (high - low) / (large - small)

    peak = max(cost.peak_bytes for cost in costs[large])
    return PerImage(difference("seconds"), difference("cpu_seconds"), peak)


def main(argv: list[str]) -> None:
    """Measures and prints."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    python = values.img2dataset or environment()
    cores = len(os.sched_getaffinity(0))
    small, large = counts = (values.images // 10, values.images * 11 // 10)
    bodies = make_photographs(large)
    size = sum(map(len, bodies)) / len(bodies) / 1e3
    print(f"{values.images:,} JPEGs of {size:.0f} kB, 640 x 480 pixels, {cores} cores")
    with serving(bodies) as server:
        port = server.port
        for name, keep in (("scaled", False), ("kept", True)):
            rivals = {
                f"img2dataset, {n} process{'es' * (n > 1)}": functools.partial(
                    img2dataset, python, port, keep=keep, processes=n
                )
                for n in sorted({1, cores})
            }
            sides: dict[str, Callable[[int], Cost]] = {
                "ours": functools.partial(ours, port, keep=keep)
            }
            sides |= rivals
            _print(name, compared(sides, counts, values.rounds))
        print(f"kept: the limit: {limit(port, bodies) * 1e3:.2f} ms of CPU each")
        compare_cores(server, counts, values.rounds)


def compared(
    sides: Mapping[str, Callable[[int], Cost]], counts: Sequence[int], rounds: int
) -> dict[str, PerImage]:
    """Runs all sides with a small and a large number of images, in each round."""
    costs: dict[str, dict[int, list[Cost]]] = {
        side: {count: [] for count in counts} for side in sides
    }
    for _ in range(rounds):
        for side, run in sides.items():
            for count in counts:
                costs[side][count].append(run(count))
    return {side: per_image(of_side) for side, of_side in costs.items()}


def compare_cores(server: Server, counts: Sequence[int], rounds: int) -> None:
    """Prints what one core does, and all of them, with one worker or one for each."""
    cores = os.sched_getaffinity(0)
    run = functools.partial(
        ours, server.port, keep=False, partitions=2 * len(cores), workers=1
    )

    def on_one_core(count: int) -> Cost:
        with on_cores(server, {max(cores)}):
            return run(count)

    one, alone = "1 worker on 1 core", f"1 worker on {len(cores)} cores"
    several = f"{len(cores)} workers on {len(cores)} cores"
    sides = {one: on_one_core, alone: run}
    if len(cores) > 1:
        sides[several] = functools.partial(run, workers=len(cores))
    costs = compared(sides, counts, rounds)
    print("The server has no core of its own; a worker screens on all it may use.")
    for side, cost in costs.items():
        print(f"scaled: {side}: {_shown(cost)}", flush=True)
    if len(cores) > 1:
        for side in (one, alone):
            faster = costs[side].seconds / costs[several].seconds
            print(f"download: {faster:.2f}x the images/s of {side} with {several}")


def limit(port: int, bodies: Sequence[bytes]) -> float:
    """Returns seconds of CPU for a request and a check of one image."""
    urls = [f"http://{_HOST}/{number}.jpg" for number in range(len(bodies))]
    limits = fetching.Limits(
        host_map=f"{_HOST}=127.0.0.1:{port}",
        concurrency=_IN_FLIGHT,
        per_host=_IN_FLIGHT,
        timeout_seconds=60.0,
        max_bytes=1 << 20,
        max_held_bytes=1 << 30,
        retries=0,
        user_agent="benchmark",
    )
    begin = time.process_time()
    for _, status, body, _ in fetching.fetch(urls, limits):
        assert status == fetching.OK
        simplejpeg.decode_jpeg(body, "GRAY", min_width=64, min_height=64)
    return (time.process_time() - begin) / len(urls)


def _shown(cost: PerImage) -> str:
    return (
        f"{1 / cost.seconds:,.0f} images/s, {cost.cpu_seconds * 1e3:.2f} ms of CPU"
        f" each, peak {cost.peak_bytes / 2**20:,.0f} MiB"
    )


def _print(name: str, costs: dict[str, PerImage]) -> None:
    for side, cost in costs.items():
        print(f"{name}: {side}: {_shown(cost)}", flush=True)
    mine = costs.pop("ours")
    for side, cost in costs.items():
        faster = cost.seconds / mine.seconds
        cheaper = mine.cpu_seconds / cost.cpu_seconds
        smaller = mine.peak_bytes / cost.peak_bytes
        print(f"download: {faster:.2f}x the images/s of {side}, {name}")
        print(f"download: {cheaper:.2f}x the CPU of {side}, {name}")
        print(f"download: {smaller:.2f}x the memory of {side}, {name}")


if __name__ == "__main__":
    flags.DEFINE_string("img2dataset", "", "Python with img2dataset; empty: make one.")
    flags.DEFINE_integer("images", 4_000, "Images that count.", lower_bound=100)
    flags.DEFINE_integer("rounds", 1, "Rounds of each.", lower_bound=1)
    command.run(main)
