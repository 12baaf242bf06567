"""The report's part on curation: the funnel, shares, entry counts by metadata."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.report.load import EntryCounts
from metaclip_jax.pages import charts, numbers, page

MAX_METADATA = 6  # most metadata with their own charts; worldwide has hundreds
_MAX_ROWS = 8  # languages and text sources


def words(name: str) -> str:
    """Returns a stage or reason as words: `text_too_long` -> "text too long"."""
    return name.replace("_", " ")


def funnel(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the funnel's rows, their summary, and stages whose counts do not add up.

    Each unit has one scale. A stage's drops continue its bar, so that both together
    have the length of its input. `stages` are those of `load.funnel`.
    """
    widest: dict[str, int] = {}
    for stage in stages:
        widest[stage["unit"]] = max(widest.get(stage["unit"], 1), stage["in"])
    rows = []
    for stage in stages:
        whole = widest[stage["unit"]]
        unit = "" if stage["unit"] == "texts" else f" ({stage['unit']})"
        start = stage["out"] / whole
        row = {
            "lost": False,
            "name": words(stage["stage"]) + unit,
            "start": 0.0,
            "length": start,
            "track": stage["in"] / whole,
            "count": stage["out"],
            "received": stage["in"],
        }
        rows.append(row)
        for reason, lost in stage["drops"]:
            length = lost / whole
            part = {"lost": True, "name": words(reason), "start": start, "track": 0.0}
            rows.append(row | part | {"length": length, "count": lost})
            start += length
    texts = [stage for stage in stages if stage["unit"] == "texts"] or list(stages)
    broken = [
        words(stage["stage"])
        for stage in stages
        if stage["in"] != stage["out"] + sum(lost for _, lost in stage["drops"])
    ]
    broken += [
        f"{words(before['stage'])} to {words(after['stage'])}"
        for before, after in itertools.pairwise(texts)
        if before["out"] != after["in"]
    ]
    losses = [
        {"count": lost, "name": words(reason), "stage": words(stage["stage"])}
        for stage in texts
        for reason, lost in stage["drops"]
        if lost
    ]
    pages = [stage["out"] for stage in stages if stage["unit"] == "pages"]
    return {
        "rows": rows,
        "first": texts[0] if texts else None,
        "last": texts[-1] if texts else None,
        "pages": pages[0] if pages else None,
        "worst": max(losses, key=lambda loss: tuple(loss.values()), default=None),
        "broken": broken,
    }


def shares(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns tables of the kept texts by language and source, most frequent first."""
    tables = []
    for title, key in (
        ("Languages of the kept texts", "languages"),
        ("Sources of the kept texts", "text_sources"),
    ):
        if key not in card or not card[key]:
            continue
        rows = sorted(card[key].items(), key=lambda item: (-item[1], item[0]))
        rest = rows[_MAX_ROWS:]
        more = [(f"{len(rest)} more", sum(n for _, n in rest))] if rest else []
        tables.append(
            {
                "title": title,
                "rows": rows[:_MAX_ROWS] + more,
                "kinds": len(rows),
                "total": max(sum(card[key].values()), 1),
            }
        )
    return tables


def group(counts: EntryCounts, card: Mapping[str, Any]) -> dict[str, Any]:
    """Returns two charts of one metadata's matches before and after balancing."""
    values: dict[str, Any] = {
        "code": counts.code,
        "t": counts.t,
        "matched": len(counts.pool),
        "entries": card["metadata"][counts.code]["entries"],
        "sorted": _sorted_chart(counts),
        "share": _share_chart(counts),
        "head": None,
    }
    if counts.t is None:
        return values
    limit, head = np.array([counts.t]), counts.head()
    values["tail_before"] = cumulative_share(counts.pool, counts.pool, limit)[0]
    values["tail_after"] = cumulative_share(counts.pool, counts.kept, limit)[0]
    if head.any():
        values["head"] = {
            "entries": int(head.sum()),
            "pool": int(counts.pool[head].sum()),
            "kept": int(counts.kept[head].sum()),
            "draws": float(np.median(counts.accepted[head])),
            "stay": float(np.median(counts.kept[head])),
        }
    return values


def _sorted_chart(counts: EntryCounts) -> dict[str, Any]:
    """Sorted entry counts before and after, on two log axes."""
    ranks = charts.log_ranks(len(counts.pool))
    lines = [("before", counts.pool, "ink")]
    rules = []
    if counts.t is not None:
        lines += [
            ("after", counts.kept, "accent"),
            ("accepted draws", counts.accepted, "second"),
        ]
        rules.append(charts.Rule("y", counts.t, f"t = {numbers.count(counts.t)}"))
    return charts.line_chart(
        ranks,
        [
            charts.Series(name, np.sort(values)[::-1][ranks - 1], colour)
            for name, values, colour in lines
        ],
        x_axis=charts.Axis("entries, most frequent first", log=True, low=1),
        y_axis=charts.Axis("matches per entry", log=True, low=1),
        rules=rules,
        # The rows of counts are sorted by their pool.
        notes=charts.Notes(
            "entry (before)", [page.clean(counts.entries[r - 1], 60) for r in ranks]
        ),
        describe="Sorted entry counts before and after balancing.",
    )


def cumulative_share(
    pool: np.ndarray, weights: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """Returns f64[len(limits)]: share of `weights` with pool count < limit."""
    order = np.argsort(pool, kind="stable")
    sums = np.concatenate([[0], np.cumsum(weights[order])])
    below = np.searchsorted(pool[order], limits, side="left")
    return sums[below] / max(int(sums[-1]), 1)


def _share_chart(counts: EntryCounts) -> dict[str, Any]:
    """The share of matches with entries below each count."""
    highest = int(counts.pool.max(initial=1))
    limits = np.unique(np.geomspace(1, highest + 1, 160).round())
    lines = [("before", counts.pool, "ink")]
    rules = []
    if counts.t is not None:
        lines.append(("after", counts.kept, "accent"))
        rules.append(charts.Rule("x", counts.t, f"t = {numbers.count(counts.t)}"))
    return charts.line_chart(
        limits,
        [
            charts.Series(name, cumulative_share(counts.pool, weights, limits), colour)
            for name, weights, colour in lines
        ],
        x_axis=charts.Axis("matches of an entry in the pool", log=True, low=1),
        y_axis=charts.Axis(
            "cumulative share of matches", format=charts.SHARE, low=0, high=1
        ),
        rules=rules,
        describe="Cumulative share of matches by entry count.",
    )
