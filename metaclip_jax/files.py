"""Paths and finished files, local or on Google Cloud Storage (gs://).

A file is written under a temporary name and gets its final name once it is complete; a
folder is finished when it holds a manifest. gs:// files are uploaded whole: one that is
open for writing would be committed half written if its block raised an exception.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

MANIFEST = "manifest.json"
CLAIM = "unfinished.json"  # what an unfinished folder is made from
TEMPORARY_PREFIX = ".tmp-"
_LOCK = ".lock"
# What damaged content raises, in Arrow or where it is used.
CONTENT_ERRORS = (
    pa.ArrowException, ArithmeticError, AttributeError, LookupError, MemoryError,
    RecursionError, TypeError, ValueError,
)  # fmt: skip


def path(p: epath.PathLike) -> epath.Path:
    """Returns `p` as an epath.Path; the one place that knows how to reach gs://.

    Raises ValueError for an empty path, which would be the current folder.
    """
    if not os.fspath(p):
        raise ValueError(
            "want a file or a folder, got an empty path; write . for the current folder"
        )
    if os.fspath(p).startswith("gs://"):
        _configure_gcs()
    return epath.Path(p)


def is_local(p: epath.PathLike) -> bool:
    """Says whether `p` lies in the local file system."""
    return "://" not in os.fspath(p)


def size(p: epath.PathLike) -> int:
    """Returns the length of a file in bytes. Raises FileNotFoundError.

    epath's own stat also looks up the owner's name and raises KeyError where the user
    id has none, as in many containers.
    """
    if is_local(p):
        return os.stat(p).st_size
    return path(p).stat().length


def write_bytes(p: epath.PathLike, data: bytes) -> None:
    """Writes a whole file. A reader sees the old file or the new one, no mixture."""
    if not is_local(p):
        path(p).write_bytes(data)  # an object appears whole, when the upload ends
        return
    with staged(p) as local:
        local.write_bytes(data)


def write_json(p: epath.PathLike, obj: Any) -> None:
    """Writes `obj` as JSON: sorted keys, so that equal objects give equal bytes."""
    write_bytes(p, _dumps(obj).encode())


@contextlib.contextmanager
def naming(p: epath.PathLike, wanted: str) -> Iterator[None]:
    """Makes any error that a file's content raises a ValueError that names the file.

    Errors of the storage, and those that name the file already, stay as they are.

    Args:
      p: the file that is read in the block.
      wanted: what it should be.
    """
    try:
        yield
    except (*CONTENT_ERRORS, OSError) as error:
        is_of_storage = isinstance(error, OSError) and error.errno is not None
        if is_of_storage or os.fspath(p) in str(error):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(
            f"{p} should be {wanted}, but: {kind}{error}. Make it again, or restore it"
        ) from error


def read_json(p: epath.PathLike) -> Any:
    """Reads a JSON file. Raises ValueError naming the file if it is not JSON."""
    with naming(p, "JSON"):
        return json.loads(path(p).read_bytes())


def open_parquet(p: epath.PathLike) -> pq.ParquetFile:
    """Opens a Parquet file from bytes or a file of Arrow's own.

    Arrow's threads free buffers some time after they were read. Freeing a buffer that
    Python owns while the interpreter shuts down would abort the process, so the buffers
    here are Arrow's own.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not Parquet.
    """
    with naming(p, "Parquet"):
        if is_local(p):
            return pq.ParquetFile(os.fspath(p))
        copy = pa.BufferOutputStream()
        copy.write(path(p).read_bytes())
        return pq.ParquetFile(pa.BufferReader(copy.getvalue()))


def read_parquet(p: epath.PathLike, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a Parquet file, or some of its columns.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not Parquet, lacks a column or is damaged.
    """
    with naming(p, "Parquet"), open_parquet(p) as parquet:
        missing = set(columns or ()) - set(parquet.schema_arrow.names)
        if missing:
            raise ValueError(
                f"{p} should have the columns {columns}, but lacks {sorted(missing)}"
            )
        table = parquet.read(columns=columns)
        table.validate(full=True)  # else a damaged text fails where it is used
        return table


class DiskFullError(OSError):
    """There is no room for a file."""


_FULL = re.compile(
    "|".join(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))
)
_FULL_MESSAGE = re.compile("want room for .* after the last whole file")


def is_full_disk(error: object) -> bool:
    """Whether an error, of whatever library, says that there is no room for a file."""
    return bool(_FULL.search(str(error)))


