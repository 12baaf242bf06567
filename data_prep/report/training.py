"""The sections on the model: training curves, evaluation, held-out images."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from data_prep.report import charts, numbers
from data_prep.report.figure import (
    FULL_WIDTH,
    HALF_WIDTH,
    figure,
    lead,
    missing,
    picture,
    scroll,
    section,
    two_widths,
)
from data_prep.report.load import Evaluation, Run
from data_prep.report.markup import Markup, element, stranger

_POINTS = 300  # of a curve; more are averaged
_DIRECTIONS = {
    "image_to_text": "Image \u2192 text",
    "text_to_image": "Text \u2192 image",
    "zero_shot": "Zero-shot classification",
}


def averaged(
    steps: np.ndarray, values: np.ndarray, *, points: int = _POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """Thins a curve to at most `points` by means over equal runs of steps."""
    shown = np.isfinite(values)
    steps, values = steps[shown].astype(np.float64), values[shown]
    if len(steps) <= points:
        return steps, values
    runs = np.array_split(np.arange(len(steps)), points)
    # The last step stands for its run, so that curves end where training did.
    return (
        np.array([steps[run[-1]] for run in runs]),
        np.array([values[run].mean() for run in runs]),
    )


def training_section(run: Run | None) -> Markup:
    """Loss, in-batch accuracy and learning rate over the steps."""
    if run is None:
        return section(
            "Training",
            missing(
                "This report is about curation only: there is no training run yet. "
                "Train with ",
                element("code", "python -m metaclip_jax.train"),
                " and make the report again with its workdir.",
            ),
            name="training",
        )
    halves = [_accuracy_figure(run), _learning_rate_figure(run)]
    return section(
        "Training",
        _loss_figure(run),
        element("div", *halves, class_="pair"),
        name="training",
    )


def _curve(
    run: Run, key: str, name: str, style: str, *, label_at: float, below: bool = False
) -> list[charts.Series]:
    if key not in run.metrics or not np.isfinite(run.metrics[key]).any():
        return []
    steps, values = averaged(run.steps, run.metrics[key])
    return [charts.Series(name, steps, values, style, label_at, below)]


def _draw(
    series: Sequence[charts.Series],
    y: charts.Axis,
    *,
    wide: int,
    height: int,
    describe: str,
    rules: Sequence[charts.Rule] = (),
) -> Markup:
    draw = partial(
        charts.line_chart,
        series,
        height=height,
        x=charts.Axis("step", write=numbers.count, low=0),
        y=y,
        rules=rules,
        describe=describe,
    )
    return two_widths(draw, wide=wide)


def _loss_figure(run: Run) -> Markup:
    series = _curve(run, "loss", "loss", "accent", label_at=0.6)
    if not series:
        return missing("No step of this run has a finite loss.")
    batch = int(run.config["global_batch"])
    guess = math.log(batch)
    first, last = (float(series[0].y[index]) for index in (0, -1))
    caption = (
        f"Symmetric contrastive loss in nats, from {first:.2f} to {last:.2f} at step "
        f"{numbers.count(series[0].x[-1])}. Guessing uniformly among the "
        f"{numbers.count(batch)} texts of a batch gives ln {numbers.count(batch)} = "
        f"{guess:.2f}."
    )
    drawing = _draw(
        series,
        charts.Axis("loss, nats", low=0),
        wide=FULL_WIDTH,
        height=320,
        rules=[charts.Rule("y", guess, f"uniform guess, {guess:.2f}")],
        describe=caption,
    )
    return figure(drawing, caption, title="Loss")


def _accuracy_figure(run: Run) -> Markup:
    keys = (
        ("image_accuracy", "image \u2192 text", "accent", False),
        ("text_accuracy", "text \u2192 image", "ink", True),
    )
    series = [
        line
        for key, name, style, below in keys
        for line in _curve(run, key, name, style, label_at=0.62, below=below)
    ]
    if not series:
        return missing("This run has no accuracies.")
    ends = " and ".join(
        f"{numbers.percent(float(line.y[-1]))} {line.name}" for line in series
    )
    caption = (
        f"Share of a batch whose own partner scores highest: {ends} at the end. It is "
        "measured on training batches; what the model has not seen is below."
    )
    drawing = _draw(
        series,
        charts.Axis("in-batch accuracy", write=numbers.axis_percent, low=0),
        wide=HALF_WIDTH,
        height=280,
        describe=caption,
    )
    return figure(drawing, caption, title="Accuracy in the batch")


def _learning_rate_figure(run: Run) -> Markup:
    series = _curve(run, "learning_rate", "", "accent", label_at=0.5)
    if not series:
        return missing("This run has no learning rates.")
    rates, steps = series[0].y, series[0].x
    peak = int(rates.argmax())
    caption = (
        f"It rises to {numbers.short(float(rates[peak]))} at step "
        f"{numbers.count(steps[peak])} and ends at "
        f"{numbers.short(float(rates[-1]))}."
    )
    drawing = _draw(
        series,
        charts.Axis("learning rate", low=0),
        wide=HALF_WIDTH,
        height=280,
        describe=caption,
    )
    return figure(drawing, caption, title="Learning rate")


def is_measure(value: object) -> bool:
    """Whether this part of an evaluation is one score with its interval."""
    return isinstance(value, Mapping) and {"value", "low", "high", "chance"} <= set(
        value
    )


def evaluation_section(evaluation: Evaluation | None) -> Markup:
    """The scores on held-out images beside chance and the untrained model."""
    if evaluation is None:
        return section(
            "Evaluation",
            missing(
                "This run has not been evaluated yet. Run ",
                element("code", "python -m metaclip_jax.evaluate"),
                " and make the report again.",
            ),
            name="evaluation",
        )
    scores = evaluation.scores
    names = ("", "model", "\u00d7 chance", "95% interval", "chance", "untrained")
    header = [element("th", name, scope="col") for name in names]
    scale = element("div", element("span", "0"), element("span", "100%"))
    plot = element("th", scale, class_="plot", scope="col")
    bodies = []
    for key, measures in scores["model"].items():
        rows = _direction_rows(key, measures, scores)
        if rows:
            bodies.append((key, rows))
    # The directions in their usual order, then what else an evaluation may hold.
    order = list(_DIRECTIONS)
    bodies.sort(key=lambda b: (order.index(b[0]) if b[0] in order else 99, b[0]))
    table = element(
        "table",
        element("thead", element("tr", *header, plot)),
        *(element("tbody", *rows) for _, rows in bodies),
        class_="evaluation",
    )
    return section(
        "Evaluation",
        lead(
            f"The model at step {numbers.count(evaluation.step)} on "
            f"{numbers.count(scores['candidates'])} held-out images and their texts. "
            "R@k is the share of queries whose right answer is among the first k of "
            "all candidates."
        ),
        figure(
            scroll(table, label="Evaluation scores"),
            _evaluation_caption(scores),
            title="Scores",
        ),
        name="evaluation",
    )


def _direction_rows(
    key: str, measures: Mapping[str, Any], scores: Mapping[str, Any]
) -> list[Markup]:
    shown = [name for name in measures if is_measure(measures[name])]
    if not shown:
        return []
    title = _DIRECTIONS[key] if key in _DIRECTIONS else key.replace("_", " ")
    if "classes" in measures:
        title += f", {numbers.count(measures['classes'])} classes"
    rows = [
        element(
            "tr",
            element("th", stranger(title), scope="rowgroup", colspan=7),
            class_="group",
        )
    ]
    # R@1 before R@5 before R@10.
    for name in sorted(shown, key=lambda word: (len(word), word)):
        model = measures[name]
        untrained = _untrained(scores, key, name)
        cells = [
            numbers.times(model["value"], model["chance"]),
            f"{numbers.percent(model['low'])} \u2013 {numbers.percent(model['high'])}",
            numbers.percent(model["chance"]),
            numbers.percent(untrained["value"]) if untrained else "\u2013",
        ]
        marks = [(float(model["chance"]), "chance")]
        if untrained:
            marks.append((float(untrained["value"]), "untrained"))
        rows.append(
            element(
                "tr",
                element("th", stranger(name), scope="row"),
                element("td", numbers.percent(model["value"]), class_="strong"),
                *(element("td", cell) for cell in cells),
                element("td", charts.interval(**_interval(model), marks=marks)),
            )
        )
    return rows


def _untrained(
    scores: Mapping[str, Any], key: str, name: str
) -> Mapping[str, float] | None:
    """The untrained model's score of one measure, where it was taken."""
    try:
        return scores["untrained"][key][name]
    except KeyError:
        return None


