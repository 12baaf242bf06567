"""Charts as SVG: arrays in, one string out.

Nothing here knows what is drawn. Colours are CSS classes (`accent`, `ink`, `muted`,
`faint`), so that the page decides on light and dark. A strip under the pointer shows
the values below it, by CSS alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.report import numbers
from data_prep.report.markup import Markup, element, join

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 42, 40  # px around the plot
_LABEL_GAP = 16  # px between two names of lines
_LETTER = 7.2  # px, about, of a name
_STRIP = 12  # px of width that answer to the pointer together


@dataclass(frozen=True)
class Series:
    """One line. x f64[n] ascending, y f64[n]; points that are not finite are gaps.

    `style` is a CSS class of lines; `label_at` in [0, 1] is where along the plot's
    width the name stands, `below` puts it under the line.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str
    label_at: float = 1.0
    below: bool = False


@dataclass(frozen=True)
class Rule:
    """A straight line across the plot at one value of an axis ("x" or "y")."""

    axis: str
    value: float
    label: str


@dataclass(frozen=True)
class Axis:
    """One axis: its words, whether it is logarithmic, how its values are written.

    `low` and `high` widen the range beyond the data where they are given.
    """

    label: str
    log: bool = False
    write: Callable[[float], str] = numbers.short
    low: float | None = None
    high: float | None = None


def ticks(low: float, high: float, *, log: bool, about: int = 5) -> list[float]:
    """Round values inside [low, high]: even steps, or decades on a log axis."""
    if log:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        if last - first >= 2:
            apart = math.ceil((last - first) / about)
            return [10.0**power for power in range(first, last + 1, apart)]
        values = [
            mantissa * 10.0**power
            for power in range(first - 1, last + 1)
            for mantissa in (1, 2, 5)
        ]
        return [value for value in values if low <= value <= high]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ranks(count: int, *, points: int = 240) -> np.ndarray:
    """Ranks 1..count, about evenly spaced on a log axis: i64[<= points]."""
    if count < 1:
        return np.zeros(0, np.int64)
    return np.unique(np.round(np.geomspace(1, count, points)).astype(np.int64))


def line_chart(
    series: Sequence[Series],
    *,
    width: int,
    height: int,
    x: Axis,
    y: Axis,
    rules: Sequence[Rule] = (),
    describe: str = "",
) -> Markup:
    """Lines over two axes as an <svg> of `width` x `height` px.

    `describe` is what a screen reader says. Values that an axis cannot show (zero on
    a log axis, NaN) interrupt their line.
    """
    drawn = [_drawable(line, x, y) for line in series]
    x_range = _range([line.x for line in drawn], x, air=False)
    y_rules = [np.array([rule.value]) for rule in rules if rule.axis == "y"]
    y_range = _range([*(line.y for line in drawn), *y_rules], y, air=True)
    right, bottom = width - _RIGHT, height - _BOTTOM
    to_x = _scale(x_range, (_LEFT, right), log=x.log)
    to_y = _scale(y_range, (bottom, _TOP), log=y.log)
    parts = [
        _axes(x, y, x_range, y_range, to_x, to_y, width=width, height=height),
        *(_rule(rule, to_x, to_y, width=width, height=height) for rule in rules),
        *(_path(line, to_x, to_y) for line in drawn),
        _labels(drawn, to_x, to_y, width=width, height=height),
        _readouts(drawn, x, y, to_x, to_y, width=width, height=height),
    ]
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=describe,
    )


def bar(*, start: float, length: float, style: str, track: float = 1.0) -> Markup:
    """One horizontal bar of a table cell; all three are shares of the cell's width.

    `track` is how far the pale bar behind reaches. What is more than nothing is at
    least visible.
    """
    return element(
        "svg",
        element("rect", class_="track", width=_share(track), height="100%"),
        element(
            "rect",
            class_=style,
            x=_share(start),
            width=_share(max(length, 0.002) if length else 0),
            height="100%",
        ),
        class_="bar",
        aria_hidden="true",
    )


