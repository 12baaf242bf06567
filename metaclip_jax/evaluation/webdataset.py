"""Opens the hub's WebDataset layout: labelled images and texts in tar files.

A folder has classnames.txt (one class per line), zeroshot_classification_templates.txt
(prompts with {c} for the name), test/0.tar, test/1.tar and so on, and their number in
test/nshards.txt. A sample is the files with one name: KEY.webp (png, jpg, jpeg);
KEY.cls, its class as a number; KEY.npy, an image's several classes or other facts;
KEY.txt, its texts, one per line. The hub's clip-benchmark/wds_* and djghosh/wds_*_test
have this layout. Images are read from the tar files on demand.
"""

import collections
import io
import os
import tarfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath

from metaclip_jax import files
from metaclip_jax.data import storage_errors, untrusted_tar
from metaclip_jax.evaluation import prompts
from metaclip_jax.evaluation.examples import Examples

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
_SHARDS = "nshards.txt"  # beside the tar files; not every folder has it
_IMAGES = ("webp", "png", "jpg", "jpeg")
_SMALL = ("cls", "npy", "txt")


class _Place(NamedTuple):
    """The position of an image's bytes in a tar file."""

    path: str
    offset: int
    length: int


class _Sample(NamedTuple):
    key: str
    image: _Place
    rest: dict[str, bytes]  # the other files, by their extension


def is_folder(folder: str | os.PathLike, split: str = "test") -> bool:
    """Whether a folder has this layout."""
    root = files.path(folder)
    return root.is_dir() and bool(_tars(root, split))


def open_folder(
    folder: str,
    *,
    split: str = "test",
    asked: prompts.Prompts | None = None,
    group_column: int | None = None,
) -> Examples:
    """Opens a folder; reads only the tar headers and the small files.

    Args:
      folder: local or gs://.
      split: the folder of the tar files.
      asked: prompts that replace the folder's; classes are matched by name.
      group_column: the column of KEY.npy with the group of each image.

    Raises:
      ValueError: a file is missing or damaged, or files contradict each other; the
        message names them.
    """
    root = files.path(folder)
    tars = _tars(root, split)
    _check_count(root / split, len(tars))
    samples = [s for tar in tars for s in _samples(os.fspath(tar))]
    if not samples:
        raise ValueError(
            f"{folder}: wanted images in {split}/*.tar, got none; download it again"
        )
    examples = Examples(
        source=folder,
        names=[sample.key for sample in samples],
        read=lambda rows: _read([samples[row].image for row in rows.tolist()]),
    )
    if "txt" in samples[0].rest:
        return examples.with_texts([_texts(folder, sample) for sample in samples])
    labels = _labels(folder, samples)
    own = _lines(root / CLASS_NAMES)
    wrong = labels.max(initial=0) >= len(own) if labels.ndim == 1 else False
    if wrong or (labels.ndim == 2 and labels.shape[1] != len(own)):
        most = int(labels.max()) if labels.ndim == 1 else labels.shape[1]
        raise ValueError(
            f"{folder}: wanted as many classes as {CLASS_NAMES} has lines, {len(own)},"
            f" got labels up to {most}; download it again"
        )
    if asked is None:
        lines = [line for line in _lines(root / TEMPLATES) if line.strip()]
        templates = prompts.check_templates(
            os.fspath(root / TEMPLATES),
            [line.replace("{c}", prompts.SLOT) for line in lines],
        )
        asked = prompts.Prompts(tuple((name,) for name in own), templates)
    examples = prompts.with_classes(examples, own, labels, asked)
    if group_column is None:
        return examples
    groups = [_group(folder, sample, group_column) for sample in samples]
    return examples._replace(groups=np.array(groups, np.int64))


def _texts(folder: str, sample: _Sample) -> list[str]:
    lines = sample.rest.get("txt", b"").decode("utf-8", "replace").splitlines()
    found = [line for line in lines if line.strip()]
    if not found:
        raise ValueError(
            f"{folder}: wanted a text of {sample.key}, got none; download it again"
        )
    return found


