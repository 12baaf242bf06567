"""Reading a bucket in blocks: the loader against itself on a local disk.

    python -m benchmarks.bucket                  # two minutes; needs fake-gcs-server

The dataset is in an emulated bucket behind a proxy that adds 30 ms to each request, and
then also fails 5% of them. The loader has one core, on which it makes about as many
images a second as a TPU host needs; the bucket and the proxy have the others. Rounds of
the local disk and of the bucket alternate, and all count. Sizes are chosen so that a
block holds as many records of a batch as it does for one host of a pod.
fake-gcs-server is looked for on PATH and in the folder $METACLIP_TEST_SERVERS.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from benchmarks import photographs
from metaclip_jax import config
from metaclip_jax.cli import command
from metaclip_jax.data import order, pipeline, tokenizer
from metaclip_jax.data.options import DataOptions
from tests import storage

_DELAY_SECONDS, _FAILED_SHARE = 0.03, 0.05
_BATCH, _STEPS = 1_024, 4
_BUCKET = "gs://bucket1/dataset"


def read(folder: str, tokenizer_path: str) -> float:
    """Returns the seconds that all batches but the first take."""
    stream = pipeline.batches(
        DataOptions(
            folders=(folder,),
            global_batch=_BATCH,
            image_size=224,
            context_length=77,
            total_steps=_STEPS,
            blocks=order.Blocks(config.default().data.block_records, 1),
            read_threads=2,
        ),
        tokenizer.load(tokenizer_path, family="clip"),
    )
    next(stream)
    start = time.monotonic()
    for _ in range(_STEPS - 1):
        next(stream)
    taken = time.monotonic() - start
    stream.close()
    return taken


def time_rounds(folder: str, *, rounds: int, core: int) -> None:
    """Prints a JSON list: images per second of the local folder, and of the bucket."""
    os.sched_setaffinity(0, {core})
    logging.set_verbosity(logging.ERROR)
    path = f"{folder}/tokenizer.json"
    places = (f"{folder}/dataset", _BUCKET)
    found = [[read(place, path) for place in places] for _ in range(rounds)]
    images = rounds * (_STEPS - 1) * _BATCH
    print(json.dumps([images / sum(column) for column in zip(*found, strict=True)]))


def measure(
    folder: str, server: storage.CloudStorage, *, core: int, share: float
) -> tuple[float, float, float]:
    """Returns images per second (local, bucket), and examples per request."""
    rounds = flags.FLAGS.rounds
    with storage.proxy(server.url, share=share, delay_seconds=_DELAY_SECONDS) as proxy:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.bucket", f"--folder={folder}"]
            + [f"--rounds={rounds}", f"--core={core}"],
            env=proxy.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    here, there = json.loads(done.stdout.splitlines()[-1])
    reads = [path for _, path, _ in proxy.asked if ".array_record-" in path]
    return here, there, rounds * _STEPS * _BATCH / len(reads)


def main(argv: Sequence[str]) -> None:
    """Prints the ratios."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    if values.folder:
        time_rounds(values.folder, rounds=values.rounds, core=values.core)
        return
    program = storage.program("fake-gcs-server")
    if program is None:
        print("bucket: not measured: no fake-gcs-server, whose folder may be named in")
        print("$METACLIP_TEST_SERVERS")
        return
    core, *others = sorted(os.sched_getaffinity(0))
    # Of this process, so of the proxy, and of the server.
    os.sched_setaffinity(0, others or [core])
    with tempfile.TemporaryDirectory() as folder:
        photographs.write_dataset(f"{folder}/dataset", count=_BATCH * _STEPS, seed=0)
        photographs.write_tokenizer(folder)
        with storage.serve(program, Path(folder) / "log") as server:
            server.upload(Path(folder) / "dataset")
            made = {
                share: measure(folder, server, core=core, share=share)
                for share in (0.0, _FAILED_SHARE)
            }
    for share, (here, there, examples) in made.items():
        print(
            f"bucket: {there / here:.2f}x the images/s of the local disk while "
            f"{share:.0%} of the requests fail: {there:,.0f} against {here:,.0f} of one"
            f" core, {examples:,.0f} examples a request"
        )


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 3, "Timed rounds of each.", lower_bound=1)
    flags.DEFINE_integer("core", 0, "With --folder.", lower_bound=0)
    flags.DEFINE_string("folder", "", "Only times reading what is there.")
    command.run(main)