def interval(
    *, value: float, low: float, high: float, marks: Sequence[tuple[float, str]]
) -> Markup:
    """A dot with its interval on an axis from 0 to 1, as wide as its cell.

    `marks` are further values with their CSS class.
    """
    return element(
        "svg",
        element("line", class_="faint", x1="0", x2="100%", y1="50%", y2="50%"),
        *(
            element(
                "line", class_=style, x1=_share(at), x2=_share(at), y1="15%", y2="85%"
            )
            for at, style in marks
        ),
        element(
            "line", class_="accent", x1=_share(low), x2=_share(high), y1="50%", y2="50%"
        ),
        element("circle", class_="accent", cx=_share(value), cy="50%", r="4.5"),
        class_="interval",
        aria_hidden="true",
    )


def _share(value: float) -> str:
    return f"{100 * value:.3f}%"


def _drawable(line: Series, x: Axis, y: Axis) -> Series:
    """The same line with NaN wherever an axis cannot show the point."""
    xs = np.asarray(line.x, np.float64).copy()
    ys = np.asarray(line.y, np.float64).copy()
    shown = np.isfinite(xs) & np.isfinite(ys)
    if x.log:
        shown &= xs > 0
    if y.log:
        shown &= ys > 0
    xs[~shown] = ys[~shown] = np.nan
    return Series(line.name, xs, ys, line.style, line.label_at, line.below)


def _range(
    arrays: Sequence[np.ndarray], axis: Axis, *, air: bool
) -> tuple[float, float]:
    """The values that an axis spans, never an empty span.

    `air` leaves room for a name above the highest value, unless `axis.high` is given.
    """
    limits = [limit for limit in (axis.low, axis.high) if limit is not None]
    values = np.concatenate([*arrays, np.array(limits, np.float64)])
    values = values[np.isfinite(values) & ((values > 0) | (not axis.log))]
    if not values.size:
        return (1.0, 10.0) if axis.log else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if low == high:
        return (low / 2, high * 2) if axis.log else (low - 0.5, high + 0.5)
    if air and axis.high is None:
        high = high * 1.4 if axis.log else high + 0.06 * (high - low)
    return low, high


def _scale(
    values: tuple[float, float], pixels: tuple[float, float], *, log: bool
) -> Callable[[float], float]:
    low, high = (math.log10(v) for v in values) if log else values
    start, end = pixels

    def place(value: float) -> float:
        position = math.log10(value) if log else value
        return start + (end - start) * (position - low) / (high - low)

    return place


