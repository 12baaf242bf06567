"""The page that `make bench` writes."""

import re
from pathlib import Path

import pytest

from benchmarks import run_all

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", run_all.names())
def test_a_benchmark_says_how_it_is_run(name):
    docstring = (ROOT / "benchmarks" / f"{name}.py").read_text().split('"""')[1]
    assert re.search(rf"^    python -m benchmarks\.{name}\b", docstring, re.MULTILINE)


def test_the_benchmarks_are_those_that_can_be_run():
    assert {"matching", "loader", "train_step"} <= set(run_all.names())
    assert not {"run_all", "accelerator"} & set(run_all.names())


def test_ratios_come_into_the_table_and_all_lines_under_their_benchmark():
    lines = ["matching: 11.2x the rate of a loop", "matching: 1,000 texts/s", ""]
    page = run_all.page(
        [
            run_all.Result("matching", lines, 61.4, 0),
            run_all.Result("loader", ["loader: 4.1x a | b"], 3.0, 1),
        ],
        date="2026-01-02",
        where="a CPU, 2 cores",
        libraries="numpy 2, no jax",
    )
    table = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert table == [
        "| matching | 11.2x | the rate of a loop |",
        r"| loader | 4.1x | a \| b |",
    ]
    assert "on 2026-01-02" in page and "a CPU, 2 cores" in page and "no jax" in page
    _, first, second = page.split("## benchmarks.")
    assert "\n".join(lines[:2]) in first and "61 s" in first and "failed" not in first
    assert "failed with status 1" in second