def _interval(measure: Mapping[str, float]) -> dict[str, float]:
    return {key: float(measure[key]) for key in ("value", "low", "high")}


def _evaluation_caption(scores: Mapping[str, Any]) -> str:
    best = scores["model"]["image_to_text"]["R@1"]
    caption = (
        f"Image \u2192 text R@1 is {numbers.percent(best['value'])} (95% interval "
        f"{numbers.percent(best['low'])} to {numbers.percent(best['high'])}), "
        f"{numbers.times(best['value'], best['chance'])} chance"
    )
    start = _untrained(scores, "image_to_text", "R@1")
    if start:
        value = numbers.percent(start["value"])
        caption += f"; the same model before training reaches {value}"
    return (
        f"{caption}. On the right: dot and bar are the model and its interval, the "
        "dark tick is chance, the grey one the untrained model."
    )


def held_out_section(
    top5: Sequence[Mapping[str, Any]], pictures: Mapping[str, str]
) -> Markup:
    """Held-out images with the five texts that the model likes best."""
    first = sum(bool(_places(item)[:1] == [0]) for item in top5)
    among = sum(bool(_places(item)) for item in top5)
    return section(
        "Held-out images",
        lead(
            f"The first {numbers.count(len(top5))} held-out images, not chosen by "
            f"hand, with the five best of all held-out texts. A text of its own is "
            f"first for {numbers.count(first)} of them and among the five for "
            f"{numbers.count(among)}; such a text carries a check mark."
        ),
        element("ul", *(_card(item, pictures) for item in top5), class_="grid-cards"),
        name="held-out",
    )


def _places(item: Mapping[str, Any]) -> list[int]:
    """The places, from 0, of the image's own texts among the five."""
    return [place for place, best in enumerate(item["top5"]) if best["right"]]


def _card(item: Mapping[str, Any], pictures: Mapping[str, str]) -> Markup:
    places = _places(item)
    lines = []
    for place, best in enumerate(item["top5"]):
        right = place in places
        mark = (
            [element("span", "\u2713", aria_hidden="true")]
            if right
            else [element("span", place + 1)]
        )
        words = [stranger(best["text"], limit=80)]
        if right:
            words.append(element("span", " (right)", class_="unseen"))
        lines.append(
            element(
                "li",
                *mark,
                element("span", *words),
                element("span", f"{float(best['score']):.2f}", class_="score"),
                class_="right" if right else None,
            )
        )
    note = [] if places else [element("p", "Not among the first five.", class_="note")]
    image_id = str(item["image_id"])
    return element(
        "li",
        picture(pictures[image_id] if image_id in pictures else ""),
        element(
            "div",
            element("h3", stranger(item["text"], limit=100)),
            element("ol", *lines),
            *note,
        ),
        class_="card",
    )
