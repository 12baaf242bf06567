"""The input pipeline: order, hosts, restarts, replacements, worker processes."""

import collections
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metaclip_jax.data import (
    draws,
    images,
    mixture,
    order,
    pipeline,
    records,
    texts,
    tokenizer,
    workers,
)
from metaclip_jax.data.options import DataOptions
from tests import waiting

RECORDS = 50


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    texts = [f"picture {n} told as {n % 3}" for n in range(RECORDS)]
    path.write_text(tokenizer.train(texts, 600).to_str())
    return str(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, write_dataset):
    return write_dataset(tmp_path_factory.mktemp("dataset"), record_count=RECORDS)


@pytest.fixture
def batches(dataset, tokenizer_path):
    def open_batches(
        folder=dataset, *, start_step=0, rows=None, prefetcher=None, **values
    ):
        usual = {
            "folders": (folder,),
            "global_batch": 16,
            "image_size": 24,
            "context_length": 12,
            "seed": 5,
            "total_steps": 8,
        }
        return pipeline.batches(
            DataOptions(**usual | values),
            tokenizer.load(tokenizer_path, family="clip"),
            start_step=start_step,
            rows=rows,
            prefetcher=prefetcher,
        )

    return open_batches


def joined(rows, parts):
    """Puts the batches of several hosts, of such rows, together, step by step."""
    order = np.argsort(np.concatenate(rows))
    return [
        {key: np.concatenate([part[key] for part in step])[order] for key in step[0]}
        for step in zip(*parts, strict=True)
    ]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_a_batch_has_the_promised_shapes(batches):
    batch = next(batches())
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((16, 24, 24, 3), "uint8"),
        "tokens": ((16, 12), "int32"),
        "truncated": ((16,), "bool"),
        "position": ((16,), "int64"),
        "dataset": ((16,), "int32"),
        "record": ((16,), "int64"),
        "image_id": ((16,), "bytes192"),
    }


def test_each_epoch_holds_each_record_once_in_another_order(batches):
    found = np.concatenate([b["record"] for b in batches(total_steps=10)])
    epochs = found[: 3 * RECORDS].reshape(3, RECORDS)
    for epoch in epochs:
        assert sorted(epoch) == list(range(RECORDS))
    assert not (epochs[0] == epochs[1]).all()
    assert not (epochs[1] == epochs[2]).all()


def test_another_seed_gives_another_order(batches):
    one = next(batches(seed=1))
    other = next(batches(seed=2))
    assert not (one["record"] == other["record"]).all()


@pytest.fixture(scope="module")
def other(tmp_path_factory, write_dataset):
    """A second dataset, smaller, with texts of several sources."""
    return write_dataset(
        tmp_path_factory.mktemp("other"),
        record_count=23,
        text_sources=("alt", "title", "synthetic"),
        name="other",
    )


@pytest.fixture(params=["plain", "blocks", "mixture", "everything"])
def values(request, dataset, other):
    """Arguments of `batches` besides the usual ones."""
    both = {"folders": (dataset, other), "weights": (3.0, 1.0)}
    blocks = {"blocks": order.Blocks(4, 3)}
    varied = {
        "augmentation": images.Augmentation((0.5, 1.0), flip=True, colour=0.4),
        "choice": texts.Choice(
            text_source_weights=(("title", 3.0),),
            synthetic_sources=("synthetic",),
            synthetic_share=0.3,
        ),
    }
    return {
        "plain": {},
        "blocks": blocks,
        "mixture": both,
        "everything": both | blocks | varied,
    }[request.param]


def test_a_text_source_that_the_data_card_does_not_count_is_refused(
    batches, tmp_path, write_dataset
):
    folder = write_dataset(tmp_path / "dataset", record_count=8)
    card = Path(folder) / records.DATA_CARD
    card.write_text(json.dumps({"balanced": None, "text_sources": {"alt": 8}}))
    batches(folder=folder, choice=texts.Choice((("alt", 2.0),)))
    with pytest.raises(ValueError, match=r"data card counts \(alt\), got title"):
        batches(folder=folder, choice=texts.Choice((("title", 2.0),)))


def test_neither_hosts_nor_restarts_nor_workers_change_a_batch(batches, values):
    straight = list(batches(**values))
    runs = np.arange(16).reshape(-1, 4)
    for rows in (runs, [runs[::2].ravel(), runs[[3, 1]].ravel()]):
        parts = [list(batches(**values, rows=own)) for own in rows]
        assert_same(joined(rows, parts), straight)
    for start in (0, 3, 8):
        assert_same(list(batches(**values, start_step=start)), straight[start:])


