"""Charts as Vega-Lite specifications: arrays in, a dict out.

We use Altair because it has hover and zoom at an acceptable size. A page with the quick
start's entry counts takes 0.93 MB with Altair (0.90 MB of it a script that all charts
share), 4.83 MB with Plotly, and 0.03 MB as Matplotlib's SVG, which has neither.

Colours are CSS variables, so that the page chooses light or dark. Hovering shows the
nearest values, Ctrl and the wheel zoom, dragging pans, a double click resets.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

FONT = (  # not a CSS variable: Vega measures texts on a canvas, which has none
    '-apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, '
    "system-ui, sans-serif"
)
# d3's number formats, for axes and tooltips.
COUNT, SHORT, SHARE, SMALL = ",d", "~s", ".3~p", ".3~g"
_RANKS = 160  # that a log axis shows
_HEIGHT = 340  # px with axes and legend; the width is the container's
_ZOOM = "wheel![event.ctrlKey || event.metaKey]"
_IS_DECADE = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 1e-6"
_CONFIG = {
    "background": "transparent",
    "customFormatTypes": True,
    "font": FONT,
    "padding": {"left": 0, "top": 0, "right": 0, "bottom": 4},
    "view": {"stroke": None},
    "title": {
        "anchor": "start",
        "color": "var(--muted)",
        "fontSize": 12,
        "fontWeight": "normal",
        "frame": "bounds",
        "offset": 14,
    },
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--muted)",
        "titleFontWeight": "normal",
        "titleFontSize": 12,
        "labelFontSize": 12,
        "gridColor": "var(--line)",
        "domainColor": "var(--faint)",
        "tickColor": "var(--line)",
    },
    "axisX": {"grid": False, "titleAnchor": "end", "titlePadding": 6},
    "axisY": {"domain": False, "ticks": False, "labelPadding": 8},
    "legend": {
        "labelColor": "var(--ink)",
        "labelFontSize": 13,
        "symbolSize": 220,
        "symbolStrokeWidth": 2.5,
        "columnPadding": 18,
    },
}


@dataclass(frozen=True)
class Series:
    """One line of a chart; `y` is f64[n], with gaps at values that are not finite.

    `colour` is a variable of the page: ink, accent, second, muted.
    """

    name: str
    y: np.ndarray
    colour: str


@dataclass(frozen=True)
class Rule:
    """A straight line across the chart at one value of an axis ("x" or "y")."""

    axis: str
    value: float
    label: str


@dataclass(frozen=True)
class Axis:
    """An axis: its label, whether it is logarithmic, d3's format of its values.

    `low` and `high`, if given, widen the range beyond the data.
    """

    label: str
    log: bool = False
    format: str = SHORT
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Notes:
    """A word for each x, which the tooltip shows with its own title."""

    title: str
    words: Sequence[str]


def log_ranks(count: int) -> np.ndarray:
    """Returns some ranks of 1..count, i64, about evenly spaced on a log axis."""
    if count < 1:
        return np.zeros(0, np.int64)
    return np.unique(np.round(np.geomspace(1, count, _RANKS)).astype(np.int64))


def line_chart(
    x: np.ndarray,
    series: Sequence[Series],
    *,
    x_axis: Axis,
    y_axis: Axis,
    describe: str,
    rules: Sequence[Rule] = (),
    notes: Notes | None = None,
) -> dict[str, Any]:
    """Returns a chart of lines over x f64[n]; `describe` is for screen readers.

    Values that an axis cannot show (not finite, or zero on a log axis) are gaps.
    """
    rows = _rows(x, series, notes, log_x=x_axis.log, log_y=y_axis.log)
    heights = [row[f"y{i}"] for row in rows for i in range(len(series))]
    y_rules = [rule.value for rule in rules if rule.axis == "y"]
    at_x = alt.X("x:Q", **_axis(x_axis, [row["x"] for row in rows], air=False))
    # The label of y is above the plot, where there is room.
    y_options = _axis(y_axis, [*heights, *y_rules], air=True) | {"title": None}
    colours = alt.Scale(
        domain=[line.name for line in series],
        range=[f"var(--{line.colour})" for line in series],
    )
    # The axis label names a single line; several have a legend above the plot.
    legend = alt.Legend(title=None, orient="top", symbolType="stroke", offset=12)
    layers = [
        alt.Chart()
        .mark_line(
            clip=True,
            strokeWidth=2,
            aria=False,
            strokeCap="round",
            point=len(rows) == 1,  # a line of one point would be invisible
        )
        .encode(
            x=at_x,
            y=alt.Y(f"y{i}:Q", **y_options),
            color=alt.Color(
                "line:N", scale=colours, legend=legend if len(series) > 1 else None
            ),
        )
        .transform_calculate(line=json.dumps(line.name))
        for i, line in enumerate(series)
    ]
    layers += [layer for rule in rules for layer in _rule(rule)]
    layers += _readout(series, at_x, x_axis, y_axis, notes)
    zoom = alt.selection_interval(name="zoom", bind="scales", zoom=_ZOOM)
    layers[0] = layers[0].add_params(zoom)
    chart = alt.LayerChart(layer=layers, data=alt.Data(values=rows))
    return _finished(chart, y_axis.label, describe)


def histogram(
    counts: np.ndarray, edges: np.ndarray, *, label: str, describe: str
) -> dict[str, Any]:
    """Returns a chart of bars, counts i64[n] between edges f64[n + 1]."""
    rows = [
        {"low": float(low), "high": float(high), "count": int(count)}
        for count, low, high in zip(counts, edges, edges[1:], strict=False)
    ]
    bars = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color="var(--accent)", clip=True)
        .encode(
            x=alt.X(
                "low:Q",
                bin="binned",
                title=label,
                axis=alt.Axis(format=COUNT, tickMinStep=1),
            ),
            x2="high:Q",
            y=alt.Y(
                "count:Q",
                title=None,
                axis=alt.Axis(format=COUNT, tickCount=4, tickMinStep=1),
            ),
            tooltip=[
                alt.Tooltip("low:Q", title="from", format=COUNT),
                alt.Tooltip("high:Q", title="to below", format=COUNT),
                alt.Tooltip("count:Q", title="texts", format=COUNT),
            ],
        )
    )
    return _finished(bars, "texts", describe)


def _rows(
    x: np.ndarray,
    series: Sequence[Series],
    notes: Notes | None,
    *,
    log_x: bool,
    log_y: bool,
) -> list[dict[str, Any]]:
    """Returns a row for each x that the axis can show; y is None in a gap."""
    rows = []
    for index, place in enumerate(np.asarray(x, np.float64).tolist()):
        if not math.isfinite(place) or (log_x and place <= 0):
            continue
        row: dict[str, Any] = {"x": place}
        for i, line in enumerate(series):
            value = float(line.y[index])
            shown = math.isfinite(value) and (value > 0 or not log_y)
            row[f"y{i}"] = float(f"{value:.6g}") if shown else None
        if notes:
            row["note"] = notes.words[index]
        rows.append(row)
    return rows


def _axis(axis: Axis, values: Sequence[float | None], *, air: bool) -> dict[str, Any]:
    """Returns the scale and axis of an encoding; the range is never empty.

    `air` leaves room above the highest value, unless `axis.high` is given.
    """
    limits = [limit for limit in (axis.low, axis.high) if limit is not None]
    shown = [value for value in (*values, *limits) if value is not None] or [1.0]
    low, high = min(shown), max(shown)
    if low == high:
        low, high = (low, high * 2) if axis.log else (low - 0.5, high + 0.5)
    elif air and axis.high is None:  # for the label of a rule
        high = high * 1.4 if axis.log else high + 0.06 * (high - low)
    # A log axis has many ticks; emphasise the powers of ten.
    grid = alt.condition(_IS_DECADE, alt.value(1), alt.value(0.35)) if axis.log else 1
    nice = air and axis.high is None and not axis.log
    return {
        "title": axis.label,
        "scale": alt.Scale(
            type="log" if axis.log else "linear", domain=[low, high], nice=nice
        ),
        "axis": alt.Axis(format=axis.format, tickCount=4, gridOpacity=grid),
    }


def _rule(rule: Rule) -> list[alt.Chart]:
    """Returns the dashed line, and its label at the line's end."""
    place = {rule.axis: alt.datum(rule.value)}
    base = alt.Chart(alt.Data(values=[{}]))
    line = base.mark_rule(
        color="var(--muted)", strokeDash=[4, 4], clip=True, aria=False
    )
    words = base.mark_text(
        text=rule.label,
        color="var(--muted)",
        fontSize=12,
        clip=True,
        dx=0 if rule.axis == "y" else 6,
        dy=-8 if rule.axis == "y" else 0,
        align="right" if rule.axis == "y" else "left",
    )
    other = {"x": alt.value("width")} if rule.axis == "y" else {"y": alt.value(8)}
    return [line.encode(**place), words.encode(**place, **other)]


