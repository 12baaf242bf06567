"""The input pipeline: a dataset folder to batches, a pure function of the step.

Global batch s is positions [s * B, (s + 1) * B) of one endless seeded order that runs
through the dataset once an epoch, shuffled anew each time; host h makes the h-th
contiguous run of it. Nothing depends on workers, threads, hosts or restarts, so the
whole state is the step.
"""

import collections
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags, logging

from metaclip_jax.data import balance, draws, images, records, tokenizer

Batch = dict[str, np.ndarray]

# What a draw is for: the key after the seed; data/balance.py has the others.
_ORDER, _CROP, _REPLACEMENT = balance.ORDER, 2, 3
_REPLACEMENT_ATTEMPTS = 16
_ROWS_PER_TASK = 16  # what a thread decodes at a time
_EXAMPLES_TO_JUDGE = 1_000  # among fewer, a share of bad images says little
_LOSSES_TO_LOG = 20  # images


def host_positions(
    step: int, *, global_batch: int, process_index: int = 0, process_count: int = 1
) -> np.ndarray:
    """Returns int64[b], the positions of this host's rows of global batch `step`."""
    if global_batch < 1 or global_batch % process_count:
        nearest = max(1, round(global_batch / process_count)) * process_count
        raise ValueError(
            f"global_batch={global_batch} must be a multiple of the {process_count} "
            f"processes; nearest: {nearest}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index must be in [0, {process_count}), got {process_index}"
        )
    host_batch = global_batch // process_count
    start = step * global_batch + process_index * host_batch
    return np.arange(start, start + host_batch, dtype=np.int64)


