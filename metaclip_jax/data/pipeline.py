"""The input pipeline: dataset folders to batches, a pure function of the step.

Global batch s is positions [s * B, (s + 1) * B) of one endless seeded order that runs
through the dataset once an epoch, shuffled anew each time; each host makes a run of it.
Nothing depends on workers, threads, hosts or restarts, so the whole state is the step.
"""

import collections
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import logging

from metaclip_jax.data import (
    batch,
    blocks,
    draws,
    images,
    mixture,
    online,
    order,
    records,
    shared_memory,
    texts,
    tokenizer,
    workers,
)

_EXAMPLES_TO_JUDGE = 1_000  # among fewer, a share of bad images says little
_BATCHES_TO_JUDGE = 4  # lately, at least
_NUMBERS_BYTES = 45  # of a row: position, dataset, record, image id, truncated
_LOSSES_TO_LOG = 20  # images


def batches(
    dataset: str,
    *,
    tokenize: tokenizer.Tokenizer,
    global_batch: int,
    image_size: int,
    context_length: int,
    seed: int,
    total_steps: int,
    start_step: int = 0,
    rows: np.ndarray | None = None,
    told: np.ndarray | None = None,
    weights: Sequence[tuple[str, float]] = (),
    order_blocks: order.Blocks | None = None,
    augmentation: images.Augmentation = images.Augmentation(),  # noqa: B008
    choice: texts.Choice | None = None,
    pool: workers.Pool | None = None,
    read_threads: int = 2,
    max_replaced_share: float = 0.05,
    online_t: int = 0,
    online_tail_share: float = 0.0,
    online_folder: str = "",
) -> "Batches":
    """Opens datasets and returns this host's batches of [start_step, total_steps).

    Args:
      dataset: dataset folder. It is taken as it is unless balanced online.
      tokenize: the model's tokenizer.
      global_batch: pairs a step over all processes.
      image_size: pixels, height and width.
      context_length: tokens.
      seed: of the order, the texts and the crops.
      total_steps, start_step: the steps to make batches for.
      rows: int[b], of each global batch: what this process makes of it, see
        sharding.process_run; None = all.
      told: bool[b], which rows the tally counts, see sharding.told_rows; None = all.
      weights: (folder, weight) of several datasets; `dataset` is empty then.
      order_blocks: shuffle block by block; None = any record may stand anywhere.
      augmentation: how images are cropped, mirrored and coloured.
      choice: how the text of an image is drawn; None = all are equally likely.
      pool: what makes the batches, and is closed with them; None = threads of this
        process.
      read_threads: threads that decode, in each process.
      max_replaced_share: a larger share of images that cannot be decoded ends the run.
      online_t, online_tail_share: balance an unthinned dataset anew in each epoch, see
        online.OnlineBalance; both 0 = no. Of several datasets, each is balanced by
        its own counts.
      online_folder: where a run's processes share what each epoch keeps; "" = nowhere.

    Raises:
      FileNotFoundError: a dataset is missing or unfinished.
      ValueError: one is damaged or empty, or the values do not fit together.
    """
    folders, parts = mixture.members(dataset, weights)
    opened = tuple(_open(folder) for folder in folders)
    steps = _check_steps(start_step, total_steps)
    augmentation.check()
    choice = choice or texts.Choice()
    choice.check_sources([one.data_card.get("text_sources", {}) for one in opened])
    balancing = (online_t, online_tail_share, online_folder)
    sources = [
        _source(one, member, seed, order_blocks, choice, *balancing)
        for member, one in enumerate(opened)
    ]
    make = batch.MakeBatch(
        datasets=opened,
        sources=tuple(sources),
        readers=tuple(
            blocks.BlockReader(one) if order_blocks else None for one in opened
        ),
        shares=mixture.shares(parts),
        choice=choice,
        tokenize=tokenize,
        global_batch=global_batch,
        rows=_check_rows(rows, global_batch),
        image_size=image_size,
        context_length=context_length,
        seed=seed,
        augmentation=augmentation,
        threads=workers.Threads(read_threads),
    )
    return _start(
        make,
        steps,
        told=np.ones(len(make.rows), bool) if told is None else told,
        pool=pool or workers.Pool(),
        max_replaced_share=max_replaced_share,
    )


