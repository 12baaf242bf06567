"""The process a command runs in: its devices, its peers, its signals, its notes."""

import contextlib
import json
import logging as logging_of_python
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from metaclip_jax import files


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[int], bool]]:
    """Yields step -> whether to save and stop after it, the same on all processes."""
    if jax.process_count() > 1:
        # JAX hears the signal and agrees with the other processes on a step.
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield lambda step: asked
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def fail_with_peers() -> Iterator[None]:
    """Ends this process at once where the block raises, if it has peers.

    JAX would hold it at its exit until they have ended too, and they may wait for it in
    a collective. So they lose its connection, and fail in their turn.
    """
    try:
        yield
    except BaseException:
        if jax.process_count() == 1:
            raise
        logging.exception("process %d fails, and ends at once", jax.process_index())
        sys.stdout.flush()
        logging.flush()
        os._exit(1)


@contextlib.contextmanager
def profiler(
    workdir: str,
    *,
    first_step: int,
    last_step: int,
    settle: Callable[[], None],
    write: bool = True,
) -> Iterator[Callable[[int], None]]:
    """Yields what is to be called with the number of each step that comes next.

    It traces the steps first_step to last_step, for xprof and TensorBoard, into
    WORKDIR/profile; first_step 0 = none. `settle` awaits the steps under way. Of
    several processes, those with `write` trace their own devices.
    """
    with tempfile.TemporaryDirectory() as folder:
        running = False

        def stop() -> None:
            nonlocal running
            settle()
            jax.profiler.stop_trace()
            running = False
            final = files.path(workdir) / "profile"
            for traced in sorted(Path(folder).rglob("*")):
                if traced.is_file():
                    target = final / traced.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    files.publish(traced, target)
            logging.info("%s holds the trace; see it with xprof", final)

        def before(step: int) -> None:
            nonlocal running
            if running and step > last_step:
                stop()
            if write and step == first_step:
                settle()
                jax.profiler.start_trace(folder)
                running = True

        try:
            yield before
        finally:
            if running:
                stop()


def start_jax(
    *,
    cpu_devices: int,
    compilation_cache: str,
    coordinator: str = "",
    process_count: int = 1,
    process_index: int = 0,
) -> None:
    """Tells JAX about devices and processes; must come before anything uses it.

    Args:
        cpu_devices: virtual CPU devices of this process; 0 = the real devices.
        compilation_cache: folder for compiled programs; "" = none. Several CPU devices
            do without.
        coordinator: "" for one process; HOST:PORT for processes that each have all
            devices of their host; "auto" where the cluster tells: on TPU pods the same,
            under Slurm one process per GPU.
        process_count: of all processes, with HOST:PORT.
        process_index: of this one, with HOST:PORT.
    """
    if cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            # Where JAX finds Slurm, it would leave each process one GPU.
            jax.distributed.initialize(
                coordinator,
                process_count,
                process_index,
                cluster_detection_method="deactivate",
            )
    if compilation_cache:
        # Seen with jax 0.10: of a program that comes out of the cache, two CPU devices
        # may run collectives in different orders, and wait for each other for ever.
        if jax.default_backend() == "cpu" and jax.device_count() > 1:
            logging.warning("compilation_cache is not used on several CPU devices")
        else:
            jax.config.update("jax_compilation_cache_dir", compilation_cache)


def gather(value: Mapping[str, int]) -> list[dict[str, int]]:
    """Returns what each process gives, by process. All must call it at the same time.

    The collectives that it takes are the same on all of them.
    """
    if jax.process_count() == 1:
        return [dict(value)]
    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(mine.size))
    # Few lengths, as each is compiled.
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: mine.size] = mine
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:size].tobytes())
        for row, size in zip(rows, sizes.tolist(), strict=True)
    ]


def log_our_own_notes() -> None:
    """Shows this package's notes, and only warnings of others: Orbax is chatty.

    Of a full disk it is silent too, since the command ends with one line about that.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def wanted(record: logging_of_python.LogRecord) -> bool:
        ours = os.path.abspath(record.pathname).startswith(package)
        full = record.exc_info and files.is_full_disk(record.exc_info[1])
        return ours or (record.levelno >= logging_of_python.WARNING and not full)

    def show_unraisable(ignored: Any) -> None:
        # From each write of a checkpoint that goes on after another one has failed.
        if str(ignored.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(ignored)

    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(wanted)
    sys.unraisablehook = show_unraisable
