"""How the driver puts pipelines together, and shows how far they are."""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import apache_beam as beam
import pyarrow as pa
from tqdm import tqdm

from data_prep.stages import (
    arrow_coder,  # noqa: F401  registers the coder of RecordBatch
)
from metaclip_jax import files


def one_each(values: Sequence[int | str]) -> list[pa.RecordBatch]:
    """Returns one RecordBatch per value, in column `value`: for Create."""
    return [pa.RecordBatch.from_pydict({"value": [value]}) for value in values]


def start(pipeline: beam.Pipeline, values: Sequence[int | str]) -> beam.PCollection:
    """Spreads one RecordBatch per value over the workers."""
    create = beam.Create(one_each(values)).with_output_types(pa.RecordBatch)
    return pipeline | create | beam.Reshuffle()


def tagged(stage: beam.DoFn, *tags: str, main: type = pa.RecordBatch) -> beam.ParDo:
    """A stage with its main output and FLOW rows, and more outputs by name."""
    names = ("flow", *tags)
    kinds = dict.fromkeys(names, pa.RecordBatch)
    return (
        beam.ParDo(stage)
        .with_output_types(main, **kinds)
        .with_outputs(*names, main="main")
    )


@contextmanager
def progress(folder: str, partitions: int, title: str) -> Iterator[None]:
    """Shows how many of `partitions` parts are in `folder`, on any runner."""
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
