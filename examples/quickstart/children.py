"""Child processes that do not outlive this process, whatever ends it."""

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal at the parent's death
# The trainer saves after its next step, which may have to be compiled first.
_WAITING = b"\nwaiting until the command has ended; a second Ctrl-C kills it\n"


class Interrupted(Exception):
    """This process was asked to end."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.received = received


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[..., int]]:
    """Yields a function that runs a command to its end and returns its exit status.

    It takes the command's words and keyword arguments of Popen. SIGTERM and SIGINT
    during the block end no process at once: the running command gets SIGTERM, and when
    it has ended, or where the next one would start, `Interrupted` is raised. A second
    SIGINT kills the command. Signals that are ignored on entry stay ignored.
    """
    received: list[signal.Signals] = []
    running: list[subprocess.Popen] = []

    def receive(number: int, _: Any) -> None:
        received.append(signal.Signals(number))
        if running and len(received) == 1:
            os.write(2, _WAITING)  # print is not reentrant
        for process in running:
            if received.count(signal.SIGINT) > 1:
                process.kill()
            else:
                process.terminate()

    def run(command: Sequence[str], **options: Any) -> int:
        if not received:
            running.append(start(command, **options))
            if received:  # before the process was in the list
                running[-1].terminate()
            running[-1].wait()
        if received:
            raise Interrupted(received[0])
        return running.pop().returncode

    handled = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in handled}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, receive)
    try:
        yield run
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(command: Sequence[str], **options: Any) -> subprocess.Popen:
    """Starts a process that the kernel kills when this process dies (on Linux).

    It ignores SIGINT, which a terminal sends to all processes: this process decides
    what its children do then.
    """
    parent = os.getpid()
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # found before the fork

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the call
                os._exit(1)

    return subprocess.Popen(command, preexec_fn=prepare, **options)
