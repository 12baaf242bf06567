"""What every pipeline of curation needs: options, inputs, outputs, a progress bar."""

import argparse
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from tqdm import tqdm

from data_prep.stages import (
    arrow_coder,  # noqa: F401  registers the coder of RecordBatch
)
from metaclip_jax import files
from metaclip_jax.cli import errors

# Their job servers define more options, and refuse unknown ones themselves.
_HAVE_JOB_SERVERS = ("portable", "flink", "spark", "prism", "kafkastreams")


def options(arguments: Sequence[str]) -> PipelineOptions:
    """Returns Beam's pipeline options; the default runner is FnApiRunner.

    Args:
      arguments: words of the command line after `--`.

    Raises:
      ValueError: an option or the runner is unknown, an option has a wrong value, or
        the runner is Dask's.
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
    runner = given.get_all_options(add_extra_args_fn=check)["runner"]
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


def one_each(values: Sequence[int | str]) -> list[pa.RecordBatch]:
    """Returns one RecordBatch per value, in column `value`, for beam.Create."""
    return [pa.RecordBatch.from_pydict({"value": [value]}) for value in values]


def start(pipeline: beam.Pipeline, values: Sequence[int | str]) -> beam.PCollection:
    """Distributes one RecordBatch per value over the workers."""
    create = beam.Create(one_each(values)).with_output_types(pa.RecordBatch)
    return pipeline | create | beam.Reshuffle()


def tagged(stage: beam.DoFn, *tags: str, main: type = pa.RecordBatch) -> beam.ParDo:
    """Returns ParDo(stage) with outputs `main`, `flow` (FLOW rows) and `tags`."""
    names = ("flow", *tags)
    kinds = dict.fromkeys(names, pa.RecordBatch)
    return (
        beam.ParDo(stage)
        .with_output_types(main, **kinds)
        .with_outputs(*names, main="main")
    )


@contextmanager
def progress(folder: str, partitions: int, title: str) -> Iterator[None]:
    """Shows a bar of how many of `partitions` parts are in `folder`, on any runner."""
    done = threading.Event()
    root = files.path(folder)
    part = re.compile(rf"[^.].*-(\d+)-of-{partitions:05d}.*")

    def watch() -> None:
        with tqdm(total=partitions, desc=title, unit="part") as bar:
            while True:
                last = done.wait(0.5)
                names = [p.name for p in root.iterdir()] if root.exists() else []
                finished = {found[1] for found in map(part.fullmatch, names) if found}
                bar.update(len(finished) - bar.n)
                if last:
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
