"""Counts what entered each stage, what left it, and what was dropped and why.

The counts are small tables (schema.FLOW) in the pipeline, since Beam's counters double
when a bundle is retried. In every stage in = out + drops, and the input of a stage is
the output of the stage before.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from data_prep import schema

IN, OUT = ">in", "<out"  # no reason starts with these
FAILED = "failed"  # stage of the rows that name what failed; not in the funnel
_FAILED_SOURCE = "failed_"  # begins the reason of a source that could not be read
_ERROR_CHARS = 300


def flow(
    stage: str,
    *,
    entered: int,
    left: int,
    drops: Mapping[str, int],
    unit: str = "texts",
) -> pa.RecordBatch:
    """Returns the FLOW rows of one call of a stage, checked for in = out + drops."""
    lost = sum(drops.values())
    if entered != left + lost:
        raise AssertionError(
            f"{stage}: wanted in = out + drops, got {entered} = {left} + {lost} {unit} "
            f"({dict(drops)})"
        )
    counts = sorted({IN: entered, OUT: left, **drops}.items())
    rows = [(stage, unit, reason, n) for reason, n in counts]
    return schema.from_rows(rows, schema.FLOW)


def failed(unit: str, name: str, error: Exception) -> pa.RecordBatch:
    """Returns the FLOW row of a source or a partition that failed, with the error."""
    row = (FAILED, unit, f"{name}: {in_one_line(error)}", 1)
    return schema.from_rows([row], schema.FLOW)


def failed_source(error: Exception) -> pa.RecordBatch:
    """Returns the FLOW rows of a source that failed, of which nothing is kept."""
    reason = _FAILED_SOURCE + type(error).__name__
    return flow("read", unit="files", entered=1, left=0, drops={reason: 1})


def any_failed_source(flow: pa.RecordBatch) -> bool:
    """Whether one of the sources of a part failed."""
    return any(r.startswith(_FAILED_SOURCE) for r in flow["reason"].to_pylist())


def in_one_line(error: Exception) -> str:
    """Returns the type and the message of an error, shortened."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _ERROR_CHARS else f"{text[:_ERROR_CHARS]}..."


def funnel(total: pa.RecordBatch, stages: Sequence[str]) -> list[dict]:
    """Turns summed FLOW rows into the data card's funnel, in the order of `stages`.

    Returns one dict per stage and unit: stage, unit, in, out, drops {reason: n}.
    Raises AssertionError if any were lost without being counted, in a stage or, of the
    texts, between two stages.
    """
    found = [row for row in total.to_pylist() if row["stage"] != FAILED]
    if unknown := {row["stage"] for row in found} - set(stages):
        raise AssertionError(
            f"wanted stages among {list(stages)}, got {sorted(unknown)}"
        )
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for row in sorted(found, key=lambda row: (stages.index(row["stage"]), row["unit"])):
        reasons = counts.setdefault((row["stage"], row["unit"]), {})
        reasons[row["reason"]] = row["count"]
    table: list[dict] = []
    previous = None
    for (stage, unit), reasons in counts.items():
        entered, left = reasons.pop(IN, 0), reasons.pop(OUT, 0)
        lost = dict(sorted(reasons.items()))
        row = {"stage": stage, "unit": unit, "in": entered, "out": left, "drops": lost}
        table.append(row)
        if entered != left + sum(lost.values()):
            raise AssertionError(f"{stage}: wanted in = out + drops, got {row}")
        if unit != "texts":
            continue
        if previous is not None and previous["out"] != entered:
            raise AssertionError(
                f"wanted {previous['out']} texts into {stage}, as left "
                f"{previous['stage']}, got {entered}"
            )
        previous = row
    return table


def render(table: Sequence[Mapping]) -> str:
    """Returns the funnel as text: one line per stage, its drops below."""
    lines = []
    for row in table:
        lines.append(
            f"{row['stage']:<12} {row['unit']:<6} {row['in']:>12,} -> {row['out']:>12,}"
        )
        for reason, n in sorted(row["drops"].items(), key=lambda kv: (-kv[1], kv[0])):
            lines.append(f"{'':<12} {'':<6} {n:>12,}    {reason}")
    return "\n".join(lines)


def lost(table: Sequence[Mapping]) -> str:
    """Returns the most frequent reason of a loss, to end a sentence with.

    It is of the last unit that has losses: ": of 9 texts, most (8) were lost at screen:
    too_small". Without losses it says how much was read.
    """
    units = list(dict.fromkeys(row["unit"] for row in table))
    for unit in reversed(units):
        rows = [row for row in table if row["unit"] == unit]
        losses = [
            (n, row["stage"], reason)
            for row in rows
            for reason, n in row["drops"].items()
        ]
        if any(n for n, *_ in losses):
            n, stage, reason = max(losses, key=lambda loss: loss[0])
            return (
                f": of {rows[0]['in']:,} {unit}, most ({n:,}) were lost at {stage}: "
                f"{reason}"
            )
    read = ", ".join(f"{row['in']:,} {row['unit']}" for row in table if row["in"])
    return f": {read} were read" if read else ""
