"""Part files: Parquet with the output of a piece of a stage and its FLOW rows.

Partition i of n holds the images whose id falls into the i-th n-th of the id
space. A file gets its final name only when it is complete. It has the FLOW rows of the
stage that wrote it, so that a restarted run counts the drops of a finished part without
redoing it.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from array_record.python import array_record_module as array_record
from etils import epath

from data_prep import drops, schema
from metaclip_jax import files
from metaclip_jax.data import parquet_headers, record_files

# The folders of the stages in a workdir.
FOLDERS = (
    "matchers",
    "matched",
    "selection",
    "embeddings",
    "matches",
    "downloads",
    "images",
    "rejects",
    "balance",
)
BLOBS = "images"  # ends the names of files of blobs
_FLOW, _BYTES, _LOST = b"flow", b"bytes", b"lost"
_ID = "image_id"  # by which rows are sorted
_ID_BYTES = 12  # of an image_id, written as 24 hexadecimal digits
_RUN_BYTES = 64 << 20  # rows that are sorted in memory at a time
# A range of ids is read in whole row groups, so small ones waste little; smaller ones
# than these take longer to read than they save.
_GROUP_ROWS = 2_048
_BATCH_ROWS = 8_192  # of what is read without a range
# With checksums a changed bit is an error when the page is read.
_HOW: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


def name(partition: int, partitions: int, suffix: str = "parquet") -> str:
    """Returns part-00003-of-00010.parquet."""
    return f"part-{partition:05d}-of-{partitions:05d}.{suffix}"


def partition_of(image_ids: pa.StringArray, partitions: int) -> np.ndarray:
    """Returns int32[n], each row's partition: equal ranges of the image id.

    Raises ValueError if an id is not 24 hexadecimal digits.
    """
    data = bytes.fromhex("".join(image_ids.to_pylist()))
    if len(data) != _ID_BYTES * len(image_ids):
        raise ValueError(f"wanted image ids of {2 * _ID_BYTES} hexadecimal digits")
    head = np.frombuffer(data, np.uint8).reshape(-1, _ID_BYTES)[:, :4]
    place = np.ascontiguousarray(head).view(">u4")[:, 0].astype(np.uint64)
    return ((place * np.uint64(partitions)) >> np.uint64(32)).astype(np.int32)


def first_id(partition: int, partitions: int) -> str:
    """Returns what no id of the partition and all of those before are below.

    Of the number of partitions itself: what is above every id.
    """
    if partition == partitions:
        return "g"
    return f"{-(-(partition << 32) // partitions):08x}"


def write(
    folder: str, part: str, table: pa.Table, flow: pa.RecordBatch | None = None
) -> None:
    """Writes a part file atomically: under a temporary name, then renamed."""
    rows = flow.to_pylist() if flow is not None else []
    table = table.replace_schema_metadata({_FLOW: json.dumps(rows)})
    with files.staged(files.path(folder) / part) as local:
        pq.write_table(table, local, **_HOW)
        if rows:
            _seal(local)


def write_sorted(
    folder: str,
    part: str,
    batches: Iterable[pa.RecordBatch],
    of: pa.Schema,
    *,
    flow: Callable[[], pa.RecordBatch | pa.Table] = schema.FLOW.empty_table,
    lost: Callable[[], list[dict]] = list,
) -> None:
    """Writes any number of rows as a part file from which `read_range` reads ranges.

    A large part is several runs, one after another, each sorted by image id.

    Args:
      folder, part: where.
      batches: rows of schema `of`, in any order; not all are held in memory.
      of: their schema, with `image_id`.
      flow: returns the FLOW rows, called after the last batch.
      lost: returns some of what was dropped, called then too; see `read_lost`.
    """
    held: list[pa.RecordBatch] = []
    total = size = 0
    with files.staged(files.path(folder) / part) as local:
        with pq.ParquetWriter(local, of, **_HOW) as writer:

            def write_run() -> None:
                run = pa.Table.from_batches(held, of).sort_by(_ID)
                writer.write_table(run, row_group_size=_GROUP_ROWS)

            for batch in batches:
                if not batch.num_rows:  # an empty row group would have no statistics
                    continue
                held.append(batch)
                size += batch.nbytes
                total += batch.nbytes
                if size >= _RUN_BYTES:
                    write_run()
                    held, size = [], 0
            if held:
                write_run()
            rows = json.dumps(flow().to_pylist())
            more = {_FLOW: rows, _BYTES: str(total), _LOST: json.dumps(lost())}
            writer.add_key_value_metadata(more)
        _seal(local)


def _seal(path: Path) -> None:
    """Gives the footer, which has the flow, a checksum; pages have their own."""
    with path.open("r+b") as file:
        parquet_headers.seal(file, files.size(path))


def _check_seal(path: epath.Path) -> None:
    """Checks the footer of a local file; a bucket checks what it stores."""
    if files.is_local(path):
        with path.open("rb") as file, files.naming(path, "a part"):
            parquet_headers.check_seal(file, files.size(path))


@contextmanager
def _open(folder: str, part: str) -> Iterator[pq.ParquetFile]:
    """Opens a part file; errors of its content name it."""
    path = files.path(folder) / part
    _check_seal(path)
    with (
        files.naming(path, "a part"),
        files.open_parquet(path, checksums=True) as parquet,
    ):
        yield parquet


@dataclass(frozen=True)
class Sorted:
    """The parts of `write_sorted` in a folder, from which partitions are read.

    Attributes:
      folder: of the parts, each of some source.
      count: their number.
      partitions: of the image ids.
    """

    folder: str
    count: int
    partitions: int

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yields the rows of the partitions from `start` up to `stop`, of each part."""
        first, last = (first_id(i, self.partitions) for i in (start, stop))
        for i in range(self.count):
            yield read_range(self.folder, name(i, self.count), first, last)

    def of_partition(self, partition: int, of: pa.Schema) -> pa.Table:
        """Returns the rows, of schema `of`, of a partition."""
        return pa.Table.from_batches(self.read(partition, partition + 1), of)


