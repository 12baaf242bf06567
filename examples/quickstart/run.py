"""The quick start: from a small web to a trained and evaluated CLIP, in commands.

    python -m examples.quickstart.run --workdir=quickstart_run

It prints each of the project's commands and runs it, so that you can repeat and change
them. A finished command is not run again, so a killed quick start continues; --fresh
starts over. SIGTERM and SIGINT end the running command too.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags, logging

from examples.quickstart import children
from metaclip_jax import files, metric_rows
from metaclip_jax.cli import command

_RECORD = "quickstart.json"  # in the workdir: the fingerprints of finished stages
HOST_MAP = "HOST_MAP"  # placeholder in a command for the server's address
_HOSTS = ("sample-web.example", "images.sample-web.example")
_PORT = 8016  # of the server, if it is free
_SERVER_START_SECONDS = 30
# glibc: huge pages for large arrays, which make train steps faster.
_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command, and the file that exists once it has finished."""

    title: str
    module: str
    arguments: Mapping[str, object]
    result: str
    needs_server: bool = False

    def command(self, host_map: str = "", python: str = "python") -> list[str]:
        """The command line, as a user would type it."""
        return [
            python,
            "-m",
            self.module,
            *(
                f"--{k}={v}".replace(HOST_MAP, host_map)
                for k, v in self.arguments.items()
            ),
        ]

    def fingerprint(self) -> str:
        """Changes with the command and its recipe, not with the server's port."""
        text = "\n".join(self.command())
        if "config" in self.arguments:
            recipe, _, _ = str(self.arguments["config"]).partition(":")  # its variant
            text += Path(recipe).read_text()
        return hashlib.sha256(text.encode()).hexdigest()


