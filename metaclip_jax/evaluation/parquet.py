"""Opens labelled images and texts in Parquet files, as on the Hugging Face hub.

A row has `image` (bytes, or a struct with `bytes`), and `label` (a number; its name is
in the file's metadata) or texts (`caption`, `captions`, `text`, `texts`). A row of
WinoGAViL has a `cue`, the names of `candidates`, those that are its `associations`, and
the `candidate_images`.
"""

import functools
import json
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metaclip_jax import files
from metaclip_jax.evaluation import prompts
from metaclip_jax.evaluation.examples import Choice, Examples

_OF_SPLIT = re.compile(r"\w+-\d+-of-\d+\.parquet")
_LABELS = ("label", "fine_label", "labels")
_TEXTS = ("caption", "captions", "text", "texts")


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
      ValueError: a column is missing or of another kind, or a file is damaged.
    """
    opened = []
    for path in _paths(folder, split):
        try:
            opened.append(pq.ParquetFile(path))
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); download it again"
            ) from error
    schema = opened[0].schema_arrow
    if "candidate_images" in schema.names:
        return _with_choices(folder, opened)
    label = next((name for name in _LABELS if name in schema.names), None)
    text = next((name for name in _TEXTS if name in schema.names), None)
    if "image" not in schema.names or (label is None and text is None):
        raise ValueError(
            f"{folder}: want the columns image and label (or caption), got"
            f" {schema.names}"
        )
    value = _values(opened, "image")
    name = os.path.basename(os.path.normpath(folder))
    examples = Examples(
        source=folder,
        names=[f"{name}/{row}" for row in range(_count(opened))],
        read=lambda rows: [_bytes(value(row)) for row in rows.tolist()],
    )
    column = pa.concat_tables(
        [file.read(columns=[label or text]) for file in opened]
    ).column(0)
    if label is None:
        return _with_texts(examples, column.to_pylist())
    asked = asked or prompts.Prompts(None, prompts.DEFAULT_TEMPLATES)
    return _with_labels(examples, column, _class_names(folder, schema, label), asked)


def _count(opened: list[pq.ParquetFile]) -> int:
    return sum(file.metadata.num_rows for file in opened)


def _values(opened: list[pq.ParquetFile], column: str) -> Callable[[int], pa.Scalar]:
    """Returns a function from a row to its value; it caches two row groups."""
    # (file, row group, rows) of each row group.
    sizes = [
        (number, group, file.metadata.row_group(group).num_rows)
        for number, file in enumerate(opened)
        for group in range(file.num_row_groups)
    ]
    ends = np.cumsum([size for _, _, size in sizes])

    @functools.lru_cache(maxsize=2)
    def values(index: int) -> pa.ChunkedArray:
        number, group, _ = sizes[index]
        return opened[number].read_row_group(group, columns=[column])[column]

    def value(row: int) -> pa.Scalar:
        index = int(np.searchsorted(ends, row, side="right"))
        return values(index)[row - int(ends[index]) + sizes[index][2]]

    return value


def _bytes(value: pa.Scalar) -> bytes:
    found = value.as_py()
    return found["bytes"] if isinstance(found, dict) else found


def _with_choices(folder: str, opened: list[pq.ParquetFile]) -> Examples:
    """Opens WinoGAViL: a text for each row, and one image for each candidate's name.

    Raises:
      ValueError: a column is missing, or a row's candidates contradict its images or
        its associations.
    """
    wanted = ["cue", "candidates", "associations", "candidate_images"]
    schema = opened[0].schema_arrow
    if not set(wanted) <= set(schema.names):
        raise ValueError(f"{folder}: want the columns {wanted}, got {schema.names}")
    table = pa.concat_tables([file.read(columns=wanted[:3]) for file in opened])
    picture_of: dict[str, tuple[int, int]] = {}
    row_of: dict[str, int] = {}
    choices = []
    for row, item in enumerate(table.to_pylist()):
        names, right = item["candidates"], set(item["associations"])
        if not right or not right <= set(names) or len(set(names)) < len(names):
            raise ValueError(
                f"{folder}: want associations among different candidates, got"
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
    value, places = _values(opened, "candidate_images"), list(picture_of.values())

    def read(rows: np.ndarray) -> list[bytes]:
        found = []
        for row, place in (places[number] for number in rows.tolist()):
            pictures = value(row)
            if len(pictures) <= place:
                raise ValueError(
                    f"{folder}: want an image of each candidate, got {len(pictures)} in"
                    f" row {row}; download it again"
                )
            found.append(_bytes(pictures[place]))
        return found

    return Examples(
        source=folder,
        names=list(picture_of),
        read=read,
        texts=[_cue(cue) for cue in table["cue"].to_pylist()],
        choices=choices,
    )


def _cue(cue: str) -> str:
    """Returns DataComp's prompt for a cue."""
    cue = cue.lower()
    return f"An {cue}" if cue[:1] in tuple("aeiou") else f"A {cue}"


def _with_labels(
    examples: Examples, column: pa.ChunkedArray, own: list[str], asked: prompts.Prompts
) -> Examples:
    if not pa.types.is_integer(column.type):
        raise ValueError(
            f"{examples.source}: want a number as the label, got {column.type}"
        )
    labels = column.to_numpy().astype(np.int64)
    if labels.min() < 0 or labels.max() >= len(own):
        raise ValueError(
            f"{examples.source}: want labels from 0 to {len(own) - 1}, got"
            f" {labels.min()} to {labels.max()}; this split has no labels, so give"
            " another --split"
        )
    named = prompts.match_classes(examples.source, own, asked)
    return examples._replace(
        class_names=named.class_names,
        templates=asked.templates,
        labels=named.label_of[labels],
    )


def _with_texts(examples: Examples, values: list[Any]) -> Examples:
    texts, image_of_text = [], []
    for row, value in enumerate(values):
        found = [value] if isinstance(value, str) else list(value or ())
        if not found:
            raise ValueError(f"{examples.source}: want a text of row {row}, got none")
        texts += found
        image_of_text += [row] * len(found)
    return examples._replace(texts=texts, image_of_text=np.array(image_of_text))


def _class_names(folder: str, schema: pa.Schema, label: str) -> list[str]:
    """Returns the labels' names, which the library `datasets` writes into each file."""
    described = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(described).get("info", {}).get("features", {})
    names = features.get(label, {}).get("names")
    if not names:
        raise ValueError(
            f"{folder}: want the names of the column {label} in the file's metadata"
            " (of the library datasets), got none; write the files with datasets"
        )
    return list(names)


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