def read_range(folder: str, part: str, first: str, last: str) -> pa.RecordBatch:
    """Returns the rows of a part of `write_sorted` with first <= image_id < last."""
    with _open(folder, part) as parquet:
        column = parquet.schema_arrow.names.index(_ID)
        groups = [
            i
            for i, chunk in enumerate(_chunks(files.path(folder) / part, column))
            if (chunk.least or b"") < last.encode()
            and (chunk.largest is None or chunk.largest >= first.encode())
        ]
        table = parquet.read_row_groups(groups, use_threads=False)
    inside = pc.and_(pc.greater_equal(table[_ID], first), pc.less(table[_ID], last))
    return schema.one_batch(table.filter(inside).replace_schema_metadata(None))


def _chunks(path: epath.Path, column: int) -> list[parquet_headers.Chunk]:
    """Returns a column in each row group.

    Not by pyarrow's metadata, which ends the process at some damaged files.
    """
    with path.open("rb") as file:
        groups = parquet_headers.row_groups(file, files.size(path))
    return [group.chunks[column] for group in groups]


def read_batches(folder: str, part: str) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a part, some at a time."""
    with _open(folder, part) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, use_threads=False):
            yield batch.replace_schema_metadata(None)


def is_damaged(folder: str, part: str) -> bool:
    """Whether a part, or a file of blobs, is missing or cannot be read to its end.

    Blobs also where they are not those of their table. Not where the storage fails,
    which says nothing about the content.
    """
    path = files.path(folder) / part
    try:
        if not path.exists():
            return True
        if not part.endswith(f".{BLOBS}"):
            read(folder, part)
            return False
        with files.local_copy(path) as local:
            if record_files.count_whole(str(local)) is None:
                return True
        table = part.removesuffix(BLOBS) + "parquet"
        kept = read(folder, table, ["position", "sha256"])
        kept = kept.filter(pc.greater_equal(kept["position"], 0))
        places, digests = (column.to_pylist() for column in kept)
        for _ in read_blobs(folder, part, places, digests=digests):
            pass
        return False
    except ValueError:
        return True
    except OSError:
        return False


def exists(folder: str, part: str) -> bool:
    """Whether the part is finished."""
    return (files.path(folder) / part).exists()


def is_whole(folder: str, part: str) -> bool:
    """Whether the part is finished, with none of its sources lost."""
    return exists(folder, part) and not drops.any_failed_source(read_flow(folder, part))


def read(folder: str, part: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns the part's rows, or some columns of them."""
    path = files.path(folder) / part
    _check_seal(path)
    table = files.read_parquet(path, columns)
    return table.replace_schema_metadata(None)


