"""Worker processes of the runner of this machine.

Beam starts a new Python for each worker of each pipeline, which takes seconds of CPU to
import the same modules, and says "Channel closed prematurely" where one is killed. Here
they are forked from a process that has imported everything once, and share its memory.
"""

import contextlib
import functools
import logging
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grpc
from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from apache_beam.runners.worker import data_plane, sdk_worker

from metaclip_jax.cli import command

# What the stages run, imported before the fork.
_STAGES = [
    f"data_prep.stages.{name}"
    for name in ("matches", "downloads", "balancing", "counting")
]
_STATE_CACHE_BYTES = 100 << 20  # as in Beam's own workers


@contextlib.contextmanager
def forked() -> Iterator[None]:
    """Forks the worker processes of a pipeline that runs in the block.

    Raises:
      RuntimeError: one of them was killed or crashed.
    """
    died: list[str] = []
    register = worker_handlers.WorkerHandler.register_environment
    register(python_urns.SUBPROCESS_SDK, bytes)(functools.partial(_Worker, died))
    try:
        with _quiet():
            yield
    except Exception as error:
        if not died:
            raise
        raise RuntimeError(
            f"wanted worker processes that live until the end of the pipeline, but one"
            f" {died[0]}; if memory ran out, give fewer --workers or a lower"
            " config.memory_gib; the same command continues after the last finished"
            " part"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides Beam's logs of each step, and broken connections in its threads.

    The error of a broken connection is raised in the thread of the pipeline too.
    """
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    logging.getLogger(data_plane.__name__).setLevel(logging.CRITICAL)
    shown = threading.excepthook

    def show(found: threading.ExceptHookArgs) -> None:
        if not issubclass(found.exc_type, grpc.RpcError):
            shown(found)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = shown


class _Worker(worker_handlers.GrpcWorkerHandler):
    """Starts a worker process, and ends the pipeline if one of its processes dies.

    Args:
      died: how processes of the pipeline died; shared by all its workers.
      command: how Beam would start the process; not used.
      beams: other arguments of the base class.
    """

    def __init__(self, died: list[str], command: bytes, *beams: Any) -> None:
        super().__init__(*beams)
        self._died = died
        self._stopped = threading.Event()

    def start_worker(self) -> None:
        """Called by Beam."""
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload(_STAGES)
        self._process = forks.Process(
            target=_work, args=(self.control_address, self.worker_id), daemon=True
        )
        self._process.start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Called by Beam after the pipeline."""
        if self._died:
            self._process.terminate()  # nothing reads what it may still be doing
        self.control_conn.close()
        with contextlib.suppress(grpc.RpcError):  # the process has gone
            self.data_conn.close()
        self.stop_worker()

    def stop_worker(self) -> None:
        """Called by `close`, when the process has been asked to end."""
        self._stopped.set()
        self._watcher.join()
        self._process.join()
        if (self._process.exitcode or 0) < 0:  # Beam noticed it before the watcher
            self._note_death()

    def _watch(self) -> None:
        while not self._stopped.wait(0.5):
            if self._process.exitcode:
                self._note_death()
            if self._died:
                self._process.terminate()  # `close` may be waiting for it
                # Again and again, since Beam may still send new requests.
                with contextlib.suppress(RuntimeError):  # their number changes
                    self.control_conn.abort(RuntimeError(self._died[0]))
                with contextlib.suppress(grpc.RpcError):
                    self.data_conn.close()

    def _note_death(self) -> None:
        code = self._process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        self._died.append(f"ended with {how}")


def _work(control_address: str, worker_id: str) -> None:
    """Runs in the worker process until the pipeline ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the command, and so us
    command.keep_modules()  # or a search for garbage copies what workers share
    sdk_worker.SdkHarness(
        control_address,
        worker_id=worker_id,
        state_cache_size=_STATE_CACHE_BYTES,
        runner_capabilities=worker_handlers.FNAPI_RUNNER_CAPABILITIES,
    ).run()
