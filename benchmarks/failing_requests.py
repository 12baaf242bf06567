"""What failing requests cost: a small curation and training in a bucket.

    python -m benchmarks.failing_requests        # a few minutes; needs fake-gcs-server

The commands use an emulated bucket through a proxy that fails none or 5% of the
requests: status 503 or 429, a reset, half an answer, or 2 seconds of silence. Rounds of
both alternate, with other failing requests in each. In so small a run nearly all time
that is not waiting is the start of programs; of a long one, failures cost less.
The tests compare the bytes and losses, which are those of the local disk.
fake-gcs-server is looked for on PATH and in the folder $METACLIP_TEST_SERVERS.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks import photographs
from metaclip_jax.cli import command
from tests import storage
from tests.data_prep import tiny_web

_ROOT = Path(__file__).resolve().parents[1]
_FAILED_SHARE = 0.05
_IMAGES, _RECORDS, _STEPS = 12, 96, 12


def commands(folder: Path, host_map: str) -> dict[str, list[str]]:
    """Returns the commands by name; what training reads is in the bucket."""
    alts = [(f"/{n}.jpg", f"a cat and dog number {n}") for n in range(_IMAGES)]
    curation = tiny_web.write(folder / "web", alts) | {
        "config.download.host_map": host_map,
        "config.partitions": "2",
        "workdir": "gs://bucket1/work",
        "output": "gs://bucket1/curated",
    }
    training = {
        "config": str(_ROOT / "configs/quickstart.py"),
        "config.dataset": "gs://bucket1/dataset",
        "config.tokenizer": "gs://bucket1/tokenizer.json",
        "config.total_steps": _STEPS,
        "config.checkpoint_every_steps": _STEPS // 3,
        "config.optimizer.warmup_steps": 2,
        "config.global_batch": 16,
        "workdir": "gs://bucket1/run",
    }
    given = {"data_prep.curate": curation, "metaclip_jax.train": training}
    return {
        name: [sys.executable, "-m", name, *(f"--{k}={v}" for k, v in values.items())]
        for name, values in given.items()
    }


def seconds(
    folder: Path, line: Sequence[str], *, share: float, seed: int
) -> tuple[float, int, int]:
    """Returns the seconds of a command in a new bucket, its requests and failures."""
    program = storage.program("fake-gcs-server")
    assert program is not None
    with (
        storage.serve(program, folder / "log") as server,
        storage.proxy(server.url, share=share, seed=seed) as proxy,
    ):
        server.upload(folder / "dataset", folder / "tokenizer.json")
        begin = time.monotonic()
        subprocess.run(
            line, env=proxy.environment, cwd=_ROOT, capture_output=True, check=True
        )
        taken = time.monotonic() - begin
    return taken, len(proxy.asked), proxy.faults().total()


def main(argv: Sequence[str]) -> None:
    """Prints the ratios."""
    command.refuse_arguments(argv)
    if storage.program("fake-gcs-server") is None:
        print("failing_requests: not measured: no fake-gcs-server, whose folder may be")
        print("named in $METACLIP_TEST_SERVERS")
        return
    images = {f"/{n}.jpg": tiny_web.picture(n) for n in range(_IMAGES)}
    with tempfile.TemporaryDirectory() as name, tiny_web.serve(images) as host_map:
        folder = Path(name)
        photographs.write_dataset(f"{folder}/dataset", count=_RECORDS, seed=0)
        photographs.write_tokenizer(name)
        for module, line in commands(folder, host_map).items():
            well, ill, asked, failed = 0.0, 0.0, 0, 0
            for seed in range(flags.FLAGS.rounds):
                well += seconds(folder, line, share=0.0, seed=seed)[0]
                taken, requests, faults = seconds(
                    folder, line, share=_FAILED_SHARE, seed=seed
                )
                ill, asked, failed = ill + taken, asked + requests, failed + faults
            print(
                f"failing_requests: {ill / well:.2f}x the time of {module} while "
                f"{_FAILED_SHARE:.0%} of the requests fail: "
                f"{ill / flags.FLAGS.rounds:.1f} s "
                f"against {well / flags.FLAGS.rounds:.1f} s, "
                f"{failed} of {asked} requests failed"
            )


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 5, "Timed rounds of each.", lower_bound=1)
    command.run(main)
