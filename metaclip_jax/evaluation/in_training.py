"""Evaluation during training: maps parameters to the metrics of a row."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging
from jax.sharding import Mesh

from metaclip_jax.data.images import Preprocess
from metaclip_jax.data.tokenizer import Tokenizer
from metaclip_jax.evaluation import evaluator, suite, tasks
from metaclip_jax.evaluation.encoder import make_encoder
from metaclip_jax.evaluation.examples import Examples
from metaclip_jax.evaluation.held_out import load_held_out
from metaclip_jax.models import clip

Measure = Callable[[clip.Params], dict[str, float]]


class _Images(NamedTuple):
    """Examples, and the metric's name for each result that is logged."""

    examples: Examples
    metric_of: Mapping[str, str]


def make_measure(
    *,
    architecture: clip.Architecture,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    mesh: Mesh,
    batch: int,
    held_out: str,
    task_names: str,
    data_dir: str,
    best: str,
) -> Measure | None:
    """Returns a function from parameters to metrics, for evaluation during training.

    Held-out images give "evaluation/zero_shot/accuracy" and so on. A task's main result
    is "evaluation/SUITE/ID", and its other results "evaluation/SUITE/ID/NAME". A
    suite's mean is for example "evaluation/SUITE/mean_over_3_of_26".

    Args:
      architecture: of the model.
      tokenizer: of its text tower.
      preprocess: its image preprocessing.
      mesh: of the training.
      batch: most rows at a time; 0 = by the device.
      held_out: dataset folder; "" = none.
      task_names: suites and ids, separated by commas; "" = none.
      data_dir: folder of the tasks' images; a warning names each task without images.
      best: the metric by which checkpoints are kept; "" = none.

    Returns:
      The function, or None if there is nothing to evaluate.

    Raises:
      ValueError: `best` is not one of the metrics, a task is unknown, no task has
        images, or an image is broken.
    """
    sets: list[_Images] = []
    averaged: dict[str, list[str]] = {}
    if held_out:
        examples = load_held_out(held_out)
        named = {name: f"evaluation/{name}" for name in evaluator.names(examples)}
        sets.append(_Images(examples, named))
    if task_names:
        for task, examples in _open(task_names, data_dir):
            sets.append(_Images(examples, _metrics(task, examples)))
            averaged.setdefault(task.suite, []).append(_metric(task))
    means = {
        f"evaluation/{name}/mean_over_{len(of)}_of_{len(tasks.table(name))}": of
        for name, of in averaged.items()
    }
    metrics = [*(m for one in sets for m in one.metric_of.values()), *means]
    if best and best not in metrics:
        raise ValueError(
            f"config.checkpoint.keep_best must be one of {', '.join(metrics)}, got"
            f" {best!r}"
        )
    # Fail before the training, not at the first evaluation.
    for checked in suite.image_sets([one.examples for one in sets]):
        evaluator.check_headers(checked)

    encoder = make_encoder(
        architecture=architecture,
        tokenizer=tokenizer,
        preprocess=preprocess,
        mesh=mesh,
        batch=batch,
        params={},  # `measure` sets them
    )

    def measure(params: clip.Params) -> dict[str, float]:
        trained = encoder.with_params(params)
        row: dict[str, float] = {}
        for examples, metric_of in sets:
            embeddings = evaluator.embed(trained, examples)
            # Rows of metrics have no intervals, so one resample is enough.
            for found in evaluator.results(trained, examples, embeddings, resamples=1):
                if found.name in metric_of:
                    row[metric_of[found.name]] = found.value
        for metric, of in means.items():
            row[metric] = float(np.mean([row[name] for name in of]))
        return row

    return measure if sets else None


def _open(task_names: str, data_dir: str) -> Iterator[tuple[tasks.Task, Examples]]:
    """Yields the tasks with images, and warns about the others."""
    asked = [name.strip() for name in task_names.split(",") if name.strip()]
    opened = suite.open_tasks(tasks.find(asked), data_dir)
    there = [(one.task, one.examples) for one in opened if one.examples is not None]
    for task, examples, why in opened:
        if examples is None:
            logging.warning("no images of %s/%s: %s", task.suite, task.id, why)
    if not there:
        raise ValueError(
            f"wanted images of config.evaluation.tasks={task_names!r} in"
            f" config.evaluation.data_dir={data_dir!r}, got none of {len(opened)}"
            " tasks; see python -m metaclip_jax.evaluate --plan"
        )
    yield from there


def _metric(task: tasks.Task) -> str:
    return f"evaluation/{task.suite}/{task.id}"


def _metrics(task: tasks.Task, examples: Examples) -> dict[str, str]:
    """Returns the metric's name for each of a task's results."""
    main, *others = suite.numbers_of(task, examples)
    return {main: _metric(task)} | {
        name: f"{_metric(task)}/{name.rpartition('/')[2]}" for name in others
    }
