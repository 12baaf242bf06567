"""Atomic files and finished folders, local or on Google Cloud Storage (gs://).

Files on s3:// can be read. A file is written under a temporary name and renamed when it
is complete. A folder is finished if it has a manifest. gs:// files are written locally
and then uploaded: a gs:// file that is open for writing is committed half written if an
exception closes it.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from metaclip_jax.cli import differences

MANIFEST = "manifest.json"
CLAIM = "unfinished.json"  # the inputs of an unfinished folder
TEMPORARY_PREFIX = ".tmp-"
_LOCK = ".lock"
# Exceptions that damaged content raises, in Arrow or in our code.
CONTENT_ERRORS = (
    pa.ArrowException, ArithmeticError, AttributeError, LookupError, MemoryError,
    RecursionError, TypeError, ValueError,
)  # fmt: skip


def path(p: epath.PathLike) -> epath.Path:
    """Returns `p` as an epath.Path, and configures gs:// at the first use.

    Raises ValueError for an empty path, which would be the current folder.
    """
    if not os.fspath(p):
        raise ValueError("wanted a path, got an empty path; . is the current folder")
    if os.fspath(p).startswith("gs://"):
        _configure_gcs()
    if os.fspath(p).startswith("s3://") and not util.find_spec("s3fs"):
        raise ValueError(f"wanted s3fs to read {p}, got no such package; install s3fs")
    return epath.Path(p)


def _file_system(p: epath.PathLike) -> Any:
    """Returns fsspec's file system of `p`, which makes fewer requests than epath."""
    return epath.backend.fsspec_backend.fs(path(p))


def is_local(p: epath.PathLike) -> bool:
    """Returns whether `p` is in the local file system."""
    return "://" not in os.fspath(p)


def size(p: epath.PathLike) -> int:
    """Returns the size of a file in bytes. Raises FileNotFoundError.

    epath's stat also looks up the owner's name and raises KeyError for a user id
    without a name, as in many containers.
    """
    if is_local(p):
        return os.stat(p).st_size
    return path(p).stat().length


def write_bytes(p: epath.PathLike, data: bytes) -> None:
    """Writes a file atomically."""
    if not is_local(p):
        # An object appears when its upload is complete.
        _file_system(p).pipe_file(os.fspath(p), data)
        return
    with staged(p) as local:
        local.write_bytes(data)


def write_json(p: epath.PathLike, obj: Any) -> None:
    """Writes `obj` as JSON with sorted keys, so that equal objects give equal bytes."""
    write_bytes(p, _dumps(obj).encode())


@contextlib.contextmanager
def naming(p: epath.PathLike, wanted: str) -> Iterator[None]:
    """Makes an error about a file say which file it is, what it should be and the cure.

    Errors about its content become a ValueError. Most errors of the storage, and those
    that already name the file, are not changed.

    Args:
      p: the file that the block reads.
      wanted: what it should be.
    """
    try:
        yield
    except (*CONTENT_ERRORS, OSError) as error:
        names_file, code = os.fspath(p) in str(error), getattr(error, "errno", None)
        if isinstance(error, FileNotFoundError) and (code or not names_file):
            raise FileNotFoundError(
                f"{p}, which should be {wanted}, is missing; write or restore it"
            ) from error
        if code is not None or names_file:
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(
            f"{p} should be {wanted}, but: {kind}{error}; write it again, or restore it"
        ) from error


def read_json(p: epath.PathLike) -> Any:
    """Reads a JSON file. Raises a ValueError with its name if it is not JSON."""
    with naming(p, "JSON"):
        return json.loads(path(p).read_bytes())


def open_parquet(p: epath.PathLike, *, checksums: bool = False) -> pq.ParquetFile:
    """Opens a Parquet file with buffers that Arrow owns.

    Arrow's threads free buffers late, and freeing a Python-owned buffer while the
    interpreter shuts down aborts the process.

    Args:
        p: the file.
        checksums: whether to check those of pages that have one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not Parquet.
    """
    with naming(p, "Parquet"):
        source: Any = os.fspath(p)
        if not is_local(p):
            copy = pa.BufferOutputStream()
            copy.write(path(p).read_bytes())
            source = pa.BufferReader(copy.getvalue())
        return pq.ParquetFile(source, page_checksum_verification=checksums)


