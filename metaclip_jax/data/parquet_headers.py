"""Reads the headers of a Parquet file: where its pages are, and how large they become.

pyarrow does not give the headers of pages, and it ends the process at some damaged
footers. Both are structs in Thrift's compact protocol.
"""

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import xxhash

_MAGIC, _SEAL = b"PAR1", b"FOOTSUM1"
_READ = 1 << 14  # bytes read for a page header at first
_MAX_HEADER = 1 << 24  # bytes; Arrow's own limit
_MAX_BOUND = 4096  # bytes of a least or largest value
_MAX_DEPTH = 32
_DAMAGE = "damaged headers"

DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_2 = 0, 2, 3

# The fields to keep of a struct, by their numbers; None = as it is.
_Fields = Mapping[int, Any]
_CHUNK: _Fields = {3: {5: None, 7: None, 9: None, 11: None, 12: {5: None, 6: None}}}
_FOOTER: _Fields = {4: {1: _CHUNK, 3: None}}
_PAGE: _Fields = {
    1: None,
    2: None,
    3: None,
    5: {1: None, 2: None},
    8: {1: None, 4: None},
}


class Chunk(NamedTuple):
    """A column in a row group: where its pages begin and end in the file, in bytes.

    `least` and `largest` are its bounds as encoded, cut if long; None if not recorded.
    """

    start: int
    end: int
    least: bytes | None = None
    largest: bytes | None = None


class RowGroup(NamedTuple):
    """A row group: its number of rows, and its columns in the order of the schema."""

    rows: int
    chunks: list[Chunk]


class Page(NamedTuple):
    """A page: its type, bytes when decompressed, and number of values and encoding."""

    kind: int
    size: int
    values: int
    encoding: int


def row_groups(file: BinaryIO, size: int) -> list[RowGroup]:
    """Returns the row groups of a file of `size` bytes. Raises ArrowInvalid."""
    try:
        footer, _ = _struct(_footer(file, size), 0, _FOOTER, 0)
    except IndexError:
        raise pa.ArrowInvalid(_DAMAGE) from None
    return [
        RowGroup(
            _number(group, 3), [_chunk(column, size) for column in _structs(group, 1)]
        )
        for group in _structs(footer, 4)
    ]


def seal(file: BinaryIO, size: int) -> None:
    """Puts a checksum of the footer before it, where no reader of Parquet looks."""
    footer = _footer(file, size)
    file.seek(size - len(footer))
    file.write(_SEAL + xxhash.xxh3_64_digest(footer) + footer)


def check_seal(file: BinaryIO, size: int) -> None:
    """Raises ArrowInvalid where a footer does not have the checksum of `seal`."""
    footer = _footer(file, size)
    file.seek(max(size - len(footer) - 16, 0))
    stored = file.read(16)
    if stored[:8] == _SEAL and stored[8:] != xxhash.xxh3_64_digest(footer):
        raise pa.ArrowInvalid("the footer has another checksum")


def _footer(file: BinaryIO, size: int) -> bytes:
    """Returns the footer, its length and the magic."""
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > size - 12:
        raise pa.ArrowInvalid(_DAMAGE)
    file.seek(size - 8 - length)
    return file.read(length + 8)


def pages(file: BinaryIO, chunk: Chunk) -> Iterator[Page]:
    """Yields the pages of a column in a row group. Raises ArrowInvalid."""
    position = chunk.start
    while position < chunk.end:
        fields, length = _page_header(file, position)
        kind = _number(fields, 1)
        of_data = fields.get(8 if kind == DATA_PAGE_2 else 5, {})
        values = encoding = 0
        if kind in (DATA_PAGE, DATA_PAGE_2):
            if not isinstance(of_data, dict):
                raise pa.ArrowInvalid(_DAMAGE)
            values = _number(of_data, 1)
            encoding = _number(of_data, 4 if kind == DATA_PAGE_2 else 2)
        yield Page(kind, _number(fields, 2), values, encoding)
        position += length + _number(fields, 3)


def _chunk(column: dict[int, Any], size: int) -> Chunk:
    fields = column.get(3)
    if not isinstance(fields, dict):
        raise pa.ArrowInvalid(_DAMAGE)
    if not _number(fields, 5):  # Arrow reads no page, and the offsets mean nothing
        return Chunk(0, 0)
    start = _number(fields, 9)
    dictionary = fields.get(11, 0)
    if isinstance(dictionary, int) and 0 < dictionary < start:
        start = dictionary
    end = start + _number(fields, 7)
    if end > size:
        raise pa.ArrowInvalid(_DAMAGE)
    statistics = fields.get(12)
    if not isinstance(statistics, dict):
        return Chunk(start, end)
    bounds = (statistics.get(field) for field in (6, 5))
    return Chunk(start, end, *(b if isinstance(b, bytes) else None for b in bounds))


def _page_header(file: BinaryIO, position: int) -> tuple[dict[int, Any], int]:
    """Returns the fields of a page header, and its length in bytes."""
    length = _READ
    while True:
        file.seek(position)
        data = file.read(length)
        try:
            return _struct(data, 0, _PAGE, 0)
        except IndexError:  # it is longer
            if len(data) < length or length >= _MAX_HEADER:
                raise pa.ArrowInvalid(_DAMAGE) from None
            length *= 32


def _number(fields: Mapping[int, Any], field: int) -> int:
    value = fields.get(field)
    if not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise pa.ArrowInvalid(_DAMAGE)
    return value


def _structs(fields: Mapping[int, Any], field: int) -> list[dict[int, Any]]:
    values = fields.get(field, [])
    if not isinstance(values, list) or not all(isinstance(x, dict) for x in values):
        raise pa.ArrowInvalid(_DAMAGE)
    return values


def _struct(
    data: bytes, at: int, keep: _Fields, depth: int
) -> tuple[dict[int, Any], int]:
    """Reads a struct: the fields to keep, and where it ends.

    Raises IndexError where the data ends before it, ArrowInvalid where it is damaged.
    """
    if depth > _MAX_DEPTH:
        raise pa.ArrowInvalid(_DAMAGE)
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        kind = head & 15
        if kind in (1, 2):  # true, false: the type is the value
            continue
        value, at = _value(data, at, kind, keep.get(number) or {}, depth)
        if number in keep:
            fields[number] = value
    return fields, at + 1


def _value(
    data: bytes, at: int, kind: int, keep: _Fields, depth: int
) -> tuple[Any, int]:
    """Reads a value; a string is cut, and types that nothing needs give None."""
    if kind in (1, 2, 3):  # a byte
        return None, at + 1
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _varint(data, at)
        return data[at : at + min(length, _MAX_BOUND)], at + length
    if kind in (9, 10):
        return _list(data, at, keep, depth)
    if kind == 12:
        return _struct(data, at, keep, depth + 1)
    raise pa.ArrowInvalid(_DAMAGE)  # there are no maps


def _list(
    data: bytes, at: int, keep: _Fields, depth: int
) -> tuple[list[Any] | None, int]:
    head = data[at]
    at += 1
    count, kind = head >> 4, head & 15
    if count == 15:
        count, at = _varint(data, at)
    if count > len(data):
        raise pa.ArrowInvalid(_DAMAGE)
    values = []
    for _ in range(count):
        value, at = _value(data, at, kind, keep, depth + 1)
        if keep:
            values.append(value)
    return values if keep else None, at


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise pa.ArrowInvalid(_DAMAGE)