def _axes(
    x: Axis,
    y: Axis,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    *,
    width: int,
    height: int,
) -> Markup:
    """Ticks, their values, the horizontal grid and the two axis labels."""
    right, bottom = width - _RIGHT, height - _BOTTOM
    parts = [element("text", y.label, class_="axis", x=0, y=12)]
    for value in ticks(*y_range, log=y.log, about=4):
        at = f"{to_y(value):.1f}"
        parts.append(element("line", class_="grid", x1=_LEFT, x2=right, y1=at, y2=at))
        place = {"x": _LEFT - 8, "y": at, "dy": "0.35em", "text_anchor": "end"}
        parts.append(element("text", y.write(value), **place))
    for value in ticks(*x_range, log=x.log, about=max(4, width // 110)):
        at = f"{to_x(value):.1f}"
        parts.append(
            element("line", class_="tick", x1=at, x2=at, y1=bottom, y2=bottom + 5)
        )
        place = {"x": at, "y": bottom + 19, "text_anchor": "middle"}
        parts.append(element("text", x.write(value), **place))
    parts.append(
        element("line", class_="base", x1=_LEFT, x2=right, y1=bottom, y2=bottom)
    )
    place = {"x": right, "y": height - 3, "text_anchor": "end"}
    parts.append(element("text", x.label, class_="axis", **place))
    return join(parts)


def _rule(
    rule: Rule,
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    *,
    width: int,
    height: int,
) -> Markup:
    right, bottom = width - _RIGHT, height - _BOTTOM
    if rule.axis == "y":
        at = to_y(rule.value)
        ends = {"x1": _LEFT, "x2": right, "y1": f"{at:.1f}", "y2": f"{at:.1f}"}
        place = {"x": right, "y": f"{at - 6:.1f}", "text_anchor": "end"}
    else:
        at = to_x(rule.value)
        ends = {"x1": f"{at:.1f}", "x2": f"{at:.1f}", "y1": _TOP, "y2": bottom}
        near_end = at > width - 90
        place = {
            "x": f"{at - 6 if near_end else at + 6:.1f}",
            "y": _TOP + 10,
            "text_anchor": "end" if near_end else "start",
        }
    label = element("text", rule.label, class_="name rule", **place)
    return join([element("line", class_="rule", **ends), label])


def _path(
    line: Series, to_x: Callable[[float], float], to_y: Callable[[float], float]
) -> Markup:
    """The line itself; a point alone between gaps is drawn as a dot."""
    commands, pen_down = [], False
    for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True):
        if math.isnan(y):
            pen_down = False
            continue
        at = f"{to_x(x):.1f} {to_y(y):.1f}"
        # A path that only moves shows nothing; with round caps "h0" is a dot.
        commands.append(f"L{at}" if pen_down else f"M{at}h0")
        pen_down = True
    return element("path", class_=f"line {line.style}", d="".join(commands))


def _labels(
    drawn: Sequence[Series],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    *,
    width: int,
    height: int,
) -> Markup:
    """Names above or below their lines, pushed apart where they would meet."""
    wanted = []
    for line in drawn:
        shown = np.flatnonzero(np.isfinite(line.y))
        if not shown.size or not line.name:
            continue
        pixels = np.array([to_x(value) for value in line.x[shown]])
        target = _LEFT + line.label_at * (width - _RIGHT - _LEFT)
        index = shown[np.abs(pixels - target).argmin()]
        x = to_x(float(line.x[index]))
        length = _LETTER * len(line.name)
        ends = (x - length, x) if x > width / 2 else (x, x + length)
        # The line passes under the whole name, which must clear all of it.
        heights = np.array([to_y(value) for value in line.y[shown]])
        passing = (pixels >= ends[0]) & (pixels <= ends[1])
        near = np.append(heights[passing], np.interp(ends, pixels, heights))
        under = near.max() + 18
        fits = line.below and under < height - _BOTTOM - 4
        wanted.append((under if fits else near.min() - 8, x, line))
    parts: list[Markup] = []
    previous: dict[bool, float] = {}
    for y, x, line in sorted(wanted, key=lambda item: item[0]):
        late = x > width / 2
        y = max(y, _TOP + 2, previous.get(late, -math.inf) + _LABEL_GAP)
        previous[late] = y
        parts.append(
            element(
                "text",
                line.name,
                class_=f"name {line.style}",
                x=f"{x:.1f}",
                y=f"{y:.1f}",
                text_anchor="end" if late else "start",
            )
        )
    return join(parts)


def _readouts(
    drawn: Sequence[Series],
    x: Axis,
    y: Axis,
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    *,
    width: int,
    height: int,
) -> Markup:
    """Strips across the plot, each with the values nearest to its middle."""
    right, bottom = width - _RIGHT, height - _BOTTOM
    places = [
        (line, np.array([math.nan if math.isnan(v) else to_x(v) for v in line.x]))
        for line in drawn
        if np.isfinite(line.y).any()
    ]
    parts = []
    for left in range(_LEFT, right, _STRIP):
        middle = left + _STRIP / 2
        words, dots, at_x = [], [], None
        for line, pixels in places:
            distance = np.where(np.isfinite(line.y), np.abs(pixels - middle), np.inf)
            index = int(distance.argmin())
            # Lines drawn with straight segments may have points far apart.
            inside = np.nanmin(pixels) - _STRIP <= middle <= np.nanmax(pixels) + _STRIP
            if not inside or not math.isfinite(distance[index]):
                continue
            at_x = float(line.x[index]) if at_x is None else at_x
            value = float(line.y[index])
            words.append(f"{line.name} {y.write(value)}".strip())
            dots.append(
                element(
                    "circle",
                    class_=line.style,
                    cx=f"{pixels[index]:.1f}",
                    cy=f"{to_y(value):.1f}",
                    r=3.5,
                )
            )
        if at_x is None:
            continue
        words.insert(0, x.write(at_x))
        strip = {"x": left, "y": _TOP - 6, "width": _STRIP, "height": bottom - _TOP + 6}
        place = {"x": right, "y": 29, "text_anchor": "end"}
        shown = element("g", *dots, element("text", " \u00b7 ".join(words), **place))
        parts.append(element("g", element("rect", **strip), shown, class_="strip"))
    return join(parts)
