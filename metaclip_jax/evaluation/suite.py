"""Runs tasks: their results, the missing tasks, and averages over the tasks that ran.

An average comes with the number of its tasks and that of the suite.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from absl import logging

from metaclip_jax.data.images import Preprocess
from metaclip_jax.evaluation import (
    classification,
    downloads,
    evaluator,
    languages,
    statistics,
    tasks,
)
from metaclip_jax.evaluation.encoder import Encoder, prepare_image
from metaclip_jax.evaluation.examples import Examples, Statistic
from metaclip_jax.evaluation.tasks import Task

_SHOWN_CONFUSIONS = 4
_THUMBNAIL = Preprocess(96)
# The means of `averages`.
TITLES = {
    "mean": "mean",
    "mean_by_images": "mean weighted by images",
    "mean_above_chance": "mean above chance",
    "mean_difference": "mean difference to the other model",
}


class Found(NamedTuple):
    """A task and its images; without images, `why` says how to get them."""

    task: Task
    examples: Examples | None
    why: str


def open_tasks(asked: Sequence[Task], data_dir: str) -> list[Found]:
    """Finds the images of each task, without reading them.

    Raises:
      ValueError: a task's folder is damaged, its layout is unknown, or its images do
        not allow the task's metric.
    """
    suites = {task.suite for task in asked} & set(tasks.BY_LANGUAGE)
    open_language = {s: languages.open_suite(s, data_dir) for s in sorted(suites)}
    found = []
    for task in asked:
        if task.suite in open_language:
            opener = open_language[task.suite]
            examples = opener(task) if opener else None
        else:
            folder = tasks.locate(task, data_dir)
            examples = tasks.open_task(task, folder) if folder else None
        if examples is not None:
            numbers_of(task, examples)  # fails before anything is computed
        why = "" if examples else downloads.missing(task, data_dir)
        found.append(Found(task, examples, why))
    return found


def image_sets(several: Iterable[Examples | None]) -> list[Examples]:
    """Returns the image sets of these examples without repeats: tasks may share one."""
    whole = [one.whole or one for one in several if one is not None]
    return list({id(one): one for one in whole}.values())


def numbers_of(task: Task, examples: Examples) -> tuple[str, ...]:
    """Returns the names of a task's results; the first is the main one.

    Raises:
      ValueError: one cannot be computed for these images.
    """
    wanted, there = tasks.METRICS[task.metric], evaluator.names(examples)
    lost = sorted(set(wanted) - set(there))
    if lost:
        raise ValueError(
            f"{examples.source}: wanted images for {', '.join(lost)}, got images for"
            f" {', '.join(there)}; give the task's own test set"
        )
    return wanted


def missing_name(task: Task) -> str:
    """Returns the name of missing images, which the languages of a suite share."""
    return task.suite if task.suite in tasks.BY_LANGUAGE else f"{task.suite}/{task.id}"


def run(
    encoder: Encoder,
    found: Sequence[Found],
    *,
    resamples: int,
    skip_broken: bool = False,
    against: Encoder | None = None,
    paper: str = "",
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures every task that has images.

    Args:
      encoder: of the model.
      found: from `open_tasks`.
      resamples: of each interval's bootstrap.
      skip_broken: see `evaluator.embed_usable`.
      against: another model to measure on the same images.
      paper: a row of the paper's tables to compare with; "" = none.
      report: called with a line of text after each task.

    Returns:
      "tasks": by "SUITE/ID" the main result (value, low, high, chance), the counts, the
      task's other results in "others", and all results in "results"; "missing": by
      "SUITE/ID" how to get the images; "averages": by suite, see `averages`.
    """
    published = tasks.paper_row(paper) if paper else {}
    names = (f"{one.task.suite}/{one.task.id}" for one in found)
    width = max(map(len, names), default=0)
    report(f"{header('task', width)}  metric, images")
    done: dict[str, dict[str, Any]] = {}
    lost: dict[str, str] = {}
    for task, examples, why in found:
        name = f"{task.suite}/{task.id}"
        if examples is None:
            name = missing_name(task)
            if name not in lost:
                report(f"{name:<{width}}{'missing':>9}")
            lost[name] = why
            continue
        metric, *others = numbers_of(task, examples)
        group, _, last = metric.partition("/")
        embedded = evaluator.embed_usable(encoder, examples, skip_broken=skip_broken)
        numbers = evaluator.numbers(encoder, embedded, resamples=resamples)
        done[name] = numbers[group][last] | {
            "name": task.name,
            "metric": task.metric,
            "images": embedded.examples.size,
            "skipped": len(embedded.skipped),
            "unit": "texts" if examples.choices else "images",
            "images_of_the_task": task.images,
            "same_test_set_as_the_paper": task.same,
            "note": task.note,
            **({"paper": published[task.id]} if task.prompts and published else {}),
            "others": {
                other: numbers[group][other]
                for _, _, other in (name.partition("/") for name in others)
            },
            "results": numbers,
        }
        if embedded.examples.class_names and embedded.examples.labels.ndim == 1:
            done[name]["confusions"] = _confusions(encoder, embedded)
        if against is not None:
            done[name]["against"] = compare(
                (encoder, against), embedded, metric, resamples=resamples
            )
        report(line(name, done[name], width))
    if lost:
        logging.warning(
            "%d of %d tasks have no images", len(found) - len(done), len(found)
        )
    suites = {
        suite: averages(
            [done[f"{t.suite}/{t.id}"] for t in asked if f"{t.suite}/{t.id}" in done],
            of=len(tasks.table(suite)),
        )
        for suite in dict.fromkeys(one.task.suite for one in found)
        for asked in [[one.task for one in found if one.task.suite == suite]]
    }
    return {"tasks": done, "missing": lost, "averages": suites}


