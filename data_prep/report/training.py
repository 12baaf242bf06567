"""The report's part on training: curves, scores, held-out images."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.report.load import Evaluation, Run
from metaclip_jax.pages import charts, numbers

_POINTS = 300  # most points of a curve; more are averaged
_DIRECTIONS = {
    "image_to_text": "Image \u2192 text",
    "text_to_image": "Text \u2192 image",
    "zero_shot": "Zero-shot classification",
}


def averaged(
    steps: np.ndarray, values: np.ndarray, *, points: int = _POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """Reduces curves f64[n] or f64[n, lines] to `points` means of adjacent steps.

    NaN is left out of a mean; a mean of NaNs alone is NaN.
    """
    shown = np.isfinite(values.reshape(len(values), -1)).any(axis=1)
    steps, values = steps[shown].astype(np.float64), values[shown]
    if len(steps) <= points:
        return steps, values
    means = []
    runs = np.array_split(np.arange(len(steps)), points)
    for run in runs:
        known = np.isfinite(values[run])
        sums = np.where(known, values[run], 0).sum(axis=0)
        means.append(np.where(known.any(axis=0), sums, np.nan) / known.sum(0).clip(1))
    # A mean is at its last step, so that curves end at the last step.
    return np.array([steps[run[-1]] for run in runs]), np.array(means)


def curves(run: Run) -> dict[str, Any]:
    """Returns charts and figures of a run's metrics; None for what is not logged."""
    batch = int(run.config["global_batch"])
    steps = int(run.steps[-1])
    speed = _finite(run, "examples_per_second")
    loss, rate = _finite(run, "loss"), _finite(run, "learning_rate")
    guess = math.log(batch)
    values: dict[str, Any] = {
        "batch": batch,
        "steps": steps,
        "examples": batch * steps,
        "speed": float(np.median(speed[1])) if speed else None,
        "guess": guess,
        "loss": None,
        "accuracy": _accuracies(run),
        "rate": None,
    }
    if loss:
        x, y = averaged(*loss)
        rule = charts.Rule("y", guess, f"uniform guess, {guess:.2f}")
        series = [charts.Series("loss", y, "accent")]
        chart = _chart(
            x,
            series,
            charts.Axis("loss, nats", format=charts.SMALL, low=0),
            rules=[rule],
        )
        values["loss"] = {"chart": chart, "first": float(y[0]), "last": float(y[-1])}
    if rate:
        x, y = averaged(*rate)
        series = [charts.Series("learning rate", y, "accent")]
        axis = charts.Axis("learning rate", format=charts.SMALL, low=0)
        values["rate"] = {
            "chart": _chart(x, series, axis),
            "peak": float(y.max()),
            "peak_step": float(x[y.argmax()]),
            "last": float(y[-1]),
        }
    return values


def _finite(run: Run, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the finite values of a metric with their steps, or None."""
    values = run.metrics.get(key, np.full(len(run.steps), np.nan))
    shown = np.isfinite(values)
    return (run.steps[shown], values[shown]) if shown.any() else None


def _accuracies(run: Run) -> dict[str, Any] | None:
    names = {
        "image_accuracy": ("image \u2192 text", "accent"),
        "text_accuracy": ("text \u2192 image", "ink"),
    }
    keys = [key for key in names if _finite(run, key)]
    if not keys:
        return None
    x, y = averaged(run.steps, np.stack([run.metrics[key] for key in keys], axis=1))
    series = [
        charts.Series(names[k][0], y[:, i], names[k][1]) for i, k in enumerate(keys)
    ]
    axis = charts.Axis("in-batch accuracy", format=charts.SHARE, low=0)
    ends = [(line.name, float(line.y[np.isfinite(line.y)][-1])) for line in series]
    return {"chart": _chart(x, series, axis), "ends": ends}


def _chart(
    x: np.ndarray,
    series: Sequence[charts.Series],
    y_axis: charts.Axis,
    *,
    rules: Sequence[charts.Rule] = (),
) -> dict[str, Any]:
    x_axis = charts.Axis("step", format=charts.COUNT, low=0)
    describe = f"{y_axis.label} over the steps of training."
    return charts.line_chart(
        x, series, x_axis=x_axis, y_axis=y_axis, rules=rules, describe=describe
    )


def _is_measure(value: object) -> bool:
    """Whether this part of an evaluation is a score with its interval."""
    return isinstance(value, Mapping) and {"value", "low", "high", "chance"} <= set(
        value
    )


def scores(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the scores on held-out images beside those of the untrained model.

    `groups` are (title, rows) with rows (name, model, untrained or None): the retrieval
    directions first, then other evaluations.
    """
    of_model = evaluation.scores["model"]
    order = list(_DIRECTIONS)
    keys = sorted(
        of_model, key=lambda k: (order.index(k) if k in order else len(order), k)
    )
    groups = []
    for key in keys:
        measures = of_model[key]
        # R@1 before R@5 before R@10.
        shown = sorted(
            (name for name in measures if _is_measure(measures[name])),
            key=lambda name: (len(name), name),
        )
        title = _DIRECTIONS.get(key, key.replace("_", " "))
        if "classes" in measures:
            title += f", {numbers.count(measures['classes'])} classes"
        rows = [
            (name.replace("_", " "), measures[name], _untrained(evaluation, key, name))
            for name in shown
        ]
        groups += [(title, rows)] if rows else []
    return {
        "step": evaluation.step,
        "candidates": evaluation.scores["candidates"],
        "best": of_model["image_to_text"]["R@1"],
        "start": _untrained(evaluation, "image_to_text", "R@1"),
        "groups": groups,
    }


def _untrained(
    evaluation: Evaluation, key: str, name: str
) -> Mapping[str, float] | None:
    """Returns the untrained model's score of a measure, None if not measured."""
    try:
        score: Mapping[str, float] = evaluation.scores["untrained"][key][name]
    except KeyError:
        return None
    return score


def cards(
    top5: Sequence[Mapping[str, Any]], pictures: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Returns held-out images with the five texts that the model ranks highest."""
    return [
        {
            "picture": pictures.get(str(item["image_id"]), ""),
            "text": str(item["text"]),
            "top5": item["top5"],
            "first": bool(item["top5"]) and item["top5"][0]["right"],
            "among": any(best["right"] for best in item["top5"]),
        }
        for item in top5
    ]
