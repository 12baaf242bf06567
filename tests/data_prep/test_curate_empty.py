"""Curation of which nothing is left, in a partition or at all, still makes a dataset.

Only a source without any text is an error, since it is read by the wrong keys.
"""

import pyarrow as pa
import pytest
import tensorflow_datasets as tfds

from data_prep import explain
from data_prep.report import page
from data_prep.stages import outcomes, sums
from metaclip_jax.data import records
from tests.data_prep import tiny_web

PARTITIONS = 3
ALTS = [(f"/{n}.jpg", f"a cat and dog number {n}") for n in range(4)]
BODIES = {path: tiny_web.picture(n) for n, (path, _) in enumerate(ALTS)}
# Both entries of these texts count four, so each text stays with 1 - (3/4)^2.
RARE = {"balance.t": 1, "balance.slack": 1.0}
LATE = {"balance.t": 1, "balance.slack": 9.0}

# Each with the stage after which nothing is left.
CASES = {
    "no match": ([("/0.jpg", "a zebra")], BODIES, {"balance.rule": "online"}, "match"),
    "all thinned": (ALTS, BODIES, RARE | {"seed": 3}, "thin"),
    "all lost": (ALTS, {}, {"balance.rule": "v2"}, "download"),
    "all damaged": (ALTS, dict.fromkeys(BODIES, b"no image"), {}, "screen"),
    "balanced away": (
        ALTS,
        BODIES,
        RARE | {"balance.slack": 9.0, "seed": 3},
        "balance",
    ),
    "one image": (ALTS[:1], BODIES, {}, None),
}


def stage_before(stage):
    return dict(zip(sums.TEXT_STAGES[1:], sums.TEXT_STAGES, strict=False)).get(stage)


@pytest.mark.parametrize("case", CASES)
def test_where_nothing_is_left_there_is_a_dataset_with_empty_shards(
    tmp_path, case, caplog
):
    alts, bodies, overrides, stage = CASES[case]
    overrides = {"partitions": PARTITIONS} | overrides
    run = tiny_web.run(tmp_path, alts, bodies, **overrides)
    dataset = records.open_dataset(run.output)  # counts the records of each shard
    assert len(dataset.shard_lengths) == PARTITIONS
    assert 0 in dataset.shard_lengths
    card = dataset.data_card
    funnel = {row["stage"]: row for row in card["funnel"] if row["unit"] == "texts"}
    if stage is None:
        assert len(dataset) == funnel["balance"]["out"] == 1
        source = tfds.builder_from_directory(run.output).as_data_source("train")
        assert len(source) == 1
    else:
        assert len(dataset) == card["records"] == card["texts"] == 0
        assert funnel[stage]["out"] == 0
        assert not stage_before(stage) or funnel[stage_before(stage)]["out"] > 0
    outcomes.report(run.output)
    said = [one for one in caplog.messages if one.startswith("0 records: of ")]
    assert len(said) == (stage is not None)
    assert not stage or f"were lost at {stage}: " in said[0]
    warned = any(one.startswith("no text matched: of ") for one in caplog.messages)
    assert warned == (stage == "match")
    rows = [
        pa.ipc.open_file(records.entries_path(p)).read_all().num_rows
        for p in dataset.shards
    ]
    assert rows == list(dataset.shard_lengths)
    # What reads these folders copes with them.
    pool = explain.load(f"{run.workdir}/matches", f"{tmp_path}/metadata.json")
    size, _ = explain.expected(pool, {"en": 3})
    assert size.pool_texts == funnel["dedup"]["out"]
    assert b"tiny" in page.build(run.output, held_out=None, workdir=None)


@pytest.mark.parametrize(
    ("alts", "reason"),
    [
        ([], r"of 1 files, most \(1\) were lost at read: empty_file"),
        ([("/0.jpg", "")], r"of 1 texts, most \(1\) were lost at parse: \w+"),
    ],
)
def test_a_source_without_any_text_is_an_error_in_each_run(tmp_path, alts, reason):
    for _ in range(2):
        with pytest.raises(ValueError, match=f"wanted texts, got none: {reason}. Corr"):
            tiny_web.run(tmp_path, alts, BODIES)
