"""Arrays in shared memory whose names say who owns them, so that none is left behind.

A segment lives until its name is removed, even after every process that used it was
killed. So each owner (a pool of worker processes) has a prefix of its own for names and
holds a lock on a file of that prefix. The kernel releases the lock when the owner ends,
however it ends; the next owner then removes what the dead one left.
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
PREFIX = "metaclip-"  # with what follows below 31 characters, as macOS wants
_TOKEN = 8  # hexadecimal digits after it
_SEMAPHORE = "sem."  # what the C library writes before a semaphore's name
_LOCK = "lock"
_numbers = itertools.count()


class Owner:
    """Owns a name prefix in shared memory, and a temporary folder of the same name.

    Attributes:
      prefix: what the names of its segments start with.
      folder: a local folder for small files; removed with the segments.
    """

    def __init__(self) -> None:
        """Takes a new prefix, and removes what owners that are dead left."""
        remove_abandoned()
        self.prefix = f"{PREFIX}{secrets.token_hex(_TOKEN // 2)}-"
        self.folder = _folder_of(self.prefix)
        self.folder.mkdir(mode=0o700)
        self._lock = None
        while FOLDER.is_dir() and self._lock is None:
            self._lock = _lock(FOLDER / f"{self.prefix}{_LOCK}", create=True)

    @contextlib.contextmanager
    def naming_semaphores(self) -> Iterator[None]:
        """Gives the prefix to the semaphores that multiprocessing makes in the block.

        They are files, too, of which SIGKILL to a process group leaves some dozens.
        """
        config = vars(multiprocessing.current_process())["_config"]
        before = config["semprefix"]
        config["semprefix"] = f"/{self.prefix}"
        try:
            yield
        finally:
            config["semprefix"] = before

    def close(self) -> None:
        """Removes the names of all segments, the folder and the lock.

        Python removes the semaphores as the objects that hold them go.
        """
        _remove(self.prefix)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def share(prefix: str, made: Any) -> Any:
    """Returns `made` with a copy in shared memory in place of each array.

    Args:
      prefix: of the owner; a process that the owner started may use it.
      made: arrays in tuples and dicts, as Grain hands them to another process.
    """
    if isinstance(made, dict):
        return {key: share(prefix, value) for key, value in made.items()}
    if isinstance(made, tuple):
        values = [share(prefix, value) for value in made]
        return made._make(values) if hasattr(made, "_make") else tuple(values)
    if not isinstance(made, np.ndarray) or made.dtype.hasobject or not made.nbytes:
        return made
    name = f"{prefix}{os.getpid():x}-{next(_numbers):x}"
    segment = shared_memory.SharedMemory(name, create=True, size=made.nbytes)
    array = SharedMemoryArray.from_shared_memory(segment, made.shape, made.dtype)
    np.copyto(array, made, casting="no")
    return array


def unlink(arrays: Iterable[np.ndarray]) -> None:
    """Removes the names of these arrays now; the memory goes with the last array.

    Grain removes a name when the array is dropped, in a thread that ends with the
    process: the name of an array that a reader holds to the end would stay.
    """
    for array in arrays:
        if memory := getattr(array, "shm", None):
            memory.unlink()
            vars(array)["_unlink_on_del"] = False


def remove_abandoned() -> None:
    """Removes the segments and folders of owners that are dead."""
    if not FOLDER.is_dir():
        return
    names = FOLDER.glob(f"{PREFIX}*-*")
    for prefix in {path.name[: len(PREFIX) + _TOKEN] + "-" for path in names}:
        path = FOLDER / f"{prefix}{_LOCK}"
        # Made before any segment, removed after all but what was just being made.
        lock = _lock(path, create=False)
        if lock is not None or not path.exists():
            for semaphore in FOLDER.glob(f"{_SEMAPHORE}{prefix}*"):
                semaphore.unlink(missing_ok=True)
            _remove(prefix)
        if lock is not None:
            os.close(lock)


def _lock(path: Path, *, create: bool) -> int | None:
    """Returns a file descriptor that holds the lock, None where another holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    except OSError:  # removed meanwhile, or another user's
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever removed the file after we had opened it held the lock until then.
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
    # By way of the class, so that Python's resource tracker forgets the segment too.
    with contextlib.suppress(OSError):  # dropped meanwhile, or another user's
        segment = shared_memory.SharedMemory(name)
        segment.close()
        segment.unlink()


def _folder_of(prefix: str) -> Path:
    return Path(tempfile.gettempdir()) / prefix.rstrip("-")
