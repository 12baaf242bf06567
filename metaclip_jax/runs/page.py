"""Renders a comparison of runs as one self-contained HTML page."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from metaclip_jax import metric_rows
from metaclip_jax.pages import charts, page
from metaclip_jax.runs import load
from metaclip_jax.runs.load import Run

_COLOURS = ("accent", "second", "ink", "muted")
_PLOTTED = ("loss", "image_accuracy", "text_accuracy", "learning_rate")
_POINTS = 300  # of a curve
_MEANS = 200  # of a run, at most, among them


def render(runs: Sequence[Run]) -> bytes:
    """Returns the page in UTF-8: metrics, curves and differing config keys."""
    scores = dict.fromkeys(
        key
        for run in runs
        for row in run.rows
        for key in row
        if key.startswith("evaluation/")
    )
    plots = [_plot(runs, key) for key in (*_PLOTTED, *scores)]
    return page.render(
        __package__,
        "runs.html",
        title=f"{len(runs)} runs",
        has_charts=True,
        values={
            "runs": runs,
            "metrics": load.metrics(runs),
            "differences": load.differences(runs),
            "plots": [plot for plot in plots if plot],
        },
    )


def _plot(runs: Sequence[Run], key: str) -> dict[str, Any] | None:
    """Returns a chart of a metric with a line per run; None if no run has it."""
    curves = [metric_rows.curves(run.rows, [key], points=_MEANS) for run in runs]
    steps = np.unique(np.concatenate([x for x, _ in curves]))
    if not len(steps):
        return None
    if len(steps) > _POINTS:
        steps = steps[np.linspace(0, len(steps) - 1, _POINTS).round().astype(int)]
    series = []
    for n, (x, y) in enumerate(curves, 1):
        # Runs may log at different steps; a line has a gap beyond its own steps.
        shown = np.full(len(steps), np.nan)
        if len(x):
            shown = np.interp(steps, x, y[:, 0], left=np.nan, right=np.nan)
        series.append(charts.Series(f"[{n}]", shown, _COLOURS[(n - 1) % len(_COLOURS)]))
    return charts.line_chart(
        steps,
        series,
        x_axis=charts.Axis("step", format=charts.COUNT, low=0),
        y_axis=charts.Axis(key, format=charts.SMALL),
        describe=f"{key} over the steps of training.",
    )
