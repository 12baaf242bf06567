"""The meter counts skipped steps and losses, and gives rates of training alone."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from metaclip_jax import files
from metaclip_jax.data import batch, pipeline
from metaclip_jax.training.meter import Meter
from metaclip_jax.training.totals import Totals

IDS = np.array([b"ab12", b"cd34"])
NOTHING = pipeline.Losses(0, ())


def meter(totals, **changes):
    options = dict(
        workdir="unused",
        start_step=0,
        total_steps=9,
        global_batch=32,
        max_skipped_steps=3,
        steps_ahead=0,
        show=False,
    )
    return Meter(totals, **(options | changes))


def measured(skipped=False):
    return {"loss": jnp.float32(2.5), "skipped": jnp.float32(skipped)}


def test_skipped_steps_are_counted_and_a_good_one_breaks_the_row(tmp_path):
    totals = Totals()
    some = meter(totals, workdir=str(tmp_path))
    for step, skipped in enumerate([1, 1, 0, 1, 1], start=1):
        some.add(step, measured(skipped), IDS, NOTHING)
    assert some.row(measured())["skipped_steps"] == 4
    assert totals.skipped_in_a_row == 2
    written = sorted((tmp_path / "metrics" / "skipped").iterdir())
    assert [path.name[:8] for path in written] == [
        f"{step:08d}" for step in (1, 2, 4, 5)
    ]
    assert files.read_json(written[2]) == {"step": 4, "image_ids": ["ab12", "cd34"]}


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path):
    before = Totals(skipped_steps=7, skipped_in_a_row=2)
    some = meter(before, workdir=str(tmp_path))
    with pytest.raises(FloatingPointError, match="3 steps in a row, up to step 1"):
        some.add(1, measured(True), IDS, NOTHING)


def test_totals_are_those_of_the_step_once_settled(tmp_path):
    totals = Totals()
    some = meter(totals, steps_ahead=2, workdir=str(tmp_path))
    for step in (1, 2, 3):
        some.add(step, measured(step < 3), IDS, NOTHING)
    assert totals.skipped_steps == 1
    some.settle()
    assert totals.skipped_steps == 2


def test_a_pause_awaits_the_steps_under_way_first(tmp_path):
    """Else their time would be that of the pause, and leave the rates."""
    totals = Totals()
    some = meter(totals, steps_ahead=2, workdir=str(tmp_path))
    some.add(1, measured(True), IDS, NOTHING)
    assert totals.skipped_steps == 0
    with some.paused():
        assert totals.skipped_steps == 1


def test_what_was_mended_is_counted_once():
    totals = Totals(replaced=collections.Counter(damaged_record=1))
    some = meter(totals)
    lost = tuple(batch.Replaced(n, f"image{n}", "not_an_image") for n in range(2))
    for step in (1, 2):
        some.add(step, measured(), IDS, pipeline.Losses(3, lost))
    for _ in range(2):
        some.sum_up()
        assert totals.replaced_ids == {"not_an_image": {"image0": 2, "image1": 2}}
        row = some.row(measured())
        assert row["truncated_texts"] == 6
        assert row["replaced_images"] == 5
        assert row["replaced_images/not_an_image"] == 4


def test_a_row_holds_the_newest_numbers_and_the_rates():
    some = meter(Totals(), model_flops=8 * 10**12, peak_flops=1e12)
    with some.waiting():
        pass
    some.add(1, measured(), IDS, NOTHING)
    row = some.row(measured())
    assert row["loss"] == 2.5
    assert row["examples_seen"] == 32
    assert row["examples_per_second"] > 0
    assert 0 <= row["data_wait"] <= 1
    assert "skipped" not in row
    # Eight devices share a step.
    rate = row["examples_per_second"]
    assert row["examples_per_second_per_chip"] == pytest.approx(rate / 8)
    steps_a_second = rate / 32
    utilisation = row["model_flops_utilisation"]
    assert utilisation == pytest.approx(8e12 * steps_a_second / 8 / 1e12)
    assert row["model_teraflops_per_second_per_chip"] == pytest.approx(utilisation)


def test_the_utilisation_of_an_unknown_chip_is_left_out():
    some = meter(Totals(), model_flops=1000)
    some.add(1, measured(), IDS, NOTHING)
    assert "model_flops_utilisation" not in some.row(measured())
