"""Reads Parquet files of unknown origin in bounded memory.

A small file can decode to terabytes: a dictionary holds a long value once and repeats
it for each row, and pages are compressed. Arrow has no limit for this. So the headers
of the pages are read first, which say how large each page becomes; from them follows
how many rows can be decoded at a time. Strings are decoded as dictionaries, and equal
values of a batch become one Python object.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metaclip_jax import files
from metaclip_jax.data import parquet_headers

_ROWS = 8_192  # of a batch
_MAX_PAGE = 1 << 26  # bytes; writers make pages of about 1 MB
_MAX_BATCH = 1 << 28  # bytes that Arrow decodes for a batch
_MAX_LISTED = 1 << 24  # values in the lists of a row group; a row may have all of them
_PER_BYTE = 64  # rows, or values of a column, for each byte of a file
_DELTA_LENGTHS, _DELTA_STRINGS = 6, 7  # encodings that Arrow cannot read as dictionary


class TooLargeError(ValueError):
    """A file would take too much memory."""


class _Chunk(NamedTuple):
    """The pages of a column in a row group; sizes in bytes, decompressed."""

    column: pq.ColumnSchema
    can_share: bool  # its strings can be read as a dictionary
    values: np.ndarray  # int64[pages] number of values
    sizes: np.ndarray  # int64[pages]
    dictionary: int  # size of the dictionary page
    is_delta: bool

    @property
    def largest(self) -> int:
        return max(self.dictionary, int(self.sizes.max(initial=0)))


def batches(
    path: str | os.PathLike,
    columns: Sequence[str],
    groups: Sequence[int] | None = None,
    *,
    shared: bool = True,
    max_page: int = _MAX_PAGE,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields (row group, some of its rows), in order.

    Args:
      path: of the file.
      columns: their names.
      groups: the row groups to read; None = all.
      shared: whether to read strings as dictionaries (for `to_python`), so that equal
        values take memory once.
      max_page: bytes of a decompressed page, and of decoded values in place of shared
        ones.

    Raises:
      TooLargeError: a row group cannot be read in bounded memory.
      pa.ArrowException, OSError: the file is damaged or cannot be read.
    """
    size, values = files.size(path), 0
    with _open(path) as plain, files.path(path).open("rb") as file:
        described = parquet_headers.row_groups(file, size)
        _check_count(sum(group.rows for group in described), size)
        leaves = _leaves(plain, columns)
        strings = [plain.schema.column(i).path for i, can_share in leaves if can_share]
        with _open(path, read_dictionary=strings) as as_dictionaries:
            for group in range(len(described)) if groups is None else groups:
                chunks = _chunks(file, plain, described[group], leaves)
                values += max((int(chunk.values.sum()) for chunk in chunks), default=0)
                _check_count(values, size)
                share = shared and not any(chunk.is_delta for chunk in chunks)
                source = as_dictionaries if share else plain
                rows = [_rows(chunk, share, max_page) for chunk in chunks]
                left = described[group].rows
                for batch in source.iter_batches(
                    min(rows, default=_ROWS),
                    row_groups=[group],
                    columns=list(columns),
                    use_threads=files.is_local(path),
                ):
                    batch.validate(full=True)  # else damage fails where it is used
                    left -= batch.num_rows
                    yield group, batch
                if left:
                    raise pa.ArrowInvalid(f"{left} rows are missing")


def group_rows(path: str | os.PathLike) -> list[int]:
    """Returns the number of rows of each row group.

    Raises:
      TooLargeError: there are more than a file of this size should have.
      pa.ArrowException, OSError: the file is damaged or cannot be read.
    """
    size = files.size(path)
    with files.path(path).open("rb") as file:
        rows = [group.rows for group in parquet_headers.row_groups(file, size)]
    _check_count(sum(rows), size)
    return rows


def schema(path: str | os.PathLike) -> pa.Schema:
    """Returns the schema of a file, as Arrow's types.

    Raises:
      pa.ArrowException, OSError: the file is damaged or cannot be read.
    """
    with _open(path) as parquet:
        return parquet.schema_arrow


@contextlib.contextmanager
def _open(path: str | os.PathLike, **options: Any) -> Iterator[pq.ParquetFile]:
    """Opens a file; one on gs:// by our own access, and not Arrow's.

    Its buffers are Python's, which threads of Arrow may free too late.
    """
    if files.is_local(path):
        with pq.ParquetFile(path, **options) as parquet:
            yield parquet
        return
    with files.path(path).open("rb") as file:
        with pq.ParquetFile(file, **options) as parquet:
            yield parquet


def _check_count(count: int, size: int) -> None:
    if count > _ROWS + _PER_BYTE * size:
        raise TooLargeError(f"{count:,} rows or values in {size:,} bytes")