def order(
    positions: np.ndarray, *, record_count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epoch, record) of global positions, int64 each of the same shape.

    Each epoch is a permutation of all records. Memory does not grow with the dataset.
    """
    epoch, index = np.divmod(positions, record_count)
    key = draws.mix(seed, _ORDER, epoch)
    return epoch, draws.permute(index, n=record_count, key=key)


def choose_texts(
    chosen: Sequence[records.Record], *, epochs: np.ndarray, seed: int
) -> list[str]:
    """Draws one text of each record for its epoch: see balance.chosen_texts."""
    # The 24 hex digits of an image id are a hash already; 16 of them fill 64 bits.
    ids = np.array([int(record.image_id[:16], 16) for record in chosen], np.uint64)
    counts = np.array([len(record.texts) for record in chosen])
    index = balance.chosen_texts(ids, counts, epochs=epochs, seed=seed)
    return [record.texts[i] for record, i in zip(chosen, index.tolist(), strict=True)]


def batches(
    dataset: str,
    *,
    tokenizer_path: str,
    global_batch: int,
    image_size: int,
    context_length: int,
    seed: int,
    total_steps: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    crop_scale: tuple[float, float] = images.CROP_SCALE,
    flip: bool = False,
    worker_count: int = 0,
    read_threads: int = 2,
    prefetch: int = 2,
    max_replaced_share: float = 0.05,
    online_t: int = 0,
    online_tail_share: float = 0.0,
) -> "Batches":
    """Opens a dataset and returns this host's batches of [start_step, total_steps).

    Args:
      dataset: dataset folder. It is taken as it is unless balanced online.
      tokenizer_path: what `tokenizer.load` takes.
      global_batch: pairs a step over all processes, a multiple of process_count.
      image_size: pixels, height and width.
      context_length: tokens.
      seed: of the order, the texts and the crops.
      total_steps, start_step: the steps to make batches for.
      process_index, process_count: this host among all hosts.
      crop_scale: least and most share of an image's area that a crop keeps.
      flip: mirror every second image.
      worker_count: processes that make batches (spawned, so start them from a main
        that is guarded); 0 = threads of this process.
      read_threads: threads that decode, in each process.
      prefetch: batches made ahead, in each process; 0 = made when asked for.
      max_replaced_share: a larger share of images that cannot be decoded ends the run.
      online_t, online_tail_share: balance an unthinned dataset anew in each epoch, see
        balance.OnlineBalance; both 0 = no.

    Raises:
      FileNotFoundError: the dataset or the tokenizer is missing or unfinished.
      ValueError: it is damaged or empty, or the values do not fit together.
    """
    opened = records.open_dataset(dataset)
    if not len(opened):
        raise ValueError(
            f"{dataset} holds no records, so there is nothing to train on; the funnel "
            "in its data_card.json says where they were lost"
        )
    _check_values(start_step, total_steps, crop_scale, worker_count, prefetch)
    online = None
    if online_t or online_tail_share:
        online = balance.OnlineBalance(
            opened, seed=seed, t=online_t, tail_share=online_tail_share
        )
    make = _MakeBatch(
        dataset=opened,
        online=online,
        tokenize=tokenizer.load(tokenizer_path),
        global_batch=global_batch,
        process_index=process_index,
        process_count=process_count,
        image_size=image_size,
        context_length=context_length,
        seed=seed,
        crop_scale=crop_scale,
        flip=flip,
        threads=_Threads(read_threads),
    )
    make.positions(start_step)  # refuses a batch that does not divide, before the start
    if online is None:  # its epochs say themselves how long they are
        _log_plan(opened, global_batch, start_step, total_steps)
    made = _iterate(
        make,
        range(start_step, total_steps),
        worker_count=worker_count,
        prefetch=prefetch,
    )
    return Batches(made, max_replaced_share=max_replaced_share)


@dataclass(frozen=True)
class _Made:
    """A host batch, and what is to be said about it."""

    batch: Batch
    replaced: tuple[tuple[str, str], ...]  # (image id, reason)
    truncated: int  # texts


class Batches:
    """An iterator of host batches that counts what had to be mended.

    A batch holds `image` uint8[b, size, size, 3] in RGB, `tokens` int32[b, T],
    `position` int64[b] in the global order and `record` int64[b], the record's number
    in the dataset.

    Attributes:
      examples: rows handed out.
      truncated: texts that were longer than the context.
      replaced: images that could not be decoded, by reason; another record of the
        dataset, drawn by hash, took the place of each.
    """

    def __init__(
        self, made: "Iterator[_Made]", *, max_replaced_share: float = 1.0
    ) -> None:
        self._made = made
        self._max_replaced_share = max_replaced_share
        self.examples = 0
        self.truncated = 0
        self.replaced: collections.Counter[str] = collections.Counter()
        self._logged: set[str] = set()

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        made = next(self._made)
        self.examples += len(made.batch["position"])
        self.truncated += made.truncated
        for image_id, reason in made.replaced:
            self.replaced[reason] += 1
            if image_id not in self._logged and len(self._logged) < _LOSSES_TO_LOG:
                self._logged.add(image_id)
                logging.warning("image %s is replaced: %s", image_id, reason)
        self._judge()
        return made.batch

    def close(self) -> None:
        """Ends threads and worker processes; the iterator is used up afterwards."""
        if isinstance(self._made, grain.DatasetIterator):
            self._made.close()
        self._made = iter(())

    def _judge(self) -> None:
        bad = self.replaced.total()
        if self.examples < _EXAMPLES_TO_JUDGE:
            return
        if bad > self._max_replaced_share * self.examples:
            raise ValueError(
                f"{bad} of {self.examples} images cannot be decoded "
                f"({dict(self.replaced)}), more than the share max_replaced_share="
                f"{self._max_replaced_share}; is the dataset damaged?"
            )


@dataclass(frozen=True, eq=False)
class _MakeBatch:
    """Makes the host batch of a step. It travels to worker processes by pickle."""

    dataset: records.Dataset
    online: balance.OnlineBalance | None
    tokenize: tokenizer.Tokenizer
    global_batch: int
    process_index: int
    process_count: int
    image_size: int
    context_length: int
    seed: int
    crop_scale: tuple[float, float]
    flip: bool
    threads: "_Threads"

    def positions(self, step: int) -> np.ndarray:
        """Returns int64[b], the global positions of this host's rows."""
        return host_positions(
            step,
            global_batch=self.global_batch,
            process_index=self.process_index,
            process_count=self.process_count,
        )

    def __call__(self, step: int) -> _Made:
        """Reads, decodes, crops and tokenises the host batch of a step."""
        positions = self.positions(step)
        if self.online is None:
            count = len(self.dataset)
            epochs, numbers = order(positions, record_count=count, seed=self.seed)
        else:
            epochs, numbers = self.online.order(positions)
        size = self.image_size
        pixels = np.empty((len(positions), size, size, 3), np.uint8)
        rows = zip(
            positions.tolist(),
            numbers.tolist(),
            draws.mix(self.seed, _CROP, positions).tolist(),
            records.read(self.dataset, numbers),
            pixels,
            strict=True,
        )
        found = self.threads.map(lambda row: self._fill_row(*row), list(rows))
        texts = choose_texts(
            [record for record, _, _ in found], epochs=epochs, seed=self.seed
        )
        tokens, truncated = self.tokenize(texts, self.context_length)
        return _Made(
            batch={
                "image": pixels,
                "tokens": tokens,
                "position": positions,
                "record": np.array([number for _, number, _ in found], np.int64),
            },
            replaced=tuple(loss for _, _, losses in found for loss in losses),
            truncated=truncated,
        )

    def _fill_row(
        self, position: int, number: int, crop_key: int, data: bytes, pixels: np.ndarray
    ) -> tuple[records.Record, int, list[tuple[str, str]]]:
        """Decodes a record into uint8[size, size, 3], or the one that replaces it.

        Returns the record that stands there, its number, and what was passed over.
        """
        losses: list[tuple[str, str]] = []
        for attempt in range(_REPLACEMENT_ATTEMPTS):
            record = records.decode(data)
            try:
                if not record.texts:
                    raise images.UndecodableImage("no_text", record.image_id)
                pixels[:] = images.decode_train(
                    record.image,
                    size=self.image_size,
                    key=crop_key,
                    scale=self.crop_scale,
                    flip=self.flip,
                )
                return record, number, losses
            except images.UndecodableImage as error:
                losses.append((record.image_id, error.reason))
            bits = draws.mix(self.seed, _REPLACEMENT, position, attempt)
            number = int(draws.below(len(self.dataset), bits))
            data = records.read(self.dataset, [number])[0]
        raise ValueError(
            f"position {position}: {len(losses)} records in a row cannot be used, the "
            f"last {losses[-1]}; is {self.dataset.folder} damaged?"
        )


