"""The quick start: from a small web to a trained, evaluated CLIP, command by command.

    python -m examples.quickstart.run --workdir=quickstart_run

It runs the project's own commands one after another and shows each, so that you
can run, change and learn them one by one. A finished command is not run again; a
killed quick start goes on where it was; --fresh starts over.
"""

import contextlib
import dataclasses
import hashlib
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from absl import flags, logging

from metaclip_jax import files, metric_rows
from metaclip_jax.cli import command

_RECORD = "quickstart.json"  # in the workdir: its mark, and what was finished with what
_HOST_MAP = "HOST_MAP"  # stands in a command for where the server listens
_HOSTS = ("sample-web.example", "images.sample-web.example")
_SERVER_START_SECONDS = 30
# Huge pages for large arrays, where glibc is the libc: train steps are faster.
_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command, and the file that exists when it has finished."""

    title: str
    module: str
    arguments: Mapping[str, object]
    result: str
    needs_server: bool = False

    def command(self, host_map: str = "") -> list[str]:
        """The command line, as a user would type it."""
        return [
            "python",
            "-m",
            self.module,
            *(
                f"--{k}={v}".replace(_HOST_MAP, host_map)
                for k, v in self.arguments.items()
            ),
        ]

    def fingerprint(self) -> str:
        """Changes when the command or its recipe does; not with the server's port."""
        text = "\n".join(self.command())
        if "config" in self.arguments:
            recipe, _, _ = str(self.arguments["config"]).partition(":")  # its variant
            text += Path(recipe).read_text()
        return hashlib.sha256(text.encode()).hexdigest()


def main(argv: list[str]) -> None:
    """Runs every stage that is not finished, then says what came out."""
    command.refuse_arguments(argv)
    workdir = Path(flags.FLAGS.workdir)
    prepare(workdir, fresh=flags.FLAGS.fresh)
    with files.lock(workdir), contextlib.ExitStack() as running:
        record = files.read_json(workdir / _RECORD)
        host_map = ""
        for stage in stages(workdir, recipes()):
            if is_finished(stage, record):
                say(f"{stage.title}: finished earlier")
                continue
            if stage.needs_server and not host_map:
                host_map = running.enter_context(server(workdir))
            record[stage.title] = run(stage, host_map)
            files.write_json(workdir / _RECORD, record)
    summarise(workdir, record)


def recipes() -> Path:
    """Returns the folder of recipes, as seen from the current folder."""
    folder = Path(__file__).resolve().parents[2] / "configs"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the recipes are not at {folder}: run the quick start from a clone of the "
            "project (make quickstart), not from an installed wheel"
        )
    return Path(os.path.relpath(folder))


def prepare(workdir: Path, *, fresh: bool) -> None:
    """Makes the workdir, or checks that it is an earlier quick start's.

    Raises ValueError for a folder that holds something else: it is never removed.
    """
    ours = (workdir / _RECORD).exists()
    if workdir.exists() and any(workdir.iterdir()) and not ours:
        raise ValueError(
            f"--workdir={workdir} holds files that no quick start made (there is no "
            f"{_RECORD}): name a new or an empty folder"
        )
    if fresh and ours:
        shutil.rmtree(workdir)
        ours = False
    if not ours:
        files.write_json(workdir / _RECORD, {})


def stages(workdir: Path, configs: Path) -> list[Stage]:
    """The whole story, one command each."""
    pictures = {"pictures": flags.FLAGS.pictures} if flags.FLAGS.pictures else {}
    steps = {"config.total_steps": flags.FLAGS.steps} if flags.FLAGS.steps else {}
    if 0 < flags.FLAGS.steps < 100:  # the recipe warms up for 50
        steps["config.optimizer.warmup_steps"] = flags.FLAGS.steps // 2
    return [
        Stage(
            "Build a small web",
            "examples.quickstart.build",
            {"output": workdir / "site", "held_out": workdir / "held_out", **pictures},
            result=f"{workdir}/held_out/manifest.json",
        ),
        Stage(
            "Crawl it into WARC files",
            "examples.quickstart.crawl",
            {
                "start_url": f"http://{_HOSTS[0]}/",
                "host_map": _HOST_MAP,
                "output": workdir / "crawl",
            },
            result=f"{workdir}/crawl/manifest.json",
            needs_server=True,
        ),
        Stage(
            "Build the metadata",
            "data_prep.build_metadata",
            {
                "config": configs / "metadata.py:quickstart",
                "config.warc": workdir / "crawl" / "*.warc.gz",
                "config.pageviews": workdir / "site" / "pageviews.txt",
                "output": workdir / "metadata",
            },
            result=f"{workdir}/metadata/manifest.json",
        ),
        Stage(
            "Curate: match, balance, download, write",
            "data_prep.curate",
            {
                "config": configs / "curate.py:quickstart",
                "config.source.paths": workdir / "crawl" / "*.warc.gz",
                "config.metadata": workdir / "metadata",
                "config.download.host_map": _HOST_MAP,
                "workdir": workdir / "curation",
                "output": workdir / "dataset",
            },
            result=f"{workdir}/dataset/manifest.json",
            needs_server=True,
        ),
        Stage(
            "Train a tokenizer",
            "metaclip_jax.data.tokenizer",
            {
                "dataset": workdir / "dataset",
                "vocab_size": 2048,
                "output": workdir / "tokenizer.json",
            },
            result=f"{workdir}/tokenizer.json",
        ),
        Stage(
            "Train CLIP",
            "metaclip_jax.train",
            {
                "config": configs / "quickstart.py",
                "config.dataset": workdir / "dataset",
                "config.tokenizer": workdir / "tokenizer.json",
                **steps,
                "workdir": workdir / "run",
            },
            result=f"{workdir}/run/manifest.json",
        ),
        Stage(
            "Evaluate on held-out compositions",
            "metaclip_jax.evaluate",
            {"held_out": workdir / "held_out", "workdir": workdir / "run"},
            result=f"{workdir}/run/evaluation",
        ),
        Stage(
            "Write the report",
            "data_prep.report",
            {
                "dataset": workdir / "dataset",
                "held_out": workdir / "held_out",
                "workdir": workdir / "run",
                "output": workdir / "report.html",
            },
            result=f"{workdir}/report.html",
        ),
    ]


