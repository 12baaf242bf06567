"""The sections on curation: the funnel, the entry counts, head and tail."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from data_prep.report import charts, numbers
from data_prep.report.examples import EntryExamples
from data_prep.report.figure import (
    HALF_WIDTH,
    figure,
    lead,
    missing,
    picture,
    scroll,
    section,
    two_widths,
)
from data_prep.report.load import EntryCounts, Stage
from data_prep.report.markup import Markup, element, escape, join, stranger

MAX_METADATA = 6  # that get figures of their own; the worldwide set has hundreds
_MAX_ROWS = 8  # languages and text sources


def words(name: str) -> str:
    """A stage or reason as words: `text_too_long` -> "text too long"."""
    return name.replace("_", " ")


def funnel_section(stages: Sequence[Stage], card: Mapping[str, Any]) -> Markup:
    """Where the texts went, stage by stage and reason by reason."""
    if not stages:
        return section(
            "Where the texts went",
            missing("The data card has no funnel."),
            name="funnel",
        )
    columns = [element("col", class_=name) for name in ("what", "", "count", "share")]
    table = element(
        "table",
        element("colgroup", *columns),
        element(
            "thead",
            element(
                "tr",
                element("th", "stage"),
                element("th", class_="bars"),
                element("th", "count"),
                element("th", "share"),
            ),
        ),
        element("tbody", *_funnel_rows(stages)),
        class_="funnel",
    )
    parts = [figure(table, _funnel_caption(stages), title="Funnel")]
    shares = [
        _share_figure(title, card[key])
        for title, key in (
            ("Languages of the kept texts", "languages"),
            ("Where the kept texts stood", "text_sources"),
        )
        if key in card and card[key]
    ]
    if shares:
        parts.append(element("div", *shares, class_="pair"))
    return section("Where the texts went", *parts, name="funnel")


def _funnel_rows(stages: Sequence[Stage]) -> list[Markup]:
    """A row for each stage and its losses, on one scale for each unit.

    The losses continue where the stage's bar ends, so they fill what it received.
    """
    widest: dict[str, int] = {}
    for stage in stages:
        widest[stage.unit] = max(widest.get(stage.unit, 1), stage.received)
    rows = []
    for stage in stages:
        whole = widest[stage.unit]
        unit = "" if stage.unit == "texts" else f" ({stage.unit})"
        name = words(stage.name) + unit
        drawn = charts.bar(
            start=0,
            length=stage.passed / whole,
            style="out",
            track=stage.received / whole,
        )
        rows.append(_funnel_row("stage", name, drawn, stage.passed, stage.received))
        start = stage.passed / whole
        for reason, lost in stage.drops:
            drawn = charts.bar(start=start, length=lost / whole, style="lost", track=0)
            start += lost / whole
            rows.append(_funnel_row("lost", words(reason), drawn, lost, stage.received))
    return rows


def _funnel_row(
    style: str, name: str, drawn: Markup, count: int, received: int
) -> Markup:
    sign = "\u2212" if style == "lost" else ""
    return element(
        "tr",
        element("th", stranger(name, limit=60), scope="row"),
        element("td", drawn, class_="bars"),
        element("td", sign + numbers.count(count)),
        element("td", numbers.ratio(count, received)),
        class_=style,
    )


def _funnel_caption(stages: Sequence[Stage]) -> Markup:
    texts = [stage for stage in stages if stage.unit == "texts"] or list(stages)
    losses = [
        (lost, words(reason), words(stage.name))
        for stage in texts
        for reason, lost in stage.drops
    ]
    caption = (
        f"Of {numbers.count(texts[0].received)} texts found on the pages, "
        f"{numbers.count(texts[-1].passed)} "
        f"({numbers.ratio(texts[-1].passed, texts[0].received)}) are in the dataset"
    )
    if losses and max(losses)[0]:
        lost, reason, stage_name = max(losses)
        caption += (
            f"; the largest loss, {numbers.count(lost)}, is \u201c{reason}\u201d at "
            f"\u201c{stage_name}\u201d"
        )
    broken = [words(stage.name) for stage in stages if not stage.adds_up()]
    broken += [
        f"{words(before.name)} to {words(after.name)}"
        for before, after in zip(texts, texts[1:], strict=False)
        if before.passed != after.received
    ]
    if broken:
        warning = f"Warning: received = passed on + lost fails at {', '.join(broken)}."
        return join([f"{caption}. ", element("span", warning, class_="warning")])
    return escape(
        f"{caption}. Shares are of what a stage received, and each stage adds up: "
        "received = passed on + lost."
    )


def _share_figure(title: str, counts: Mapping[str, int]) -> Markup:
    """A small table of bars, most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    total = sum(counts.values())
    rest = ordered[_MAX_ROWS:]
    shown = ordered[:_MAX_ROWS]
    if rest:
        shown.append((f"{len(rest)} more", sum(count for _, count in rest)))
    rows = [
        element(
            "tr",
            element("th", stranger(name, limit=40), scope="row"),
            element(
                "td",
                charts.bar(start=0, length=count / max(total, 1), style="out"),
                class_="bars",
            ),
            element("td", numbers.count(count)),
            element("td", numbers.ratio(count, total)),
        )
        for name, count in shown
    ]
    top, most = ordered[0]
    table = element("table", element("tbody", *rows), class_="shares")
    return figure(
        scroll(table, label=title),
        stranger(top, limit=40),
        f" is the most frequent of {len(ordered)}, with "
        f"{numbers.ratio(most, total)} of {numbers.count(total)} texts.",
        title=title,
    )


