"""Loading at scale: workers, records, online balancing, two orders, tokenising.

    python -m benchmarks.loader_scale            # about three minutes

- images per second of 1 and 2 worker processes, by wall clock, and of 1 and 2
  independent programs, which is what the machine allows; needs two free cores;
- CPU time to find and read one record of 1,000, of 10 million (500 file shards of
  20,000, the sink's size; hard links to one file, to save disk), and from more file
  shards than stay open, beside the time to make a training image;
- the share of loading that online balancing takes, by number of processes: each epoch
  is decided once in a shared workdir and read by all, or decided by each process; and
  the time to find a position's record;
- how well the `blocks` order mixes, compared with `global`: batch mates from a record's
  own block, and batch mates that meet again in the next epoch;
- what hosts read in the `blocks` order: requests per thousand records, records skipped;
- the share of loading that tokenising takes with CLIP's vocabulary: English in ASCII,
  and names in 14 languages with curly quotes.
"""

import functools
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import emoji
import numpy as np
import pyarrow as pa
from absl import flags, logging

from benchmarks import loader, photographs
from data_prep.sinks import array_record
from metaclip_jax.cli import command
from metaclip_jax.data import (
    balance,
    blocks,
    kept,
    online,
    order,
    pipeline,
    record_files,
    records,
    texts,
    tokenizer,
    workers,
)
from metaclip_jax.data.options import DataOptions

_SHARD_RECORDS = 20_000  # the sink's size
_BLOCK = 256  # records, the default
_BATCH, _READ_ROUNDS = 4_096, 6
_ENTRIES = 2_000
_MANY_SHARDS = 2 * record_files.MAX_OPEN_FILES
_WORKERS = 8  # per host, to count processes


def open_stream(
    folder: str, tokenizer_path: str, *, batch: int, steps: int, count: int = 0
) -> pipeline.Batches:
    """Opens batches from `count` worker processes; 0 = this process makes them."""
    return pipeline.batches(
        DataOptions(
            folders=(folder,),
            global_batch=batch,
            image_size=224,
            context_length=77,
            total_steps=steps,
            read_threads=1,
        ),
        tokenizer.load(tokenizer_path, family="clip"),
        prefetcher=workers.Prefetcher(worker_count=count, prefetch=min(count, 1)),
    )


def loading_speed(
    folder: str, tokenizer_path: str, *, count: int, images: int
) -> float:
    """Returns images per second of `open_stream`, by wall clock."""
    batch = 64
    rounds = images // batch
    ahead = 5 * count + 2  # batches that may be made before the clock starts
    stream = open_stream(
        folder, tokenizer_path, batch=batch, steps=rounds + 2 * ahead, count=count
    )
    for _ in range(ahead):
        next(stream)
    start = time.perf_counter()
    for _ in range(rounds):
        next(stream)
    seconds = time.perf_counter() - start
    stream.close()
    return rounds * batch / seconds


def small_records(count: int, *, seed: int) -> list[records.Record]:
    """Returns records with an empty image and one to three matched texts each."""
    rng = np.random.default_rng(seed)
    weights = 1 / (np.arange(_ENTRIES) + 1)
    weights /= weights.sum()
    made = []
    for number in range(count):
        texts = int(rng.integers(1, 4))
        ids = np.sort(rng.choice(_ENTRIES, 3 * texts, p=weights)).astype(np.int32)
        url = f"http://images.example/{number}"
        made.append(
            records.Record(
                image=b"",
                image_id=records.image_id(url),
                image_url=url,
                page_url="",
                sha256="",
                width=1,
                height=1,
                texts=tuple(f"text {n}" for n in range(texts)),
                text_sources=("alt",) * texts,
                languages=("en",) * texts,
                metadata=("en",) * texts,
                entry_ids=ids,
                entry_offsets=np.arange(texts + 1, dtype=np.int64) * 3,
            )
        )
    return made


