"""Reads tables of image addresses and texts: Parquet, CSV, TSV, JSON lines.

As LAION, COYO and DataComp publish them, or of your own. Columns go by their names, and
a column of several texts may be a list. A row that cannot be read is counted.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from data_prep.sources import pairs
from data_prep.sources.spec import Reading, Spec
from metaclip_jax import files
from metaclip_jax.cli import ranges

_BATCH_ROWS = 8_192
_CSV_BLOCK = 1 << 24  # bytes read at a time; the longest row
_COMPRESSION = r"(\.gz|\.bz2|\.zst)?"

# Values of the wanted columns, of some rows.
_Columns = Mapping[str, Sequence[Any]]


def read(path: str, spec: Spec, reading: Reading) -> Iterator[pa.RecordBatch]:
    """Yields the CANDIDATES of a table.

    A file that breaks off is lost from there on (damaged_table, or empty_file), a row
    that is none is a lost row (bad_row).

    Raises:
      OSError: the file cannot be opened or the storage fails.
      ValueError: it has not the columns, or not the name of a table.
    """
    if not files.size(path):
        reading.lost_files["empty_file"] += 1
        return
    yield from pairs.batches(_pairs(path, spec, reading), spec, reading)


def check(path: str, spec: Spec) -> None:
    """Raises ValueError where a file has not the columns that are asked for."""
    for _ in _pairs(path, spec, Reading()):
        return


def _pairs(path: str, spec: Spec, reading: Reading) -> Iterator[pairs.Pair]:
    try:
        for columns in _reader(path)(path, spec, reading):
            yield from _rows(columns, spec)
    except (pa.ArrowException, EOFError, UnicodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the storage, not what is stored
        reading.lost_files["damaged_table"] += 1


def _rows(columns: _Columns, spec: Spec) -> Iterator[pairs.Pair]:
    urls = columns[spec.url_column]
    nothing = [""] * len(urls)
    languages = columns[spec.language_column] if spec.language_column else nothing
    page_urls = columns[spec.page_column] if spec.page_column else nothing
    texts = [columns[name] for name in spec.text_columns]
    for url, language, page_url, *of_image in zip(
        urls, languages, page_urls, *texts, strict=True
    ):
        found: list[tuple[str, str | None]] = []
        for source, value in zip(spec.text_columns, of_image, strict=True):
            several = value if isinstance(value, list) else [value]
            found += [(source, text) for text in map(_string, several)]
        yield pairs.Pair(_string(url), found, _string(language), _string(page_url))


def _string(value: Any) -> str:
    """Returns a value as text: of damaged UTF-8 what can be read of it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _reader(path: str) -> Callable[[str, Spec, Reading], Iterator[_Columns]]:
    for ending, reader in _READERS.items():
        if re.search(ending, path.lower()):
            return reader
    raise ValueError(
        f"config.source.paths: wanted a table, got {path}; its name should end in "
        ".parquet, .csv, .tsv or .jsonl, of which the last three may be compressed "
        "(.gz, .bz2, .zst)"
    )


def _wanted(spec: Spec) -> list[str]:
    """Returns the names of the columns, each once."""
    optional = [name for name in (spec.language_column, spec.page_column) if name]
    return list(dict.fromkeys([spec.url_column, *spec.text_columns, *optional]))


def _check_columns(path: str, found: Sequence[str], spec: Spec) -> None:
    for name in _wanted(spec):
        if name not in found:
            near = {other.lower(): other for other in found}.get(name.lower())
            near = near or ranges.nearest(name, found)
            raise ValueError(
                f"config.source: wanted a column {name!r} in {path}, got "
                f"{list(found)}; {f'did you mean {near!r}? ' if near else ''}Name "
                "columns in config.source.url_column and text_columns, and those of a "
                "file whose first line has no names in config.source.header"
            )


def _read_parquet(path: str, spec: Spec, _: Reading) -> Iterator[_Columns]:
    with files.local_copy(path) as local:
        try:
            parquet = pq.ParquetFile(local)
        except pa.ArrowInvalid as error:
            raise EOFError from error
        with parquet:
            _check_columns(path, parquet.schema_arrow.names, spec)
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=_wanted(spec)):
                batch.validate(full=True)  # else a damaged text fails where it is used
                yield batch.to_pydict()


def _read_csv(path: str, spec: Spec, reading: Reading) -> Iterator[_Columns]:
    def skip(row: pa_csv.InvalidRow) -> str:
        reading.lost_items["bad_row"] += 1
        return "skip"

    delimiter = "\t" if re.search(rf"\.tsv{_COMPRESSION}$", path.lower()) else ","
    wanted = _wanted(spec)
    with files.local_copy(path) as local:
        _check_columns(path, spec.header or _head(local, delimiter), spec)
        with pa.input_stream(str(local)) as stream:
            reader = pa_csv.open_csv(
                stream,
                read_options=pa_csv.ReadOptions(
                    column_names=spec.header or None, block_size=_CSV_BLOCK
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
                yield batch.to_pydict()


def _head(local: Path, delimiter: str) -> list[str]:
    """Returns the names in the first line of a CSV file."""
    with pa.input_stream(str(local)) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", "replace", newline="")
        names = next(csv.reader(text, delimiter=delimiter), [])
    if not names:
        raise EOFError
    return names


def _read_json_lines(path: str, spec: Spec, reading: Reading) -> Iterator[_Columns]:
    wanted, is_checked = _wanted(spec), False
    with files.local_copy(path) as local, pa.input_stream(str(local)) as stream:
        lines = io.BufferedReader(stream)
        while some := list(islice(lines, _BATCH_ROWS)):
            rows = list(_json_rows(some, reading))
            if rows and not is_checked:  # a row may lack some of them
                _check_columns(path, list(dict.fromkeys(chain(*rows))), spec)
                is_checked = True
            yield {name: [row.get(name) for row in rows] for name in wanted}


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
