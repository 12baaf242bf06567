"""Ends a run that makes no progress, and says what each of its processes is doing.

JAX notices a process that has died. But one that hangs, say on its storage, still
answers JAX, and its peers wait for it in the next collective.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

import jax
from absl import logging
from jax._src import distributed  # its key-value store is what processes share

# How long a process waits for its peers' reports; their time is up a little later.
_MOST_PATIENCE_SECONDS = 30.0

# Before the first step, where programs are compiled and checkpoints are read.
_START_SECONDS = 3_600.0

# What the main thread does, since when, and how long that may take at least.
_last = "", 0.0, 0.0


def alive(doing: str, *, starts: bool = False) -> None:
    """Records what the main thread begins to do, such as "computing step 7".

    `starts`: it comes before the first step, and may take an hour.
    """
    global _last
    _last = doing, time.monotonic(), _START_SECONDS if starts else 0.0


@contextlib.contextmanager
def watch(seconds: float) -> Iterator[None]:
    """Ends the process if `alive` is not called again for so many seconds; 0 = never.

    It exits with status 1, so that whoever supervises the processes starts all again,
    after it has written its threads' stacks and what all processes were doing.
    """
    alive("preparing", starts=True)
    done = threading.Event()

    def wait() -> None:
        while not done.wait(min(1.0, seconds / 4)):
            doing, since, at_least = _last
            limit = max(seconds, at_least)
            if time.monotonic() - since > limit:
                _end(doing, limit)

    thread = threading.Thread(target=wait, name="watchdog", daemon=True)
    if seconds:
        thread.start()
    try:
        yield
    finally:
        done.set()


def _end(doing: str, seconds: float) -> None:
    """Writes what this process was doing, then what all did, and exits."""
    try:
        faulthandler.dump_traceback(sys.stderr)
        by_process = {0: doing}
        if jax.process_count() > 1:
            by_process = _gather(doing, min(seconds / 4, _MOST_PATIENCE_SECONDS))
        logging.error(
            "wanted progress within %g seconds, got none: %s; see the log of the one"
            " that keeps the others waiting. All processes have to be started again",
            seconds,
            "; ".join(f"process {n} was {what}" for n, what in by_process.items()),
        )
        logging.flush()
    finally:
        os._exit(1)


def _gather(doing: str, patience: float) -> dict[int, str]:
    """Returns what each process was doing, by its number."""
    index, count = jax.process_index(), jax.process_count()
    logging.error("process %d makes no progress: it was %s", index, doing)
    by_process = dict.fromkeys(range(count), "silent") | {index: doing}
    client = distributed.global_state.client
    assert client is not None
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # a peer ended before
        client.key_value_set(f"stalled/{index}", doing)
        # The first process that exits ends the others. Process 0 waits less, so that
        # its log, the one that people read, is complete.
        time.sleep(2 * patience if index else patience)
        for key, what in client.key_value_dir_get("stalled"):
            by_process[int(key.rpartition("/")[2])] = what
    return by_process
