"""Online balancing: a fair part of the dataset in each epoch, known by its position."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from data_prep import balance as offline
from data_prep.sinks import array_record as sink
from data_prep.stages import steps
from metaclip_jax.data import (
    balance,
    blocks,
    order,
    pipeline,
    records,
    texts,
    tokenizer,
)

ENTRIES, RECORDS, SHARDS, T = 60, 3_000, 3, 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("online") / "dataset", balanced=None)


@pytest.fixture(scope="module")
def dataset(folder):
    return records.open_dataset(str(folder))


def make(folder, *, balanced):
    """A dataset of images with one to three texts; entries follow Zipf's law."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "JPEG")
    weights = 1 / (np.arange(ENTRIES) + 1)
    weights /= weights.sum()
    counts = np.zeros(ENTRIES, np.uint64)
    made = []
    for number in range(RECORDS):
        count = int(rng.integers(1, 4))
        ids = [
            np.unique(rng.choice(ENTRIES, rng.integers(1, 4), p=weights))
            for _ in range(count)
        ]
        for row in ids:
            counts[row] += np.uint64(1)
        url = f"http://a.example/{number}.jpg"
        made.append(
            records.Record(
                image=buffer.getvalue(),
                image_id=records.image_id(url),
                image_url=url,
                page_url="",
                sha256="",
                width=16,
                height=16,
                texts=tuple(f"text {i} of {number}" for i in range(count)),
                text_sources=("alt",) * count,
                languages=("en",) * count,
                metadata=("en",) * count,
                entry_ids=np.concatenate(ids).astype(np.int32),
                entry_offsets=np.cumsum([0, *map(len, ids)]).astype(np.int64),
            )
        )
    made.sort(key=lambda record: record.image_id)
    facts = []
    for shard in range(SHARDS):
        path = folder / records.shard_name("online", shard, SHARDS)
        size = RECORDS // SHARDS
        facts.append(sink.write_shard(str(path), made[shard * size :][:size]))
    entries = {"en": [f"entry {i}" for i in range(ENTRIES)]}
    sink.write_dataset(
        str(folder),
        name="online",
        shard_facts=facts,
        data_card={"name": "online", "balanced": balanced},
        counts=steps.counts_table(entries, {"kept_count": {"en": counts}}),
        inputs={},
    )
    return folder


@pytest.fixture(scope="module")
def online(dataset):
    return balance.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0)


def texts_of(dataset):
    """The arguments of data_prep's keep_images."""
    raw = records.read(dataset, np.arange(len(dataset)))
    decoded = [records.decode(data) for data in raw]
    lists = [
        record.entry_ids[a:b]
        for record in decoded
        for a, b in zip(record.entry_offsets, record.entry_offsets[1:], strict=False)
    ]
    return {
        "image_keys": np.array([int(r.image_id[:16], 16) for r in decoded], np.uint64),
        "text_offsets": np.cumsum([0, *(len(r.texts) for r in decoded)]),
        "text_keys": np.concatenate(
            [records.text_keys([r.image_id] * len(r.texts), r.texts) for r in decoded]
        ),
        "offsets": np.cumsum([0, *map(len, lists)]),
        "entry_ids": np.concatenate(lists),
    }


@pytest.mark.parametrize(("t", "share"), [(T, 0.0), (0, 0.3), (1, 0.0), (0, 0.0)])
def test_the_law_is_that_of_curation(dataset, t, share):
    counts = balance.read_counts(dataset) | {"de": np.array([5, 0, 70, 900])}
    mine = balance.keep_probabilities(counts, t=t, tail_share=share)
    wanted = steps.thresholds(counts, t=t, tail_share=share)
    for code, vector in counts.items():
        want = offline.keep_probability(vector, wanted[code])
        np.testing.assert_array_equal(mine[code], want)


