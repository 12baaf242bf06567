"""Totals of skips and replacements: counted in any parts, they are the same."""

import json

from hypothesis import given
from hypothesis import strategies as st

from metaclip_jax import files
from metaclip_jax.data import batch, pipeline
from metaclip_jax.training.totals import Totals

# Names that a dataset may have, and with them its damaged records.
IDS = st.text("ab/:0", min_size=1, max_size=4)
REPLACED = st.builds(
    batch.Replaced, st.just(0), IDS, st.sampled_from(["no_text", "not_an_image"])
)
LOSSES = st.builds(
    pipeline.Losses, st.integers(0, 9), st.lists(REPLACED, max_size=5).map(tuple)
)


def travelled(totals):
    """What a checkpoint or another process gives back."""
    return Totals.from_json(json.loads(json.dumps(totals.as_json())))


@given(st.lists(LOSSES, max_size=8), st.integers(0, 8))
def test_processes_and_restarts_count_like_one_run(losses, cut):
    whole, first, second = Totals(), Totals(), Totals()
    for one in losses:
        whole.add_losses(one)
    for one in losses[:cut]:
        first.add_losses(one)
    for one in losses[cut:]:
        second.add_losses(one)
    first = travelled(first)
    first.add(travelled(second))
    assert first == whole
    numbers = dict(whole.numbers())
    assert numbers["truncated_texts"] == sum(one.truncated_texts for one in losses)
    assert numbers["replaced_images"] == sum(len(one.replaced) for one in losses)
    assert numbers["replaced_images"] == sum(
        count for name, count in numbers.items() if name.startswith("replaced_images/")
    )


def test_steps_in_a_row_are_those_at_the_end():
    totals = Totals()
    for skipped in (True, True, False, True):
        totals.add_step(skipped=skipped)
    assert (totals.skipped_steps, totals.skipped_in_a_row) == (3, 1)


def test_at_most_a_thousand_ids_are_kept_and_all_are_counted(tmp_path):
    totals = Totals()
    for _ in range(2):
        for n in range(1_500):
            lost = (batch.Replaced(0, f"image{n}", f"reason{n % 2}"),)
            totals.add_losses(pipeline.Losses(0, lost))
    assert totals.replaced == {"reason0": 1_500, "reason1": 1_500}
    totals.write_replaced(str(tmp_path))
    found = files.read_json(tmp_path / "metrics" / "replaced_images.json")
    assert sum(map(len, found.values())) == 1_000
    assert {times for ids in found.values() for times in ids.values()} == {2}


def test_nothing_is_written_where_nothing_was_replaced(tmp_path):
    Totals(truncated_texts=3).write_replaced(str(tmp_path))
    assert not list(tmp_path.iterdir())