def balance_section(
    all_counts: Sequence[EntryCounts], card: Mapping[str, Any]
) -> Markup:
    """How balancing changed the distribution of matches over entries."""
    if any(counts.t is not None for counts in all_counts):
        opening = lead(
            "A text counts for every metadata entry that it contains. Entries with at "
            "least t matches are the head, the others the tail. A match of a head "
            "entry is accepted with probability t / count, one of the tail always; "
            "a text stays if any of its matches is accepted."
        )
    else:
        opening = lead(
            "A text counts for every metadata entry that it contains. This dataset is "
            "not balanced: it holds every text that matched."
        )
    groups = []
    for counts in all_counts[:MAX_METADATA]:
        total = card["metadata"][counts.code]["entries"]
        figures = [_curve_figure(counts, total), _share_of_tail_figure(counts)]
        heading = (
            [element("h3", "Metadata \u201c", stranger(counts.code), "\u201d")]
            if len(all_counts) > 1
            else []
        )
        pair = element("div", *figures, class_="pair")
        groups.append(element("div", *heading, pair, class_="group"))
    if len(all_counts) > MAX_METADATA:
        left = len(all_counts) - MAX_METADATA
        groups.append(missing(f"{left} smaller metadata are left out here."))
    return section("Balancing", opening, *groups, name="balancing")


def _sorted_series(
    name: str, values: np.ndarray, style: str, *, label_at: float, below: bool = False
) -> charts.Series:
    """Counts from the largest down, at about evenly spaced ranks of a log axis."""
    ordered = np.sort(values[values > 0])[::-1]
    ranks = charts.log_ranks(len(ordered))
    return charts.Series(name, ranks, ordered[ranks - 1], style, label_at, below)


def _curve_figure(counts: EntryCounts, total: int) -> Markup:
    """Sorted entry counts before and after, on two log axes."""
    series = [_sorted_series("before", counts.pool, "ink", label_at=0.2)]
    rules = []
    if counts.t is not None:
        series.append(
            _sorted_series("accepted draws", counts.accepted, "dashed", label_at=0.02)
        )
        series.append(_sorted_series("after", counts.kept, "accent", label_at=0.3))
        rules.append(charts.Rule("y", counts.t, f"t = {numbers.count(counts.t)}"))
    head = counts.head()
    caption = (
        f"{numbers.count(len(counts.pool))} of {numbers.count(total)} entries match at "
        "least once. "
    )
    if counts.t is not None and head.any():
        pool, kept = counts.pool[head].sum(), counts.kept[head].sum()
        draws, stay = np.median(counts.accepted[head]), np.median(counts.kept[head])
        caption += (
            f"The {numbers.count(head.sum())} head entries go from "
            f"{numbers.count(pool)} to {numbers.count(kept)} matches "
            f"({numbers.ratio(kept, pool)} kept). The median one has "
            f"{numbers.count(draws)} accepted draws and keeps {numbers.count(stay)} "
            "matches, since a kept text brings its other matches along."
        )
    draw = partial(
        charts.line_chart,
        series,
        height=340,
        x=charts.Axis("entries, most frequent first", log=True, low=1),
        y=charts.Axis("matches per entry", log=True, low=1),
        rules=rules,
        describe="Sorted entry counts before and after balancing. " + caption,
    )
    drawing = two_widths(draw, wide=HALF_WIDTH)
    return figure(drawing, caption, title="Entry counts, sorted")


