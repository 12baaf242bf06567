"""How many requests a host gets at once from all processes of this machine.

A slot of a host is a lock on one byte of a file that stays empty. The kernel releases
the locks of a process when it ends, even if it is killed, so no slot is ever lost.
Pauses between attempts keep it; requests that redirects lead to need none.
"""

import asyncio
import fcntl
import os
import struct
import tempfile
from collections import defaultdict
from pathlib import Path

import xxhash

# Locks of an open file, not of a process: Linux has them. Elsewhere each process has
# its own slots.
_SHARED = hasattr(fcntl, "F_OFD_SETLK")
_MOST = (1 << 16) - 1  # slots of a host; the byte after them marks who waits
_FILES = 64  # the kernel searches all locks of a file
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
        self._mine: defaultdict[str, set[int]] = defaultdict(set)
        self._waiting = 0  # hosts

    async def __aenter__(self) -> "Slots":
        """Used in `async with`: its end gives all slots back."""
        return self

    async def __aexit__(self, *_: object) -> None:
        for descriptor in self._files.values():
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
            try:
                while slot is None:
                    await self._pause()
                    slot = self._try(host)
            finally:
                self._lock(host, _MOST, fcntl.F_UNLCK)
                self._waiting -= 1
        self._mine[host].add(slot)
        return slot

    def leave(self, host: str, slot: int) -> None:
        """Gives a slot back."""
        self._lock(host, slot, fcntl.F_UNLCK)
        self._mine[host].remove(slot)
        if not self._mine[host]:
            del self._mine[host]

    async def _pause(self) -> None:
        await asyncio.sleep(_PAUSE_SECONDS * max(1, self._waiting))

    def _try(self, host: str) -> int | None:
        mine = self._mine.get(host, ())
        for slot in range(self._per_host):
            if slot not in mine and self._lock(host, slot, fcntl.F_WRLCK):
                return slot
        return None

    def _lock(self, host: str, slot: int, kind: int) -> bool:
        """Locks a byte, or unlocks it; returns whether it could."""
        if _SHARED:
            file, lock = self._place(host, slot, kind)
            try:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
            except BlockingIOError:
                return False
        return True

    def _others_wait(self, host: str) -> bool:
        if not _SHARED:
            return False
        file, lock = self._place(host, _MOST, fcntl.F_WRLCK)
        found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, lock)
        return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)

    def _place(self, host: str, slot: int, kind: int) -> tuple[int, bytes]:
        """Returns the file, and the lock on the byte of a slot."""
        key = xxhash.xxh3_64_intdigest(host.encode())
        number = key % _FILES
        if number not in self._files:
            path = self._folder / str(number)
            self._files[number] = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        # A file's offset has 63 bits; hosts of one offset would share their slots.
        start = key >> 17 << 16
        return self._files[number], struct.pack(_FLOCK, kind, 0, start + slot, 1, 0)
