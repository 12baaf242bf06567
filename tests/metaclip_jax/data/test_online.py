"""Online balancing: a new sample in each epoch, computed from the position."""

import io
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import schema
from data_prep.sinks import array_record as sink
from data_prep.stages import steps
from metaclip_jax.data import (
    balance,
    blocks,
    draws,
    online,
    order,
    pipeline,
    records,
    texts,
    tokenizer,
)
from metaclip_jax.data.options import DataOptions
from tests import small_records

ENTRIES, RECORDS, SHARDS, T = 60, 3_000, 3, 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("online") / "dataset", balanced=None)


@pytest.fixture(scope="module")
def dataset(folder):
    return records.open_dataset(str(folder))


def make(folder, *, balanced, size=RECORDS, codes=("en",), seed=0):
    """A dataset of images with one to three texts; entries follow Zipf's law."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "JPEG")
    weights = 1 / (np.arange(ENTRIES) + 1)
    weights /= weights.sum()
    counts = {code: np.zeros(ENTRIES, np.uint64) for code in codes}
    made = []
    for number in range(size):
        metadata = rng.choice(codes, rng.integers(1, 4)).tolist()
        ids = [
            np.unique(rng.choice(ENTRIES, rng.integers(1, 4), p=weights))
            for _ in metadata
        ]
        for code, row in zip(metadata, ids, strict=True):
            counts[code][row] += np.uint64(1)
        made.append(
            small_records.record(
                f"http://a.example/{number}.jpg",
                [f"text {i} of {number}" for i in range(len(ids))],
                image=buffer.getvalue(),
                entry_ids=ids,
                metadata=tuple(metadata),
            )
        )
    made.sort(key=lambda record: record.image_id)
    facts = [
        sink.write_shard(
            str(folder / records.shard_name("online", shard, SHARDS)),
            made[shard * (size // SHARDS) :][: size // SHARDS],
        )
        for shard in range(SHARDS)
    ]
    entries = {code: [f"entry {i}" for i in range(ENTRIES)] for code in sorted(codes)}
    sink.write_dataset(
        str(folder),
        name="online",
        shard_facts=facts,
        data_card={"name": "online", "balanced": balanced},
        counts=steps.counts_table(entries, {"kept_count": counts}),
        inputs={},
    )
    return folder


@pytest.fixture(scope="module")
def source(dataset):
    return online.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0)


def kept_in(source, epoch):
    """The records that an epoch keeps, ascending."""
    size = source.size(epoch)
    return source.records(np.full(size, epoch), np.arange(size))


def order_of(source, positions):
    """The epoch and the record of positions."""
    epochs, index = source.index(positions)
    return epochs, source.records(epochs, index)


def matches_of(dataset, *, rule="v1", seed=0):
    """The dataset's texts as curation has them, and the record of each."""
    raw = records.read(dataset, np.arange(len(dataset)))
    rows, numbers = [], []
    for number, record in enumerate(map(records.decode, raw)):
        for i, text in enumerate(record.texts):
            first, last = record.entry_offsets[i : i + 2]
            rows.append(
                dict.fromkeys(schema.MATCHED.names, "")
                | {
                    "image_id": record.image_id,
                    "text": text,
                    "metadata": record.metadata[i],
                    "entry_ids": record.entry_ids[first:last].tolist(),
                }
            )
            numbers.append(number)
    table = pa.Table.from_pylist(rows, schema=schema.MATCHED)
    return steps.to_matches(table, seed=seed, rule=rule), np.array(numbers)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 40).map(lambda shard: shard * SHARDS),
    codes=st.lists(
        st.sampled_from(["de", "en", "other", "zh"]),
        min_size=1,
        max_size=3,
        unique=True,
    ),
    t=st.integers(0, 60),
    share=st.floats(0.05, 1),
    epoch=st.integers(0, 5),
)
def test_an_epoch_keeps_what_curation_keeps_of_the_texts_that_it_draws(
    seed, size, codes, t, share, epoch
):
    """The law of v2, bit by bit, with the counts, thresholds and draws of curation."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), balanced=None, size=size, codes=sorted(codes), seed=seed)
        dataset = records.open_dataset(folder)
        matches, numbers = matches_of(dataset)
        counts = steps.to_vectors(steps.count(matches), dict.fromkeys(codes, ENTRIES))
        chosen = balance.thresholds(counts, t=t, tail_share=share)
        sizes = np.bincount(numbers)
        keys = balance.image_keys(pc.unique(matches["image_id"]))
        drawn = balance.choose_texts(keys, sizes, seed=seed, epochs=epoch)
        rows = np.cumsum(sizes) - sizes + drawn
        kept, _ = steps.draw(
            matches.take(pa.array(rows)),
            seed=int(draws.mix(seed, draws.ACCEPT, epoch)),
            keep_probability=balance.keep_probabilities(counts, chosen),
        )
        if kept.any():  # else the epoch is refused
            source = online.OnlineBalance(dataset, seed=seed, t=t, tail_share=share)
            assert kept_in(source, epoch).tolist() == numbers[rows[kept]].tolist()
        if epoch == 0:
            of_v2, _ = matches_of(dataset, rule="v2", seed=seed)
            assert np.flatnonzero(of_v2["drawn"]).tolist() == rows.tolist()


def test_each_record_is_kept_as_often_as_the_law_says(dataset, source):
    matches, numbers = matches_of(dataset)
    counts = online.read_counts(dataset)
    keep = balance.keep_probabilities(counts, {"en": T})
    rounds = 60
    found = np.zeros(RECORDS)
    for number in range(rounds):
        found[kept_in(source, number)] += 1
    chance = steps.text_probabilities(matches, keep)
    want = np.bincount(numbers, chance) / np.bincount(numbers)
    sigma = np.sqrt(np.sum(want * (1 - want)) / rounds)
    assert abs(found.sum() / rounds - want.sum()) < 4 * sigma
    # Record by record: the squared deviations are what chance gives.
    some = (want > 0.05) & (want < 0.95)
    score = (found[some] / rounds - want[some]) ** 2
    score /= want[some] * (1 - want[some]) / rounds
    assert abs(score.mean() - 1) < 4 * np.sqrt(2 / some.sum())
    assert np.all(found[want > 1 - 1e-9] == rounds)  # the tail is in every epoch


def test_epochs_differ_and_each_is_a_permutation_of_what_it_keeps(source):
    first, second = kept_in(source, 0), kept_in(source, 1)
    assert len(np.setdiff1d(first, second)) > 100
    positions = np.arange(len(first) + len(second))
    epochs, numbers = order_of(source, positions)
    assert np.array_equal(np.sort(numbers[epochs == 0]), first)
    assert np.array_equal(np.sort(numbers[epochs == 1]), second)
    assert np.array_equal(epochs, np.sort(epochs))
    assert not np.array_equal(numbers[: len(first)], first)


def test_blocks_of_what_an_epoch_keeps_are_read_as_they_stand(dataset):
    shape = order.Blocks(16, 4)
    source = online.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0, blocks=shape)
    kept = kept_in(source, 0)
    epochs, index = source.index(np.arange(len(kept) + 40))
    numbers = source.records(epochs, index)
    assert np.array_equal(np.sort(numbers[epochs == 0]), kept)
    assert len(np.unique(index[:64] // 16)) <= 5  # a window; one block may be short
    reader = blocks.BlockReader(dataset)
    for start in range(0, len(index), 100):
        some = numbers[start : start + 100]
        assert reader.read(some) == records.read(dataset, some)
    assert source.progress(len(kept)) == 1.0


def test_a_text_without_weight_keeps_no_image(dataset):
    """All texts here are alt texts; a share of synthetic ones changes nothing."""
    none = texts.Choice((("alt", 0.0),))
    with pytest.raises(ValueError, match="keeps none of 3000 records"):
        online.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0, choice=none).size(0)
    made = texts.Choice(synthetic_sources=("made",), synthetic_share=0.15)
    source = online.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0, choice=made)
    plain = online.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0)
    assert np.array_equal(kept_in(source, 1), kept_in(plain, 1))


def test_a_position_says_everything(dataset, source):
    """Whatever was asked before, in whichever process."""
    positions = np.array([20_000, 5, 7_001, 7_000, 12_345])
    want = order_of(source, positions)
    fresh = online.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0)
    travelled = pickle.loads(pickle.dumps(source))
    for other in (fresh, travelled):
        for found, wanted in zip(order_of(other, positions), want, strict=True):
            np.testing.assert_array_equal(found, wanted)
    one_by_one = [order_of(fresh, positions[i : i + 1])[1][0] for i in range(5)]
    assert one_by_one == want[1].tolist()
    other_seed = online.OnlineBalance(dataset, seed=4, t=T, tail_share=0.0)
    assert not np.array_equal(order_of(other_seed, positions)[1], want[1])


def test_a_batch_shows_the_text_that_was_accepted(folder, source, tmp_path):
    raw = tokenizer.train([f"text {i} of {i}" for i in range(50)], 600)
    (tmp_path / "t.json").write_text(raw.to_str())
    tokenize = tokenizer.load(tmp_path / "t.json", family="clip")
    batches = pipeline.batches(
        DataOptions(
            folders=(str(folder),),
            global_batch=64,
            image_size=16,
            context_length=16,
            seed=3,
            total_steps=2,
            online_t=T,
        ),
        tokenize,
    )
    dataset = records.open_dataset(str(folder))
    kept = set(kept_in(source, 0).tolist())
    for batch in batches:
        assert set(batch["record"].tolist()) <= kept
        for row, number in zip(batch["tokens"], batch["record"], strict=True):
            record = records.decode(records.read(dataset, [number])[0])
            key = balance.image_keys(pa.array([record.image_id]))
            count = np.array([len(record.texts)])
            index = texts.shown(key, count, epochs=0, seed=3)[0]
            (want,), _ = tokenize([record.texts[index]], 16)
            np.testing.assert_array_equal(row, want)


@pytest.mark.parametrize(
    "name", ["counts.parquet", "data_card.json", "dataset_info.json", "entries"]
)
def test_a_missing_file_of_a_dataset_is_named_with_the_cure(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "dataset")
    (missing,) = list((tmp_path / "dataset").glob(f"*{name}*"))[:1]
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing}.* missing; .*restore it"):
        dataset = records.open_dataset(str(tmp_path / "dataset"))
        online.OnlineBalance(dataset, seed=0, t=T, tail_share=0).size(0)


def test_a_balanced_dataset_is_not_thinned_again(tmp_path):
    done = make(tmp_path / "done", balanced={"rule": "v1", "t": {"en": 20}})
    dataset = records.open_dataset(str(done))
    with pytest.raises(ValueError, match="balanced already.*rule=online"):
        online.OnlineBalance(dataset, seed=0, t=20, tail_share=0.0)