def write_large(folder: str, *, shards: int, shard_records: int, seed: int) -> None:
    """Writes a dataset whose shards are hard links to one file."""
    made = small_records(shard_records, seed=seed)
    first = Path(folder) / records.shard_name("large", 0, shards)
    facts = array_record.write_shard(str(first), made)
    counts = np.zeros(_ENTRIES, np.int64)
    np.add.at(counts, np.concatenate([r.entry_ids for r in made]), shards)
    all_facts: list[dict[str, Any]] = []
    for shard in range(shards):
        path = Path(folder) / records.shard_name("large", shard, shards)
        sidecar = Path(records.entries_path(str(path)))
        if shard:
            path.hardlink_to(first)
            sidecar.hardlink_to(records.entries_path(str(first)))
        entries = {**facts["entries"], "file": sidecar.name}
        all_facts.append({**facts, "file": path.name, "entries": entries})
    array_record.write_dataset(
        folder,
        name="large",
        shard_facts=all_facts,
        data_card={"name": "large", "balanced": None},
        counts=pa.table(
            {
                "metadata": ["en"] * _ENTRIES,
                "entry_id": np.arange(_ENTRIES, dtype=np.int32),
                "kept_count": counts.astype(np.uint64),
            }
        ),
        inputs={},
    )


def read_time(dataset: records.Dataset, source: order.Source) -> tuple[float, float]:
    """Returns CPU seconds per record to (find it, read it), from the best round.

    The first round opens the files and is not counted.
    """
    finding, reading = [], []
    for number in range(_READ_ROUNDS + 1):
        positions = np.arange(number * _BATCH, (number + 1) * _BATCH)
        start = time.process_time()
        epochs, index = source.index(positions)
        found = source.records(epochs, index)
        middle = time.process_time()
        records.read(dataset, found)
        finding.append(middle - start)
        reading.append(time.process_time() - middle)
    return min(finding[1:]) / _BATCH, min(reading[1:]) / _BATCH


def met_again(source: order.Source, *, batch: int, epoch_records: int) -> float:
    """Returns the share of a record's batch mates that it meets in the next epoch.

    Counted over the whole batches of two epochs of `epoch_records` each.
    """
    batches = epoch_records // batch
    place = np.full((2, epoch_records), -1)  # the batch of each record in each epoch
    for epoch in range(2):
        start = epoch * epoch_records
        numbers = source.index(np.arange(start, start + batches * batch))[1]
        place[epoch, numbers] = np.arange(len(numbers)) // batch
    there = (place >= 0).all(axis=0)
    together = np.unique(place[:, there], axis=1, return_counts=True)[1]
    return float((together * (together - 1)).sum() / (there.sum() * (batch - 1)))