def to_python(array: pa.Array) -> list[Any]:
    """Returns what `to_pylist` does; equal values of a dictionary are one object."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _of_dictionary(array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        values = to_python(array.flatten())
        lists, end = [], 0
        for length in array.value_lengths().to_pylist():
            lists.append(None if length is None else values[end : end + length])
            end += length or 0
        return lists
    if pa.types.is_struct(kind):
        fields = [to_python(field) for field in array.flatten()]
        names = [kind.field(i).name for i in range(kind.num_fields)]
        rows = zip(*fields, strict=True) if fields else [()] * len(array)
        return [
            dict(zip(names, row, strict=True)) if valid else None
            for row, valid in zip(rows, array.is_valid().to_pylist(), strict=True)
        ]
    return array.to_pylist()


def _of_dictionary(array: pa.DictionaryArray) -> list[Any]:
    dictionary, indices = array.dictionary, array.indices
    if len(dictionary) > len(indices):  # of the whole row group: take what is used
        used, inverse = np.unique(indices.drop_null(), return_inverse=True)
        values = dictionary.take(pa.array(used)).to_pylist()
        positions = iter(inverse.tolist())
        return [
            values[next(positions)] if valid else None
            for valid in indices.is_valid().to_pylist()
        ]
    values = dictionary.to_pylist()
    return [None if i is None else values[i] for i in indices.to_pylist()]


def _leaves(parquet: pq.ParquetFile, columns: Sequence[str]) -> list[tuple[int, bool]]:
    """Returns the physical columns of `columns`: (number, whether it can be shared)."""
    arrow, leaves = parquet.schema_arrow, []
    for i in range(len(parquet.schema)):
        column = parquet.schema.column(i)
        for name in columns:
            if column.path == name or column.path.startswith(f"{name}."):
                place = arrow.get_field_index(name)
                is_bytes = column.physical_type == "BYTE_ARRAY"
                is_simple = place >= 0 and _is_simple(arrow.field(place).type)
                leaves.append((i, is_bytes and is_simple))
                break
    return leaves


def _is_simple(kind: pa.DataType) -> bool:
    """Whether `to_python` takes a type apart down to its strings."""
    if pa.types.is_struct(kind):
        return all(_is_simple(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_simple(kind.value_type)
    return not pa.types.is_nested(kind) and not isinstance(kind, pa.BaseExtensionType)


def _chunks(
    file: BinaryIO,
    parquet: pq.ParquetFile,
    group: parquet_headers.RowGroup,
    leaves: Sequence[tuple[int, bool]],
) -> list[_Chunk]:
    """Reads the page headers of a row group. Raises ArrowInvalid."""
    if len(group.chunks) != len(parquet.schema):
        raise pa.ArrowInvalid("columns are missing")
    chunks = []
    for leaf, can_share in leaves:
        column = parquet.schema.column(leaf)
        values, sizes, dictionary, is_delta = [], [], 0, False
        for page in parquet_headers.pages(file, group.chunks[leaf]):
            if page.kind == parquet_headers.DICTIONARY_PAGE:
                dictionary = max(dictionary, page.size)
            else:
                values.append(page.values)
                sizes.append(page.size)
                is_delta |= page.encoding in (_DELTA_LENGTHS, _DELTA_STRINGS)
        if not column.max_repetition_level and sum(values) != group.rows:
            raise pa.ArrowInvalid("values are missing")
        arrays = np.array(values, np.int64), np.array(sizes, np.int64)
        chunks.append(_Chunk(column, can_share, *arrays, dictionary, is_delta))
    return chunks


def _rows(chunk: _Chunk, share: bool, max_page: int) -> int:
    """Returns how many rows of a column can be decoded at a time.

    Raises TooLargeError where that is less than one.
    """
    if chunk.largest > max_page:
        raise TooLargeError(f"a page of {chunk.largest:,} bytes")
    room = max(max_page, _MAX_BATCH)
    is_shared = share and chunk.can_share
    if chunk.column.max_repetition_level:  # one row may have all values
        count = int(chunk.values.sum())
        total = chunk.dictionary + int(chunk.sizes.sum())
        if not is_shared:
            total = count * _largest_value(chunk)
        if count > _MAX_LISTED or total > room:
            raise TooLargeError(f"{count:,} values in lists, of up to {total:,} bytes")
        return _ROWS
    if not is_shared:
        return max(1, min(_ROWS, max_page // _largest_value(chunk)))
    rows, ends = _ROWS, np.cumsum(chunk.values)
    sums = np.concatenate([[0], np.cumsum(chunk.sizes)])
    while rows > 1:  # the most bytes of pages that as many rows may touch
        last = np.searchsorted(ends, ends + rows - 2, side="right")
        touched = sums[np.minimum(last + 1, len(ends))] - sums[:-1]
        if touched.max(initial=0) <= room:
            break
        rows //= 8
    return rows


def _largest_value(chunk: _Chunk) -> int:
    """Returns the most bytes that a value may have: it is within a page."""
    kind = chunk.column.physical_type
    if kind == "FIXED_LEN_BYTE_ARRAY":
        return max(chunk.column.length, 1)
    return max(chunk.largest, 8) if kind == "BYTE_ARRAY" else 12
