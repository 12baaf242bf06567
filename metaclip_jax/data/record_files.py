"""Open ArrayRecord files: bounded in number and memory, shared by threads."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from array_record.python.array_record_module import ArrayRecordReader

from metaclip_jax import files

DATA_CARD = "data_card.json"  # the file beside them that says what they are
# An open file costs a descriptor and the memory of its index; opening a file of 20k
# records takes about as long as decoding an image.
MAX_OPEN_FILES = 512
_INDEX_BYTES = 21  # per record, about
_READ_AHEAD_BYTES = 16 << 20  # without, each record of a gs:// file is a request
_MAX_IDLE_READERS = 64  # each may hold a read-ahead buffer
_CHECKED_TOGETHER = 256  # records that are in memory
# How array_record's error starts if the stored bytes are damaged.
_DAMAGED = "Corrupted Riegeli/records file"


class Readers:
    """A thread-safe LRU cache of open readers by path.

    An evicted reader closes when the last thread that uses it drops it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[str, ArrayRecordReader] = OrderedDict()
        self._idle: OrderedDict[str, ArrayRecordReader] = OrderedDict()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Readers, ()  # another process opens its own files

    def get(self, shard_path: str) -> ArrayRecordReader:
        """Returns the file's reader, which threads share."""
        with self._lock:
            if shard_path not in self._open:
                self._open[shard_path] = ArrayRecordReader(shard_path)
                if len(self._open) > MAX_OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard_path)
            return self._open[shard_path]

    @contextlib.contextmanager
    def borrow(self, shard_path: str) -> Iterator[ArrayRecordReader]:
        """Lends a reader with read-ahead to one thread at a time."""
        with self._lock:
            reader = self._idle.pop(shard_path, None)
        reader = reader or ArrayRecordReader(
            shard_path, f"readahead_buffer_size:{_READ_AHEAD_BYTES}"
        )
        yield reader
        with self._lock:
            self._idle[shard_path] = reader
            if len(self._idle) > _MAX_IDLE_READERS:
                self._idle.popitem(last=False)


def open_bytes(record_counts: Sequence[int], *, ahead: bool) -> int:
    """Returns the most memory that a process's open files take, in bytes.

    The memory for counting their records is not included.

    Args:
        record_counts: of the files.
        ahead: whether they are borrowed, with read-ahead.
    """
    largest = sorted(record_counts)
    if ahead:
        count = min(_MAX_IDLE_READERS, len(largest))
        return count * _READ_AHEAD_BYTES + _INDEX_BYTES * sum(largest[-count:])
    return _INDEX_BYTES * sum(largest[-MAX_OPEN_FILES:])


def count_records(shard_path: str) -> int:
    """Returns a file's number of records; 0 if it is missing or truncated.

    Raises a StorageError if Cloud Storage refuses it.
    """
    reader = ArrayRecordReader(shard_path)
    if reader.ok():
        return reader.num_records()
    if files.is_local(shard_path) or not files.path(shard_path).exists():
        return 0
    # Its error does not tell a refusal from damage; a copy does.
    with files.local_copy(shard_path) as local:
        return count_records(str(local))


def count_whole(path: str) -> int | None:
    """Returns how many records a local file has, None if any of them is damaged."""
    reader = ArrayRecordReader(path)
    try:
        if not reader.ok():
            return None
        for start in range(0, reader.num_records(), _CHECKED_TOGETHER):
            reader.read(start, min(start + _CHECKED_TOGETHER, reader.num_records()))
        return int(reader.num_records())
    except RuntimeError:
        return None
    finally:
        with contextlib.suppress(RuntimeError):  # of a damaged file, once more
            reader.close()


def read_run(reader: ArrayRecordReader, wanted: list[int]) -> list[bytes]:
    """Reads ascending records that are close together by one request, if ahead.

    Reading them by number would make a request a record: each moves the position, which
    ends the read-ahead. So the records between them are read, too. A damaged record
    gives b"".
    """
    first = wanted[0]
    try:
        found = reader.read(first, wanted[-1] + 1)
    except RuntimeError as error:
        if not str(error).startswith(_DAMAGED):
            raise
        return read_sound(reader, wanted)
    return [found[number - first] for number in wanted]


def read_sound(reader: ArrayRecordReader, wanted: list[int]) -> list[bytes]:
    """Reads records of a file; a damaged record gives b"".

    Other errors are raised: a network error is not the record's, and skipping it would
    change which records are used.
    """
    try:
        return reader.read(wanted)
    except RuntimeError as error:
        if not str(error).startswith(_DAMAGED):
            raise
    if len(wanted) == 1:
        return [b""]
    return [read_sound(reader, [number])[0] for number in wanted]