def test_epochs_keep_what_offline_balancing_keeps_in_law(dataset, online):
    """Each record is kept as often as by MetaCLIP 2's rule with as many seeds."""
    texts = texts_of(dataset)
    keep = offline.keep_probability(balance.read_counts(dataset)["en"], T)
    rounds = 60
    mine, theirs = np.zeros(RECORDS), np.zeros(RECORDS)
    for number in range(rounds):
        mine[online.epoch_records(number)] += 1
        theirs += offline.keep_images(number, **texts, keep_probability=keep) >= 0
    chance = offline.text_probability(texts["offsets"], texts["entry_ids"], keep)
    sizes = np.diff(texts["text_offsets"])
    want = np.add.reduceat(chance, texts["text_offsets"][:-1]) / sizes
    sigma = np.sqrt(np.sum(want * (1 - want)) / rounds)
    for found in (mine, theirs):
        assert abs(found.sum() / rounds - want.sum()) < 4 * sigma
    # Record by record: the squared deviations are what chance gives.
    some = (want > 0.05) & (want < 0.95)
    for found in (mine, theirs):
        score = (found[some] / rounds - want[some]) ** 2
        score /= want[some] * (1 - want[some]) / rounds
        assert abs(score.mean() - 1) < 4 * np.sqrt(2 / some.sum())
    assert np.all(mine[want > 1 - 1e-9] == rounds)  # the tail is in every epoch


def test_epochs_differ_and_each_is_a_permutation_of_what_it_keeps(online):
    first, second = online.epoch_records(0), online.epoch_records(1)
    assert len(np.setdiff1d(first, second)) > 100
    positions = np.arange(len(first) + len(second))
    epochs, numbers = online.order(positions)
    assert np.array_equal(np.sort(numbers[epochs == 0]), first)
    assert np.array_equal(np.sort(numbers[epochs == 1]), second)
    assert np.array_equal(epochs, np.sort(epochs))
    assert not np.array_equal(numbers[: len(first)], first)


def test_blocks_of_what_an_epoch_keeps_are_read_as_they_stand(dataset):
    shape = order.Blocks(16, 4)
    source = balance.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0, blocks=shape)
    kept = source.epoch_records(0)
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
    none = texts.Choice(weights=(("alt", 0.0),))
    with pytest.raises(ValueError, match="keeps none of 3000 records"):
        balance.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0, choice=none).order(
            np.arange(1)
        )
    made = texts.Choice(synthetic_sources=("made",), synthetic_share=0.15)
    source = balance.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0, choice=made)
    plain = balance.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0)
    assert np.array_equal(source.epoch_records(1), plain.epoch_records(1))


def test_a_position_says_everything(dataset, online):
    """Whatever was asked before, in whichever process."""
    positions = np.array([20_000, 5, 7_001, 7_000, 12_345])
    want = online.order(positions)
    fresh = balance.OnlineBalance(dataset, seed=3, t=T, tail_share=0.0)
    travelled = pickle.loads(pickle.dumps(online))
    for other in (fresh, travelled):
        for found, wanted in zip(other.order(positions), want, strict=True):
            np.testing.assert_array_equal(found, wanted)
    one_by_one = [fresh.order(positions[i : i + 1])[1][0] for i in range(5)]
    assert one_by_one == want[1].tolist()
    other_seed = balance.OnlineBalance(dataset, seed=4, t=T, tail_share=0.0)
    assert not np.array_equal(other_seed.order(positions)[1], want[1])


def test_a_batch_shows_the_text_that_was_accepted(folder, online, tmp_path):
    raw = tokenizer.train([f"text {i} of {i}" for i in range(50)], 600)
    (tmp_path / "t.json").write_text(raw.to_str())
    tokenize = tokenizer.load(tmp_path / "t.json", family="clip")
    batches = pipeline.batches(
        str(folder),
        tokenize=tokenize,
        global_batch=64,
        image_size=16,
        context_length=16,
        seed=3,
        total_steps=2,
        online_t=T,
    )
    dataset = records.open_dataset(str(folder))
    kept = set(online.epoch_records(0).tolist())
    for batch in batches:
        assert set(batch["record"].tolist()) <= kept
        for row, number in zip(batch["tokens"], batch["record"], strict=True):
            record = records.decode(records.read(dataset, [number])[0])
            key = np.array([int(record.image_id[:16], 16)], np.uint64)
            count = np.array([len(record.texts)])
            index = texts.shown(key, count, epochs=0, seed=3)[0]
            (want,), _ = tokenize([record.texts[index]], 16)
            np.testing.assert_array_equal(row, want)


def test_a_balanced_dataset_is_not_thinned_again(tmp_path):
    done = make(tmp_path / "done", balanced={"rule": "v1", "t": {"en": 20}})
    dataset = records.open_dataset(str(done))
    with pytest.raises(ValueError, match="balanced already.*rule=online"):
        balance.OnlineBalance(dataset, seed=0, t=20, tail_share=0.0)