def _confusions(encoder: Encoder, embedded: evaluator.Embedded) -> list[dict[str, Any]]:
    """Returns the most frequent confusions, with an example's name and thumbnail."""
    examples, embeddings, _ = embedded
    shown = []
    for one in classification.confusions(
        encoder, examples, embeddings, most=_SHOWN_CONFUSIONS
    ):
        (image,) = examples.read(np.array([one["row"]]))
        one["name"] = str(examples.names[one.pop("row")])
        pixels = prepare_image(image, _THUMBNAIL, name=one["name"])
        jpeg = base64.b64encode(simplejpeg.encode_jpeg(pixels)).decode()
        shown.append(one | {"picture": f"data:image/jpeg;base64,{jpeg}"})
    return shown


def compare(
    models: tuple[Encoder, Encoder],
    embedded: evaluator.Embedded,
    metric: str,
    *,
    resamples: int,
) -> dict[str, Any]:
    """Returns the other model's result, and the difference of this model's to it.

    The bootstrap is paired: both models are measured on the same resamples, so images
    that are hard for both do not widen the interval of the difference.

    Args:
      models: this one and the other.
      embedded: the images, embedded by this one.
      metric: name of the result.
      resamples: of the bootstrap.

    Returns:
      "value" of the other; "difference" with its 95% interval.
    """
    other = evaluator.embed_usable(models[1], embedded.examples)
    own, theirs = (
        evaluator.statistic(model, of, metric)
        for model, of in zip(models, (embedded, other), strict=True)
    )
    found = statistics.result(
        f"{metric} against another",
        Statistic(
            lambda weight: own.value(weight) - theirs.value(weight), own.units, None
        ),
        resamples=resamples,
    )
    return {
        "value": statistics.result(metric, theirs, resamples=1).value,
        "difference": found.cell(),
    }


def averages(numbers: Sequence[Mapping[str, Any]], *, of: int) -> dict[str, Any]:
    """Returns means over tasks, each with a 95% interval.

    Tasks are independent, so variances add; a task's variance follows from the width of
    its interval.

    Args:
      numbers: of each task: value, low, high, chance, images and images_of_the_task.
      of: the number of the suite's tasks.

    Returns:
      "tasks" and "of", the numbers of tasks; "other_images", that of tasks with fewer
      or more images than their test sets; "mean", with equal weights, as in the paper;
      "mean_by_images"; "mean_difference" to another model; "mean_above_chance", of
      (value - chance) / (1 - chance) over the tasks with a known chance.
    """
    other = sum(one["images_of_the_task"] not in (0, one["images"]) for one in numbers)
    found: dict[str, Any] = {
        "tasks": len(numbers),
        "of": of,
        "other_images": other,
    }
    if not numbers:
        return found
    value, error = _values(numbers)
    images = np.array([one["images"] for one in numbers], np.float64)
    chance = np.array([one.get("chance", np.nan) for one in numbers])
    found["mean"] = _weighted(value, error, np.ones(len(value)))
    found["mean_by_images"] = _weighted(value, error, images)
    differences = [one["against"]["difference"] for one in numbers if "against" in one]
    if differences:
        found["mean_difference"] = _weighted(
            *_values(differences), np.ones(len(differences))
        )
    known = chance < 1
    if known.any():
        scale = 1 / (1 - chance[known])
        found["mean_above_chance"] = _weighted(
            (value[known] - chance[known]) * scale,
            error[known] * scale,
            np.ones(known.sum()),
        )
    return found