def _open(folder: str) -> records.Dataset:
    opened = records.open_dataset(folder)
    if not len(opened):
        raise ValueError(
            f"{folder} holds no records, so there is nothing to train on; the funnel "
            "in its data_card.json says where they were lost"
        )
    return opened


def _source(
    dataset: records.Dataset,
    member: int,
    seed: int,
    order_blocks: order.Blocks | None,
    choice: texts.Choice,
    online_t: int,
    online_tail_share: float,
    online_folder: str,
) -> order.Source:
    if not online_t and not online_tail_share:
        if member:
            # Or datasets of equal size, as a copy with other texts, would be read in
            # identical order. The mixture's own keys are cycles, from 0 on, so negative
            # ones are free.
            seed = int(draws.mix(seed, draws.MIXTURE, -member))
        return order.WholeDataset(len(dataset), seed=seed, blocks=order_blocks)
    return online.OnlineBalance(
        dataset,
        seed=seed,
        t=online_t,
        tail_share=online_tail_share,
        choice=choice,
        blocks=order_blocks,
        shared=online_folder,
    )


def _start(
    make: batch.MakeBatch,
    steps: range,
    *,
    told: np.ndarray,
    pool: workers.Pool,
    max_replaced_share: float,
) -> "Batches":
    """Starts to make batches ahead of the steps, and says what will be done."""
    host_batch = len(make.rows)
    workers.plan_memory(
        worker_count=pool.worker_count,
        prefetch=pool.prefetch,
        batch_bytes=host_batch
        * (3 * make.image_size**2 + 4 * make.context_length + _NUMBERS_BYTES),
        held_bytes=_held_bytes(make, host_batch),
    )
    made = pool.iterate(make, steps)
    # Afterwards: to count what an epoch keeps takes time, of this process only.
    _log_plan(make, steps)
    return Batches(
        made, told=told, max_replaced_share=max_replaced_share, close=pool.close
    )


