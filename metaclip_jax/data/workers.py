"""Threads and processes that make batches ahead of the steps, and their memory.

Worker processes are Grain's: spawned, handing back arrays in shared memory (Grain does
so for arrays that it finds in tuples and dicts), so that pixels are not pickled. They
start before JAX does, and wait for a file that describes the work. They make whole
batches in turn, ignore SIGINT and SIGTERM, end when their parent does, and if one dies
the next batch is an error.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any

import cv2
import grain
from absl import flags, logging

from metaclip_jax.data import shared_memory

_ROWS_PER_TASK = 16  # what a thread decodes at a time
_MIB = 1 << 20
_LIBRARIES_MIB = 300  # of a process, about
_POLL_SECONDS = 0.01
_SECONDS_TO_START = 10  # for all workers; none starts if `__main__` is not guarded
_NO_BATCH = ()  # after the last batch; Grain skips None
# Batches in shared memory. Per worker, up to four: being written, queued, dequeued,
# buffered. For all together two more: the one that the reader has, and the next.
_SHARED_EACH, _SHARED_IN_ALL = 4, 2


class Threads:
    """A pool of threads for small tasks; a copy in another process has its own."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="decode")

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return Threads, (self._count,)

    def map(
        self,
        work: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        task: int = _ROWS_PER_TASK,
    ) -> list[Any]:
        """Returns work(item) of all items, in order; so many items make one task."""
        starts = range(0, len(items), task)
        parts = self._pool.map(
            lambda start: [work(i) for i in items[start : start + task]], starts
        )
        return [result for part in parts for result in part]


class Prefetcher:
    """Makes batches ahead of the steps: in threads, or in worker processes.

    The processes run when this returns, before their work is known: so they start
    before JAX does, and load their libraries while it starts. `close` ends them, and so
    does leaving a `with`.

    Args:
      worker_count: processes (spawned, so `__main__` must be guarded); 0 = threads of
        this process.
      prefetch: batches made ahead in each process; 0 = when asked for.

    Raises:
      ValueError: one is negative.
    """

    def __init__(self, *, worker_count: int = 0, prefetch: int = 2) -> None:
        if worker_count < 0 or prefetch < 0:
            raise ValueError(
                "data.worker_count and data.prefetch: wanted at least 0, got"
                f" {worker_count} and {prefetch}"
            )
        self.worker_count = worker_count
        self.prefetch = prefetch
        self._started = False
        self._made: grain.DatasetIterator[Any] | None = None
        self._processes: list[multiprocessing.process.BaseProcess] = []
        if worker_count:
            self._owner = shared_memory.Owner()
            self._start_processes()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def iterate(self, make: Callable[[int], Any], steps: range) -> Iterator[Any]:
        """Yields make(step) of all steps, in order; only once.

        Work begins at once, before the first batch is asked for.

        Args:
          make: from a step to its batch; pickled for worker processes.
          steps: ascending, one by one.

        Raises:
          RuntimeError: it was called before, or the prefetcher is closed.
        """
        if self._started:
            raise RuntimeError("a prefetcher iterates once; make a new one")
        self._started = True
        cv2.setNumThreads(1)  # the parallel parts are images, not rows of pixels
        if self._made is None:
            self._made = iter(self._dataset(make, steps))
            with _signals_held():
                self._made.start_prefetch()
        else:
            _WorkFile(self._owner.folder).write(make, steps)
        return itertools.islice(self._made, len(steps))

    def peak_memory(self) -> int:
        """Returns the most bytes that a batch-making process has held; 0 = unknown.

        Those of worker processes are known on Linux, until they are closed.
        """
        if not self.worker_count:
            return peak_memory()
        pids = [process.pid for process in self._processes]
        return max((peak_memory(pid) for pid in pids if pid), default=0)

    def close(self) -> None:
        """Ends threads and worker processes."""
        if not self._started:
            for process in self._processes:  # they would wait forever for work
                process.kill()
        self._started = True
        if self._made is not None:
            self._made.close()
        if self.worker_count:
            self._owner.close()

    def _dataset(
        self, make: Callable[[int], Any], steps: range
    ) -> grain.IterDataset[Any]:
        # One thread can tokenise a batch while another's images are decoded.
        options = grain.ReadOptions(
            num_threads=min(self.prefetch, 2), prefetch_buffer_size=self.prefetch
        )
        made = grain.MapDataset.range(steps.start, steps.stop).map(make)
        return made.to_iter_dataset(options)

    def _start_processes(self) -> None:
        if not flags.FLAGS.is_parsed():  # Grain hands its flags to the workers
            flags.FLAGS.mark_as_parsed()
        made = self._dataset(_WorkFile(self._owner.folder), range(sys.maxsize))
        ahead = made.map(
            functools.partial(shared_memory.share, self._owner.prefix)
        ).mp_prefetch(
            # A worker's own buffer holds what it makes ahead; each more here would be
            # two more batches in shared memory.
            grain.MultiprocessingOptions(
                num_workers=self.worker_count, per_worker_buffer_size=1
            ),
            worker_init_fn=_start_worker,
        )
        before = set(multiprocessing.active_children())
        with self._owner.naming_semaphores():
            self._made = iter(ahead)
            # Otherwise Grain starts a worker when its first batch is asked for.
            self._made.get_state()  # creates the object that starts them
            with _signals_held():
                self._made.start_prefetch()
        # If a worker cannot start, the first batch raises the error.
        latest = time.monotonic() + _SECONDS_TO_START
        while len(self._processes) < self.worker_count and time.monotonic() < latest:
            time.sleep(_POLL_SECONDS)
            self._processes = list(set(multiprocessing.active_children()) - before)