def _labels(folder: str, samples: list[_Sample]) -> np.ndarray:
    """Returns int64[N] from KEY.cls, or without these bool[N, K] from KEY.npy."""
    if all("cls" in sample.rest for sample in samples):
        try:
            labels = np.array([int(sample.rest["cls"]) for sample in samples], np.int64)
        except (ValueError, OverflowError) as error:
            raise ValueError(
                f"{folder}: wanted a number in each .cls, {error}"
            ) from error
        if labels.min() < 0:
            raise ValueError(f"{folder}: wanted labels from 0, got {labels.min()}")
        return labels
    rows = [_array(folder, sample).ravel() for sample in samples]
    if len({len(row) for row in rows}) != 1:
        raise ValueError(
            f"{folder}: wanted a .cls, or a .npy of all classes, of each image"
        )
    return np.stack(rows).astype(bool)


def _group(folder: str, sample: _Sample, column: int) -> int:
    row = _array(folder, sample).ravel()
    if row.dtype.kind not in "iuf" or len(row) <= column or not np.isfinite(row).all():
        raise ValueError(
            f"{folder}: wanted numbers in {sample.key}.npy, the group in column"
            f" {column}, got {row.dtype}[{len(row)}]; download it again"
        )
    return int(row[column])


def _array(folder: str, sample: _Sample) -> np.ndarray:
    try:
        return np.load(io.BytesIO(sample.rest["npy"]), allow_pickle=False)
    except (KeyError, MemoryError, ValueError, EOFError) as error:
        raise ValueError(
            f"{folder}: wanted {sample.key}.npy, an array; it is missing or damaged"
        ) from error


def _tars(root: epath.Path, split: str) -> list[epath.Path]:
    """Returns the tar files of a split, by their numbers."""
    folder = root / split
    found = list(folder.glob("*.tar")) if folder.is_dir() else []
    return sorted(found, key=lambda tar: (len(tar.name), tar.name))


def is_complete(folder: str | os.PathLike, split: str = "test") -> bool:
    """Whether there are as many tar files as nshards.txt says."""
    root = files.path(folder)
    wanted = _count(root / split)
    return wanted is not None and wanted == str(len(_tars(root, split)))


def _count(folder: epath.Path) -> str | None:
    """Returns what nshards.txt says; None = there is no such file."""
    path = folder / _SHARDS
    if not path.exists():
        return None
    return path.read_bytes().decode(errors="replace").strip()


def _check_count(folder: epath.Path, count: int) -> None:
    wanted = _count(folder)
    if wanted not in (None, str(count)):
        raise ValueError(
            f"{folder}: wanted {str(wanted)[:9]!r} tar files, as {_SHARDS} says, got"
            f" {count}; download the others"
        )


def _samples(path: str) -> list[_Sample]:
    """Returns the samples of a tar file, in its order."""
    images: dict[str, _Place] = {}
    rest: dict[str, dict[str, bytes]] = collections.defaultdict(dict)
    try:
        with files.path(path).open("rb") as file:
            for member in untrusted_tar.members(file, files.size(path)):
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key, ending = f"{folder}/{stem}" if folder else stem, ending.lower()
                if name.startswith("."):
                    continue
                if ending in _IMAGES:
                    images[key] = _Place(path, member.offset_data, member.size)
                elif ending in _SMALL:
                    file.seek(member.offset_data)
                    rest[key][ending] = file.read(member.size)
    except untrusted_tar.NoEndError:
        logging.warning("%s has no mark of its end; it may be cut off", path)
    except storage_errors.StorageError:
        raise
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); download it again") from error
    return [_Sample(key, place, rest[key]) for key, place in images.items()]


def _read(places: Sequence[_Place]) -> list[bytes]:
    """Reads images; those on gs:// by requests side by side."""
    if places and not files.is_local(places[0].path):
        import fsspec  # a slow import

        storage, _ = fsspec.core.url_to_fs(places[0].path)
        return storage.cat_ranges(
            [place.path for place in places],
            [place.offset for place in places],
            [place.offset + place.length for place in places],
            on_error="raise",
        )
    found = []
    for place in places:
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            found.append(file.read(place.length))
    return found


def _lines(path: epath.Path) -> list[str]:
    if not path.exists():
        raise ValueError(f"wanted {path}, found no such file; download it again")
    with files.naming(path, "text in UTF-8"):
        text = path.read_bytes().decode()
    # Spaces around a name are no part of it, as in clip_benchmark.
    return [line.strip() for line in text.rstrip("\r\n").split("\n")]
