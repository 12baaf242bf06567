"""The page that `make bench` writes."""

import ast
import math
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from benchmarks import run_all, tpu_plans, tpu_step
from metaclip_jax import plan
from metaclip_jax.training import compiled, program

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", run_all.names())
def test_a_benchmark_says_how_it_is_run(name):
    docstring = (ROOT / "benchmarks" / f"{name}.py").read_text().split('"""')[1]
    assert re.search(rf"^    python -m benchmarks\.{name}\b", docstring, re.MULTILINE)


def test_the_benchmarks_are_those_that_can_be_run():
    assert {"matching", "loader", "train_step"} <= set(run_all.names())
    assert not {"run_all", "accelerator", "tpu_plans", "tpu_step"} & set(
        run_all.names()
    )


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
    found = {
        result.name: run_all.section(result, date="2026-01-02", where="a CPU, 2 cores")
        for result in (
            run_all.Result("matching", lines, 61.4, 0),
            run_all.Result("loader", ["loader: 4.1x a | b"], 3.0, 1),
        )
    }
    page = run_all.page(found, libraries="numpy 2, no jax")
    table = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert table == [
        r"| loader | 4.1x | a \| b |",
        "| matching | 11.2x | the rate of a loop |",
    ]
    assert "no jax" in page and run_all.sections(page) == found
    first, second = found["matching"], found["loader"]
    assert "\n".join(lines[:2]) in first and "61 s on 2026-01-02: a CPU" in first
    assert "failed" not in first and "failed with status 1" in second


def test_a_row_of_the_page_of_plans_says_what_a_recipe_needs():
    device = SimpleNamespace(device_kind="TPU v5")
    where = plan.Slice("v5p:4x4x4", 1, [device], 64, 95 * 2**30)
    row = tpu_plans.Row("metaclip:vit_b32_400m", "v5p:4x4x4", {"model.remat": "dots"})
    config = tpu_plans.config_of(row)
    assert config.model.remat == "dots"
    step = compiled.Compiled(
        seconds=1.0,
        needed_bytes=19 * 2**30,
        cycles=3_500_000_000,
        collective_bytes={"all-gather": 300 * 10**9},
    )
    made = plan.Plan(where, mesh={}, model_flops=64 * 459 * 10**12, step=step)
    cells = tpu_plans.line(row, config, made).strip("| ").split(" | ")
    assert len(cells) == len(tpu_plans.COLUMNS)
    found = dict(zip(tpu_plans.COLUMNS, cells, strict=True))
    assert found["recipe"] == "metaclip.py:vit_b32_400m"
    assert found["memory a chip"] == "19.0 of 95.0 GiB"
    assert (found["floor"], found["estimated"]) == ("1.000 s", "2.000 s")
    assert found["with collectives"] == "3.000 s"  # 300 GB at 300 GB/s
    assert found["hours"] == f"{3 * config.total_steps / 3600:,.0f}"
    assert found["pairs/s"] == f"{config.global_batch / 3:,.0f}"
    made = made._replace(step=step._replace(needed_bytes=96 * 2**30))
    assert "does not fit" in tpu_plans.line(row, config, made)


@pytest.mark.parametrize("row", tpu_plans.PLANS, ids=str)
def test_the_rows_of_the_page_of_plans_are_recipes(row):
    tpu_plans.config_of(row)


@pytest.mark.parametrize("name", ["b16_512_full", "l14_v5e"])
def test_the_plain_step_has_our_sizes(name):
    """Equal parameters, but for the padding of our token table and its bias."""
    line = tpu_step.LINES[name]
    config = tpu_step.config_of(line)
    config.mesh.fsdp, config.global_batch = 1, 8
    devices = jax.devices()[:1]
    asked = program.make(config, **plan.token_ids(config), devices=devices)
    lowered = tpu_step.lower_plain(config, asked, split_parameters=line.fsdp > 1)
    states = lowered.args_info[0][0], program.abstract_state(asked)
    plain, ours = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
        for state in states
    )
    assert plain == pytest.approx(ours, rel=0.002)
