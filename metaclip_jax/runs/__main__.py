"""Lists training runs and compares them: configs, metrics, evaluations, curves.

    python -m metaclip_jax.runs DIR... [--output=runs.html]

A DIR is a run's workdir or a folder of workdirs, local or gs://. The command prints a
table; the HTML file also has the curves.
"""

from collections.abc import Sequence
from typing import Any

from absl import app, flags

from metaclip_jax import files
from metaclip_jax.cli import command
from metaclip_jax.runs import load, page
from metaclip_jax.runs.load import Run


def table(runs: Sequence[Run]) -> str:
    """Formats the runs by number, their metrics, and the config keys that differ."""
    lines = [f"[{n}] {run.workdir}" for n, run in enumerate(runs, 1)]
    steps = [f"{run.step:,}/{run.config['total_steps']:,}" for run in runs]
    state = ["finished" if run.finished else "not finished" for run in runs]
    rows: list[tuple[str, list[Any]]] = [("step", steps), ("", state)]
    rows += [
        (name, ["" if value is None else f"{value:.4g}" for value in values])
        for name, values in load.metrics(runs).items()
    ]
    scored = ["" if run.scored_step is None else run.scored_step for run in runs]
    if any(scored):
        rows.append(("evaluated at step", scored))
    differ = load.differences(runs)
    rows += [(f"config.{key}", values) for key, values in differ.items()]
    cells = [["", *(f"[{n}]" for n in range(1, len(runs) + 1))]]
    cells += [[name, *map(_short, values)] for name, values in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines += [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 30 else f"...{text[-27:]}"


def main(argv: Sequence[str]) -> None:
    """Compares runs from the command line."""
    if len(argv) < 2:
        raise app.UsageError(
            "wanted folders of runs, got none; python -m metaclip_jax.runs DIR..."
        )
    command.check_output("--output", flags.FLAGS.output, ".html")
    runs = [load.read(workdir) for workdir in load.find(argv[1:])]
    print(table(runs))
    if flags.FLAGS.output:
        files.write_bytes(flags.FLAGS.output, page.render(runs))


if __name__ == "__main__":
    flags.DEFINE_string("output", "", "HTML file with tables and curves; empty = none.")
    command.run(main)