def is_finished(stage: Stage, record: Mapping[str, Mapping]) -> bool:
    """Whether the stage was finished by this very command and recipe."""
    known = stage.title in record
    same = known and record[stage.title]["fingerprint"] == stage.fingerprint()
    return same and Path(stage.result).exists()


@contextlib.contextmanager
def server(workdir: Path) -> Iterator[str]:
    """Serves the sample web while the block runs; yields where its hosts are.

    The server ends with this process, however this process ends.
    """
    port_file = workdir / "port"
    port_file.unlink(missing_ok=True)
    site = workdir / "site"
    command = (
        f"python -m examples.quickstart.serve --site={site} --port_file={port_file}"
    )
    say(f"Serve the small web (in its own process)\n  {command}")
    with (workdir / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *shlex.split(command)[1:]], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + _SERVER_START_SECONDS
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: see {log.name}")
            time.sleep(0.05)
        address = f"127.0.0.1:{port_file.read_text().strip()}"
        yield ",".join(f"{host}={address}" for host in _HOSTS)
    finally:
        process.terminate()
        process.wait()


def run(stage: Stage, host_map: str) -> dict:
    """Shows and runs one command; returns what it took and its fingerprint.

    Raises SystemExit with the command's own exit status where it fails.
    """
    command = stage.command(host_map)
    say(f"{stage.title}\n  {shlex.join(command)}")
    start = time.monotonic()
    status = subprocess.run(
        [sys.executable, *command[1:]], env={**_ENVIRONMENT, **os.environ}
    ).returncode
    if status:
        logging.error("%s failed with exit status %d", stage.title, status)
        raise SystemExit(status if status > 0 else 128 - status)
    return {
        "seconds": round(time.monotonic() - start, 1),
        # Of the largest process that this run has started so far.
        "peak_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
        "fingerprint": stage.fingerprint(),
    }


def summarise(workdir: Path, record: Mapping[str, Mapping]) -> None:
    """Prints what was made, how long it took, and what to try next."""
    evaluations = (workdir / "run" / "evaluation").glob("*.json")
    evaluation = max(
        (p for p in evaluations if p.stem.isdigit()), key=lambda p: int(p.stem)
    )
    scores = files.read_json(evaluation)
    card = files.read_json(workdir / "dataset" / "data_card.json")
    parsed = next(row for row in card["funnel"] if row["stage"] == "parse")
    recall = scores["model"]["text_to_image"]["R@1"]
    titles = [stage.title for stage in stages(workdir, recipes())]
    rows = [(title, f"{record[title]['seconds']:.1f} s") for title in titles]
    total = sum(record[title]["seconds"] for title in titles)
    peak = max(record[title]["peak_gib"] for title in titles)
    rows += [
        ("All stages", f"{total:.1f} s"),
        ("Peak memory of one process", f"{peak:.1f} GiB"),
        ("Texts found on the pages", f"{parsed['in']:,}"),
        (
            "Pairs kept after balancing",
            f"{card['texts']:,} in {card['records']:,} images",
        ),
        ("Training waited for data", f"{data_wait(workdir / 'run'):.1%} of its time"),
        (
            f"Text to image R@1 among {scores['candidates']} held out",
            f"{recall['value']:.1%} ({recall['value'] / recall['chance']:.0f}x chance)",
        ),
    ]
    width = max(len(title) for title, _ in rows)
    say("\n".join(f"{title:<{width}}  {value}" for title, value in rows))
    configs = recipes()
    say(
        f"""The report: {workdir}/report.html

Try next:
  python -m metaclip_jax.data.inspect {workdir}/dataset --output={workdir}/inspect.html
  python -m metaclip_jax.train --config={configs}/quickstart.py \\
      --config.dataset={workdir}/dataset --config.tokenizer={workdir}/tokenizer.json \\
      --config.total_steps=20 --config.optimizer.warmup_steps=5 \\
      --workdir=/tmp/short_run
  python -m data_prep.build_metadata --config={configs}/metadata.py:quickstart \\
      --config.warc='{workdir}/crawl/*.warc.gz' --config.unigram_min_count=10 \\
      --output=/tmp/smaller_metadata"""
    )


def data_wait(run: Path) -> float:
    """Returns the share of its time that a run, of rows alike in steps, waited."""
    rows = [row for row in metric_rows.read(run) if "data_wait" in row]
    lengths = [1 / row["examples_per_second"] for row in rows]
    waits = (
        row["data_wait"] * length for row, length in zip(rows, lengths, strict=True)
    )
    return sum(waits) / sum(lengths)


def say(text: str) -> None:
    """Prints for the person at the terminal, above what the next command prints."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "quickstart_run", "Everything is made here.")
    flags.DEFINE_bool("fresh", False, "Remove what an earlier run made, start over.")
    flags.DEFINE_integer("pictures", 0, "Pictures on the web; 0 = all.", lower_bound=0)
    flags.DEFINE_integer("steps", 0, "Training steps; 0 = the recipe's.", lower_bound=0)
    command.run(main)