def program_speed(folder: str, tokenizer_path: str, *, programs: int) -> float:
    """Returns images per second of `programs` independent programs together."""
    with ProcessPoolExecutor(
        programs, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        images = flags.FLAGS.images
        work = functools.partial(loading_speed, folder, count=0, images=images)
        paths = [tokenizer_path] * programs
        list(pool.map(work, paths))  # untimed: they import their modules
        return sum(pool.map(work, paths))


def print_workers(folder: str) -> float:
    """Prints how workers scale; returns CPU seconds per training image."""
    photographs.write_dataset(folder, count=256, seed=0)
    path = photographs.write_tokenizer(folder)
    stream = open_stream(folder, path, batch=128, steps=5)
    next(stream)
    image = min(loader.seconds(lambda: next(stream)) for _ in range(4)) / 128
    count = flags.FLAGS.images
    one, two = (loading_speed(folder, path, count=n, images=n * count) for n in (1, 2))
    alone, both = (program_speed(folder, path, programs=n) for n in (1, 2))
    print(
        f"workers: {two / one:.2f}x the images/s of 1 worker process with 2, "
        f"{two:,.0f} against {one:,.0f}\n"
        f"workers: {both / alone:.2f}x the images/s of 1 independent program with 2, "
        f"{both:,.0f} against {alone:,.0f}"
    )
    return image


def print_scale(folder: str, *, image: float) -> None:
    """Prints what many records cost, beside the time of an image."""
    small, large = f"{folder}/small", f"{folder}/large"
    write_large(small, shards=1, shard_records=1_000, seed=0)
    write_large(large, shards=flags.FLAGS.shards, shard_records=_SHARD_RECORDS, seed=1)
    opened = [records.open_dataset(path, verify=False) for path in (small, large)]
    times = [
        sum(read_time(dataset, order.WholeDataset(len(dataset), seed=0)))
        for dataset in opened
    ]
    print(
        f"records: {times[0] * 1e6:.0f} us to find and read one of {len(opened[0]):,}, "
        f"{times[1] * 1e6:.0f} us of {len(opened[1]):,}; an image takes "
        f"{image * 1e6:,.0f} us\n"
        f"records: {(image + times[1]) / (image + times[0]):.2f}x the time per image "
        f"with {len(opened[0]):,} records, with {len(opened[1]):,}"
    )
    write_large(
        f"{folder}/many", shards=_MANY_SHARDS, shard_records=_SHARD_RECORDS, seed=1
    )
    many = records.open_dataset(f"{folder}/many", verify=False)
    reading = sum(read_time(many, order.WholeDataset(len(many), seed=0)))
    print(
        f"records: {reading * 1e6:.0f} us to find and read one in "
        f"{len(many.shards):,} file shards, of which {record_files.MAX_OPEN_FILES} "
        f"stay open, in batches of {_BATCH:,}\n"
        f"records: {(image + reading) / (image + times[0]):.2f}x the time per image "
        f"with {len(opened[0]):,} records, with {len(many.shards):,} file shards"
    )


def print_online(folder: str, *, image: float) -> None:
    """Prints what online balancing costs, on the dataset that `print_scale` wrote."""
    dataset = records.open_dataset(f"{folder}/large", verify=False)
    start = time.process_time()
    source = online.OnlineBalance(dataset, seed=0, t=0, tail_share=0.3)
    share = source.size(0) / len(dataset)
    deciding = (time.process_time() - start) / len(dataset)
    counts = online.read_counts(dataset)
    rule = kept.Rule(
        dataset,
        keep=balance.keep_probabilities(
            counts, balance.thresholds(counts, t=0, tail_share=0.3)
        ),
        choice=texts.Choice(),
        seed=0,
        folder=f"{folder}/shared",
    )
    rule.bits(0)
    start = time.process_time()
    rule.bits(0)  # now read from the file
    reading = (time.process_time() - start) / len(dataset)
    whole = order.WholeDataset(len(dataset), seed=0)
    finding = read_time(dataset, source)[0] - read_time(dataset, whole)[0]
    print(
        f"online balancing: {share:.0%} of {len(dataset):,} records kept; "
        f"{deciding * 1e6:.2f} us per record to decide, {reading * 1e6:.4f} us to read "
        f"another process's decision, {finding * 1e6:.1f} us per image to find it"
    )
    for hosts in (1, 8, 32, 128):
        processes = hosts * _WORKERS
        pool = 1 / share  # records to decide per image
        alone, together = (
            finding + pool * cost
            for cost in (processes * deciding, deciding + processes * reading)
        )
        print(
            f"online balancing: {hosts} hosts x {_WORKERS} workers: "
            f"{together / (image + together):.1%} of loading with a shared workdir, "
            f"{alone / (image + alone):.1%} without"
        )


def print_reads(*, count: int) -> None:
    """Prints the requests that hosts make in the `blocks` order, and their size."""
    lengths = [_SHARD_RECORDS] * (count // _SHARD_RECORDS)
    for batch, block, window in (
        (32_768, 256, 32),
        (32_768, 128, 64),
        (4_096, 256, 32),
        (4_096, 256, 4),
    ):
        source = order.WholeDataset(count, seed=0, blocks=order.Blocks(block, window))
        steps = range(1, 40, 13)  # batches that start at different places in a window
        found = []
        for step in steps:
            whole = np.arange(step * batch, (step + 1) * batch) + block * window // 2
            zeros = np.zeros_like(whole)
            near = blocks.neighbours(whole, members=zeros, own=whole, sources=[source])
            found.append(source.index(near)[1])
        for hosts in (1, 4, 16, 64):
            parts = [part for numbers in found for part in np.split(numbers, hosts)]
            runs = [run for part in parts for run in blocks.runs(part, lengths)]
            # A request each, too: of many files most are opened anew for each batch.
            opened = sum(len(np.unique(part // _SHARD_RECORDS)) for part in parts)
            span = sum(int(run[-1] - run[0]) + 1 for run in runs)
            records_read = sum(map(len, runs))
            print(
                f"blocks: batch {batch:,}, windows of {window} x {block}, {hosts} "
                "hosts with any number of workers: "
                f"{records_read / len(found) / batch:.2f} records read per record used,"
                f" {1_000 * (len(runs) + opened) / records_read:.0f} requests per"
                " thousand, "
                f"{span / records_read - 1:.2f} records skipped per record read"
            )


def print_tokenising(*, image: float) -> None:
    """Prints the share of loading that tokenising takes, if open_clip is installed."""
    try:
        tokenize = tokenizer.load("clip", family="clip")
    except ValueError as error:
        print(f"tokenising: not measured: {error}")
        return
    emoji.config.load_language()
    rng = np.random.default_rng(0)
    names = {
        language: [
            entry[language].strip(":").replace("_", " ")
            for entry in emoji.EMOJI_DATA.values()
        ]
        for language in emoji.LANGUAGES
    }
    english = [name for name in names["en"] if name.isascii()]
    made = {
        "English in ASCII": [
            " ".join(rng.choice(english, 4).tolist()) for _ in range(_BATCH)
        ],
        "names in 14 languages in curly quotes": [
            f"“{' '.join(rng.choice(of_one, 3).tolist())}” – it’s"
            for of_one in list(names.values()) * (_BATCH // len(names))
        ],
    }
    for what, given in made.items():
        taken = min(loader.seconds(lambda t=given: tokenize(t, 77)) for _ in range(4))
        one = taken / len(given)
        letters = sum(map(len, given)) / len(given)
        print(
            f"tokenising: {what}, {letters:.0f} letters: {one * 1e6:.0f} us per text, "
            f"{one / (image + one):.1%} of loading"
        )


def print_mixing(*, count: int, batch: int) -> None:
    """Prints how well each order mixes records with others than their neighbours."""
    for name, shape in {
        "global": None,
        "blocks of 256 in windows of 32": order.Blocks(256, 32),
        "blocks of 256 in windows of 128": order.Blocks(256, 128),
    }.items():
        source = order.WholeDataset(count, seed=0, blocks=shape)
        numbers = source.index(np.arange(batch))[1]
        mates = order.mates_of_block(numbers, block=_BLOCK)
        again = met_again(source, batch=batch, epoch_records=count)
        print(
            f"order: {name}: of {batch - 1:,} batch mates {mates:.2f} are from the "
            f"same block of {_BLOCK}, {again:.3%} meet again in the next epoch "
            f"(by chance {(_BLOCK - 1) * (batch - 1) / (count - 1):.2f}, "
            f"{batch / count:.3%})"
        )


def main(argv: Sequence[str]) -> None:
    """Prints lines of figures."""
    command.refuse_arguments(argv)
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        image = print_workers(f"{folder}/images")
        print_scale(folder, image=image)
        print_online(folder, image=image)
    print_tokenising(image=image)
    print_mixing(count=2_000_000, batch=4_096)
    print_mixing(count=2_000_000, batch=32_768)
    print_reads(count=10_000_000)


if __name__ == "__main__":
    flags.DEFINE_integer("images", 1_024, "Images per timing.", lower_bound=64)
    flags.DEFINE_integer(
        "shards", 500, "File shards of the large dataset.", lower_bound=1
    )
    command.run(main)
