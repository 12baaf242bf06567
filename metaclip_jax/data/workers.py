"""Threads and processes that make batches ahead of the steps, and their memory.

Worker processes are Grain's: spawned, handed the recipe of a batch by pickle, handing
back its arrays in shared memory (Grain does so for arrays that it finds in tuples and
dicts), so that pixels are not pickled. They make whole batches in turn, end when their
parent does, and if one dies the next batch is an error.
"""

import multiprocessing
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from typing import Any

import cv2
import grain
from absl import flags, logging

_ROWS_PER_TASK = 16  # what a thread decodes at a time
_SHARED_MEMORY = "/dev/shm"
_STATUS = "/proc/self/status"  # Linux
_MIB = 1 << 20


class Threads:
    """A pool of threads for small tasks; a copy in another process has its own."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"read_threads must be at least 1, got {count}")
        self._count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="decode")

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return Threads, (self._count,)

    def map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Returns work(item) of all items, in order; many items make one task."""
        starts = range(0, len(items), _ROWS_PER_TASK)
        parts = self._pool.map(
            lambda start: [work(i) for i in items[start : start + _ROWS_PER_TASK]],
            starts,
        )
        return [result for part in parts for result in part]


def iterate(
    make: Callable[[int], Any], steps: range, *, worker_count: int, prefetch: int
) -> Iterator[Any]:
    """Runs `make` ahead of the steps, in threads or in worker processes, in order.

    Args:
      make: from a step to its batch; pickled for worker processes.
      steps: ascending, one by one.
      worker_count: processes; 0 = threads of this one.
      prefetch: batches made ahead in each process; 0 = when asked for.
    """
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


def plan_memory(
    *, worker_count: int, prefetch: int, batch_bytes: int, stored_bytes: int
) -> int:
    """Logs and returns the most bytes that the batches of one process take.

    On top come the libraries of a process, about 300 MiB.

    Args:
      worker_count: processes; 0 = threads of this one.
      prefetch: batches made ahead in each.
      batch_bytes: a host batch's arrays.
      stored_bytes: records as they are stored that a process holds at a time.

    Raises:
      ValueError: the workers' hand-over does not fit into shared memory.
    """
    # Being made (two threads), ready, and the one that was asked for.
    own = (min(prefetch, 2) + prefetch + 1) * batch_bytes + stored_bytes
    # In the queue, under way into it, and in the consumer's hands.
    shared = (max(1, prefetch) + 2) * batch_bytes if worker_count else 0
    logging.info(
        "loader: %s, each with at most %d MiB of batches and stored records%s",
        f"{worker_count} worker processes" if worker_count else "threads only",
        own // _MIB,
        f" and {shared // _MIB} MiB of shared memory" if worker_count else "",
    )
    if shared and os.path.isdir(_SHARED_MEMORY):
        free = shutil.disk_usage(_SHARED_MEMORY).free
        if worker_count * shared > free:
            raise ValueError(
                f"{worker_count} workers hand over batches in {_SHARED_MEMORY}, which "
                f"takes up to {worker_count * shared // _MIB} MiB, but {free // _MIB} "
                "are free: lower data.prefetch or data.worker_count, or give the "
                "machine more shared memory (containers: --shm-size)"
            )
    return own + shared


def peak_memory() -> int:
    """Returns the most bytes of memory that this process ever held."""
    # getrusage counts what the process was forked from, too.
    if os.path.exists(_STATUS):
        with open(_STATUS) as status:
            peak = next(line for line in status if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Sets up a worker process; in particular, it ends when its parent does."""
    del worker_index, worker_count
    # They go to the whole process group, but the trainer needs batches until it has
    # saved, and ends its workers itself.
    for sent in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sent, signal.SIG_IGN)
    cv2.setNumThreads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])  # readable once the parent is gone
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