def _check_values(
    start_step: int,
    total_steps: int,
    crop_scale: tuple[float, float],
    worker_count: int,
    prefetch: int,
) -> None:
    if start_step > total_steps:
        raise ValueError(
            f"start_step={start_step} lies after total_steps={total_steps}; raise the "
            "latter or start a new run"
        )
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"crop_scale must hold 0 < low <= high <= 1, got {crop_scale}")
    if worker_count < 0 or prefetch < 0:
        raise ValueError(
            f"worker_count={worker_count} and prefetch={prefetch} must not be negative"
        )


def _log_plan(
    dataset: records.Dataset, global_batch: int, start_step: int, total_steps: int
) -> None:
    """Says how often the steps see the dataset."""
    logging.info(
        "%s: %d records; steps %d to %d see it %.2f times",
        dataset.folder,
        len(dataset),
        start_step,
        total_steps,
        (total_steps - start_step) * global_batch / len(dataset),
    )
    if global_batch > len(dataset):
        logging.warning(
            "global_batch=%d is more than the %d records: images repeat in a batch",
            global_batch,
            len(dataset),
        )


class _Threads:
    """A pool of threads for small tasks; a copy in another process has its own."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"read_threads must be at least 1, got {count}")
        self._count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="decode")

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return _Threads, (self._count,)

    def map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Returns work(item) of all items, in order; many items make one task."""
        starts = range(0, len(items), _ROWS_PER_TASK)
        parts = self._pool.map(
            lambda start: [work(i) for i in items[start : start + _ROWS_PER_TASK]],
            starts,
        )
        return [result for part in parts for result in part]


def _iterate(
    make: _MakeBatch, steps: range, *, worker_count: int, prefetch: int
) -> Iterator[_Made]:
    """Runs `make` ahead of the steps, in threads or in worker processes, in order."""
    if not steps:
        return iter(())
    cv2.setNumThreads(1)  # the parallel parts are images, not rows of pixels
    made = grain.MapDataset.range(steps.start, steps.stop).map(make)
    # One thread can tokenise a batch while another's images are decoded.
    options = grain.ReadOptions(
        num_threads=min(prefetch, 2), prefetch_buffer_size=prefetch
    )
    ahead = made.to_iter_dataset(options)
    if worker_count:
        if not flags.FLAGS.is_parsed():  # Grain hands its flags to the workers
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=worker_count, per_worker_buffer_size=max(1, prefetch)
            ),
            worker_init_fn=_start_worker,
        )
    return iter(ahead)


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Sets up a worker process; in particular, it ends when its parent does."""
    del worker_index, worker_count
    cv2.setNumThreads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])  # readable once the parent is gone
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