def _values(cells: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values f64[n] and half the widths f64[n] of their intervals."""
    value = np.array([cell["value"] for cell in cells])
    return value, np.array([(cell["high"] - cell["low"]) / 2 for cell in cells])


def _weighted(
    value: np.ndarray, error: np.ndarray, weight: np.ndarray
) -> dict[str, float]:
    weight = weight / weight.sum()
    mean, half = float(weight @ value), float(np.sqrt(((weight * error) ** 2).sum()))
    return {"value": mean, "low": mean - half, "high": mean + half}


def header(title: str, width: int) -> str:
    """Returns the header of `row`s; `width`: of the first column, in characters."""
    return f"{title:<{width}}{'value':>9} {'95% interval':>15} {'chance':>8}"


def line(name: str, number: Mapping[str, Any], width: int) -> str:
    """Returns a task's line of the table, and one for each of its other results.

    * = the test set is not the paper's.
    """
    count, of = number["images"], number["images_of_the_task"]
    part = f"{count:,}" if count == of or not of else f"{count:,} of {of:,}"
    mark = f", {number['skipped']:,} skipped" if number["skipped"] else ""
    mark += "" if number["same_test_set_as_the_paper"] else " *"
    if "paper" in number:
        mark += f", the paper {number['paper']:.1%}"
    if "against" in number:
        by = number["against"]["difference"]
        mark += (
            f", {by['value']:+.2%} ({by['low']:+.2%} to {by['high']:+.2%}) over the"
            " other model"
        )
    return "\n".join(
        [
            f"{row(name, number, width)}  {number['metric']}, {part}{mark}",
            *(row(f"  {k}", cell, width) for k, cell in number["others"].items()),
        ]
    )


def row(title: str, cell: Mapping[str, Any], width: int) -> str:
    """Formats a result in per cent, with its interval and chance if it has them."""
    interval = f"{cell['low']:.1%} -{cell['high']:>6.1%}" if "low" in cell else ""
    chance = f"{cell['chance']:.2%}" if "chance" in cell else ""
    return f"{title:<{width}}{cell['value']:>9.2%} {interval:>15} {chance:>8}"


def skipped(results: Mapping[str, Any]) -> list[str]:
    """Returns lines of text about the broken images that `results` leave out."""
    reasons = results.get("skipped", {}).values()
    if not reasons:
        return []
    lines = [f"  {reason}" for reason in reasons]
    return [f"broken images that were skipped: {len(lines):,}", *lines]


def summary(found: Mapping[str, Any]) -> str:
    """Returns the averages and the missing tasks as lines of text."""
    lines = []
    for suite, means in found["averages"].items():
        over = f"over {means['tasks']} of the {means['of']} tasks of {suite}"
        if means["other_images"]:
            over += f", {means['other_images']} of them"
            over += " with more or fewer images than their test sets"
        is_whole = means["tasks"] == means["of"] and not means["other_images"]
        lines.append(over if is_whole else f"{over} (not comparable)")
        lines += [
            f"  {title:<40}{means[key]['value']:>8.2%}"
            f" {means[key]['low']:>7.1%} -{means[key]['high']:>6.1%}"
            for key, title in TITLES.items()
            if key in means
        ]
    if found["missing"]:
        lines.append("missing:")
        lines += [f"  {name}: {why}" for name, why in found["missing"].items()]
    for name, task in found["tasks"].items():
        lines += [f"{name}: {line}" for line in skipped(task["results"])]
    if not all(t["same_test_set_as_the_paper"] for t in found["tasks"].values()):
        lines.append("*: not the paper's test set")
    noted = {n: t["note"] for n, t in found["tasks"].items() if t["note"]}
    return "\n".join([*lines, *(f"{name}: {note}" for name, note in noted.items())])
