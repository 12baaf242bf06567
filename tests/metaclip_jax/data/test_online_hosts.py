"""Online balancing with hosts, workers and restarts: the same batches and masks."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg

from data_prep.sinks import array_record as sink
from data_prep.stages import steps
from metaclip_jax.data import (
    balance,
    draws,
    kept,
    online,
    order,
    pipeline,
    records,
    texts,
    tokenizer,
    workers,
)
from metaclip_jax.data.options import DataOptions
from tests import small_records, waiting

ENTRIES = {"en": 20, "zh": 35, "other": 5}
RECORDS, SHARDS, SEED, T = 150, 3, 5, 9
SOURCES = ("alt", "title", "synthetic")
CHOICE = texts.Choice(
    text_source_weights=(("title", 3.0),),
    synthetic_sources=("synthetic",),
    synthetic_share=0.3,
)


def write(folder, name):
    """A dataset of images with texts of several metadata, none to three entries each"""
    rng = np.random.default_rng(len(name))
    picture = simplejpeg.encode_jpeg(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    counts = {code: np.zeros(size, np.uint64) for code, size in ENTRIES.items()}
    made = []
    for number in range(RECORDS):
        codes = rng.choice(list(ENTRIES), int(rng.integers(1, 4))).tolist()
        ids = [
            np.unique((ENTRIES[c] * rng.random(rng.integers(1, 4)) ** 3).astype(int))
            for c in codes
        ]
        for code, row in zip(codes, ids, strict=True):
            counts[code][row] += np.uint64(1)
        made.append(
            small_records.record(
                f"http://{name}.example/{number}.jpg",
                [f"text {i} of {number}" for i in range(len(codes))],
                image=picture,
                entry_ids=ids,
                text_sources=tuple(rng.choice(SOURCES, len(codes)).tolist()),
                metadata=tuple(codes),
            )
        )
    size = RECORDS // SHARDS
    facts = [
        sink.write_shard(
            f"{folder}/{records.shard_name(name, shard, SHARDS)}",
            made[shard * size :][:size],
        )
        for shard in range(SHARDS)
    ]
    entries = {c: [f"{c} {i}" for i in range(size)] for c, size in ENTRIES.items()}
    sink.write_dataset(
        str(folder),
        name=name,
        shard_facts=facts,
        data_card={"name": name, "balanced": None},
        counts=steps.counts_table(entries, {"kept_count": counts}),
        inputs={},
    )
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("online")
    raw = tokenizer.train([f"text {i} of {i}" for i in range(50)], 600)
    (root / "tokenizer.json").write_text(raw.to_str())
    return [write(root / name, name) for name in ("first", "another")]


def read(datasets, *, hosts=1, start=0, stop=24, prefetcher=None, **values):
    """The global batches of some steps, put together from all hosts, by key."""
    usual = {"folders": (datasets[0],), "online_t": T}
    options = DataOptions(
        **usual | values,
        global_batch=16,
        image_size=8,
        context_length=12,
        seed=SEED,
        total_steps=stop,
    )
    parts = []
    for host in range(hosts):
        stream = pipeline.batches(
            options,
            tokenizer.load(f"{datasets[0]}/../tokenizer.json", family="clip"),
            start_step=start,
            rows=np.array_split(np.arange(16), hosts)[host],
            prefetcher=prefetcher,
        )
        parts.append([{k: np.array(v) for k, v in b.items()} for b in stream])
        stream.close()
    return [
        {key: np.concatenate([batch[key] for batch in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.fixture(params=["global", "blocks", "mixture"])
def values(request, folders, tmp_path):
    both = {"folders": tuple(folders), "weights": (3.0, 1.0)}
    blocks = {"blocks": order.Blocks(4, 3)}
    return {
        "global": {},
        "blocks": blocks | {"shared_folder": str(tmp_path / "shared")},
        "mixture": both
        | blocks
        | {"choice": CHOICE, "online_t": 0, "online_tail_share": 0.2},
    }[request.param]


def test_hosts_and_restarts_on_other_hosts_change_no_batch(folders, values):
    straight = read(folders, **values)
    seen = np.concatenate([batch["record"] for batch in straight])
    assert 2 * len(np.unique(seen)) < len(seen)  # several epochs
    for hosts in (2, 4):
        assert_same(read(folders, hosts=hosts, **values), straight)
    # A run that is stopped twice and continues with other hosts.
    stops = ((1, 0, 7), (4, 7, 15), (2, 15, 24))
    parts = [read(folders, hosts=h, start=a, stop=b, **values) for h, a, b in stops]
    assert_same([batch for part in parts for batch in part], straight)


def test_workers_that_share_what_they_find_change_no_batch(folders, tmp_path):
    shared = {"shared_folder": str(tmp_path), "blocks": order.Blocks(4, 3)}
    straight = read(folders, blocks=order.Blocks(4, 3))
    two = workers.Prefetcher(worker_count=2)
    assert_same(read(folders, **shared, prefetcher=two), straight)


def kept_in(source, epoch):
    """The records that an epoch keeps, ascending."""
    size = source.size(epoch)
    return source.records(np.full(size, epoch), np.arange(size))


@pytest.mark.parametrize("choice", [texts.Choice(), CHOICE])
def test_a_mask_is_the_rule_record_by_record(folders, choice):
    dataset = records.open_dataset(folders[0])
    counts = online.read_counts(dataset)
    assert counts.keys() == ENTRIES.keys()
    t = balance.thresholds(counts, t=T, tail_share=0)
    keep = balance.keep_probabilities(counts, t)
    source = online.OnlineBalance(dataset, seed=SEED, t=T, tail_share=0, choice=choice)
    raw = records.read(dataset, np.arange(RECORDS))
    for epoch in (0, 4):
        wanted = []
        for number, record in enumerate(map(records.decode, raw)):
            (chosen,), _ = texts.draw(
                balance.image_keys(pa.array([record.image_id])),
                np.array([len(record.texts)]),
                epochs=epoch,
                seed=SEED,
                kinds=choice.kinds(record.text_sources),
            )
            key = records.text_key(record.image_id, record.texts[chosen])
            first, last = record.entry_offsets[chosen : chosen + 2]
            drawn = balance.match_draws(
                int(draws.mix(SEED, draws.ACCEPT, epoch)),
                np.array([key], np.uint64),
                np.array([0, last - first]),
                record.entry_ids[first:last],
            )
            p = keep[record.metadata[chosen]][record.entry_ids[first:last]]
            if (drawn < p).any():
                wanted.append(number)
        assert kept_in(source, epoch).tolist() == wanted
        assert RECORDS / 4 < len(wanted) < RECORDS


def order_of(source, positions):
    """The epoch and the record of positions."""
    epochs, index = source.index(positions)
    return epochs, source.records(epochs, index)


def test_what_an_epoch_keeps_is_found_once_by_all_who_share(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders[0], copy)
    shared = tmp_path / "shared"

    def source(**values):
        values = {"seed": SEED, "t": T, "tail_share": 0, **values}
        dataset = records.open_dataset(str(copy))
        return online.OnlineBalance(dataset, **values, shared=str(shared))

    positions = np.arange(300, 400)  # of two epochs
    wanted = order_of(source(), positions)
    last = wanted[0].max()
    (folder,) = shared.iterdir()
    # The next epoch is found ahead, in the background.
    waiting.until((folder / f"{last + 1:06}" / "total").exists)
    # Without sidecars nothing can be found anew, so this is what was shared.
    for sidecar in copy.glob("*.arrow"):
        sidecar.unlink()
    for found, want in zip(order_of(source(), positions), wanted, strict=True):
        np.testing.assert_array_equal(found, want)
    for other in ({"seed": SEED + 1}, {"t": T + 1}, {"choice": CHOICE}):
        with pytest.raises(FileNotFoundError):
            order_of(source(**other), positions)
    # A damaged file is not believed.
    next((folder / f"{last:06}").glob("0*")).write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        order_of(source(), positions)


def test_epochs_past_leave_only_their_totals(folders, tmp_path):
    dataset = records.open_dataset(folders[0])
    source = online.OnlineBalance(
        dataset, seed=SEED, t=T, tail_share=0, shared=str(tmp_path)
    )
    for epoch in range(7):
        kept_in(source, epoch)
        (folder,) = tmp_path.iterdir()
        waiting.until((folder / f"{epoch + 1:06}" / "total").exists)
    first = folder / "000000"
    waiting.until(lambda: [path.name for path in first.iterdir()] == ["total"])


@pytest.mark.parametrize("sizes", [[0, 1, 0], [300, 0, 7, 256, 1], [20_000] * 3])
def test_bits_name_the_kept_records(sizes):
    rng = np.random.default_rng(0)
    masks = [rng.random(size) < rng.choice([0.02, 0.5, 1]) for size in sizes]
    wanted = np.flatnonzero(np.concatenate(masks))
    bits = kept.Bits(np.array(sizes), [np.packbits(mask) for mask in masks])
    assert bits.total == len(wanted)
    everything = bits.records(np.arange(bits.total))
    np.testing.assert_array_equal(everything, wanted)
    index = rng.integers(0, max(len(wanted), 1), 500 if len(wanted) else 0)
    np.testing.assert_array_equal(bits.records(index), wanted[index])