def main(argv: list[str]) -> None:
    """Runs every stage that is not finished, then prints the results."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    workdir, configs = Path(values.workdir), recipes()
    wanted = stages(workdir, configs, pictures=values.pictures, steps=values.steps)
    record = run_all(wanted, workdir, site=workdir / "site", fresh=values.fresh)
    summarise(workdir, configs, {stage.title: record[stage.title] for stage in wanted})


def run_all(
    wanted: Sequence[Stage], workdir: Path, *, site: Path, fresh: bool
) -> dict[str, dict]:
    """Runs the stages that are not finished; returns the record of all.

    Args:
      wanted: in order.
      workdir: where the record is kept.
      site: served to the stages that need a server.
      fresh: removes the results of an earlier run.

    Raises SystemExit at SIGTERM or SIGINT, after the running command has ended.
    """
    prepare(workdir, fresh=fresh)
    try:
        with children.interruptible() as call, files.lock(workdir):
            return _run_missing(wanted, workdir, call, site=site)
    except children.Interrupted as error:
        without = " without --fresh" if fresh else ""
        say(f"interrupted; the same command{without} continues")
        raise SystemExit(128 + error.received) from None


def _run_missing(
    wanted: Sequence[Stage], workdir: Path, call: Callable[..., int], *, site: Path
) -> dict[str, dict]:
    record = files.read_json(workdir / _RECORD)
    host_map = ""
    with contextlib.ExitStack() as running:
        for stage in wanted:
            if is_finished(stage, record):
                say(f"{stage.title}: finished earlier")
                continue
            if stage.needs_server and not host_map:
                host_map = running.enter_context(server(workdir, site))
            record[stage.title] = run(stage, host_map, call)
            files.write_json(workdir / _RECORD, record)
    return record


def recipes() -> Path:
    """Returns the folder of recipes, relative to the current folder."""
    folder = Path(__file__).resolve().parents[2] / "configs"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"wanted the recipes in {folder}, got no such folder; run the quick start "
            "from a clone of the project (make quickstart), not from an installed wheel"
        )
    return Path(os.path.relpath(folder))


def prepare(workdir: Path, *, fresh: bool) -> None:
    """Creates the workdir, or checks that an earlier quick start created it.

    Raises ValueError for any other folder that is not empty; it is never removed.
    """
    ours = (workdir / _RECORD).exists()
    if workdir.exists() and any(workdir.iterdir()) and not ours:
        raise ValueError(
            f"--workdir={workdir}: wanted an empty or new folder, or a quick start's, "
            f"got files without {_RECORD}; name another folder"
        )
    if fresh and ours:
        shutil.rmtree(workdir)
        ours = False
    if not ours:
        files.write_json(workdir / _RECORD, {})


def stages(workdir: Path, configs: Path, *, pictures: int, steps: int) -> list[Stage]:
    """Returns all stages, in order.

    Args:
      workdir: of all output.
      configs: folder of recipes.
      pictures: on the web; 0 = all.
      steps: of training; 0 = the recipe's.
    """
    curated = _curation(workdir, configs, pictures=pictures)
    return [*curated, *_training(workdir, configs, steps=steps)]


def crawl(workdir: Path) -> Stage:
    """Returns the stage that crawls the served site into WORKDIR/crawl."""
    return Stage(
        "Crawl it into WARC files",
        "examples.quickstart.crawl",
        {
            "start_url": f"http://{_HOSTS[0]}/",
            "host_map": HOST_MAP,
            "output": workdir / "crawl",
        },
        result=f"{workdir}/crawl/manifest.json",
        needs_server=True,
    )


def _curation(workdir: Path, configs: Path, *, pictures: int) -> list[Stage]:
    fewer = {"pictures": pictures} if pictures else {}
    return [
        Stage(
            "Build a small web",
            "examples.quickstart.build",
            {"output": workdir / "site", "held_out": workdir / "held_out", **fewer},
            result=f"{workdir}/held_out/manifest.json",
        ),
        crawl(workdir),
        Stage(
            "Build the metadata",
            "data_prep.build_metadata",
            {
                "config": configs / "metadata.py:quickstart",
                "warc": workdir / "crawl" / "*.warc.gz",
                "pageviews": workdir / "site" / "pageviews.txt",
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
                "config.download.host_map": HOST_MAP,
                "workdir": workdir / "curation",
                "output": workdir / "dataset",
            },
            result=f"{workdir}/dataset/manifest.json",
            needs_server=True,
        ),
    ]


def _training(workdir: Path, configs: Path, *, steps: int) -> list[Stage]:
    shorter = {"config.total_steps": steps} if steps else {}
    if 0 < steps < 100:  # the recipe warms up for 50
        shorter["config.optimizer.warmup_steps"] = steps // 2
    return [
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
                **shorter,
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
                "curation": workdir / "curation",
                "output": workdir / "report.html",
            },
            result=f"{workdir}/report.html",
        ),
    ]


def is_finished(stage: Stage, record: Mapping[str, Mapping]) -> bool:
    """Whether the stage has finished with this same command and recipe."""
    known = stage.title in record
    same = known and record[stage.title]["fingerprint"] == stage.fingerprint()
    return same and Path(stage.result).exists()


@contextlib.contextmanager
def server(workdir: Path, site: Path) -> Iterator[str]:
    """Serves a site during the block; yields its host map.

    The server ends when this process ends, also when it is killed.
    """
    port_file = workdir / "port"
    start = [python(), "-m", "examples.quickstart.serve", f"--site={site}"]
    for wanted in (_PORT, 0):  # 0 = a free one
        port_file.unlink(missing_ok=True)
        options = [f"--port={wanted}", f"--port_file={port_file}"]
        with (workdir / "server.log").open("wb") as log:
            process = children.start([*start, *options], stdout=log, stderr=log)
        if _is_ready(process, port_file):
            break
    else:
        raise RuntimeError(f"the server did not start; {log.name} says why")
    try:
        port = port_file.read_text().strip()
        say(
            "Serve the small web (in a separate process, until this one ends)\n  "
            + shlex.join([*start, f"--port={port}"])
        )
        yield ",".join(f"{host}=127.0.0.1:{port}" for host in _HOSTS)
    finally:
        process.terminate()
        process.wait()


def _is_ready(server: subprocess.Popen, port_file: Path) -> bool:
    """Waits until the server serves; False if it does not, and then it has ended."""
    deadline = time.monotonic() + _SERVER_START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        if port_file.exists():
            return True
        time.sleep(0.05)
    server.kill()
    server.wait()
    return False


def python() -> str:
    """Returns this Python as a user types it in the current folder."""
    below = os.path.relpath(sys.executable)
    return sys.executable if below.startswith(os.pardir) else below


def run(stage: Stage, host_map: str, call: Callable[..., int]) -> dict:
    """Prints and runs a command; returns its seconds, memory and fingerprint.

    Raises SystemExit with the command's exit status if it fails.
    """
    command = stage.command(host_map, python())
    say(f"{stage.title}\n  {shlex.join(command)}")
    start = time.monotonic()
    status = call(command, env={**_ENVIRONMENT, **os.environ})
    if status:
        logging.error("%s failed with exit status %d", stage.title, status)
        raise SystemExit(status if status > 0 else 128 - status)
    return {
        "seconds": round(time.monotonic() - start, 1),
        # Peak of the largest child process so far.
        "peak_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
        "fingerprint": stage.fingerprint(),
    }


def summarise(workdir: Path, configs: Path, record: Mapping[str, Mapping]) -> None:
    """Prints the results, the time, and what to try next."""
    evaluations = (workdir / "run" / "evaluation").glob("*.json")
    evaluation = max(
        (p for p in evaluations if p.stem.isdigit()), key=lambda p: int(p.stem)
    )
    scores = files.read_json(evaluation)
    card = files.read_json(workdir / "dataset" / "data_card.json")
    parsed = next(row for row in card["funnel"] if row["stage"] == "parse")
    ways = {
        "Image to text": scores["model"]["image_to_text"]["R@1"],
        "Text to image": scores["model"]["text_to_image"]["R@1"],
    }
    rows = [(title, f"{facts['seconds']:.1f} s") for title, facts in record.items()]
    total = sum(facts["seconds"] for facts in record.values())
    peak = max(facts["peak_gib"] for facts in record.values())
    rows += [
        ("All stages", f"{total:.1f} s"),
        ("Peak memory of one process", f"{peak:.1f} GiB"),
        ("Texts found on the pages", f"{parsed['in']:,}"),
        (
            "Pairs kept after balancing",
            f"{card['texts']:,} in {card['records']:,} images",
        ),
        ("Training waited for data", f"{data_wait(workdir / 'run'):.1%} of its time"),
    ]
    rows += [
        (
            f"{way} R@1 among {scores['candidates']} held out",
            f"{recall['value']:.1%} ({recall['value'] / recall['chance']:.0f}x chance)",
        )
        for way, recall in ways.items()
    ]
    width = max(len(title) for title, _ in rows)
    say("\n".join(f"{title:<{width}}  {value}" for title, value in rows))
    say(
        f"""The report: {workdir}/report.html

