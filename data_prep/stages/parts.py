"""Part files: what one partition leaves behind, as Parquet with its accounting.

Partition i of n holds the images whose id falls into the i-th n-th of the id
space. Its file exists under its final name only when it is whole, and carries
the FLOW rows of the stage that wrote it, so that a restarted run counts what a
finished partition lost without doing it again.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module as array_record

from data_prep import schema
from metaclip_jax import files

_FLOW = b"flow"
_ID_BYTES = 12  # of an image_id, written as 24 hexadecimal digits


def name(partition: int, partitions: int, suffix: str = "parquet") -> str:
    """Returns part-00003-of-00010.parquet."""
    return f"part-{partition:05d}-of-{partitions:05d}.{suffix}"


def partition_of(image_ids: pa.StringArray, partitions: int) -> np.ndarray:
    """Returns int32[n], each row's partition: equal ranges of the image id.

    Raises ValueError where an id is not 24 hexadecimal digits.
    """
    data = bytes.fromhex("".join(image_ids.to_pylist()))
    if len(data) != _ID_BYTES * len(image_ids):
        raise ValueError(f"wanted image ids of {2 * _ID_BYTES} hexadecimal digits")
    head = np.frombuffer(data, np.uint8).reshape(-1, _ID_BYTES)[:, :4]
    place = np.ascontiguousarray(head).view(">u4")[:, 0].astype(np.uint64)
    return ((place * np.uint64(partitions)) >> np.uint64(32)).astype(np.int32)


def write(folder: str, part: str, table: pa.Table, flow: pa.RecordBatch) -> None:
    """Writes a part file: finished under a temporary name first, then named."""
    table = table.replace_schema_metadata({_FLOW: json.dumps(flow.to_pylist())})
    with files.staged(files.path(folder) / part) as local:
        pq.write_table(table, local, compression="zstd")


def exists(folder: str, part: str) -> bool:
    """Whether the part is finished."""
    return (files.path(folder) / part).exists()


def read(folder: str, part: str) -> pa.Table:
    """Returns the part's rows."""
    return files.read_parquet(files.path(folder) / part).replace_schema_metadata(None)


def read_flow(folder: str, part: str) -> pa.RecordBatch:
    """Returns the FLOW rows of the stage that wrote the part."""
    path = files.path(folder) / part
    with files.naming(path, "a part"), files.open_parquet(path) as parquet:
        rows = json.loads(parquet.schema_arrow.metadata[_FLOW])
        return pa.RecordBatch.from_pylist(rows, schema=schema.FLOW)


@contextmanager
def blob_writer(folder: str, part: str) -> Iterator[Callable[[bytes], int]]:
    """Gives a function that appends bytes to a blob file and returns their position.

    The file gets its name when the block ends, and none where the block raises.
    """
    with files.staged(files.path(folder) / part) as local:
        writer = array_record.ArrayRecordWriter(str(local), "group_size:1")
        written = 0

        def write_blob(blob: bytes) -> int:
            nonlocal written
            writer.write(blob)
            written += 1
            return written - 1

        try:
            yield write_blob
        finally:
            writer.close()


def read_blobs(
    folder: str, part: str, positions: Sequence[int], *, batch: int = 256
) -> Iterator[bytes]:
    """Yields the blobs at `positions`, in that order, reading `batch` at a time."""
    reader = array_record.ArrayRecordReader(str(files.path(folder) / part))
    try:
        for start in range(0, len(positions), batch):
            yield from reader.read(list(positions[start : start + batch]))
    finally:
        reader.close()
