"""What every pipeline of curation needs: options, inputs, outputs, a progress bar."""

import argparse
import contextlib
import ctypes
import functools
import itertools
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import apache_beam as beam
import pyarrow as pa
from absl import flags, logging
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
)
from tqdm import tqdm

from data_prep.stages import attempts, parts, worker_processes
from metaclip_jax import files
from metaclip_jax.cli import errors
from metaclip_jax.data import machine

# Their job servers define more options, and refuse unknown ones themselves.
_HAVE_JOB_SERVERS = ("portable", "flink", "spark", "prism", "kafkastreams")
# Workers take some seconds to start, and a core reads some ten MB of a compressed crawl
# a second.
_MANY_BYTES = 200e6
_BUILD_ONLY = ("dry_run", "template_location")  # options of Dataflow
# They hold the rows of a GroupByKey in memory.
_IN_MEMORY = ("fnapi", "bundlebaseddirect", "direct", "prism")


def options(arguments: Sequence[str]) -> PipelineOptions:
    """Returns Beam's pipeline options; the default runner is FnApiRunner.

    Args:
      arguments: words of the command line after `--`.

    Raises:
      ValueError: an option or the runner is unknown, an option has a wrong value, the
        runner is Dask's, or no pipeline should be waited for.
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"wanted Beam's pipeline options after --, got {message}")

    def check(parser: argparse.ArgumentParser) -> None:
        parser.error = refuse  # type: ignore[method-assign]
        known, unknown = parser.parse_known_args(arguments)
        if not unknown or _short(known.runner or "") in _HAVE_JOB_SERVERS:
            return
        cure = errors.did_you_mean(
            unknown[0].lstrip("-").partition("=")[0],
            vars(known),
            otherwise="correct or remove it",
            prefix="--",
        )
        refuse(f"{unknown[0]!r}; {cure}")

    given = PipelineOptions(list(arguments))
    values = given.get_all_options(add_extra_args_fn=check)
    runner = values["runner"]
    if values["no_wait_until_finish"]:
        refuse("--no_wait_until_finish: each pipeline reads what the last one wrote")
    if runner and _short(runner) == "dask":
        raise ValueError(
            "wanted a runner that keeps the result of a global combine, got DaskRunner,"
            " which loses it without an error, so entry counts would be wrong; use"
            " FnApiRunner, Flink, Spark or Dataflow"
        )
    names = StandardOptions.KNOWN_RUNNER_NAMES
    if runner and "." not in runner and _short(runner) not in map(_short, names):
        cure = errors.did_you_mean(runner, names, otherwise="choose one of them")
        raise ValueError(
            f"wanted --runner among {', '.join(names)}, got {runner!r}; {cure}"
        )
    # Beam's default, DirectRunner, first tries to download another runner.
    return given if runner else PipelineOptions([*arguments, "--runner=FnApiRunner"])


def _short(runner: str) -> str:
    """Returns "flink" for flink, FlinkRunner and package.module.FlinkRunner."""
    return runner.rsplit(".", 1)[-1].lower().removesuffix("runner")


def _runner(options: PipelineOptions) -> str:
    return _short(options.get_all_options()["runner"])


def refuse_local(options: PipelineOptions, places: Iterable[tuple[str, str]]) -> None:
    """Checks that Dataflow's workers can reach all files.

    Args:
      options: from `options`.
      places: flags, and paths that they give.

    Raises:
      ValueError: the runner is Dataflow, and a path is on this machine.
    """
    if _runner(options) != "dataflow":
        return
    for flag, path in places:
        if files.is_local(path):
            raise ValueError(
                f"wanted {flag} where Dataflow's workers reach it, got {path}, which is"
                " on this machine; copy it to gs://"
            )


def with_workers(
    options: PipelineOptions, workers: str, *, source_bytes: int
) -> PipelineOptions:
    """Returns the options with worker processes for the runner of this machine.

    Args:
      options: from `options`.
      workers: a number, or "auto": one worker where the source is so small that others
        would take longer to start than they save, else one for each core.
      source_bytes: length of all files of the source.

    Raises:
      ValueError: a number is given, but the runner or the options choose their own.
    """
    direct, runner = options.view_as(DirectOptions), _runner(options)
    if runner != "fnapi" or direct.direct_num_workers != 1:
        if workers != "auto":
            raise ValueError(
                f"wanted --workers={workers} with FnApiRunner and without Beam's own"
                f" direct_num_workers, got {runner}; remove one of the options"
            )
        return options
    size = f"{source_bytes / 1e9:,.1f} GB"
    count, why = machine.cores(), f"one for each core, for {size} of sources"
    if workers != "auto":
        count, why = int(workers), "as --workers says"
    elif source_bytes < _MANY_BYTES:
        count, why = 1, f"the source is small ({size})"
    logging.info("%d worker process%s: %s", count, "es" if count > 1 else "", why)
    if count > 1:
        direct.direct_num_workers = count
        direct.direct_running_mode = "multi_processing"
    return options


def define_flags() -> None:
    """Defines the flags of commands that read sources by pipelines."""
    flags.DEFINE_string(
        "workers", "auto", "Worker processes on this machine: a number, or auto."
    )
    flags.register_validator(
        "workers",
        lambda n: n == "auto" or n.isdecimal() and int(n) > 0,
        "wanted auto or 1, 2, ...",
    )
    flags.DEFINE_integer(
        "max_failed_sources",
        0,
        "How many source files may fail three times; they are lost, and counted.",
        lower_bound=0,
    )


@contextlib.contextmanager
def new(
    options: PipelineOptions, bar: contextlib.AbstractContextManager | None = None
) -> Iterator[beam.Pipeline]:
    """Yields a pipeline on the runner of the options, and runs it after the block.

    The program ends where Dataflow only builds it: the next one needs what it writes.

    Args:
      options: from `options`.
      bar: of `progress`, shown meanwhile.
    """
    several = options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    with (
        bar or contextlib.nullcontext(),
        worker_processes.forked() if several else contextlib.nullcontext(),
        beam.Pipeline(options=options) as pipeline,
    ):
        yield pipeline
    values = options.get_all_options() if _runner(options) == "dataflow" else {}
    if built := [name for name in _BUILD_ONLY if values.get(name)]:
        logging.info("the first pipeline is built, and not run: --%s", built[0])
        sys.exit()


def release_memory() -> None:
    """Gives the system back what Arrow and the C library keep for later."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def shuffles_on_disk(options: PipelineOptions) -> bool:
    """Whether rows may be grouped by the runner: not where it holds them in memory."""
    return _runner(options) not in _IN_MEMORY