@contextlib.contextmanager
def naming_full_disk(place: epath.PathLike) -> Iterator[None]:
    """Raises DiskFullError, in one line that names `place`, where there is no room.

    Where another error holds the words of a DiskFullError, these are raised.
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
            f"want room for {below[0] if below else place}, got {reason[0]!r} with "
            f"{free:,.1f} MB free in {folder}; make room there and run the same "
            "command again, which goes on after the last whole file"
        ) from None


@contextlib.contextmanager
def staged(final: epath.PathLike) -> Iterator[Path]:
    """Yields a local path to write; publishes it as `final` when the block ends well.

    Check the file inside the block: after it the file has its final name. If the block
    raises, the temporary file is removed and `final` stays as it was. For a local
    `final` the temporary file lies in the same folder, else in the system's one.

    Raises DiskFullError naming `final` where the block or the disk has no room for it.
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
    """Gives a finished local file its final name; the local file is gone afterwards.

    Local: fsync and rename (copied first if it lies on another disk). gs://: one
    upload, then the size is compared; raises OSError if it differs.
    """
    local_file = Path(os.fspath(local_file))
    if is_local(final):
        destination = Path(os.fspath(final))
        if local_file.parent.stat().st_dev != destination.parent.stat().st_dev:
            near = destination.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}"
            shutil.move(local_file, near)
            local_file = near
        with local_file.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(local_file, destination)
        return
    epath.Path(local_file).copy(path(final), overwrite=True)
    wanted, found = size(local_file), size(final)
    if found != wanted:
        raise OSError(
            f"{final} holds {found} bytes after its upload, wanted {wanted}: run this "
            "again"
        )
    local_file.unlink()


@contextlib.contextmanager
def local_copy(p: epath.PathLike) -> Iterator[Path]:
    """Yields a local path with the content of `p`: of gs://, a copy for the block.

    What is mapped from the copy inside the block stays mapped after it.
    """
    if is_local(p):
        yield Path(os.fspath(p))
        return
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as folder:
        local = Path(folder) / path(p).name
        path(p).copy(local)
        yield local


def finished(
    folder: epath.PathLike, inputs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns the folder's manifest if it was made from `inputs`, None if unfinished.

    `inputs` is any JSON object that says what the folder is made from. Only for those
    who may write there. Raises ValueError naming what differs if the folder was
    finished from other inputs.
    """
    manifest = _of_this_run(folder, MANIFEST, inputs, "the finished output")
    claim = path(folder) / CLAIM
    if manifest is not None and claim.exists():
        claim.unlink(missing_ok=True)  # its run was killed just after the manifest
    return manifest


def claim(folder: epath.PathLike, inputs: Mapping[str, Any]) -> None:
    """Says in an unfinished folder what it is made from, so that only that run goes on.

    Raises ValueError naming what differs if a run with other inputs began there.
    """
    if _of_this_run(folder, CLAIM, inputs, "the unfinished output") is None:
        write_json(path(folder) / CLAIM, {"inputs": inputs, "version": version()})


def _of_this_run(
    folder: epath.PathLike, name: str, inputs: Mapping[str, Any], what: str
) -> dict[str, Any] | None:
    """Returns the JSON file `name` of the folder, None where it is missing."""
    file = path(folder) / name
    if not file.exists():
        return None
    found = read_json(file)
    if not isinstance(found, dict) or not isinstance(found.get("inputs"), dict):
        raise ValueError(f"{file} is no manifest of ours; choose another folder")
    differences = _differences(json.loads(_dumps(inputs)), found["inputs"])
    if differences:
        raise ValueError(
            f"{folder} is {what} of another run: {'; '.join(differences)}."
            " Choose another folder, or start over (--fresh, or remove the folder)"
        )
    return found


def write_manifest(
    folder: epath.PathLike, *, inputs: Mapping[str, Any], **facts: Any
) -> None:
    """Marks a folder as finished. Call it last, when all its files have their names.

    The manifest holds `inputs` (what `finished` compares), `version` and the facts.
    """
    write_json(
        path(folder) / MANIFEST, {**facts, "inputs": inputs, "version": version()}
    )
    (path(folder) / CLAIM).unlink(missing_ok=True)


def reopen(folder: epath.PathLike, inputs: Mapping[str, Any]) -> None:
    """Takes a folder's manifest back: it is unfinished again, made from `inputs`.

    Raises ValueError naming what differs if the folder is made from other inputs.
    """
    finished(folder, inputs)  # raises where it is another run's
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
    """Holds the right to write into a local folder, which is made if it is missing.

    The lock ends with the process, however it dies; its file goes when the block ends.
    On entry, the temporary files that a killed run left here are removed; subfolders
    with a lock of their own are left to their holders. Raises RuntimeError saying who
    holds the lock. A gs:// folder is not locked: there, two runs into one folder are
    yours to avoid.
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
                name.unlink()  # before the lock ends, or it could be the next one's


def _locked(name: Path) -> TextIO:
    """Opens the file `name`, made if it is missing, and locks it."""
    while True:
        file = name.open("a+")
        try:
            # flock, not lockf: it also refuses a second holder in this process.
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
        file.close()  # its holder has removed it, so another one may be there now


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


def _differences(want: Any, got: Any, where: str = "") -> list[str]:
    """Lists where two JSON values differ, as "key: wanted …, found …"."""
    if isinstance(want, dict) and isinstance(got, dict):
        return [
            line
            for key in sorted(want.keys() | got.keys())
            for line in _differences(
                want.get(key, "nothing"),
                got.get(key, "nothing"),
                f"{where}.{key}" if where else key,
            )
        ]
    if want == got and type(want) is type(got):
        return []
    return [f"{where}: wanted {_short(want)}, found {_short(got)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}…"


def _configure_gcs() -> None:
    """Sets what makes gcsfs behave; only environments without own settings change."""
    import fsspec

    # Cached listings hide the objects that other processes write.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if "STORAGE_EMULATOR_HOST" in os.environ:  # an emulator has no credentials
        os.environ.setdefault("FSSPEC_GCS_TOKEN", "anon")