def read_parquet(p: epath.PathLike, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a Parquet file, or some of its columns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not Parquet, lacks a column or is damaged.
    """
    with naming(p, "Parquet"), open_parquet(p, checksums=True) as parquet:
        missing = set(columns or ()) - set(parquet.schema_arrow.names)
        if missing:
            raise ValueError(
                f"{p} should have the columns {columns}, but lacks {sorted(missing)}"
            )
        table = parquet.read(columns=columns)
        table.validate(full=True)  # otherwise a damaged text fails later, when used
        return table


class DiskFullError(OSError):
    """There is no space for a file."""


_FULL = re.compile(
    "|".join(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))
)
_FULL_MESSAGE = re.compile("wanted room for .* after the last whole file")


def is_full_disk(error: object) -> bool:
    """Whether an error of any library means that there is no space for a file."""
    return bool(_FULL.search(str(error)))


@contextlib.contextmanager
def naming_full_disk(place: epath.PathLike) -> Iterator[None]:
    """Turns an error about a full disk into a DiskFullError, one line with `place`.

    If the error quotes a DiskFullError, for instance of a worker, that message is kept.
    """
    try:
        yield
    except Exception as error:
        if not (reason := _FULL.search(str(error))):
            raise
        if named := _FULL_MESSAGE.search(str(error)):
            raise DiskFullError(named[0]) from None
        local = Path(os.fspath(place) if is_local(place) else tempfile.gettempdir())
        folder = next(p for p in (local, *local.absolute().parents) if p.is_dir())
        free = shutil.disk_usage(folder).free / 1e6
        below = re.search(rf"{re.escape(os.fspath(place))}[-/.\w]*", str(error))
        raise DiskFullError(
            f"wanted room for {below[0] if below else place}, got {reason[0]!r} with "
            f"{free:,.1f} MB free in {folder}; free some space and run the same "
            "command again, which continues after the last whole file"
        ) from None


@contextlib.contextmanager
def staged(final: epath.PathLike) -> Iterator[Path]:
    """Yields a local path to write, and publishes it as `final` after the block.

    Verify the file inside the block. If the block raises, the temporary file is removed
    and `final` does not change. The temporary file is in the folder of a local `final`,
    else in the system's temporary folder.

    Raises a DiskFullError that names `final` if there is no space.
    """
    with naming_full_disk(final):
        if is_local(final):
            folder = Path(os.fspath(final)).parent
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = Path(tempfile.gettempdir())
        name = f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-{path(final).name}"
        local = folder / name
        try:
            yield local
            publish(local, final)
        finally:
            local.unlink(missing_ok=True)


def publish(local_file: epath.PathLike, final: epath.PathLike) -> None:
    """Moves a finished local file to its final name.

    Local: fsync and rename, after a copy if it is on another disk. gs://: one upload
    and a check of the size; raises OSError if it differs.
    """
    local_file = Path(os.fspath(local_file))
    if is_local(final):
        destination = Path(os.fspath(final))
        if local_file.parent.stat().st_dev != destination.parent.stat().st_dev:
            copied = destination.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}"
            shutil.move(local_file, copied)
            local_file = copied
        with local_file.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(local_file, destination)
        return
    _file_system(final).put_file(os.fspath(local_file), os.fspath(final))
    wanted, uploaded = size(local_file), size(final)
    if uploaded != wanted:
        raise OSError(
            f"{final}: wanted {wanted} bytes uploaded, got {uploaded}; run again"
        )
    local_file.unlink()


@contextlib.contextmanager
def local_copy(p: epath.PathLike) -> Iterator[Path]:
    """Yields a local path with the content of `p`; for gs://, a temporary copy.

    If the block maps the copy into memory, it stays mapped after the block.
    """
    if is_local(p):
        yield Path(os.fspath(p))
        return
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as folder:
        local = Path(folder) / path(p).name
        _file_system(p).get_file(os.fspath(p), os.fspath(local))
        yield local


def finished(
    folder: epath.PathLike, inputs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns the folder's manifest, or None if the folder is unfinished.

    `inputs` is a JSON object that describes the folder's inputs. Needs write access.
    Raises a ValueError that lists the differences if the manifest has other inputs.
    """
    manifest = _of_this_run(folder, MANIFEST, inputs, "the finished output")
    claim = path(folder) / CLAIM
    if manifest is not None and claim.exists():
        claim.unlink(missing_ok=True)  # a run was killed just after the manifest
    return manifest


def claim(folder: epath.PathLike, inputs: Mapping[str, Any]) -> None:
    """Records the inputs of an unfinished folder, so that no other run continues it.

    Raises a ValueError that lists the differences if a run with other inputs began it.
    """
    if _of_this_run(folder, CLAIM, inputs, "the unfinished output") is None:
        write_json(path(folder) / CLAIM, {"inputs": inputs, "version": version()})


def _of_this_run(
    folder: epath.PathLike, name: str, inputs: Mapping[str, Any], what: str
) -> dict[str, Any] | None:
    """Returns the JSON file `name` of the folder, None if it is missing."""
    file = path(folder) / name
    if not file.exists():
        return None
    manifest = read_json(file)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("inputs"), dict):
        raise ValueError(f"{file} should be a manifest of ours; choose another folder")
    if other := differences.other_output(inputs, manifest["inputs"]):
        raise ValueError(f"{folder} holds {other}; choose another folder")
    if wrong := differences.describe(json.loads(_dumps(inputs)), manifest["inputs"]):
        raise ValueError(
            f"{folder} is {what} of another run: {wrong}. Choose another folder, or"
            " remove this one"
        )
    return manifest


