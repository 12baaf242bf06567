"""How many requests a host gets from all processes of this machine: at once, in time.

A slot of a host is a lock on one byte of a file that stays empty. The kernel releases
the locks of a process when it ends, even if it is killed, so no slot is ever lost.
Pauses between attempts keep it; requests that redirects lead to need none.

When a host was last asked is in another file, in a place that few hosts share.
"""

import asyncio
import fcntl
import os
import struct
import tempfile
import time
from pathlib import Path

import xxhash
from absl import logging

# Locks of an open file, not of a process: Linux has them. Elsewhere each process has
# its own slots.
_SHARED = hasattr(fcntl, "F_OFD_SETLK")
_MOST = (1 << 16) - 1  # slots of a host; the byte after them marks who waits
_FILES = 64  # the kernel searches all locks of a file
_TIMES = 1 << 20  # places for times
_LOGGED_SECONDS = 60.0  # that a host is waited for before it is logged
_PAUSE_SECONDS = 0.002  # between tries, times the hosts that are waited for
_FLOCK = "hhqqi0q"  # struct flock: type, whence, start, length, process


class Slots:
    """Slots of hosts, for one event loop.

    Args:
      per_host: requests that a host gets at once.
    """

    def __init__(self, per_host: int) -> None:
        self._per_host = min(per_host, _MOST)
        # Of this user on this machine. Nobody reads its files, or writes into them.
        self._folder = Path(tempfile.gettempdir(), f"metaclip_jax_slots-{os.getuid()}")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._files: dict[int, int] = {}  # descriptors
        self._mine: set[tuple[str, int]] = set()
        self._waiting = 0  # hosts
        self._times = self._open("times")  # descriptor
        self._logged_at, self._log_after = 0.0, _LOGGED_SECONDS

    def _open(self, name: str) -> int:
        return os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o600)

    async def __aenter__(self) -> "Slots":
        """Used in `async with`: its end gives all slots back."""
        return self

    async def __aexit__(self, *_: object) -> None:
        for descriptor in (self._times, *self._files.values()):
            os.close(descriptor)

    async def take(self, host: str) -> int:
        """Waits for a slot and returns it; call it once at a time for each host.

        Processes that want slots of one host get about as many each.
        """
        if self._others_wait(host):
            await self._pause()  # they try meanwhile
        slot = self._try(host)
        if slot is None:
            self._waiting += 1
            self._lock(host, _MOST, fcntl.F_RDLCK)
            since = time.monotonic()
            try:
                while slot is None:
                    await self._pause()
                    self._log_waiting(host, since)
                    slot = self._try(host)
            finally:
                self._lock(host, _MOST, fcntl.F_UNLCK)
                self._waiting -= 1
        self._mine.add((host, slot))
        return slot

    async def turn(self, host: str, seconds: float) -> None:
        """Waits until `seconds` have passed since the last turn of any process."""
        while seconds and (wait := self._to_wait(host, seconds)):
            await asyncio.sleep(wait)

    def leave(self, host: str, slot: int) -> None:
        """Gives a slot back."""
        self._lock(host, slot, fcntl.F_UNLCK)
        self._mine.remove((host, slot))

    def _log_waiting(self, host: str, since: float) -> None:
        """Logs what is waited for: after a minute, two, four, ..."""
        now = time.monotonic()
        if now - max(since, self._logged_at) < self._log_after:
            return
        self._logged_at, self._log_after = now, 2 * self._log_after
        logging.warning(
            "waited %.0f s for one of the %d requests that %s gets at once, and for %d"
            " other hosts: other processes of this machine have them; if one of those"
            " is stopped or hangs, end it (`fuser %s/*` lists them)",
            now - since,
            self._per_host,
            host,
            self._waiting - 1,
            self._folder,
        )

    def _to_wait(self, host: str, seconds: float) -> float:
        """Returns the seconds until a turn of the host; 0 takes it."""
        start = xxhash.xxh3_64_intdigest(host.encode()) % _TIMES * 8
        if not _lock_bytes(self._times, start, 8, fcntl.F_WRLCK):
            return _PAUSE_SECONDS
        try:
            written = os.pread(self._times, 8, start)
            last = struct.unpack("d", written)[0] if len(written) == 8 else 0.0
            now = time.time()
            if last <= now < last + seconds:  # not where the clock was set back
                return float(last + seconds - now)
            os.pwrite(self._times, struct.pack("d", now), start)
            return 0.0
        finally:
            _lock_bytes(self._times, start, 8, fcntl.F_UNLCK)

    async def _pause(self) -> None:
        await asyncio.sleep(_PAUSE_SECONDS * max(1, self._waiting))

    def _try(self, host: str) -> int | None:
        for slot in range(self._per_host):
            is_mine = (host, slot) in self._mine
            if not is_mine and self._lock(host, slot, fcntl.F_WRLCK):
                return slot
        return None

    def _lock(self, host: str, slot: int, kind: int) -> bool:
        """Locks a byte, or unlocks it; returns whether it could."""
        return _lock_bytes(*self._place(host, slot), 1, kind)

    def _others_wait(self, host: str) -> bool:
        if not _SHARED:
            return False
        file, start = self._place(host, _MOST)
        lock = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, start, 1, 0)
        found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, lock)
        return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)

    def _place(self, host: str, slot: int) -> tuple[int, int]:
        """Returns the file, and the byte of a slot."""
        key = xxhash.xxh3_64_intdigest(host.encode())
        number = key % _FILES
        if number not in self._files:
            self._files[number] = self._open(str(number))
        # A file's offset has 63 bits; hosts of one offset would share their slots.
        return self._files[number], (key >> 17 << 16) + slot


def _lock_bytes(file: int, start: int, length: int, kind: int) -> bool:
    """Locks bytes of an open file, or unlocks them; returns whether it could."""
    if _SHARED:
        lock = struct.pack(_FLOCK, kind, 0, start, length, 0)
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        except BlockingIOError:
            return False
    return True
