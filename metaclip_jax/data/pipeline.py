"""The input pipeline: dataset folders to batches, a pure function of the step.

Global batch s is positions [s * B, (s + 1) * B) of one endless seeded order that passes
through each dataset once an epoch, shuffled anew each time; each host makes its rows of
it. Nothing depends on workers, threads, hosts or restarts, so the whole state is the
step.

Grain supplies threads, processes and shared memory (workers.py). Order and mixture are
our own: Grain's `shuffle` permutes one index at a time in Python, and its `mix` deals
by a fixed pattern; ours give whole arrays of positions, exact shares, blocks, and
epochs that balancing thins.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from metaclip_jax import files
from metaclip_jax.data import (
    batch,
    blocks,
    draws,
    mixture,
    online,
    order,
    record_files,
    records,
    shared_memory,
    tokenizer,
    workers,
)
from metaclip_jax.data.options import DataOptions

_EXAMPLES_TO_JUDGE = 1_000  # among fewer, a share of bad images says little
_BATCHES_TO_JUDGE = 4  # lately, at least
_NUMBERS_BYTES = 45  # of a row: position, dataset, record, image id, truncated
_REPLACED_TO_LOG = 20  # images


def batches(
    options: DataOptions,
    tokenize: tokenizer.Tokenizer,
    *,
    start_step: int = 0,
    rows: np.ndarray | None = None,
    owned: np.ndarray | None = None,
    prefetcher: workers.Prefetcher | None = None,
) -> "Batches":
    """Opens datasets and returns this host's batches from `start_step` on.

    Args:
      options: what the batches are made of.
      tokenize: the model's tokenizer.
      start_step: steps that are done.
      rows: int[b], the rows of each global batch that this process makes, from
        sharding.process_run; None = all.
      owned: bool[b], which of them `losses` counts, from sharding.owned_rows; None =
        all.
      prefetcher: makes the batches and is closed with them; None = threads.

    Raises:
      FileNotFoundError: a dataset is missing or unfinished.
      ValueError: one is damaged or empty, or the values do not fit together.
    """
    opened = tuple(_open(folder) for folder in options.folders)
    steps = _check_steps(start_step, options.total_steps)
    options.choice.check_sources(
        [dataset.data_card.get("text_sources", {}) for dataset in opened]
    )
    make = batch.MakeBatch(
        options=options,
        datasets=opened,
        sources=tuple(_source(data, n, options) for n, data in enumerate(opened)),
        readers=tuple(
            blocks.BlockReader(data) if options.blocks else None for data in opened
        ),
        shares=mixture.shares(options.weights),
        tokenize=tokenize,
        rows=_check_rows(rows, options.global_batch),
        threads=workers.Threads(options.read_threads),
    )
    prefetcher = prefetcher or workers.Prefetcher()
    _plan_memory(make, prefetcher)
    made = prefetcher.iterate(make, steps)
    # Afterwards: to count what an epoch keeps takes time, of this process only.
    _log_plan(make, steps)
    return Batches(make, made, owned=owned, prefetcher=prefetcher)


def _open(folder: str) -> records.Dataset:
    opened = records.open_dataset(folder)
    if not len(opened):
        raise ValueError(
            f"{folder} holds no records, so there is nothing to train on; the funnel "
            "in its data_card.json says where they were lost"
        )
    return opened


def _source(
    dataset: records.Dataset, member: int, options: DataOptions
) -> order.Source:
    if options.balanced_online:
        return online.OnlineBalance(
            dataset,
            seed=options.seed,
            t=options.online_t,
            tail_share=options.online_tail_share,
            choice=options.choice,
            blocks=options.blocks,
            shared=options.shared_folder,
        )
    seed = options.seed
    if member:
        # Or datasets of equal size, as a copy with other texts, would be read in
        # identical order. The mixture's own keys are cycles, from 0 on, so negative
        # ones are free.
        seed = int(draws.mix(seed, draws.MIXTURE, -member))
    return order.WholeDataset(len(dataset), seed=seed, blocks=options.blocks)


class Losses(NamedTuple):
    """What was lost in the owned rows of a host batch."""

    truncated_texts: int  # longer than the context
    replaced: tuple[batch.Replaced, ...]


class Batches:
    """An iterator of host batches that counts what was lost in them.

    A batch holds `image` uint8[b, size, size, 3] in RGB, `tokens` int32[b, T],
    `truncated` bool[b], whether the text was longer than that, `position` int64[b] in
    the global order, `dataset` int32[b], which of the datasets, `record` int64[b], the
    record's number in it, and its `image_id` bytes[b].

    Attributes:
      examples: rows handed out.
      truncated: texts that were longer than the context.
      replaced: images that could not be decoded, by reason; another record of the
        dataset, drawn by hash, took the place of each.
      losses: of the last batch, in the rows that this process owns.
      progress: step -> `examples_seen/DATASET` and `epochs/DATASET` after so many
        steps, over all hosts.
    """

    def __init__(
        self,
        make: batch.MakeBatch,
        made: Iterator[batch.Made],
        *,
        owned: np.ndarray | None,
        prefetcher: workers.Prefetcher,
    ) -> None:
        self._made, self._prefetcher = made, prefetcher
        self._owned = np.ones(len(make.rows), bool) if owned is None else owned
        self._judge = judge_replaced(make.options.max_replaced_share)
        self.examples = 0
        self.truncated = 0
        self.replaced: collections.Counter[str] = collections.Counter()
        self.losses = Losses(0, ())
        self.progress = make.progress
        self._logged: set[str] = set()

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> batch.Batch:
        arrays, replaced = next(self._made)
        shared_memory.unlink(arrays.values())
        self.examples += len(arrays["position"])
        self.truncated += int(arrays["truncated"].sum())
        self.replaced.update(image.reason for image in replaced)
        self.losses = Losses(
            truncated_texts=int(arrays["truncated"][self._owned].sum()),
            replaced=tuple(image for image in replaced if self._owned[image.row]),
        )
        for _, image_id, reason in replaced:
            if image_id not in self._logged and len(self._logged) < _REPLACED_TO_LOG:
                self._logged.add(image_id)
                logging.warning("image %s is replaced: %s", image_id, reason)
        self._judge(len(arrays["position"]), [image.reason for image in replaced])
        return arrays

    def close(self) -> None:
        """Ends threads and worker processes; the iterator is used up afterwards."""
        if self.examples:
            logging.info(
                "loader: a process that makes batches held at most %d MiB",
                self._prefetcher.peak_memory() >> 20,
            )
        self._prefetcher.close()
        self._made = iter(())


def judge_replaced(most: float) -> Callable[[int, Sequence[str]], None]:
    """Returns a check that ends a run in which too many images are bad.

    It is called with the rows of each batch and the reason of each replaced image. The
    share of bad images is taken over the whole run, and over the last thousand examples
    or four batches, whichever are more, where it may exceed `most` by four standard
    deviations of what chance does.

    Raises (the check):
      ValueError: names the shares and the reasons.
    """
    reasons: collections.Counter[str] = collections.Counter()
    recent: collections.deque[tuple[int, int]] = collections.deque()  # (rows, bad)
    examples = 0

    def judge(rows: int, bad: Sequence[str]) -> None:
        nonlocal examples
        examples += rows
        reasons.update(bad)
        recent.append((rows, len(bad)))
        wanted = max(_EXAMPLES_TO_JUDGE, _BATCHES_TO_JUDGE * rows)
        lately = sum(rows for rows, _ in recent)
        while lately - recent[0][0] >= wanted:
            lately -= recent.popleft()[0]
        if examples < _EXAMPLES_TO_JUDGE:
            return
        for when, count, total, slack in (
            ("", reasons.total(), examples, 0.0),
            ("last ", sum(n for _, n in recent), lately, 4 * (most * lately) ** 0.5),
        ):
            if count > most * total + slack:
                raise ValueError(
                    f"{count} images could not be decoded for the {when}{total} "
                    f"examples ({dict(reasons)} since the start), more than the share "
                    f"max_replaced_share={most}; check the dataset by python -m "
                    "data_prep.verify"
                )

    return judge


def _plan_memory(make: batch.MakeBatch, prefetcher: workers.Prefetcher) -> None:
    """Logs what the processes that make batches will hold, and checks that it fits."""
    options, rows = make.options, len(make.rows)
    workers.plan_memory(
        worker_count=prefetcher.worker_count,
        prefetch=prefetcher.prefetch,
        batch_bytes=rows
        * (3 * options.image_size**2 + 4 * options.context_length + _NUMBERS_BYTES),
        held_bytes=_held_bytes(make, rows),
    )


def _held_bytes(make: batch.MakeBatch, host_batch: int) -> int:
    """Returns about how many bytes a process holds beside batches.

    Records as they are stored, indexes of open files, and what epochs keep.
    """
    datasets = make.datasets
    shards = [
        shard for dataset in datasets for shard in records.read_shards(dataset.folder)
    ]
    mean = sum(shard["bytes"] for shard in shards) / sum(map(len, datasets))
    held = 2 * host_batch  # two batches are made at a time
    stored = mean * min(held, 2 * sum(map(len, datasets)))
    opened = sum(
        record_files.open_bytes(
            dataset.shard_lengths,
            ahead=reader is not None and not files.is_local(dataset.folder),
        )
        for dataset, reader in zip(datasets, make.readers, strict=True)
    )
    kept = sum(
        2 * len(dataset) // 8  # a bit a record, for two epochs
        for dataset, source in zip(datasets, make.sources, strict=True)
        if isinstance(source, online.OnlineBalance)
    )
    return round(stored + opened + kept)


def _check_steps(start_step: int, total_steps: int) -> range:
    if start_step > total_steps:
        raise ValueError(
            f"start_step={start_step} is after total_steps={total_steps}; raise the "
            "latter or start a new run"
        )
    return range(start_step, total_steps)


def _check_rows(rows: np.ndarray | None, global_batch: int) -> np.ndarray:
    rows = np.arange(global_batch) if rows is None else np.asarray(rows, np.int64)
    inside = rows.size and rows.min() >= 0 and rows.max() < global_batch
    if not inside or len(np.unique(rows)) < len(rows):
        raise ValueError(
            f"rows must be different ones of [0, global_batch={global_batch}), got "
            f"{rows}; take them from sharding.process_run"
        )
    return rows


def _log_plan(make: batch.MakeBatch, steps: range) -> None:
    """Says how often the steps show the records of each dataset, on average."""
    global_batch, seed = make.options.global_batch, make.options.seed
    before, after = (
        mixture.examples_seen(step * global_batch, shares=make.shares, seed=seed)
        for step in (steps.start, steps.stop)
    )
    rows = zip(batch.names(make.datasets), make.datasets, make.shares, strict=True)
    for member, (name, dataset, share) in enumerate(rows):
        shown = int(after[member] - before[member]) / max(1, len(dataset))
        logging.info(
            "%s (%s): %s records, %.3g%% of the examples; steps %d to %d show each"
            " about %s times",
            name,
            dataset.folder,
            f"{len(dataset):,}",
            100 * share,
            steps.start,
            steps.stop,
            f"{shown:,.0f}" if shown >= 10 else f"{shown:.2g}",
        )
        is_global = not make.readers[member]
        if is_global and len(dataset.shards) > record_files.MAX_OPEN_FILES:
            logging.warning(
                "%s has %d file shards, of which %d stay open: in the global order "
                "most records open a file anew; data.order=blocks reads them faster",
                name,
                len(dataset.shards),
                record_files.MAX_OPEN_FILES,
            )
        if is_global and not files.is_local(dataset.folder):
            logging.warning(
                "%s: the global order asks Cloud Storage for each example by itself, "
                "%s requests in these steps, which are billed; data.order=blocks "
                "asks for 50 or more at once",
                name,
                f"{int(after[member] - before[member]):,}",
            )
        if share * global_batch > len(dataset):
            logging.warning(
                "global_batch=%d takes more than the %d records of %s: images repeat "
                "in a batch",
                global_batch,
                len(dataset),
                name,
            )
