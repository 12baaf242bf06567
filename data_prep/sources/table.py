"""Reads tables of image addresses and texts: Parquet, CSV, TSV, JSON lines.

As LAION, COYO and DataComp publish them, or your own. Columns are found by name, and a
column of several texts may be a list. A row that cannot be read is counted.
"""

import codecs
import csv
import dataclasses
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from data_prep.sources import pairs
from data_prep.sources.spec import Bodies, Kind, Reading, Spec
from data_prep.sources.texts import Row
from metaclip_jax import files
from metaclip_jax.cli import ranges
from metaclip_jax.data import untrusted_parquet

_BATCH_ROWS = 8_192
_BLOCK = 1 << 24  # bytes read at a time; the longest row
_BUFFER = 1 << 17  # bytes
_MAX_IMAGE_PAGE = 1 << 29  # bytes; some writers put a thousand images into a page
_SHOWN_COLUMNS = 100
_COMPRESSION = r"(\.gz|\.bz2|\.zst)?"

# Values of the wanted columns, of some rows.
_Columns = Mapping[str, Sequence[Any]]


@pairs.reader
def read(path: str, spec: Spec, reading: Reading) -> Iterator[list[Row]]:
    """Yields the CANDIDATES of a table.

    Raises what `rows` raises.
    """
    for row in rows(path, spec, reading):
        yield pairs.rows(row, spec, reading)


@pairs.reader
def read_with_images(path: str, spec: Spec, reading: Reading) -> Iterator[list[Row]]:
    """Yields the CANDIDATES of a Parquet file that holds the images' bytes too.

    Raises what `rows` raises.
    """
    name = spec.name_of(path)
    for i, row in enumerate(rows(path, spec, reading)):
        place = pairs.reference(path, str(i))
        yield pairs.rows(row, spec, reading, name=f"{name}/{i}", stored_at=place)


def images(path: str, positions: Sequence[str], spec: Spec) -> Bodies:
    """Yields images of a Parquet file by the numbers of their rows.

    Their column has bytes, or as on the Hugging Face hub `bytes` and `path`.
    """
    left = deque(map(int, positions))  # ascending
    with files.local_copy(path) as local:
        try:
            sizes = untrusted_parquet.group_rows(local)
        except (pa.ArrowException, OSError, untrusted_parquet.TooLargeError) as error:
            _raise_if_of_storage(error)
            sizes = []
        end = 0
        for group, size in enumerate(sizes):
            start, end, reason = end, end + size, "damaged_file"
            batches = untrusted_parquet.batches(
                local,
                [spec.image_column],
                [group],
                shared=False,
                max_page=_MAX_IMAGE_PAGE,
            )
            try:
                while left and left[0] < end:
                    _, batch = next(batches)
                    while left and left[0] < start + batch.num_rows:
                        yield _image(batch.column(0)[left.popleft() - start], spec)
                    start += batch.num_rows
            except untrusted_parquet.TooLargeError:
                reason = "too_large"
            except (pa.ArrowException, OSError, EOFError, LookupError) as error:
                _raise_if_of_storage(error)
            while left and left[0] < end:  # what a damaged group has lost
                left.popleft()
                yield reason, b""
        yield from [("damaged_file", b"")] * len(left)


def _raise_if_of_storage(error: Exception) -> None:
    """Raises an error again unless it is about what is stored."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _image(value: pa.Scalar, spec: Spec) -> tuple[str, bytes]:
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    if isinstance(value, pa.StructScalar) and "bytes" in value:
        value = value["bytes"]
    if not isinstance(value, pa.BinaryScalar) or not value.is_valid:
        return "missing_file", b""
    if value.as_buffer().size > spec.max_image_bytes:
        return "too_large", b""
    return pairs.OK, value.as_py()


def check(path: str, spec: Spec) -> None:
    """Raises ValueError if a file lacks a wanted column."""
    for _ in rows(path, spec, Reading()):
        return


def check_with_images(path: str, spec: Spec) -> None:
    """Raises ValueError if a file lacks a wanted column, or that of the images."""
    check(path, dataclasses.replace(spec, extra=(spec.image_column,)))


def rows(path: str, spec: Spec, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table, of the columns that `spec` names.

    A truncated or damaged file is lost from there on (damaged_table, or empty_file), as
    is one whose values would fill the memory (table_too_large). A malformed row is a
    lost item (bad_row).

    Raises:
      OSError: the file cannot be opened or the storage fails.
      ValueError: a column is missing, or the name is not that of a table.
    """
    reader = _reader(path)
    if not files.size(path):
        reading.lost_files["empty_file"] += 1
        return
    try:
        for columns in reader(path, spec, reading):
            names = list(columns)
            for row in zip(*columns.values(), strict=True):
                yield dict(zip(names, row, strict=True))
    except (pa.ArrowException, csv.Error, EOFError, UnicodeError, OSError) as error:
        _raise_if_of_storage(error)
        reading.lost_files["damaged_table"] += 1
    except untrusted_parquet.TooLargeError:
        reading.lost_files["table_too_large"] += 1


def _reader(path: str) -> Callable[[str, Spec, Reading], Iterator[_Columns]]:
    for ending, reader in _READERS.items():
        if re.search(ending, path.lower()):
            return reader
    raise ValueError(
        f"config.source.paths: wanted a table, got {path}; its name should end in "
        ".parquet, .csv, .tsv or .jsonl, of which the last three may be compressed "
        "(.gz, .bz2, .zst)"
    )