@pytest.mark.parametrize("values", ["plain", "everything"], indirect=True)
def test_workers_change_nothing_and_share_memory(batches, values):
    prefetcher = workers.Prefetcher(worker_count=2)
    stream = batches(**values, prefetcher=prefetcher)
    found = list(stream)
    assert_same(found, list(batches(**values)))
    # Grain's arrays in shared memory; the others were pickled.
    assert {type(batch["image"]).__name__ for batch in found} == {"SharedMemoryArray"}
    assert 1 << 26 < prefetcher.peak_memory() < 1 << 30  # of a worker that has numpy
    stream.close()


def test_a_mixture_shows_each_dataset_by_its_weight(batches, dataset, other):
    both = {"folders": (dataset, other), "weights": (3.0, 1.0)}
    stream = batches(**both, total_steps=256, image_size=8)
    seen = {0: [], 1: []}
    for batch in stream:
        for member, number in zip(batch["dataset"], batch["record"], strict=True):
            seen[int(member)].append(int(number))
    assert abs(len(seen[0]) - 3_072) <= 1  # a cycle of positions
    progress = stream.progress(256)
    assert progress["examples_seen/tiny"] == len(seen[0])
    assert progress["epochs/other"] == pytest.approx(len(seen[1]) / 23)
    for member, records_there in ((0, RECORDS), (1, 23)):
        counts = np.bincount(seen[member], minlength=records_there)
        assert counts.max() - counts.min() <= 1  # each once before any again


def test_datasets_of_one_size_are_not_read_in_identical_order(
    batches, tmp_path, write_dataset
):
    """A copy with other texts: else an image would meet itself in each batch."""
    count, rows = 6_000, mixture.CYCLE // 2
    one, other = (
        write_dataset(tmp_path / name, record_count=count, name=name)
        for name in ("one", "other")
    )
    values = {"image_size": 8}
    both = {"folders": (one, other), "weights": (1.0, 1.0)}
    values["prefetcher"] = workers.Prefetcher(prefetch=0)
    batch = next(batches(**both, **values, global_batch=mixture.CYCLE))
    sides = [batch["record"][batch["dataset"] == n] for n in (0, 1)]
    by_chance = rows * rows / count
    assert abs(len(np.intersect1d(*sides)) - by_chance) < 5 * np.sqrt(by_chance)
    # The first dataset keeps the order that it has alone.
    values["prefetcher"] = workers.Prefetcher(prefetch=0)
    alone = next(batches(one, **values, global_batch=rows))["record"]
    np.testing.assert_array_equal(np.sort(sides[0]), np.sort(alone))


def test_a_mixture_logs_what_it_will_show(batches, dataset, other, caplog):
    with caplog.at_level("INFO"):
        batches(folders=(dataset, other), weights=(3.0, 1.0), total_steps=256)
    assert re.search(
        r"other \(.*\): 23 records, 25% of the examples; steps 0 to 256 show each"
        r" about 4[45] times",
        caplog.text,
    )


def test_texts_are_shown_by_the_weight_of_their_source(batches, other, tokenizer_path):
    choice = texts.Choice(
        text_source_weights=(("alt", 0.0),),
        synthetic_sources=("synthetic",),
        synthetic_share=0.25,
    )
    stream = batches(
        other, choice=choice, total_steps=150, image_size=8, max_replaced_share=1.0
    )
    tokenize = tokenizer.load(tokenizer_path, family="clip")
    counts, three = collections.Counter(), range(2, 23, 3)  # those with all sources
    for batch in stream:
        for number, tokens in zip(batch["record"], batch["tokens"], strict=True):
            if number in three:
                counts[tokenize.decode(tokens.tolist())[-1]] += 1
    assert counts.keys() == {"1", "2"}  # the title and the synthetic one
    total = counts.total()
    assert abs(counts["2"] - total / 4) < 4 * np.sqrt(total * 3 / 16)
    # Records with an alt text alone have nothing to show.
    assert stream.replaced["no_text"] > 100