def write_manifest(
    folder: epath.PathLike, *, inputs: Mapping[str, Any], **facts: Any
) -> None:
    """Marks a folder as finished; call it after all files have their final names.

    The manifest has `inputs` (which `finished` compares), `version` and the facts.
    """
    write_json(
        path(folder) / MANIFEST, {**facts, "inputs": inputs, "version": version()}
    )
    (path(folder) / CLAIM).unlink(missing_ok=True)


def reopen(folder: epath.PathLike, inputs: Mapping[str, Any]) -> None:
    """Removes a folder's manifest, so that the folder is unfinished again.

    Raises a ValueError that lists the differences if the folder has other inputs.
    """
    finished(folder, inputs)  # raises if it is another run's
    claim(folder, inputs)
    (path(folder) / MANIFEST).unlink(missing_ok=True)


def version() -> str:
    """Returns the version of this package, "uninstalled" in a bare checkout."""
    try:
        return metadata.version("metaclip-jax")
    except metadata.PackageNotFoundError:
        return "uninstalled"


@contextlib.contextmanager
def lock(folder: epath.PathLike) -> Iterator[None]:
    """Locks a local folder for writing, and creates it if it is missing.

    The lock ends with the block or the process, however it dies. On entry, temporary
    files of killed runs are removed, except in subfolders with their own lock. A gs://
    folder is not locked: do not start two runs into one.

    Raises a RuntimeError that names the process with the lock.
    """
    if not is_local(folder):
        yield
        return
    local = Path(os.fspath(folder))
    local.mkdir(parents=True, exist_ok=True)
    name = local / _LOCK
    with _locked(name) as file:
        file.truncate(0)
        with naming_full_disk(name):
            file.write(
                f"process {os.getpid()} on {socket.gethostname()} "
                f"({' '.join(sys.argv)[:200]})\n"
            )
            file.flush()
        _remove_temporary(local)
        try:
            yield
        finally:
            if _is_named(file, name):
                name.unlink()  # while we hold the lock; later it may be another's file


def _locked(name: Path) -> TextIO:
    """Opens the file `name`, creates it if it is missing, and locks it."""
    while True:
        file = name.open("a+")
        try:
            # flock, not lockf, which would let this process lock the file twice.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                file.seek(0)
                holder = file.read().strip() or "another process"
            raise RuntimeError(
                f"{name.parent} is being written by {holder}; wait for it, stop it, or "
                "choose another folder"
            ) from error
        if _is_named(file, name):
            return file
        file.close()  # the previous holder removed it after we opened it


def _is_named(file: TextIO, name: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(name))
    except FileNotFoundError:
        return False


def _remove_temporary(folder: Path) -> None:
    for entry in list(os.scandir(folder)):
        if entry.name.startswith(TEMPORARY_PREFIX):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            if not os.path.exists(os.path.join(entry.path, _LOCK)):
                _remove_temporary(Path(entry.path))


def _dumps(obj: Any) -> str:
    return json.dumps(obj, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _configure_gcs() -> None:
    """Sets defaults of gcsfs, without overriding the environment's settings."""
    # gcsfs reads these while it is imported. It logs a traceback of each error.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # Without, the library of checkpoints waits for a silent connection forever.
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "30")
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    logging.getLogger("fsspec").setLevel(logging.WARNING)  # a line for each file
    import fsspec

    from metaclip_jax.data import cloud_storage

    cloud_storage.register()
    settings = fsspec.config.conf.setdefault("gs", {})
    # Cached listings hide new objects of other processes.
    settings["use_listings_cache"] = False
    if "STORAGE_EMULATOR_HOST" in os.environ:  # an emulator has no credentials
        os.environ.setdefault("FSSPEC_GCS_TOKEN", "anon")
