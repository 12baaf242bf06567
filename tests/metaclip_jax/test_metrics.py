"""Metrics: what is written is read back, and a resumed run replaces its own rows."""

import collections
import json
import math

import jax.numpy as jnp
import pytest

from metaclip_jax import metrics


def writer(tmp_path, *, start_step=0, tensorboard=False):
    return metrics.Writer(str(tmp_path), start_step=start_step, tensorboard=tensorboard)


def test_rows_are_read_back_by_step(tmp_path):
    out = writer(tmp_path)
    out.write(10, {"loss": 2.0})
    out.write(20, {"loss": 1.0})
    out.write(10, {"evaluation/R@1": 0.5})
    out.close()
    assert metrics.read(str(tmp_path)) == [
        {"step": 10, "loss": 2.0, "evaluation/R@1": 0.5},
        {"step": 20, "loss": 1.0},
    ]


def test_each_flush_makes_a_part_that_is_never_changed(tmp_path):
    out = writer(tmp_path)
    out.write(1, {"loss": 3.0})
    out.flush()
    first = tmp_path / "metrics" / "part-000000.jsonl"
    before = first.read_bytes()
    out.write(2, {"loss": 2.0})
    out.flush()
    out.flush()
    assert first.read_bytes() == before
    assert len(list((tmp_path / "metrics").iterdir())) == 2


def test_the_last_row_of_a_step_wins_across_starts(tmp_path):
    killed = writer(tmp_path)
    killed.write(1, {"loss": 3.0})
    killed.write(2, {"loss": 2.0, "compile_seconds": 7.0})
    killed.flush()
    resumed = writer(tmp_path, start_step=1)
    resumed.write(2, {"loss": 1.5})
    resumed.close()
    assert metrics.read(str(tmp_path)) == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 1.5},
    ]


def test_parts_are_ordered_by_number_not_by_name(tmp_path):
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "part-1000000.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (folder / "part-999999.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    assert metrics.read(str(tmp_path))[0]["loss"] == 1.0
    out = writer(tmp_path)
    out.write(2, {"loss": 0.0})
    out.flush()
    assert (folder / "part-1000001.jsonl").exists()


def test_a_number_that_is_not_finite_is_null(tmp_path):
    out = writer(tmp_path)
    out.write(1, {"loss": math.nan, "norm": math.inf})
    out.close()
    line = (tmp_path / "metrics" / "part-000000.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "loss": None, "norm": None}


def test_a_workdir_without_metrics_has_no_rows(tmp_path):
    assert metrics.read(str(tmp_path)) == []


def test_a_damaged_line_is_an_error_that_names_it(tmp_path):
    out = writer(tmp_path)
    out.write(1, {"loss": 1.0})
    out.flush()
    part = tmp_path / "metrics" / "part-000000.jsonl"
    part.write_text(part.read_text() + '{"loss": 1}\n')
    with pytest.raises(ValueError, match="part-000000.jsonl:2: want a JSON object"):
        metrics.read(str(tmp_path))


def test_numbers_also_go_to_tensorboard(tmp_path):
    out = writer(tmp_path, tensorboard=True)
    out.write(1, {"loss": 1.0})
    out.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def meter(totals, **changes):
    options = dict(
        start_step=0,
        total_steps=9,
        global_batch=32,
        max_skipped_steps=3,
        steps_ahead=0,
        show=False,
    )
    return metrics.Meter(totals, **(options | changes))


def measured(skipped=False):
    return {"loss": jnp.float32(2.5), "skipped": jnp.float32(skipped)}


def test_skipped_steps_are_counted_and_a_good_one_breaks_the_row():
    totals = collections.Counter()
    some = meter(totals)
    for step, skipped in enumerate([1, 1, 0, 1, 1], start=1):
        some.add(step, measured(skipped))
    assert some.row(measured())["skipped_steps"] == 4
    assert totals["skipped_in_a_row"] == 2


def test_too_many_skipped_steps_in_a_row_end_the_run():
    some = meter(collections.Counter({"skipped_steps": 7, "skipped_in_a_row": 2}))
    with pytest.raises(FloatingPointError, match="3 steps in a row, up to step 1"):
        some.add(1, measured(True))


def test_totals_are_those_of_the_step_once_settled():
    totals = collections.Counter()
    some = meter(totals, steps_ahead=2)
    for step in (1, 2, 3):
        some.add(step, measured(True) if step < 3 else measured(False))
    assert totals["skipped_steps"] == 1
    some.settle()
    assert totals["skipped_steps"] == 2


def test_a_row_holds_the_newest_numbers_and_the_rates():
    some = meter(collections.Counter())
    with some.waiting():
        pass
    some.add(1, measured())
    row = some.row(measured())
    assert row["loss"] == 2.5
    assert row["examples_seen"] == 32
    assert row["examples_per_second"] > 0
    assert 0 <= row["data_wait"] <= 1
    assert "skipped" not in row