class Batches:
    """An iterator of host batches that counts what had to be mended.

    A batch holds `image` uint8[b, size, size, 3] in RGB, `tokens` int32[b, T],
    `truncated` bool[b], whether the text was longer than that, `position` int64[b] in
    the global order, `dataset` int32[b], which of the datasets, `record` int64[b], the
    record's number in it, and its `image_id` bytes[b].

    Attributes:
      examples: rows handed out.
      truncated: texts that were longer than the context.
      replaced: images that could not be decoded, by reason; another record of the
        dataset, drawn by hash, took the place of each.
      tally: what was mended in the `told` rows of the last batch: `truncated_texts`,
        `replaced_images`, `replaced_images/REASON`, `replaced_images/REASON/IMAGE_ID`.
      progress: after the last batch, over all hosts: `examples_seen/DATASET` and
        `epochs/DATASET`.
      memory: the most bytes that each process that makes batches held, by process id.
    """

    def __init__(
        self,
        made: "Iterator[batch.Made]",
        *,
        told: np.ndarray,
        max_replaced_share: float = 1.0,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._made = made
        self._close = close
        self._told = told
        self._max_replaced_share = max_replaced_share
        self.examples = 0
        self.truncated = 0
        self.replaced: collections.Counter[str] = collections.Counter()
        self.tally: collections.Counter[str] = collections.Counter()
        self.progress: dict[str, float] = {}
        self.memory: dict[int, int] = {}
        self._logged: set[str] = set()
        self._recent: collections.deque[tuple[int, int]] = collections.deque()

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> batch.Batch:
        made = next(self._made)
        shared_memory.unlink(made.batch.values())
        self.examples += len(made.batch["position"])
        truncated = made.batch["truncated"]
        self.truncated += int(truncated.sum())
        self.tally = collections.Counter(
            truncated_texts=int(truncated[self._told].sum())
        )
        for row, image_id, reason in made.replaced:
            self.replaced[reason] += 1
            if self._told[row]:
                for name in ("", f"/{reason}", f"/{reason}/{image_id}"):
                    self.tally[f"replaced_images{name}"] += 1
            if image_id not in self._logged and len(self._logged) < _LOSSES_TO_LOG:
                self._logged.add(image_id)
                logging.warning("image %s is replaced: %s", image_id, reason)
        self.progress = made.progress
        process, memory = made.process
        self.memory[process] = memory
        self._judge(len(made.batch["position"]), len(made.replaced))
        return made.batch

    def close(self) -> None:
        """Ends threads and worker processes; the iterator is used up afterwards."""
        self._close()
        if self.memory:
            logging.info(
                "loader: a process that makes batches held at most %d MiB",
                max(self.memory.values()) >> 20,
            )
        self._made = iter(())

    def _judge(self, rows: int, replaced: int) -> None:
        """Ends the run where too many images are bad, in all or lately.

        Lately: the last thousand examples or batches, whichever are more. They may
        exceed the share by four standard deviations of what chance does.
        """
        self._recent.append((rows, replaced))
        wanted = max(_EXAMPLES_TO_JUDGE, _BATCHES_TO_JUDGE * rows)
        recent = sum(rows for rows, _ in self._recent)
        while recent - self._recent[0][0] >= wanted:
            recent -= self._recent.popleft()[0]
        if self.examples < _EXAMPLES_TO_JUDGE:
            return
        share = self._max_replaced_share
        lately = sum(bad for _, bad in self._recent)
        for when, bad, count, slack in (
            ("", self.replaced.total(), self.examples, 0.0),
            ("last ", lately, recent, 4 * (share * recent) ** 0.5),
        ):
            if bad > share * count + slack:
                raise ValueError(
                    f"{bad} of the {when}{count} images cannot be decoded "
                    f"({dict(self.replaced)} since the start), more than the share "
                    f"max_replaced_share={share}; is the dataset damaged?"
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
        records.open_files_bytes(dataset, ahead=reader is not None)
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
            f"start_step={start_step} lies after total_steps={total_steps}; raise the "
            "latter or start a new run"
        )
    return range(start_step, total_steps)


def _check_rows(rows: np.ndarray | None, global_batch: int) -> np.ndarray:
    if global_batch < 1:
        raise ValueError(f"global_batch must be at least 1, got {global_batch}")
    rows = np.arange(global_batch) if rows is None else np.asarray(rows, np.int64)
    inside = rows.size and rows.min() >= 0 and rows.max() < global_batch
    if not inside or len(np.unique(rows)) < len(rows):
        raise ValueError(
            f"rows must be different ones of [0, global_batch={global_batch}), got "
            f"{rows}; take them from sharding.process_run"
        )
    return rows


def _log_plan(make: batch.MakeBatch, steps: range) -> None:
    """Says how often the steps see each dataset."""
    global_batch = make.global_batch
    before, after = (
        mixture.examples_seen(step * global_batch, parts=make.shares, seed=make.seed)
        for step in (steps.start, steps.stop)
    )
    rows = zip(batch.names(make.datasets), make.datasets, make.shares, strict=True)
    for member, (name, dataset, share) in enumerate(rows):
        # Epochs that are balanced online differ a little in size.
        epoch = make.sources[member].size(0) if steps else len(dataset)
        epochs = int(after[member]) / epoch
        logging.info(
            "%s (%s): %d records, %.4g of the examples; steps %d to %d see %d "
            "examples of it; %.2f epochs of %d records by then, so a record repeats "
            "up to %d times",
            name,
            dataset.folder,
            len(dataset),
            share,
            steps.start,
            steps.stop,
            int(after[member] - before[member]),
            epochs,
            epoch,
            max(0, math.ceil(epochs) - 1),
        )
        if len(dataset.shards) > records.MAX_OPEN_FILES and not make.readers[member]:
            logging.warning(
                "%s has %d file shards, of which %d stay open: in the global order "
                "most records open a file anew; data.order=blocks reads them faster",
                name,
                len(dataset.shards),
                records.MAX_OPEN_FILES,
            )
        if share * global_batch > len(dataset):
            logging.warning(
                "global_batch=%d takes more than the %d records of %s: images repeat "
                "in a batch",
                global_batch,
                len(dataset),
                name,
            )
