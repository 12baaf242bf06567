"""Local copies of files on gs://, one for all processes of a machine."""

import fcntl
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from metaclip_jax import files

# Open for as long as this process lives: a copy with such a lock is in use.
_used: list[BinaryIO] = []


def shared(p: str | os.PathLike[str]) -> Path:
    """Returns a local path with the content of `p`.

    Processes that map it share its memory. A copy of gs:// is made once for all
    processes of a machine; copies that no process uses are removed with the next one.

    Raises PermissionError where the folder of the copies belongs to another user.
    """
    if files.is_local(p):
        return Path(p)
    stat = files.path(p).stat()
    key = json.dumps([os.fspath(p), stat.length, stat.mtime])
    folder = Path(tempfile.gettempdir(), f"metaclip_jax-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # what is mapped is trusted
        raise PermissionError(
            f"wanted {folder} to be this user's, got another's; remove it, or set"
            " $TMPDIR"
        )
    copy = folder / hashlib.sha256(key.encode()).hexdigest()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            _remove_unused(folder)
            with files.staged(copy) as local:
                files.path(p).copy(local)
        file = copy.open("rb")
        fcntl.flock(file, fcntl.LOCK_SH)
        _used.append(file)
    return copy


def _remove_unused(folder: Path) -> None:
    """Removes copies that no process uses, among them what a killed one left."""
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            path.unlink()