class _WorkFile:
    """Makes batches as a file says, once it exists; each worker process has a copy."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "work"
        self._lock = threading.Lock()
        self._work: tuple[Callable[[int], Any], range] | None = None

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return _WorkFile, (self._file.parent,)

    def write(self, make: Callable[[int], Any], steps: range) -> None:
        """Hands the work to all copies."""
        whole = self._file.with_suffix(".part")
        whole.write_bytes(pickle.dumps((make, steps)))
        whole.replace(self._file)

    def __call__(self, index: int) -> Any:
        """Returns the batch of a step, by its index; waits for the file."""
        with self._lock:
            while self._work is None:
                if self._file.exists():
                    self._work = pickle.loads(self._file.read_bytes())
                else:
                    time.sleep(_POLL_SECONDS)
        make, steps = self._work
        return make(steps[index]) if index < len(steps) else _NO_BATCH


def plan_memory(
    *, worker_count: int, prefetch: int, batch_bytes: int, held_bytes: int
) -> int:
    """Logs and returns the most bytes that a process that makes batches takes.

    Its libraries and shared memory come on top; the latter must fit into the machine's.

    Args:
      worker_count: processes; 0 = threads of this one.
      prefetch: batches made ahead in each.
      batch_bytes: a host batch's arrays.
      held_bytes: what a process holds beside batches: records as they are stored, and
        what it knows of files.

    Raises:
      ValueError: the workers' hand-over does not fit into shared memory.
    """
    # Being made (two threads), ready, and the one that was asked for.
    own = (min(prefetch, 2) + prefetch + 1) * batch_bytes + held_bytes
    shared = shared_bytes(worker_count=worker_count, batch_bytes=batch_bytes)
    logging.info(
        "loader: %s, each with at most %d MiB of batches, about %d MiB of stored "
        "records and file indexes, and %d MiB of libraries%s",
        f"{worker_count} worker processes" if worker_count else "threads only",
        (own - held_bytes) // _MIB,
        held_bytes // _MIB,
        _LIBRARIES_MIB,
        f"; at most {shared // _MIB} MiB of shared memory in all, beside the batches "
        "that the reader holds on to"
        if worker_count
        else "",
    )
    if shared and shared_memory.FOLDER.is_dir():
        free = shutil.disk_usage(shared_memory.FOLDER).free
        if shared > free:
            raise ValueError(
                f"{worker_count} workers hand over batches in {shared_memory.FOLDER}, "
                f"which takes up to {shared // _MIB} MiB, but {free // _MIB} are free; "
                "lower data.worker_count or global_batch, or give the machine more "
                "shared memory (containers: --shm-size)"
            )
    return own


def shared_bytes(*, worker_count: int, batch_bytes: int) -> int:
    """Returns the most bytes of shared memory that all workers' batches take.

    What the reader still holds of batches before its last one comes on top.
    """
    if not worker_count:
        return 0
    return (_SHARED_EACH * worker_count + _SHARED_IN_ALL) * batch_bytes


def peak_memory(pid: int | None = None) -> int:
    """Returns the most bytes of memory that a process has held; 0 = unknown.

    Args:
      pid: of the process; None = this one. Others are known on Linux, while they run.
    """
    # getrusage also counts what the process was forked from.
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text()
    except OSError:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return 0 if pid else own
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(peak[1]) * 1024 if peak else 0  # none of a process that has ended


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Blocks SIGTERM and SIGINT in threads and processes that start in it.

    Both go to a whole process group, but it is the trainer that saves and then ends its
    workers. A child inherits the mask and so has it from its first instant, long before
    it could ignore signals by itself. The trainer gets what arrives meanwhile later.
    """
    resource_tracker.ensure_running()  # else it starts in here, and lifts the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
        shared_memory.remove_abandoned()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
