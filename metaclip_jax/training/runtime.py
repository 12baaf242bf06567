"""A command's process: JAX devices and peers, signals, profiler and logging."""

import contextlib
import json
import logging as logging_of_python
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax._src import clusters  # it says who takes part, before JAX waits for them
from jax.experimental import multihost_utils

from metaclip_jax import files
from metaclip_jax.training import rendezvous


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[int], bool]]:
    """Yields step -> whether to save and stop after it, equal on all processes."""
    if jax.process_count() > 1:
        # JAX handles the signal, and all processes agree on one step.
        yield multihost_utils.reached_preemption_sync_point
        return
    received = False

    def receive(*_: Any) -> None:
        nonlocal received
        received = True

    previous = signal.signal(signal.SIGTERM, receive)
    try:
        yield lambda step: received
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def fail_with_peers() -> Iterator[None]:
    """Exits at once if the block raises and there are other processes.

    A normal exit deadlocks: JAX waits for the peers to end, and they wait for this
    process in a collective. An immediate exit closes the connection, so the peers fail.
    """
    try:
        yield
    except BaseException:
        if jax.process_count() == 1:
            raise
        logging.exception("process %d fails; exiting at once", jax.process_index())
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
    write: bool,
) -> Iterator[Callable[[int], None]]:
    """Yields a function to call before each step with the step's number.

    It traces the steps first_step to last_step, for xprof and TensorBoard, into
    WORKDIR/profile; first_step 0 = none. `settle` must wait for the steps in flight.
    Each process with `write` traces its own devices.
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
            logging.info("the trace is in %s; view it with xprof", final)

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
    wait_seconds: float = 300,
) -> None:
    """Configures JAX's devices and processes; call it before anything uses JAX.

    Args:
        cpu_devices: virtual CPU devices of this process; 0 = the real devices.
        compilation_cache: folder for compiled programs; "" = none. It is not used with
            several CPU devices.
        coordinator: "" for one process; HOST:PORT for several processes, each with all
            devices of its host; "auto" to ask the cluster: TPU pods and JobSets of
            Kubernetes have one process per host, Slurm one per GPU.
        process_count: the number of processes, with HOST:PORT.
        process_index: of this process, with HOST:PORT.
        wait_seconds: how long to wait for the other processes.

    Raises:
        ValueError: "auto" outside of a cluster that JAX knows.
        TimeoutError: some processes are missing; names them.
    """
    if cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        if coordinator == "auto":
            coordinator, process_count, process_index, local = _ask_the_cluster(
                wait_seconds
            )
        else:
            local = None
        rendezvous.meet(coordinator, process_count, process_index, seconds=wait_seconds)
        # Without this, JAX detects Slurm and gives each process a single GPU.
        jax.distributed.initialize(
            coordinator,
            process_count,
            process_index,
            local,
            cluster_detection_method="deactivate",
            initialization_timeout=math.ceil(wait_seconds),
        )
    if compilation_cache:
        # With jax 0.10, CPU devices may run the collectives of a cached program in
        # different orders and deadlock.
        if jax.default_backend() == "cpu" and jax.device_count() > 1:
            logging.warning("compilation_cache is not used on several CPU devices")
        else:
            jax.config.update("jax_compilation_cache_dir", compilation_cache)
            # JAX's default, one second, excludes the programs of small models.
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _ask_the_cluster(
    wait_seconds: float,
) -> tuple[str, int, int, Sequence[int] | None]:
    """Returns HOST:PORT of process 0, the count, this index, and this process's GPUs.

    Raises:
        ValueError: JAX knows no such cluster.
    """
    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    address, count, index, local = detect(
        None, None, None, None, None, math.ceil(wait_seconds)
    )
    if address is None or count is None or index is None:
        raise ValueError(
            "wanted a TPU pod, a Slurm job or a JobSet of Kubernetes with"
            " --coordinator=auto, got none of them; leave it out for one process, or"
            " give HOST:PORT, --process_count and --process_index"
        )
    return address, count, index, local


def gather(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the JSON object of each process, by index; all must call it together.

    The number of collectives does not depend on the values.
    """
    if jax.process_count() == 1:
        return [dict(value)]
    mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(mine.size))
    # Round up to a power of two: each size is compiled separately.
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: mine.size] = mine
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:size].tobytes())
        for row, size in zip(rows, sizes.tolist(), strict=True)
    ]


def set_up_logging() -> None:
    """Logs this package's INFO records and only the warnings of libraries.

    Libraries' records about a full disk are dropped: the command ends with one line
    about that.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def is_shown(record: logging_of_python.LogRecord) -> bool:
        ours = os.path.abspath(record.pathname).startswith(package)
        full = record.exc_info and files.is_full_disk(record.exc_info[1])
        return ours or (record.levelno >= logging_of_python.WARNING and not full)

    def show_unraisable(ignored: Any) -> None:
        # Raised by each checkpoint write that continues after another one failed.
        if str(ignored.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(ignored)

    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(is_shown)
    sys.unraisablehook = show_unraisable
