"""Opens labelled images and texts in Parquet files, as on the Hugging Face hub.

A row has `image` (bytes, or a struct with `bytes`), and `label` (a number; its name is
in the file's metadata) or texts (`caption`, `captions`, `text`, `texts`). A row of
WinoGAViL has a `cue`, the names of `candidates`, those that are its `associations`, and
the `candidate_images`.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from metaclip_jax import files
from metaclip_jax.data import untrusted_parquet
from metaclip_jax.evaluation import prompts
from metaclip_jax.evaluation.examples import Choice, Examples

_OF_SPLIT = re.compile(r"\w+-\d+-of-\d+\.parquet")
_LABELS = ("label", "fine_label", "labels")
_TEXTS = ("caption", "captions", "text", "texts")
_MAX_ROWS = 1 << 24
_MAX_TEXT = 1 << 16  # characters
_MAX_PAGE = 1 << 29  # bytes, of images
_MAX_GROUP = 1 << 31  # bytes of the images of a row group

# A row group: (file, number in it, rows).
_Group = tuple[str, int, int]


def is_folder(folder: str | os.PathLike, split: str = "test") -> bool:
    """Whether a folder has Parquet files."""
    root = files.path(folder)
    return root.is_dir() and bool(_paths(folder, split))


def open_folder(
    folder: str, *, split: str = "test", asked: prompts.Prompts | None = None
) -> Examples:
    """Opens a folder; reads labels and texts, and images on demand.

    Args:
      folder: with *.parquet or data/*.parquet; if files are named by split, only those
        of `split` are used.
      split: for example "test".
      asked: prompts that replace the default; classes are matched by name.

    Raises:
      ValueError: a column is missing or of another kind, or a file is damaged or would
        fill the memory.
    """
    paths = _paths(folder, split)
    sizes: list[_Group] = []
    for path in paths:
        with _naming(path):
            sizes += [
                (path, group, rows)
                for group, rows in enumerate(untrusted_parquet.group_rows(path))
            ]
    count = sum(rows for _, _, rows in sizes)
    if count > _MAX_ROWS:
        raise ValueError(
            f"{folder}: wanted at most {_MAX_ROWS:,} rows, got {count:,}; use a part of"
            " them"
        )
    if not count:
        raise ValueError(f"{folder}: wanted rows, got none; download it again")
    with _naming(paths[0]):
        schema = untrusted_parquet.schema(paths[0])
    if "candidate_images" in schema.names:
        return _with_choices(folder, paths, sizes)
    label = next((name for name in _LABELS if name in schema.names), None)
    text = next((name for name in _TEXTS if name in schema.names), None)
    if "image" not in schema.names or (label is None and text is None):
        raise ValueError(
            f"{folder}: wanted the columns image and label (or caption), got"
            f" {schema.names}"
        )
    _check_images(folder, schema.field("image").type)
    value = _values(sizes, "image")
    name = os.path.basename(os.path.normpath(folder))
    examples = Examples(
        source=folder,
        names=[f"{name}/{row}" for row in range(count)],
        read=lambda rows: [_bytes(value(row)) for row in rows.tolist()],
    )
    if label is None:
        values = enumerate(_rows(paths, [text or ""]))
        return examples.with_texts([_texts(folder, row, v) for row, (v,) in values])
    column = pa.chunked_array(
        [batch.column(0) for batch in _batches(paths, [label])],
        schema.field(label).type,
    )
    own = _class_names(folder, schema, label)
    labels = _labels(folder, column, len(own))
    return prompts.with_classes(examples, own, labels, asked or prompts.Prompts())


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except (*files.CONTENT_ERRORS, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is damaged ({error}); download it again") from error


def _batches(
    paths: Sequence[str], columns: list[str], *, shared: bool = False
) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with _naming(path):
            for _, batch in untrusted_parquet.batches(path, columns, shared=shared):
                yield batch


def _rows(paths: Sequence[str], columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yields the values of each row, in the order of `columns`."""
    for batch in _batches(paths, columns, shared=True):
        values = [untrusted_parquet.to_python(batch[name]) for name in columns]
        yield from zip(*values, strict=True)


def _values(sizes: Sequence[_Group], column: str) -> Callable[[int], pa.Scalar]:
    """Returns a function from a row to its value; it caches two row groups."""
    ends = np.cumsum([size for _, _, size in sizes])

    @functools.lru_cache(maxsize=2)
    def values(index: int) -> pa.ChunkedArray:
        path, group, _ = sizes[index]
        parts: list[pa.Array] = []
        room = _MAX_GROUP
        with _naming(path):
            for _, batch in untrusted_parquet.batches(
                path, [column], [group], max_page=_MAX_PAGE
            ):
                parts.append(batch.column(0))
                room -= parts[-1].nbytes
                if room < 0:
                    raise ValueError(f"more than {_MAX_GROUP:,} bytes of images")
        return pa.chunked_array(parts)

    def value(row: int) -> pa.Scalar:
        index = int(np.searchsorted(ends, row, side="right"))
        return values(index)[row - int(ends[index]) + sizes[index][2]]

    return value


def _bytes(value: pa.Scalar) -> bytes:
    """Returns an image's bytes; those of a row without an image are b""."""
    found = value.as_py()
    return (found["bytes"] if isinstance(found, dict) else found) or b""


def _check_images(folder: str, type_: pa.DataType) -> None:
    """Checks that images are bytes: a text would be taken for a path on this machine.

    Raises:
      ValueError: they are of another type.
    """
    inner = type_
    if pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
        inner = type_.field("bytes").type
    if pa.types.is_dictionary(inner):
        inner = inner.value_type
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise ValueError(
            f"{folder}: wanted images as bytes, or as structs with bytes, got {type_}"
        )


def _with_choices(
    folder: str, paths: Sequence[str], sizes: Sequence[_Group]
) -> Examples:
    """Opens WinoGAViL: a text for each row, and one image for each candidate's name.

    Raises:
      ValueError: a column is missing, or a row's candidates contradict its images or
        its associations.
    """
    wanted = ["cue", "candidates", "associations", "candidate_images"]
    names_of_columns = untrusted_parquet.schema(paths[0]).names
    if not set(wanted) <= set(names_of_columns):
        raise ValueError(
            f"{folder}: wanted the columns {wanted}, got {names_of_columns}"
        )
    images = untrusted_parquet.schema(paths[0]).field(wanted[3]).type
    if not (pa.types.is_list(images) or pa.types.is_large_list(images)):
        raise ValueError(f"{folder}: wanted lists of {wanted[3]}, got {images}")
    _check_images(folder, images.value_type)
    picture_of: dict[str, tuple[int, int]] = {}
    row_of: dict[str, int] = {}
    cues, choices = [], []
    for row, (cue, names, associations) in enumerate(_rows(paths, wanted[:3])):
        right = set(associations)
        cues.append(_cue(cue))
        if not right or not right <= set(names) or len(set(names)) < len(names):
            raise ValueError(
                f"{folder}: wanted associations among different candidates, got"
                f" {sorted(right)} of {names} in row {row}; download it again"
            )
        for place, name in enumerate(names):
            picture_of.setdefault(name, (row, place))
            row_of.setdefault(name, len(row_of))
        choices.append(
            Choice(
                np.array([row_of[name] for name in names]),
                np.array([name in right for name in names]),
            )
        )
    value, places = _values(sizes, "candidate_images"), list(picture_of.values())

    def read(rows: np.ndarray) -> list[bytes]:
        found = []
        for row, place in (places[number] for number in rows.tolist()):
            pictures = value(row)
            if len(pictures) <= place:
                raise ValueError(
                    f"{folder}: wanted an image of each candidate, got {len(pictures)}"
                    f" in row {row}; download it again"
                )
            found.append(_bytes(pictures[place]))
        return found

    names = list(picture_of)
    return Examples(folder, names, read, texts=cues, choices=choices)


def _cue(cue: str) -> str:
    """Returns DataComp's prompt for a cue."""
    cue = cue.lower()
    return f"An {cue}" if cue[:1] in tuple("aeiou") else f"A {cue}"


def _labels(folder: str, column: pa.ChunkedArray, classes: int) -> np.ndarray:
    if not pa.types.is_integer(column.type):
        raise ValueError(f"{folder}: wanted a number as the label, got {column.type}")
    if column.null_count:
        raise ValueError(
            f"{folder}: wanted a label in each row, got {column.null_count} without of"
            f" {len(column)}; give another --split"
        )
    labels = column.to_numpy().astype(np.int64)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{folder}: wanted labels from 0 to {classes - 1}, got {labels.min()} to"
            f" {labels.max()}; this split has no labels, so give another --split"
        )
    return labels


def _texts(folder: str, row: int, value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(text, str) for text in found):
        raise ValueError(
            f"{folder}: wanted a text or texts in row {row}, got {str(value)[:80]!r};"
            " leave it out"
        )
    if max(map(len, found)) > _MAX_TEXT:
        raise ValueError(
            f"{folder}: wanted texts of at most {_MAX_TEXT:,} characters, got"
            f" {max(map(len, found)):,} in row {row}; leave it out"
        )
    return found


def _class_names(folder: str, schema: pa.Schema, label: str) -> list[str]:
    """Returns the labels' names, which the library `datasets` writes into each file."""
    described = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(described)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        names = None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not names or not is_list:
        raise ValueError(
            f"{folder}: wanted the names of the column {label} in the file's metadata"
            " (of the library datasets), got none; write the files with datasets"
        )
    return names


def _paths(folder: str | os.PathLike, split: str) -> list[str]:
    """Returns the files of a split, or all if their names have no split."""
    root = files.path(folder)
    for inside in (root, root / "data"):
        found = sorted(inside.glob("*.parquet")) if inside.is_dir() else []
        if any(_OF_SPLIT.fullmatch(path.name) for path in found):
            found = [path for path in found if path.name.startswith(f"{split}-")]
        if found:
            return [os.fspath(path) for path in found]
    return []