def _wanted(path: str, found: Sequence[str], spec: Spec) -> list[str]:
    """Returns the names of the columns to read.

    Raises ValueError where `found` lacks one.
    """
    for name in spec.columns:
        if name not in found and name not in spec.optional:
            near = {other.lower(): other for other in found}.get(name.lower())
            near = near or ranges.nearest(name, found[:_SHOWN_COLUMNS])
            more = len(found) - _SHOWN_COLUMNS
            shown = f"{list(found[:_SHOWN_COLUMNS])}{f' and {more} more' * (more > 0)}"
            raise ValueError(
                f"config.source: wanted a column {name!r} in {path}, got "
                f"{shown}; {f'did you mean {near!r}? ' if near else ''}Name "
                "columns in config.source.url_column and text_columns, and those of a "
                "file whose first line has no names in config.source.header"
            )
    return [name for name in spec.columns if name in found]


def _read_parquet(path: str, spec: Spec, _: Reading) -> Iterator[_Columns]:
    with files.local_copy(path) as local:
        columns_found = untrusted_parquet.schema(local)
        wanted = _wanted(path, columns_found.names, spec)
        _refuse_nested(path, columns_found, spec)
        for _group, batch in untrusted_parquet.batches(local, wanted):
            values = map(untrusted_parquet.to_python, batch.columns)
            try:
                columns = dict(zip(batch.schema.names, values, strict=True))
            except (ArithmeticError, LookupError, ValueError) as error:
                raise EOFError from error  # a date or time that Python cannot hold
            yield columns


def _refuse_nested(path: str, columns: pa.Schema, spec: Spec) -> None:
    """Raises ValueError where texts or addresses are in structures."""
    for name in {spec.url_column, *spec.text_columns}.intersection(columns.names):
        kind = columns.field(name).type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        if pa.types.is_nested(kind):
            raise ValueError(
                f"config.source: wanted texts or lists of texts in {name!r} of {path},"
                f" got {columns.field(name).type}; name other columns in"
                " config.source.url_column and text_columns"
            )


def _read_csv(path: str, spec: Spec, reading: Reading) -> Iterator[_Columns]:
    def skip(row: pa_csv.InvalidRow) -> str:
        reading.lost_items["bad_row"] += 1
        return "skip"

    delimiter = "\t" if re.search(rf"\.tsv{_COMPRESSION}$", path.lower()) else ","
    with files.local_copy(path) as local:
        wanted = _wanted(path, spec.header or _head(path, local, delimiter), spec)
        with pa.input_stream(str(local)) as stream:
            reader = pa_csv.open_csv(
                stream,
                read_options=pa_csv.ReadOptions(
                    column_names=spec.header or None, block_size=_BLOCK
                ),
                parse_options=pa_csv.ParseOptions(
                    delimiter=delimiter,
                    newlines_in_values=True,
                    invalid_row_handler=skip,
                ),
                # Bytes: one broken letter should not end the file.
                convert_options=pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(wanted, pa.binary()),
                    include_columns=wanted,
                ),
            )
            for batch in reader:
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield batch.slice(start, _BATCH_ROWS).to_pydict()


def _head(path: str, local: Path, delimiter: str) -> list[str]:
    """Returns the names in the first line of a CSV file."""
    with pa.input_stream(str(local)) as stream:
        start = stream.read(_BLOCK)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(
            f"config.source.paths: wanted a table in UTF-8, got UTF-16 in {path};"
            " convert it, as by `iconv -f UTF-16 -t UTF-8`"
        )
    head = start.decode("utf-8-sig", "replace")
    names = next(csv.reader(io.StringIO(head, newline=""), delimiter=delimiter), [])
    if not names:
        raise EOFError
    return names


def _read_json_lines(path: str, spec: Spec, reading: Reading) -> Iterator[_Columns]:
    with files.local_copy(path) as local, pa.input_stream(str(local)) as stream:
        wanted: list[str] = []
        for some in _lines(stream, reading):
            rows = list(_json_rows(some, reading))
            if rows and not wanted:  # a row may lack some of them
                wanted = _wanted(path, list(dict.fromkeys(chain(*rows))), spec)
            yield {name: [row.get(name) for row in rows] for name in wanted}


def _lines(stream: io.RawIOBase, reading: Reading) -> Iterator[list[bytes]]:
    """Yields the lines of a stream, some at a time.

    A line of more than a block is skipped as a bad row: a small compressed file can
    have one that fills the memory.
    """
    file = io.BufferedReader(stream, _BUFFER)
    some: list[bytes] = []
    room = _BLOCK
    while line := file.readline(_BLOCK):
        if len(line) == _BLOCK and not line.endswith(b"\n"):
            while (rest := file.readline(_BLOCK)) and not rest.endswith(b"\n"):
                pass
            reading.lost_items["bad_row"] += 1
            continue
        some.append(line)
        room -= len(line)
        if len(some) == _BATCH_ROWS or room <= 0:
            yield some
            some, room = [], _BLOCK
    if some:
        yield some


def _json_rows(lines: Sequence[bytes], reading: Reading) -> Iterator[dict[str, Any]]:
    for line in filter(bytes.strip, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield row
        else:
            reading.lost_items["bad_row"] += 1


_READERS = {
    r"\.parquet$": _read_parquet,
    rf"\.[ct]sv{_COMPRESSION}$": _read_csv,
    rf"\.(jsonl|ndjson){_COMPRESSION}$": _read_json_lines,
}


_FORMATS = ("Parquet", "text table")
KIND = Kind(read, "rows", _FORMATS, "*.parquet", ("text",), check=check)
KIND_WITH_IMAGES = dataclasses.replace(
    KIND,
    read=read_with_images,
    formats=("Parquet",),
    images=images,
    check=check_with_images,
)
