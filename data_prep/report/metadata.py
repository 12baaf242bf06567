"""Shows metadata as they were made: a summary for the terminal, and a page.

Both read what `data_prep.metadata.ranking.describe` returned, by code.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.matching.spacing import MODES
from data_prep.metadata import editions
from data_prep.report.curation import words
from data_prep.report.explanation import NEVER_MATCHES
from metaclip_jax.pages import charts, numbers, page
from metaclip_jax.pages.page import clean

PAGE = "metadata.html"
MAX_TABLES = 6  # most metadata with a table of sources in the terminal
COLOURS = ("accent", "second", "ink", "lost")  # of the sources, in their order
_LOG_RATIO = 50  # of the best score to the last, from which a log axis is used
_SAMPLE_CHARS = 24  # of an entry in the terminal
_Described = Mapping[str, Mapping[str, Any]]


def as_text(described: _Described, read: Mapping[str, int]) -> str:
    """Returns lines for a terminal: a table for each metadata, then what was read.

    Many metadata have a line each instead of a table.

    Args:
      described: of each metadata, by code.
      read: how many "pages" and so on were read, and how many lost ("page: reason").
    """
    lines = []
    for code in sorted(described):
        facts = described[code]
        sources = ", ".join(f"{s['source']} {s['added']:,}" for s in facts["shares"])
        never = ", ".join(f"{n:,} by {mode}" for mode, n in _never(facts).items())
        entries = f"{facts['entries']:,} entries ({sources})"
        lines.append(f"{clean(code)}: {entries}; never match: {never}")
        if len(described) <= MAX_TABLES:
            lines += [*_table(facts["shares"]), ""]
    if read:
        lines.append("read, and lost (-)")
        lines += [
            f"{'-' * is_lost + f'{number:,}':>14}  {name}"
            for name, number, is_lost in _read_rows(read)
        ]
    return "\n".join(lines).rstrip()


def as_page(described: _Described, read: Mapping[str, int]) -> bytes:
    """Returns the page in UTF-8; its arguments are those of `as_text`."""
    names = dict.fromkeys(
        share["source"] for facts in described.values() for share in facts["shares"]
    )
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    most = max(facts["entries"] for facts in described.values())
    rows = [_row(code, described[code], most=most) for code in sorted(described)]
    title = f"Metadata: {rows[0]['code']}"
    if len(rows) > 1:
        title = f"Metadata of {len(rows)} languages"
    return page.render(
        __package__,
        "metadata.html",
        title=title,
        has_charts=True,
        filters={"visible": visible},
        scripts=["rows.js"] if len(rows) > 1 else [],
        values={
            "rows": rows,
            "colours": colours,
            "read": _read_rows(read),
            "total": sum(row["entries"] for row in rows),
            "reasons": NEVER_MATCHES,
        },
    )


def _read_rows(read: Mapping[str, int]) -> list[tuple[str, int, bool]]:
    """Returns names, numbers, and whether lost; what was lost follows its unit."""
    rows = []
    for name, number in read.items():
        unit, separator, _ = name.partition(": ")
        is_lost = bool(separator)
        rows.append((unit.removesuffix("s"), is_lost, words(name), number))
    return [(name, number, is_lost) for _, is_lost, name, number in sorted(rows)]


def visible(entry: str) -> str:
    """Shows the white space and control characters that `page.clean` would remove."""
    entry = entry.replace("  ", "\u2423\u2423")
    return "".join(
        c if c == " " or c.isprintable() else f"\u27e8U+{ord(c):04X}\u27e9"
        for c in entry
    )


def _table(shares: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [clean(share["source"], 12) for share in shares]
    width = max(map(len, [*names, "source"]))
    lines = [
        f"  {'source':<{width}}{'offered':>13}{'added':>11}{'already':>10}"
        f"{'never':>8}{'cut':>13}{'threshold':>11}  first and last, with scores"
    ]
    for name, share in zip(names, shares, strict=True):
        least = "" if share["threshold"] is None else f"{share['threshold']:g}"
        lines.append(
            f"  {name:<{width}}{share['offered']:>13,}{share['added']:>11,}"
            f"{share['already']:>10,}{share['never_matching']:>8,}{share['cut']:>13,}"
            f"{least:>11}  {_ends(share['samples'])}".rstrip()
        )
    return lines


def _ends(samples: Mapping[str, Sequence[tuple[str, float]]]) -> str:
    every = [*samples["head"], *samples["middle"], *samples["tail"]]
    ends = [every[0], every[-1]] if len(every) > 1 else every
    return " \u2026 ".join(
        f"{clean(visible(entry), _SAMPLE_CHARS)} ({numbers.short(score)})"
        for entry, score in ends
    )


def _never(facts: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of entries that never match, by mode."""
    return {
        mode: sum(group["entries"] for group in facts["never_matching"][mode].values())
        for mode in MODES  # a manifest has them in alphabetical order
    }


def _row(code: str, facts: Mapping[str, Any], *, most: int) -> dict[str, Any]:
    """Returns the values of one metadata; `most` is the entries of the largest one."""
    added = {share["source"]: share["added"] for share in facts["shares"]}
    starts = dict(zip(added, np.cumsum([0, *added.values()]).tolist(), strict=False))
    edition = editions.table().get(code)
    modes = {mode: facts["never_matching"][mode] for mode in MODES}
    return {
        "code": code,
        "name": edition.name if edition else "",
        "entries": facts["entries"],
        "fingerprint": facts["fingerprint"],
        "added": added,
        "parts": [(name, starts[name] / most, n / most) for name, n in added.items()],
        "shares": facts["shares"],
        "widest": max(1, *added.values()),
        "charts": [chart for s in facts["shares"] if (chart := _score_chart(s))],
        "overlap": facts["overlap"],
        "modes": _never(facts),
        "never": [
            (
                reason,
                [modes[mode].get(reason, {"entries": 0})["entries"] for mode in modes],
                next(m[reason]["samples"] for m in modes.values() if reason in m),
            )
            for reason in dict.fromkeys(r for m in modes.values() for r in m)
        ],
        "left_out": facts["left_out"],
    }


def _score_chart(share: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the chart of a source's scores; None if all are equal."""
    curve = np.array(share["curve"], np.float64).reshape(-1, 2)
    scores = curve[:, 1]
    if not len(scores) or scores[0] == scores[-1]:
        return None
    is_log = scores[-1] > 0 and scores[0] / scores[-1] >= _LOG_RATIO
    name = clean(share["source"], 40)
    return charts.line_chart(
        curve[:, 0],
        [charts.Series("score", scores, "accent")],
        x_axis=charts.Axis("rank in the source", log=True, low=1),
        y_axis=charts.Axis(f"{name}: score", log=bool(is_log), format=charts.SHORT),
        describe=f"Scores of the source {name} by rank.",
    )