def test_a_batch_of_blocks_is_read_whole_and_holds_the_right_records(batches, dataset):
    batch = next(batches(blocks=order.Blocks(8, 2)))
    assert len(np.unique(batch["record"] // 8)) == 2  # one window
    np.testing.assert_array_equal(
        np.sort(batch["record"]),
        np.sort(
            order.shuffle(
                np.arange(16), n=RECORDS, seed=5, epoch=0, blocks=order.Blocks(8, 2)
            )
        ),
    )


def test_threads_and_prefetch_change_nothing(batches):
    assert_same(
        list(batches(read_threads=1, prefetcher=workers.Prefetcher(prefetch=0))),
        list(batches(read_threads=4, prefetcher=workers.Prefetcher(prefetch=5))),
    )


def test_rows_hold_the_image_and_a_text_of_their_record(
    batches, dataset, tokenizer_path
):
    opened = records.open_dataset(dataset)
    tokenize = tokenizer.load(tokenizer_path, family="clip")
    batch = next(batches())
    stored = [records.decode(d) for d in records.read(opened, batch["record"])]
    for tokens, record in zip(batch["tokens"], stored, strict=True):
        assert tokens.tolist() in tokenize(record.texts, 12)[0].tolist()


def test_an_epoch_draws_its_own_crops(batches):
    by_record = collections.defaultdict(list)
    for batch in batches():
        for number, image in zip(batch["record"], batch["image"], strict=True):
            by_record[number].append(image)
    first, second = by_record[0][:2]
    assert not (first == second).all()


def test_all_texts_of_an_image_are_equally_likely_over_epochs():
    index = texts.shown(
        np.full(3000, 7, np.uint64),
        np.full(3000, 3),
        epochs=np.arange(3000),
        seed=0,
    )
    # Binomial with p = 1/3: four sigma are 103.
    assert np.abs(np.bincount(index, minlength=3) - 1000).max() < 103


def test_order_needs_no_memory_for_a_huge_dataset():
    positions = np.arange(10**12, 10**12 + 4096)
    epoch, number = order.WholeDataset(2_500_000_000, seed=0).index(positions)
    assert set(epoch) == {400}
    assert len(set(number)) == 4096
    assert 0.45 < number.mean() / 2_500_000_000 < 0.55


def test_a_permutation_moves_an_index_anywhere_with_equal_chance():
    n, keys = 10, 20_000
    key = draws.mix(0, np.arange(keys))
    found = draws.permute(np.full(keys, 3), n=n, key=key)
    counts = np.bincount(found, minlength=n)
    assert abs(counts - keys / n).max() < 4 * np.sqrt(keys / n * 0.9)


def test_an_undecodable_image_is_replaced_and_counted(tmp_path, write_dataset, batches):
    folder = write_dataset(
        tmp_path, record_count=RECORDS, images={7: b"no image", 9: b""}
    )
    stream = batches(folder, total_steps=RECORDS // 16 + 1)
    found = list(stream)
    assert all(len(batch["image"]) == 16 for batch in found)
    assert not {7, 9} & {n for batch in found for n in batch["record"].tolist()}
    assert stream.replaced["not_an_image"] >= 2
    # Each time by its id, in the last batch's counts.
    bad = records.image_id("http://images.example/7.jpg")
    again = batches(folder, total_steps=RECORDS // 16 + 1)
    lost = [(n.image_id, n.reason) for _ in again for n in again.losses.replaced]
    assert (bad, "not_an_image") in lost
    assert len(lost) == stream.replaced.total()
    # The same record replaces it on every host and after a restart.
    assert_same(found, list(batches(folder, total_steps=RECORDS // 16 + 1)))


def test_a_damaged_record_is_replaced_and_counted(
    tmp_path, dataset, write_dataset, batches
):
    """One whose bytes in the file are wrong, and one that cannot be parsed."""
    folder = write_dataset(tmp_path, record_count=RECORDS, shard_count=1)
    shard = tmp_path / records.shard_name("tiny", 0, 1)
    data = bytearray(shard.read_bytes())
    data[100] ^= 1  # in the first record
    shard.write_bytes(data)
    steps = RECORDS // 16 + 1
    for blocks in (None, order.Blocks(8, 2)):
        stream = batches(folder, total_steps=steps, blocks=blocks)
        found = list(stream)
        assert stream.replaced["damaged_record"] >= 1
        assert stream.replaced.keys() == {"damaged_record"}
        assert_same(found, list(batches(folder, total_steps=steps, blocks=blocks)))
        wanted = list(batches(dataset, total_steps=steps, blocks=blocks))
        for one, other in zip(found, wanted, strict=True):
            sound = other["record"] != 0
            assert (one["record"] != 0).all()
            np.testing.assert_array_equal(one["tokens"][sound], other["tokens"][sound])
    stream = batches(folder, total_steps=steps)
    lost = [(n.image_id, n.reason) for _ in stream for n in stream.losses.replaced]
    assert ("tiny:0", "damaged_record") in lost


def test_many_bad_images_lately_end_the_run_however_many_were_good():
    def judged(*bad):
        judge = pipeline.judge_replaced(0.05)
        for count in bad:
            judge(500, ["not_an_image"] * count)

    good = [0] * 2_000
    judged(*good, *[25, 30, 20, 35] * 5)  # about the share, by chance
    with pytest.raises(ValueError, match=r"for the last 2000 examples .*verify"):
        judged(*good, *[40] * 4)
    with pytest.raises(
        ValueError, match=r"80 images .* for the 1500 examples .*verify"
    ):
        judged(25, 25, 30)
    judged(500)  # too few to judge


def test_too_many_undecodable_images_end_the_run(tmp_path, write_dataset, batches):
    bad = dict.fromkeys(range(RECORDS // 2), b"no image")
    folder = write_dataset(tmp_path, record_count=RECORDS, images=bad)
    with pytest.raises(ValueError, match=r"max_replaced_share.*data_prep.verify"):
        list(batches(folder, total_steps=100))


def test_a_dataset_without_any_usable_image_is_an_error(
    tmp_path, write_dataset, batches
):
    bad = dict.fromkeys(range(4), b"no image")
    folder = write_dataset(tmp_path, record_count=4, images=bad)
    with pytest.raises(ValueError, match="records in a row cannot be used"):
        next(batches(folder))


def test_texts_that_are_too_long_are_counted(tmp_path, write_dataset, batches):
    texts = {n: ("word " * 40,) for n in range(4)}
    folder = write_dataset(tmp_path, record_count=4, texts=texts)
    stream = batches(folder, total_steps=1)
    next(stream)
    assert (stream.examples, stream.truncated) == (16, 16)


def test_an_empty_dataset_is_refused(tmp_path, write_dataset, batches):
    folder = write_dataset(tmp_path, record_count=0, shard_count=1)
    with pytest.raises(ValueError, match="holds no records"):
        batches(folder)


def test_a_missing_dataset_is_refused(tmp_path, batches):
    with pytest.raises(FileNotFoundError, match="not a finished dataset"):
        batches(str(tmp_path))


def test_values_that_do_not_fit_are_refused(batches):
    for rows in ([], [15, 16], [-1, 0], [4, 2, 4]):
        with pytest.raises(ValueError, match=r"different ones of \[0, global_batch=16"):
            batches(rows=rows)
    with pytest.raises(ValueError, match="global_batch: wanted at least 1, got 0"):
        batches(global_batch=0)
    with pytest.raises(ValueError, match="start_step=9 is after total_steps=8"):
        batches(start_step=9)
    with pytest.raises(ValueError, match="read_threads: wanted at least 1"):
        batches(read_threads=0)
    with pytest.raises(ValueError, match=r"crop_scale: wanted .* got \(0.5, 1.5\)"):
        batches(augmentation=images.Augmentation((0.5, 1.5)))
    with pytest.raises(ValueError, match="prefetch: wanted at least 0, got 0 and -1"):
        workers.Prefetcher(prefetch=-1)


def test_threads_do_not_travel_to_other_processes():
    copy = pickle.loads(pickle.dumps(workers.Threads(3)))
    assert copy.map(str, range(40)) == [str(n) for n in range(40)]


LOOP = """
import itertools, sys
from metaclip_jax.data import pipeline, tokenizer, workers
from metaclip_jax.data.options import DataOptions

if __name__ == "__main__":
    options = DataOptions(
        (sys.argv[1],), global_batch=16, image_size=24, context_length=12,
        total_steps=10**6,
    )
    stream = pipeline.batches(
        options, tokenizer.load(sys.argv[2], family="clip"),
        prefetcher=workers.Prefetcher(worker_count=1),
    )
    next(stream)
    print("running", flush=True)
    for _ in stream:
        pass
"""


@pytest.fixture
def loop(tmp_path, dataset, tokenizer_path, members):
    """A process that loads with a worker process, in a group of its own."""
    script = tmp_path / "loop.py"
    script.write_text(LOOP)
    process = subprocess.Popen(
        [sys.executable, str(script), dataset, tokenizer_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout.readline() == b"running\n"
    yield process
    if members(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def worker_pids(pids):
    children = []
    for pid in pids:
        with open(f"/proc/{pid}/cmdline") as file:
            if "spawn_main" in file.read():
                children.append(pid)
    return children


def test_workers_end_when_their_parent_is_killed(loop, members):
    assert len(worker_pids(members(loop.pid))) == 1
    loop.kill()
    waiting.until(lambda: not members(loop.pid))


def test_a_killed_worker_is_an_error(loop, members):
    os.kill(worker_pids(members(loop.pid))[0], signal.SIGKILL)
    assert loop.wait(waiting.SECONDS) != 0
