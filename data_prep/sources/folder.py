"""Reads folders of pictures: name.jpg with name.txt beside it, or one file of captions.

The file of captions is metadata.csv, .jsonl or .parquet with a column `file_name`, as
the Hugging Face hub's image folders have it. It covers the folders below its own.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from data_prep.sources import pairs, table
from data_prep.sources.spec import Bodies, Kind, Reading, Spec
from data_prep.sources.texts import Row
from data_prep.sources.webdataset import IMAGES, MAX_TEXT
from metaclip_jax import files, patterns

_CAPTIONS = re.compile(r"metadata\.(csv|jsonl|parquet)")
_FILE_NAME = "file_name"


def find(root: str) -> list[str]:
    """Returns the folders with files at or below `root`, sorted; each is read alone.

    Raises ValueError where it is not a folder.
    """
    if not files.path(root).is_dir():
        raise ValueError(
            f"config.source.paths: wanted a folder, got {root!r}; correct the path, or "
            "choose the config.source.kind of these files"
        )
    folders: dict[str, bool] = {}  # whether it has a file of captions
    for path in patterns.find(f"{root.rstrip('/')}/**"):
        folder, _, name = path.rpartition("/")
        folders[folder] = bool(_CAPTIONS.fullmatch(name)) or folders.get(folder, False)
    covered = tuple(f"{folder}/" for folder, has in folders.items() if has)
    return sorted(folder for folder in folders if not folder.startswith(covered))


def size(folder: str) -> int:
    """Returns the bytes of a folder's own files."""
    paths = patterns.find(f"{folder}/*")
    return sum(files.size(path) for path in paths if _is_file(path))


@pairs.reader
def read(folder: str, spec: Spec, reading: Reading) -> Iterator[list[Row]]:
    """Yields the CANDIDATES of the pictures of one folder.

    A text column is the extension of the files beside the pictures, or a column of the
    file of captions. Lost items: no_image (a text or row without picture), bad_name
    (one that leads out of the folder or is not UTF-8), outside_link (a file behind a
    symbolic link out of the source), repeated_name (a.jpg beside a.png), bad_row.

    Raises OSError where the storage fails.
    """
    paths = patterns.find(f"{folder}/*")
    captions = [p for p in paths if _CAPTIONS.fullmatch(p.rpartition("/")[2])]
    if not captions:
        found = _of_files(paths, spec, reading)
    elif not _is_outside(captions[0], spec):
        spec = _of_columns(spec)
        found = _of_captions(folder, captions[0], spec, reading)
    else:
        reading.lost_files["outside_link"] += 1
        return
    for picture, fields in found:
        place = pairs.reference(picture)
        name = spec.name_of(picture)
        yield pairs.rows(fields, spec, reading, name=name, stored_at=place)


def images(path: str, positions: Sequence[str], spec: Spec) -> Bodies:
    """Yields the one image of a file."""
    for _ in positions:
        if not _is_file(path) or _is_outside(path, spec):
            yield "missing_file", b""
        elif files.size(path) > spec.max_image_bytes:
            yield "too_large", b""
        else:
            yield pairs.OK, files.path(path).read_bytes()


# The path of a picture, and what is known of it by the names of columns.
_Picture = tuple[str, Mapping[str, Any]]


def _of_files(paths: Sequence[str], spec: Spec, reading: Reading) -> Iterator[_Picture]:
    pictures: dict[str, str] = {}
    beside: dict[str, dict[str, str]] = {}
    for path in paths:
        stem, _, extension = path.rpartition(".")
        if extension.lower() in IMAGES:
            if stem in pictures:
                reading.lost_items["repeated_name"] += 1
            pictures[stem] = path
        if extension in spec.text_columns:
            beside.setdefault(stem, {})[extension] = path
    reading.lost_items["no_image"] += len(beside.keys() - pictures.keys())
    for stem, path in pictures.items():
        if not _is_utf8(path):
            reading.lost_items["bad_name"] += 1
            continue
        of_picture = beside.get(stem, {})
        if any(_is_outside(one, spec) for one in (path, *of_picture.values())):
            reading.lost_items["outside_link"] += 1
            continue
        texts = of_picture.items()
        yield path, {name: _content(text) for name, text in texts if _is_file(text)}


def _content(path: str) -> bytes:
    with files.path(path).open("rb") as file:
        return file.read(MAX_TEXT)


def _is_file(path: str) -> bool:
    """Says whether a path leads to a file, not to a folder, pipe, device or nothing.

    On Google Cloud Storage all that is listed is a file.
    """
    return not files.is_local(path) or os.path.isfile(path)


def _is_outside(path: str, spec: Spec) -> bool:
    """Says whether symbolic links lead from a path out of the source's folder.

    An untrusted archive must not make curation read private files of this machine.
    """
    if not files.is_local(path):
        return False
    root = os.path.realpath(spec.root or ".")
    return os.path.commonpath([root, os.path.realpath(path)]) != root


def _is_utf8(path: str) -> bool:
    try:
        return bool(path.encode())
    except UnicodeEncodeError:
        return False


def _of_columns(spec: Spec) -> Spec:
    """Returns the options for a file of captions; other columns may be missing."""
    others = {spec.language_column, spec.page_column, *spec.score_columns}
    return dataclasses.replace(
        spec,
        text_columns=spec.caption_columns,
        extra=(_FILE_NAME,),
        header=(),
        optional=spec.optional | others,
    )


def _of_captions(
    folder: str, captions: str, spec: Spec, reading: Reading
) -> Iterator[_Picture]:
    for row in table.rows(captions, spec, reading):
        name = row[_FILE_NAME]
        name = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        inside = PurePosixPath(str(name or "/"))
        is_outside = inside.is_absolute() or ".." in inside.parts
        if is_outside or "\0" in str(name) or not _is_utf8(str(name)):
            reading.lost_items["bad_name"] += 1
        elif not _exists(f"{folder}/{inside}"):
            reading.lost_items["no_image"] += 1
        elif _is_outside(f"{folder}/{inside}", spec):
            reading.lost_items["outside_link"] += 1
        else:
            yield f"{folder}/{inside}", row


def _exists(path: str) -> bool:
    if files.is_local(path):
        return os.path.isfile(path)
    return files.path(path).exists() and not files.path(path).is_dir()


KIND = Kind(read, "images", (), "", ("txt",), images, find=find, size=size)
