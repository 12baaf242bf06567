"""Reads all pictures of a set, whatever else it holds, such as an evaluation set.

A set is pictures in folders, tars, Parquet as on the Hugging Face hub, or ArrayRecord
files of TFDS and of our datasets. It is the user's own: damage is an error.
"""

import re
import tarfile
from collections.abc import Callable, Iterator, Sequence

from data_prep.sources import array_record
from data_prep.sources.webdataset import IMAGES
from metaclip_jax import files, patterns
from metaclip_jax.data import untrusted_tar

_ENDINGS = rf"\.({'|'.join(IMAGES)})$"
_COLUMNS = ("image", "img", "jpg", "png", "webp")  # of pictures, in this order
_BATCH = 256  # rows at a time

Pictures = Iterator[tuple[str, bytes]]  # name, content of the file


def find(sets: Sequence[str]) -> list[str]:
    """Returns the files of sets, sorted.

    Args:
      sets: globs, or folders, whose files are found at any depth.

    Raises ValueError where a set has no files, or one that `read` cannot read.
    """
    found: list[str] = []
    for one in sets:
        if files.path(one).is_dir():
            here = _inside(one)
        else:
            here = patterns.find(one)
        if not here:
            raise ValueError(
                f"wanted pictures, tars, Parquet or ArrayRecord files, got none for"
                f" {one!r}; correct the path"
            )
        found += here
    for path in found:
        if _reader(path) is None:
            raise ValueError(
                f"wanted pictures, tars, Parquet or ArrayRecord files, got {path};"
                " name the files by a glob"
            )
    return sorted(set(found))


def _inside(folder: str) -> list[str]:
    here = {path: _reader(path) for path in patterns.find(f"{folder}/**")}
    # A dataset of ours has tables beside its records.
    datasets = {p.rpartition("/")[0] for p in here if here[p] is _of_records}
    return [
        path
        for path, reader in here.items()
        if reader
        and (reader is not _of_parquet or path.rpartition("/")[0] not in datasets)
    ]


def read(path: str) -> Pictures:
    """Yields name and bytes of each picture of a file that `find` returned.

    Raises ValueError for a file without pictures, and other errors where it is damaged.
    """
    reader = _reader(path)
    assert reader is not None
    with files.naming(path, "a file of pictures"):
        count = 0
        try:
            for picture in reader(path):
                yield picture
                count += 1
        except tarfile.TarError as error:
            raise ValueError(str(error)) from error
        if not count:
            raise ValueError(f"{path}: wanted pictures, got none; leave the file out")


def is_picture(path: str) -> bool:
    """Whether the file is one picture."""
    return bool(re.search(_ENDINGS, path.lower()))


def _reader(path: str) -> Callable[[str], Pictures] | None:
    name = path.rpartition("/")[2].lower()
    return next((read for end, read in _READERS.items() if re.search(end, name)), None)


def _of_picture(path: str) -> Pictures:
    yield path, files.path(path).read_bytes()


def _of_tar(path: str) -> Pictures:
    with files.local_copy(path) as local, local.open("rb") as file:
        for member in untrusted_tar.members(file, files.size(local)):
            if is_picture(member.name):
                file.seek(member.offset_data)
                yield f"{path}/{member.name}", file.read(member.size)


def _of_parquet(path: str) -> Pictures:
    with files.open_parquet(path) as parquet:
        names = [name for name in _COLUMNS if name in parquet.schema_arrow.names]
        if not names:
            raise ValueError(
                f"{path}: wanted a column among {_COLUMNS}, got"
                f" {parquet.schema_arrow.names}; rename it"
            )
        row = 0
        for batch in parquet.iter_batches(_BATCH, columns=names[:1]):
            for value in batch.column(0).to_pylist():
                if isinstance(value, dict):  # the hub's {bytes, path}
                    value = value["bytes"]
                if value is not None:
                    yield f"{path}/{row}", value
                row += 1


def _of_records(path: str) -> Pictures:
    for number, fields in array_record.examples(path):
        if fields is None:
            raise ValueError(f"{path}: record {number} is damaged; restore the file")
        found = [fields[name] for name in _COLUMNS if name in fields]
        if found and isinstance(found[0], bytes):
            yield f"{path}/{number}", found[0]


_READERS = {
    _ENDINGS: _of_picture,
    r"\.tar$": _of_tar,
    r"\.parquet$": _of_parquet,
    r"\.array_record": _of_records,
}