Try next:
  {python()} -m metaclip_jax.data.inspect --config={configs}/quickstart.py \\
      --config.dataset={workdir}/dataset --config.tokenizer={workdir}/tokenizer.json \\
      --output={workdir}/inspect.html
  {python()} -m metaclip_jax.train --config={configs}/quickstart.py \\
      --config.dataset={workdir}/dataset --config.tokenizer={workdir}/tokenizer.json \\
      --config.total_steps=20 --config.optimizer.warmup_steps=5 \\
      --workdir=/tmp/short_run
  {python()} -m data_prep.build_metadata --config={configs}/metadata.py:quickstart \\
      --warc='{workdir}/crawl/*.warc.gz' --config.unigram_min_count=10 \\
      --output=/tmp/smaller_metadata"""
    )


def data_wait(run: Path) -> float:
    """Returns the share of time that a run waited for data; rows cover equal steps."""
    rows = [row for row in metric_rows.read(run) if "data_wait" in row]
    lengths = [1 / row["examples_per_second"] for row in rows]
    waits = (
        row["data_wait"] * length for row, length in zip(rows, lengths, strict=True)
    )
    return sum(waits) / sum(lengths)


def say(text: str) -> None:
    """Prints at once, so that it comes before the next command's output."""
    print(f"\n{text}", flush=True)


def define_flags() -> None:
    """Defines the flags of the command line; importing this module defines none."""
    flags.DEFINE_string("workdir", "quickstart_run", "Folder for all output.")
    flags.DEFINE_bool("fresh", False, "Remove an earlier run's files and start over.")
    flags.DEFINE_integer("pictures", 0, "Pictures on the web; 0 = all.", lower_bound=0)
    flags.DEFINE_integer("steps", 0, "Training steps; 0 = the recipe's.", lower_bound=0)


if __name__ == "__main__":
    define_flags()
    command.run(main)