def cumulative_share(
    pool: np.ndarray, weights: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """f64[len(limits)]: the share of `weights` on entries with pool count < limit."""
    order = np.argsort(pool, kind="stable")
    sums = np.concatenate([[0], np.cumsum(weights[order])])
    below = np.searchsorted(pool[order], limits, side="left")
    return sums[below] / max(int(sums[-1]), 1)


def _share_of_tail_figure(counts: EntryCounts) -> Markup:
    """Which share of the matches lies on entries below each count."""
    highest = int(counts.pool.max(initial=1))
    limits = np.unique(np.geomspace(1, highest + 1, 160).round())
    before = cumulative_share(counts.pool, counts.pool, limits)
    after = cumulative_share(counts.pool, counts.kept, limits)
    series = [charts.Series("before", limits, before, "ink", 0.72, True)]
    rules = []
    caption = (
        "Share of all matches that lie on entries with fewer matches than the axis "
        "says. "
    )
    if counts.t is not None:
        series.append(charts.Series("after", limits, after, "accent", 0.45))
        rules.append(charts.Rule("x", counts.t, f"t = {numbers.count(counts.t)}"))
        limit = np.array([counts.t])
        caption += (
            "Below t lie "
            f"{numbers.percent(cumulative_share(counts.pool, counts.pool, limit)[0])} "
            "of the matches before and "
            f"{numbers.percent(cumulative_share(counts.pool, counts.kept, limit)[0])} "
            "after balancing: the tail share."
        )
    draw = partial(
        charts.line_chart,
        series,
        height=340,
        x=charts.Axis("matches of an entry in the pool", log=True, low=1),
        y=charts.Axis(
            "cumulative share of matches", write=numbers.axis_percent, low=0, high=1
        ),
        rules=rules,
        describe="Cumulative share of matches by entry count. " + caption,
    )
    drawing = two_widths(draw, wide=HALF_WIDTH)
    return figure(drawing, caption, title="Cumulative share, from tail to head")


def examples_section(
    picked: Sequence[tuple[str, list[EntryExamples], list[EntryExamples]]],
) -> Markup:
    """Entries of head and tail with texts of the dataset; one item a metadata code."""
    groups = []
    for code, head, tail in picked[:MAX_METADATA]:
        heading = (
            [element("h3", "Metadata \u201c", stranger(code), "\u201d")]
            if len(picked) > 1
            else []
        )
        lists = element(
            "div",
            element("div", element("h3", "Head"), _entries(head)),
            element("div", element("h3", "Tail"), _entries(tail)),
            class_="pair",
        )
        groups.append(element("div", *heading, lists, class_="group"))
    return section(
        "Head and tail",
        lead(
            "Entries with their matches before and after balancing, and texts of the "
            "dataset that contain them. The head shows the most frequent entries, the "
            "tail a sample from its largest to its smallest count."
        ),
        *groups,
        name="examples",
    )


def _entries(shown: Sequence[EntryExamples]) -> Markup:
    if not shown:
        return missing("No entry of this kind has a text in the dataset.")
    return element(
        "ul",
        *(
            element(
                "li",
                element(
                    "div",
                    element("b", stranger(entry.entry, limit=60)),
                    element(
                        "span",
                        f"{numbers.count(entry.pool)} \u2192 ",
                        element("em", numbers.count(entry.kept)),
                        class_="change",
                    ),
                ),
                element(
                    "ul",
                    *(
                        element(
                            "li",
                            picture(example.thumbnail),
                            stranger(example.text, limit=110, mark=entry.entry),
                        )
                        for example in entry.examples
                    ),
                ),
            )
            for entry in shown
        ),
        class_="entries",
    )
