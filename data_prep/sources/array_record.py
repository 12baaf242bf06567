"""Reads ArrayRecord files of tf.train.Example: datasets of TFDS, and our own.

They are read without TFDS: a feature is a column, whose texts and encoded image are
bytes. A dataset that TFDS stored as TFRecord has to be converted first.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from data_prep.sources import pairs
from data_prep.sources.spec import Bodies, Kind, Reading, Spec
from data_prep.sources.texts import Row
from metaclip_jax.data import record_files

_BATCH = 256  # records read at a time


@pairs.reader
def read(path: str, spec: Spec, reading: Reading) -> Iterator[list[Row]]:
    """Yields the CANDIDATES of a file.

    A file that cannot be read is damaged_records; lost items are damaged_record and
    no_image.

    Raises OSError where the storage fails.
    """
    name, is_empty = spec.name_of(path), True
    for index, fields in examples(path):
        is_empty = False
        if fields is None:
            reading.lost_items["damaged_record"] += 1
        elif not isinstance(fields.get(spec.image_column), bytes):
            reading.lost_items["no_image"] += 1
        else:
            place = pairs.reference(path, str(index))
            yield pairs.rows(
                fields, spec, reading, name=f"{name}/{index}", stored_at=place
            )
    if is_empty:  # also a truncated file
        reading.lost_files["damaged_records"] += 1


def images(path: str, positions: Sequence[str], spec: Spec) -> Bodies:
    """Yields images of a file by the numbers of their records."""
    reader = ArrayRecordReader(path)
    for start in range(0, len(positions), _BATCH):
        for data in _read(reader, [int(p) for p in positions[start : start + _BATCH]]):
            body = (_fields_of(data) or {}).get(spec.image_column)
            if not isinstance(body, bytes):
                yield "damaged_file", b""
            elif len(body) > spec.max_image_bytes:
                yield "too_large", b""
            else:
                yield pairs.OK, body


def check(path: str, spec: Spec) -> None:
    """Raises ValueError where the first record lacks a column that is asked for."""
    _, fields = next(examples(path), (0, None))
    if fields is None:
        return
    for name in (spec.image_column, *spec.text_columns, *spec.score_columns):
        if name not in fields:
            raise ValueError(
                f"config.source: wanted a feature {name!r} in {path}, got "
                f"{sorted(fields)}; name them in config.source.image_column and "
                "text_columns"
            )


def examples(path: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields number and features of each record of a file, None for a damaged one.

    Nothing for a file that cannot be read. Raises OSError where the storage fails.
    """
    reader = ArrayRecordReader(path)
    count = reader.num_records() if reader.ok() else 0
    for start in range(0, count, _BATCH):
        indices = list(range(start, min(start + _BATCH, count)))
        yield from zip(indices, map(_fields_of, _read(reader, indices)), strict=True)


def _read(reader: ArrayRecordReader, indices: list[int]) -> list[bytes]:
    """Reads records, b"" for those that are damaged. Raises OSError for the storage."""
    try:
        return record_files.read_sound(reader, indices)
    except RuntimeError as error:
        raise OSError(f"records cannot be read: {error}") from error


def _fields_of(data: bytes) -> dict[str, Any] | None:
    """Returns the features of a record by name: a value or a list; None if damaged."""
    example = tf_example_pb2.Example()
    try:
        example.ParseFromString(data)
    except DecodeError:
        return None
    if not data:
        return None
    fields: dict[str, Any] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        fields[name] = values[0] if len(values) == 1 else values or None
    return fields


KIND = Kind(
    read, "records", ("ArrayRecord",), "*.array_record*", ("texts",), images, check
)