def ranges(
    partitions: int, *, size: int, memory_gib: float, options: PipelineOptions
) -> list[tuple[int, int]] | None:
    """Returns ranges (start, stop) of partitions, as wide as the memory allows.

    None where the runner may group the rows itself, for then they are read once.

    Args:
      partitions: how many there are.
      size: bytes of all their rows in memory.
      memory_gib: for the rows of all workers together; 0: a quarter of the machine's.
      options: of the pipeline, which say how many workers there are.
    """
    if shuffles_on_disk(options):
        return None
    workers = worker_count(options)
    memory = max(1, int(memory_gib * 2**30 or machine.memory() / 4))
    # While partitions are made, the rows of a range are there, and sorted copies.
    wanted = max(workers, -(-3 * size * workers // memory))
    if wanted > partitions and wanted > workers:
        logging.warning(
            "a partition takes about %.1f GiB of memory: give more partitions "
            "(config.partitions) or memory (config.memory_gib)",
            3 * size / partitions / 2**30,
        )
    count = min(partitions, wanted)
    edges = (partitions * i // count for i in range(count + 1))
    return list(itertools.pairwise(edges))


def worker_count(options: PipelineOptions) -> int:
    """Returns how many worker processes the runner in this process has."""
    return options.view_as(DirectOptions).direct_num_workers or machine.cores()


def start(
    pipeline: beam.Pipeline, elements: Sequence[Any], name: str = ""
) -> beam.PCollection:
    """Distributes elements, each a small piece of work, over the workers.

    `name` tells them from others in the same pipeline.

    Without the Reshuffle an engine fuses the next stage with the list of the pieces,
    and one worker does all of them.
    """
    create = beam.Create(elements)
    return pipeline | f"Create{name}" >> create | f"Reshuffle{name}" >> beam.Reshuffle()


def tagged(
    stage: Callable[[Any], Iterable],
    *tags: str,
    main: Any = pa.RecordBatch,
    each: str = "",
) -> beam.ParDo:
    """Returns the stage with outputs `main`, `flow` (FLOW rows) and `tags`.

    With `each`, a name of its elements, those that fail three times are counted.
    """
    names = ("flow", *tags)
    kinds = dict.fromkeys(names, pa.RecordBatch)
    if each:
        stage = functools.partial(attempts.of_element, stage, each)
    return (
        beam.FlatMap(stage)
        .with_output_types(main, **kinds)
        .with_outputs(*names, main="main")
    )


@contextlib.contextmanager
def progress(
    folder: str, partitions: int, title: str, *, stage: str = ""
) -> Iterator[None]:
    """Shows a bar of how many of `partitions` parts are in `folder`, on any runner.

    With `stage` it also shows how many texts a second entered that stage of the flow.
    """
    done = threading.Event()
    root = files.path(folder)
    suffix = r"\.parquet" if stage else ".*"
    part = re.compile(rf"[^.].*-(\d+)-of-{partitions:05d}{suffix}")

    def finished() -> dict[str, str]:
        names = [p.name for p in root.iterdir()] if root.exists() else []
        return {found[1]: found[0] for found in map(part.fullmatch, names) if found}

    def watch() -> None:
        there, texts, began = finished(), 0, time.monotonic()
        with tqdm(total=partitions, initial=len(there), desc=title, unit="part") as bar:
            while True:
                # A bucket's owner pays for each look.
                last = done.wait(0.5 if files.is_local(folder) else 5)
                now = finished()
                for number in now.keys() - there.keys() if stage else ():
                    texts += parts.texts_of(folder, now[number], stage)
                    rate = texts / (time.monotonic() - began)
                    bar.set_postfix_str(f"{rate:,.0f} texts/s", refresh=False)
                there = now
                bar.update(len(now) - bar.n)
                if last:
                    return

    def watch_while_it_answers() -> None:
        with contextlib.suppress(OSError):  # of storage; the pipeline says more
            watch()

    watcher = threading.Thread(target=watch_while_it_answers, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
