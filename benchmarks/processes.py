"""What a command takes, with all processes that it starts."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Runs a command, and waits for all that it starts: the CPU of a process whose parent
# has ended counts too, and no other child of the benchmark is waited for.
_REAPER = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER, of Linux
status = subprocess.call(sys.argv[1:])
try:
    while True:
        os.wait()
except ChildProcessError:
    sys.exit(status)
"""


class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    cpu_seconds: float  # of all its processes
    peak_bytes: int  # of all its processes together


def measure(program: Sequence[str], *, shown: bool = False) -> Cost:
    """Runs a command and its processes, which can import our packages.

    Args:
      program: the command.
      shown: whether to show its output as it comes, and not only if it fails.

    Raises:
      CalledProcessError: it fails.
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    begin, peak = time.monotonic(), 0
    with tempfile.TemporaryFile() as output:
        reaper = [sys.executable, "-c", _REAPER, *program]
        to = None if shown else output
        process = subprocess.Popen(reaper, env=environment, stdout=to, stderr=to)
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, _bytes_below(process.pid))
            time.sleep(0.1)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.stderr.write(output.read().decode(errors="replace"))
            raise subprocess.CalledProcessError(process.returncode, list(program))
    cpu = used.ru_utime + used.ru_stime
    return Cost(time.monotonic() - begin, cpu, peak)


def _bytes_below(process: int) -> int:
    """Returns the PSS of all processes below one; 0 of those that have ended."""
    total, found = 0, _children(process)
    while found:
        child = found.pop()
        found += _children(child)
        try:
            lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(x.split()[1]) << 10 for x in lines if x.startswith("Pss:"))
    return total


def _children(process: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found