def read_flow(folder: str, part: str) -> pa.RecordBatch:
    """Returns the FLOW rows of the stage that wrote the part."""
    with _open(folder, part) as parquet:
        rows = json.loads(parquet.metadata.metadata[_FLOW])
        return pa.RecordBatch.from_pylist(rows, schema=schema.FLOW)


def read_lost(folder: str, part: str) -> list[dict]:
    """Returns what `write_sorted` got as `lost`."""
    with _open(folder, part) as parquet:
        found: list[dict] = json.loads(parquet.metadata.metadata[_LOST])
        return found


def texts_of(folder: str, part: str, stage: str) -> int:
    """Returns how many texts entered a stage, in the flow of a part."""
    rows = read_flow(folder, part).to_pylist()
    wanted = {"stage": stage, "unit": "texts", "reason": drops.IN}
    return sum(row["count"] for row in rows if wanted.items() <= row.items())


def read_size(folder: str, part: str) -> int:
    """Returns how many bytes the rows of a part of `write_sorted` take in memory."""
    with _open(folder, part) as parquet:
        return int(parquet.metadata.metadata[_BYTES])


def remove(folder: str, part: str) -> None:
    """Removes a file, with those of the same partition that are written with it."""
    found = re.match(r"part-\d+-of-\d+\.", part)
    for path in files.path(folder).glob(f"{found[0]}*" if found else part):
        path.unlink(missing_ok=True)


@contextmanager
def blob_writer(folder: str, part: str) -> Iterator[Callable[[bytes], int]]:
    """Gives a function that appends bytes to a blob file and returns their position.

    The file gets its name when the block ends, and none if the block raises.
    """
    with files.staged(files.path(folder) / part) as local:
        # Images are compressed as they are.
        options = "group_size:1,uncompressed"
        writer = array_record.ArrayRecordWriter(str(local), options)
        positions = itertools.count()

        def write_blob(blob: bytes) -> int:
            writer.write(blob)
            return next(positions)

        try:
            yield write_blob
        finally:
            writer.close()


def read_blobs(
    folder: str,
    part: str,
    positions: Sequence[int],
    *,
    digests: Sequence[str] = (),
    batch: int = 256,
) -> Iterator[bytes]:
    """Yields the blobs at `positions`, in that order, reading `batch` at a time.

    Raises ValueError, with the file's name, where they cannot be read or where their
    sha256 are not `digests`: an engine may run a piece of work twice at once, which
    leaves the table of one run and the blobs of the other, in another order.
    """
    path = str(files.path(folder) / part)
    try:
        reader = array_record.ArrayRecordReader(path)
        try:
            for start in range(0, len(positions), batch):
                blobs = reader.read(list(positions[start : start + batch]))
                for blob, digest in zip(
                    blobs, digests[start : start + batch], strict=False
                ):
                    if hashlib.sha256(blob).hexdigest() != digest:
                        raise ValueError(f"{path} has other images than its table")
                yield from blobs
        finally:
            reader.close()  # which raises, too, where the file is damaged
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"{path} should be a file of images, but: {error}") from error
