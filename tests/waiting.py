"""Waiting in tests: so long that only a fault, and no busy machine, ends it."""

import subprocess
import time
from collections.abc import Callable
from typing import Any

SECONDS = 900  # what takes longer will not come


def until(
    condition: Callable[[], Any],
    process: subprocess.Popen | None = None,
    *,
    pause: float = 0.01,
) -> Any:
    """Returns what the condition returns, once that is true.

    Fails where `process` ends before, and after SECONDS. `pause` is in seconds.
    """
    latest = time.monotonic() + SECONDS
    while not (found := condition()):
        if process is not None:
            assert process.poll() is None, "the process ended before that"
        assert time.monotonic() < latest, f"waited {SECONDS} seconds in vain"
        time.sleep(pause)
    return found
