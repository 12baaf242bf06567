"""Renders the predictions of `data_prep.explain`, as text and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.report.dataset_size import Estimate, Size
from metaclip_jax.data import balance
from metaclip_jax.pages import charts, numbers, page
from metaclip_jax.pages.page import clean

TOP = 20  # entries shown
NEVER_MATCHES = {  # by the reason of `spacing.why_never_matches`
    "mark_without_its_spaces": "texts get spaces around this mark, the entry has none",
    "marks_share_a_space": "texts get two spaces between marks, the entry has one",
    "too_many_spaces": "texts never have as many spaces side by side",
    "other_white_space": "texts get plain spaces for all other white space",
    "control_character": "texts lose their control characters",
    "nothing_left": "the rule for spacing leaves nothing of the entry",
}


@dataclass(frozen=True)
class Point:
    """A value of t for the lead metadata, its tail share and predicted size."""

    t: int
    tail_share: float
    size: Size


@dataclass(frozen=True)
class EntryRow:
    """The entries of one metadata at its t; matches are texts per entry, summed."""

    code: str
    t: int
    never: int  # can never match
    never_examples: tuple[tuple[str, str], ...]  # entry, reason
    unmatched: int  # could match, but no text does
    tail: int  # 0 < count < t
    head: int  # count >= t
    tail_matches: float
    head_matches: float
    top: tuple[tuple[str, float], ...]  # entry, count


@dataclass(frozen=True)
class Explanation:
    """The predictions that are shown."""

    rule: str
    total: Size
    by_code: Mapping[str, Size]
    entries: Sequence[EntryRow]
    curve: Sequence[Point]
    sampled_images: int


def as_text(explanation: Explanation) -> str:
    """Returns the explanation as lines for a terminal."""
    total = explanation.total
    lines = [
        f"rule {explanation.rule}, from a sample of {explanation.sampled_images:,} of"
        f" about {total.pool_images:,.0f} images; before losses in the download",
        "",
        f"texts kept   {_between(total.texts)}"
        f"   {numbers.ratio(total.texts.value, total.pool_texts)} of"
        f" {total.pool_texts:,.0f}",
        f"images kept  {_between(total.images)}"
        f"   {numbers.ratio(total.images.value, total.pool_images)} of"
        f" {total.pool_images:,.0f}",
        "",
        f"{'metadata':<10}{'t':>12}{'texts kept':>16}{'of':>16}"
        f"{'head':>10}{'tail':>10}{'unmatched':>11}{'never':>9}{'tail share':>12}",
    ]
    for row in explanation.entries:
        size = explanation.by_code[row.code]
        matches = row.tail_matches + row.head_matches
        lines.append(
            f"{clean(row.code, limit=9):<10}{row.t:>12,}{size.texts.value:>16,.0f}"
            f"{size.pool_texts:>16,.0f}{row.head:>10,}{row.tail:>10,}"
            f"{row.unmatched:>11,}{row.never:>9,}"
            f"{numbers.ratio(row.tail_matches, matches):>12}"
        )
    lines += ["", f"{'t':>14}{'tail share':>13}{'texts kept':>18}{'images kept':>18}"]
    chosen = _lead_t(explanation)
    for point in explanation.curve:
        mark = "  <- your t" if point.t == chosen else ""
        lines.append(
            f"{point.t:>14,}{numbers.percent(point.tail_share):>13}"
            f"{point.size.texts.value:>18,.0f}{point.size.images.value:>18,.0f}{mark}"
        )
    for row in explanation.entries:
        lines += [
            "",
            f"most frequent entries of {clean(row.code, limit=20)}",
            f"{'matches':>14}{'share':>9}{'accepted':>10}  entry",
        ]
        matches = row.tail_matches + row.head_matches
        for entry, count in row.top:
            lines.append(
                f"{count:>14,.0f}{numbers.ratio(count, matches):>9}"
                f"{numbers.percent(min(1.0, row.t / count)):>10}"
                f"  {clean(entry, limit=40)}"
            )
        for entry, reason in row.never_examples:
            why = NEVER_MATCHES[reason]
            lines.append(f"{'can never match':>33}  {clean(entry, limit=40)}: {why}")
    return "\n".join(lines)


def as_page(explanation: Explanation, *, counts: Mapping[str, np.ndarray]) -> bytes:
    """Returns the explanation with two charts, as one HTML page in UTF-8.

    The second chart is that of the metadata with the most matches.
    """
    row = max(explanation.entries, key=lambda row: row.tail_matches + row.head_matches)
    return page.render(
        __package__,
        "explain.html",
        title="Predicted size by threshold",
        has_charts=True,
        values={
            "found": explanation,
            "row": row,
            "size": _size_chart(explanation),
            "counts": _count_chart(row, counts[row.code]),
            "lead_t": _lead_t(explanation),
            "reasons": NEVER_MATCHES,
        },
    )


def _size_chart(explanation: Explanation) -> dict[str, Any]:
    pool = max(explanation.total.pool_texts, 1.0)
    kept = np.array([point.size.texts.value for point in explanation.curve])
    share = np.array([point.tail_share for point in explanation.curve])
    return charts.line_chart(
        np.array([point.t for point in explanation.curve]),
        [
            charts.Series("texts kept", kept / pool, "accent"),
            charts.Series("tail share", share, "second"),
        ],
        x_axis=charts.Axis("t", log=True),
        y_axis=charts.Axis(
            "share of the pool's texts (kept) or matches (tail)",
            format=charts.SHARE,
            low=0,
            high=1,
        ),
        rules=[_rule("x", _lead_t(explanation))],
        describe="Share of texts kept, and of matches in the tail, by t.",
    )


def _count_chart(row: EntryRow, counts: np.ndarray) -> dict[str, Any]:
    ranks = charts.log_ranks(counts.size)
    before = -np.sort(-counts)[ranks - 1]
    return charts.line_chart(
        ranks,
        [
            charts.Series("matches", before, "ink"),
            charts.Series("accepted draws", np.minimum(before, row.t), "accent"),
        ],
        x_axis=charts.Axis("entries, most frequent first", log=True, low=1),
        y_axis=charts.Axis("matches per entry", log=True, low=1),
        rules=[_rule("y", row.t)],
        describe="Sorted entry counts and accepted draws.",
    )


def _rule(axis: str, t: int) -> charts.Rule:
    return charts.Rule(axis, float(t), f"t = {numbers.count(t)}")


def _lead_t(explanation: Explanation) -> int:
    t = {row.code: row.t for row in explanation.entries}
    return t[balance.lead(t)]


def _between(estimate: Estimate) -> str:
    return f"{estimate.value:,.0f} (95%: {estimate.low:,.0f} to {estimate.high:,.0f})"
