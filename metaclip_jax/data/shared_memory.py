"""Arrays in shared memory that are cleaned up even after their owner was killed.

A segment exists until its name is unlinked, even if all its processes were killed. So
each owner (a pool of worker processes) uses its own name prefix and holds a lock on a
file with that prefix. The kernel releases the lock when the owner ends, in any way; the
next owner then removes the segments of owners without a lock.
"""

import contextlib
import fcntl
import itertools
import multiprocessing
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
from grain.multiprocessing import SharedMemoryArray

FOLDER = Path("/dev/shm")  # Linux; elsewhere segments cannot be listed
PREFIX = "metaclip-"  # whole names have less than 31 characters, macOS's limit
_TOKEN = 8  # hexadecimal digits after the prefix
_SEMAPHORE = "sem."  # the C library's prefix of semaphores
_LOCK = "lock"
_numbers = itertools.count()


class Owner:
    """Owns a name prefix in shared memory, and a temporary folder of the same name.

    Attributes:
      prefix: of the names of its segments.
      folder: a local folder for small files; it is removed with the segments.
    """

    def __init__(self) -> None:
        """Takes a new prefix, and cleans up after dead owners."""
        remove_abandoned()
        self.prefix = f"{PREFIX}{secrets.token_hex(_TOKEN // 2)}-"
        self.folder = _folder_of(self.prefix)
        self.folder.mkdir(mode=0o700)
        self._lock = None
        while FOLDER.is_dir() and self._lock is None:
            self._lock = _lock(FOLDER / f"{self.prefix}{_LOCK}", create=True)

    @contextlib.contextmanager
    def naming_semaphores(self) -> Iterator[None]:
        """Gives the prefix to the semaphores that multiprocessing creates in the block.

        They are files too, and SIGKILL to a process group leaves dozens of them.
        """
        config = vars(multiprocessing.current_process())["_config"]
        previous = config["semprefix"]
        config["semprefix"] = f"/{self.prefix}"
        try:
            yield
        finally:
            config["semprefix"] = previous

    def close(self) -> None:
        """Unlinks all segments, and removes the folder and the lock.

        Python removes semaphores when their objects are dropped.
        """
        _remove(self.prefix)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def share(prefix: str, tree: Any) -> Any:
    """Copies the arrays of a tree to shared memory; returns the tree with the copies.

    Args:
      prefix: of the owner; processes that the owner started may use it.
      tree: tuples and dicts of arrays, as Grain passes them between processes.
    """
    if isinstance(tree, dict):
        return {key: share(prefix, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        values = [share(prefix, value) for value in tree]
        return tree._make(values) if hasattr(tree, "_make") else tuple(values)
    if not isinstance(tree, np.ndarray) or tree.dtype.hasobject or not tree.nbytes:
        return tree
    name = f"{prefix}{os.getpid():x}-{next(_numbers):x}"
    segment = shared_memory.SharedMemory(name, create=True, size=tree.nbytes)
    array = SharedMemoryArray.from_shared_memory(segment, tree.shape, tree.dtype)
    np.copyto(array, tree, casting="no")
    return array


def unlink(arrays: Iterable[np.ndarray]) -> None:
    """Unlinks the arrays' segments now; the memory is freed with the last array.

    Grain unlinks a segment when its array is dropped, in a thread that ends with the
    process, so the segment of an array that is held until then would stay.
    """
    for array in arrays:
        if memory := getattr(array, "shm", None):
            memory.unlink()
            vars(array)["_unlink_on_del"] = False


def remove_abandoned() -> None:
    """Removes the segments and folders of dead owners."""
    if not FOLDER.is_dir():
        return
    names = FOLDER.glob(f"{PREFIX}*-*")
    for prefix in {path.name[: len(PREFIX) + _TOKEN] + "-" for path in names}:
        path = FOLDER / f"{prefix}{_LOCK}"
        # The lock file is created before the owner's first segment and removed after
        # its last, so segments without a lock file have lost their owner.
        lock = _lock(path, create=False)
        if lock is not None or not path.exists():
            for semaphore in FOLDER.glob(f"{_SEMAPHORE}{prefix}*"):
                semaphore.unlink(missing_ok=True)
            _remove(prefix)
        if lock is not None:
            os.close(lock)


def _lock(path: Path, *, create: bool) -> int | None:
    """Returns a file descriptor that holds the lock, None if another process has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    except OSError:  # removed meanwhile, or another user's
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A process with the lock may have removed the file after we opened it.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _remove(prefix: str) -> None:
    """Removes the owner's segments, its folder, and its lock file last."""
    if FOLDER.is_dir():
        for path in FOLDER.glob(f"{prefix}*"):
            if path.name != f"{prefix}{_LOCK}":
                _remove_segment(path.name)
    shutil.rmtree(_folder_of(prefix), ignore_errors=True)
    with contextlib.suppress(OSError):
        (FOLDER / f"{prefix}{_LOCK}").unlink()


def _remove_segment(name: str) -> None:
    # Unlink by the class, so that Python's resource tracker forgets the segment too.
    with contextlib.suppress(OSError):  # dropped meanwhile, or another user's
        segment = shared_memory.SharedMemory(name)
        segment.close()
        segment.unlink()


def _folder_of(prefix: str) -> Path:
    return Path(tempfile.gettempdir()) / prefix.rstrip("-")
