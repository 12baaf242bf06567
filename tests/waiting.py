"""Waits in tests: so long that only a fault ends them, however busy the machine."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 900  # after which a test fails


def until(
    condition: Callable[[], Any],
    process: subprocess.Popen | None = None,
    *,
    pause: float = 0.01,
) -> Any:
    """Returns what the condition returns, once that is true.

    Fails if `process` ends before that, or after SECONDS. `pause` is in seconds.
    """
    latest = time.monotonic() + SECONDS
    while not (found := condition()):
        if process is not None:
            assert process.poll() is None, "the process ended before that"
        assert time.monotonic() < latest, f"waited {SECONDS} seconds in vain"
        time.sleep(pause)
    return found


def is_running(pid: int) -> bool:
    """Whether there is such a process, which has not ended (on Linux)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