def _readout(
    series: Sequence[Series],
    at_x: alt.X,
    x_axis: Axis,
    y_axis: Axis,
    notes: Notes | None,
) -> list[alt.Chart]:
    """Returns a line at the x nearest to the pointer, with a dot per series."""
    hover = alt.selection_point(
        name="hover",
        encodings=["x"],
        nearest=True,
        on="pointermove",
        clear="pointerout",
        empty=False,
    )
    tooltip = [alt.Tooltip("x:Q", title=x_axis.label, format=_exact(x_axis))]
    tooltip += [
        alt.Tooltip(f"y{i}:Q", title=line.name, format=_exact(y_axis))
        for i, line in enumerate(series)
    ]
    if notes:
        # Without a format function, Vega-Lite 6 shows this text as `undefined`.
        tooltip.append(
            alt.Tooltip("note:N", title=notes.title, formatType="trim", format="")
        )
    base = alt.Chart()
    line = (
        base.mark_rule(color="var(--faint)", aria=False)
        .encode(
            x=at_x,
            opacity=alt.condition(hover, alt.value(1), alt.value(0)),
            tooltip=tooltip,
        )
        .add_params(hover)
    )
    dots = [
        base.mark_point(
            color=f"var(--{one.colour})", filled=True, size=50, clip=True, aria=False
        ).encode(
            x=at_x,
            y=f"y{i}:Q",
            opacity=alt.condition(hover, alt.value(1), alt.value(0)),
        )
        for i, one in enumerate(series)
    ]
    return [line, *dots]


def _exact(axis: Axis) -> str:
    """Returns the tooltip's format of a value: 2,172 where the axis has 2k."""
    return ",.6~r" if axis.format == SHORT else axis.format


def _finished(
    chart: alt.Chart | alt.LayerChart, title: str, describe: str
) -> dict[str, Any]:
    spec: dict[str, Any] = chart.properties(
        title=title,
        width="container",
        height=_HEIGHT,
        autosize=alt.AutoSizeParams(type="fit", contains="padding"),
        description=describe,
    ).to_dict()
    del spec["$schema"]  # a URL; pages must have none
    return spec | {"config": _CONFIG}
