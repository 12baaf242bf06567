"""The report's part on training: curves, scores, held-out images."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.report.load import Evaluation, Run
from metaclip_jax import metric_rows
from metaclip_jax.pages import charts, numbers

_POINTS = 300  # most points of a curve; more are averaged
_DIRECTIONS = {
    "image_to_text": "Image \u2192 text",
    "text_to_image": "Text \u2192 image",
    "zero_shot": "Zero-shot classification",
}


def curves(run: Run) -> dict[str, Any]:
    """Returns charts and figures of a run's metrics; None for what is not logged."""
    batch = int(run.config["global_batch"])
    steps = int(run.rows[-1]["step"])
    _, speed = _curve(run, "examples_per_second", points=len(run.rows))
    x, loss = _curve(run, "loss")
    guess = math.log(batch)
    values: dict[str, Any] = {
        "batch": batch,
        "steps": steps,
        "examples": batch * steps,
        "speed": float(np.median(speed)) if speed.size else None,
        "guess": guess,
        "loss": None,
        "accuracy": _accuracies(run),
        "rate": None,
    }
    if loss.size:
        y = loss[:, 0]
        rules = [charts.Rule("y", guess, f"uniform guess, {guess:.2f}")]
        series = [charts.Series("loss", y, "accent")]
        axis = charts.Axis("loss, nats", format=charts.SMALL, low=0)
        chart = _chart(x, series, axis, rules=rules)
        values["loss"] = {"chart": chart, "first": float(y[0]), "last": float(y[-1])}
    x, rate = _curve(run, "learning_rate")
    if rate.size:
        y = rate[:, 0]
        series = [charts.Series("learning rate", y, "accent")]
        axis = charts.Axis("learning rate", format=charts.SMALL, low=0)
        values["rate"] = {
            "chart": _chart(x, series, axis),
            "peak": float(y.max()),
            "peak_step": float(x[y.argmax()]),
            "last": float(y[-1]),
        }
    return values


def _curve(
    run: Run, *keys: str, points: int = _POINTS
) -> tuple[np.ndarray, np.ndarray]:
    return metric_rows.curves(run.rows, keys, points=points)


def _accuracies(run: Run) -> dict[str, Any] | None:
    names = {
        "image_accuracy": ("image \u2192 text", "accent"),
        "text_accuracy": ("text \u2192 image", "ink"),
    }
    keys = [key for key in names if _curve(run, key)[1].size]
    if not keys:
        return None
    x, y = _curve(run, *keys)
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
    others = sorted(of_model.keys() - _DIRECTIONS.keys())
    groups = []
    for key in [*(key for key in _DIRECTIONS if key in of_model), *others]:
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
