"""The page that `make bench` writes."""

import ast
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


@pytest.mark.parametrize("name", run_all.names())
def test_a_ratio_is_on_a_line_that_the_table_reads(name):
    found = []
    for node in ast.walk(ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())):
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "1"
                for part in node.values
            )
            found += [line for line in text.splitlines() if re.search(r"\b1x", line)]
    assert found and all(map(run_all.RATIO.fullmatch, found))


def test_the_page_has_a_table_of_ratios_and_the_output_of_each_benchmark():
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
