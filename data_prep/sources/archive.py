"""Reads the records of WARC and ARC files, also compressed, and survives damaged ones.

Other libraries stop at the first damaged or empty gzip member, or know header names in
one case only. Here a file is a series of gzip members; after damage, reading continues
at the next member that begins with a record. A record is returned once its member's
checksum was verified, or once the next record has begun in the member.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import zstandard
from isal import isal_zlib

from data_prep.sources import http

_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC, _ZSTD_DICTIONARY = b"\x28\xb5\x2f\xfd", b"\x5d\x2a\x4d\x18"
_MAX_DICTIONARY = 16 << 20
_ZSTD_BLOCK = 1 << 10  # bytes decompressed at a time; they expand to 32 MiB at most
# Inflates in less than half of zlib's time.
_GZIP_BITS = isal_zlib.MAX_WBITS | 16
_MemberError: Any = isal_zlib.error  # its stub has an instance
_MAX_WINDOW = 128 << 20  # bytes that a frame may make the decompressor keep
_BLOCK = 1 << 16  # bytes read, and decompressed, at a time
_TRIED = 4096  # compressed bytes, enough for the first line of a record
_MAX_HEAD = 1 << 16
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_ARC_LINE = (  # address, IP address, date, type and in version 2 five more, length
    rb"([a-zA-Z][\w+.-]*:[^\n]*) [\w.:-]+ \d{12,14} (?:[^\n]* )?(\d{1,18})[ \t]*\r?\n"
)
_ARC_HEAD = re.compile(_ARC_LINE)
_FIRST_LINE = re.compile(rb"WARC/\d+\.\d+\r?\n|" + _ARC_LINE)
_FIELDS = http.named(
    "warc-type", "warc-target-uri", "warc-identified-payload-type", "content-length"
)
_NEXT_RECORD = re.compile(rb"\n(?=WARC/\d+\.\d+\r?\n|" + _ARC_LINE + rb")")


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the kind that was asked for.

    `identified_type` is the media type that the crawler found, "" if it did not look;
    `block` is truncated to the reader's `max_block_bytes`.
    """

    url: str
    identified_type: str
    block: bytes


@dataclass(frozen=True, slots=True)
class LostRecord:
    """A damaged record of any type; the file continues after it."""


@dataclass(frozen=True, slots=True)
class LostFile:
    """A file that could not be read to its end; comes last.

    Reasons: empty_file, not_warc, corrupt_warc, truncated_warc. The damaged record
    and all after it are lost.
    """

    reason: str


class _DamageError(Exception):
    """A record is malformed; reading can continue at the current position."""


def read_records(
    file: BinaryIO, *, max_block_bytes: int, kind: bytes = b"response"
) -> Iterator[Record | LostRecord | LostFile]:
    """Yields the records of a kind in file order, and what was lost of the file.

    Args:
      file: seekable.
      max_block_bytes: of a record; the rest is skipped.
      kind: the WARC-Type of the records; all of an ARC file are responses.

    Raises OSError if the storage fails.
    """
    start = file.read(_MAX_HEAD)
    file.seek(0)
    stream: _Plain
    if start.startswith(_GZIP_MAGIC[:2]):
        stream = _Gzip(file)
    else:
        is_zstd = start.startswith((_ZSTD_MAGIC, _ZSTD_DICTIONARY))
        plain = iter(lambda: file.read(_BLOCK), b"")
        stream = _Plain(_of_zstd(file, start) if is_zstd else plain)
        try:
            stream.fill()
        except (zstandard.ZstdError, EOFError) as damage:
            yield _lost(damage)
            return
        if not _FIRST_LINE.match(stream.buffer.lstrip(b"\r\n")):
            yield LostFile("not_warc" if stream.buffer else "empty_file")
            return
    while True:
        try:
            while stream.find_record():
                record = _read_record(stream, max_block_bytes, kind)
                if record is not None:
                    yield record
            return
        except (_DamageError, _MemberError, zstandard.ZstdError, EOFError) as damage:
            # A damaged member may seem to extend to the end of the file.
            is_member_broken = not isinstance(damage, _DamageError)
            try:
                is_found = stream.skip_damage(is_member_broken=is_member_broken)
            except (zstandard.ZstdError, EOFError) as further:
                damage, is_found = further, False
            if not is_found:
                yield _lost(damage)
                return
            yield LostRecord()


def _lost(damage: Exception) -> LostFile:
    is_cut = isinstance(damage, EOFError)
    return LostFile("truncated_warc" if is_cut else "corrupt_warc")


def _of_zstd(file: BinaryIO, start: bytes) -> Iterator[bytes]:
    """Yields the content of a .warc.zst file, which may begin with its own dictionary.

    `start` is what was read of `file`: 8 bytes at least, or all. Raises ZstdError where
    the file is damaged, EOFError where it is truncated.
    """
    dictionary, position = None, 0
    if start.startswith(_ZSTD_DICTIONARY):
        size = int.from_bytes(start[4:8], "little")
        position = 8 + size
        file.seek(8)
        data = file.read(min(size, _MAX_DICTIONARY))
        if data.startswith(_ZSTD_MAGIC):
            with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                data = reader.read(_MAX_DICTIONARY)
        dictionary = zstandard.ZstdCompressionDict(data)
    decompressor = zstandard.ZstdDecompressor(
        dict_data=dictionary, max_window_size=_MAX_WINDOW
    )
    file.seek(position)
    frame, data = None, b""
    while data := data or file.read(_ZSTD_BLOCK):
        frame = frame or decompressor.decompressobj()
        if output := frame.decompress(data):
            yield output
        frame, data = (None, frame.unused_data) if frame.eof else (frame, b"")
    if frame is not None:
        raise EOFError


class _Plain:
    """The bytes of a file, read forwards: `buffer` holds those that come next."""

    def __init__(self, blocks: Iterable[bytes] = ()) -> None:
        self._blocks = iter(blocks)
        self.buffer = b""

    def fill(self) -> bool:
        """Adds bytes to the buffer; False at the end of the file or gzip member."""
        block = next(self._blocks, b"")
        self.buffer += block
        return bool(block)

    def _next_member(self) -> bool:
        """Moves to the next gzip member; False at the end of the file."""
        return False

    def _begins_with_record(self) -> bool:
        return False

    def find_record(self) -> bool:
        """Skips line ends; False at the end of the file."""
        while True:
            self.buffer = self.buffer.lstrip(b"\r\n")
            if self.buffer:
                return True
            if not self.fill() and not self._next_member():
                return False

    def more(self) -> None:
        """Adds bytes of the same record to the buffer.

        Raises EOFError at the end of the file, _DamageError where a record begins.
        """
        while not self.fill():
            before, self.buffer = self.buffer, b""
            if not self._next_member():
                raise EOFError
            if self._begins_with_record():
                raise _DamageError
            added, self.buffer = self.buffer, before + self.buffer
            if added:
                return

    def take(self, size: int, limit: int) -> bytes:
        """Reads `size` bytes; returns the first `limit` of them."""
        parts = []
        while size > len(self.buffer):
            parts.append(self.buffer[:limit])
            limit -= len(parts[-1])
            size -= len(self.buffer)
            self.buffer = b""
            self.more()
        parts.append(self.buffer[: min(size, limit)])
        self.buffer = self.buffer[size:]
        return b"".join(parts)

    def end_record(self) -> None:
        """Reads until a record's end is confirmed, by its successor or a checksum."""
        while not self.buffer.lstrip(b"\r\n"):
            if not self.fill():
                return

    def skip_damage(self, *, is_member_broken: bool) -> bool:
        """Moves to the next record after damage; False if there is none."""
        del is_member_broken
        while True:
            if found := _NEXT_RECORD.search(self.buffer):
                self.buffer = self.buffer[found.end() :]
                return True
            self.buffer = self.buffer[-_TRIED:]
            if not self.fill():
                return False


class _Gzip(_Plain):
    """The content of a gzip file, whether or not it has one member per record."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._compressed = file
        self._input = b""  # compressed, read but not yet used
        self._start = 0  # of the member in the file
        self._member = isal_zlib.decompressobj(_GZIP_BITS)
        self._is_open = False  # whether the member has begun and not ended

    def _read_input(self) -> bool:
        block = self._compressed.read(_BLOCK)
        self._input += block
        return bool(block)

    def fill(self) -> bool:
        """Adds bytes to the buffer; False when the member's checksum was right.

        Raises EOFError where the file is truncated, _MemberError for a broken member.
        """
        while self._is_open:
            output = self._member.decompress(self._input, _BLOCK)
            if self._member.eof:
                self._is_open = False
                self._input = self._member.unused_data
            else:
                self._input = self._member.unconsumed_tail
            if output:
                self.buffer = self.buffer + output if self.buffer else output
                return True
            if self._is_open and not self._input and not self._read_input():
                raise EOFError
        return False

    def _next_member(self) -> bool:
        # Some tools fill the last block of a file with zeros.
        while not self._input.startswith(_GZIP_MAGIC):
            self._input = self._input.lstrip(b"\0")
            if len(self._input) >= len(_GZIP_MAGIC):
                self._start = self._compressed.tell() - len(self._input)
                raise _MemberError("no gzip member")
            if not self._read_input():
                if self._input:
                    raise EOFError
                return False
        self._start = self._compressed.tell() - len(self._input)
        self._member = isal_zlib.decompressobj(_GZIP_BITS)
        self._is_open = True
        return True

    def _begins_with_record(self) -> bool:
        while b"\n" not in self.buffer and len(self.buffer) < _MAX_HEAD:
            if not self.fill():
                break
        return _FIRST_LINE.match(self.buffer) is not None

    def end_record(self) -> None:
        """Also raises _DamageError where a line follows that begins no record."""
        super().end_record()
        self.buffer = self.buffer.lstrip(b"\r\n")
        if self.buffer and not self._begins_with_record() and b"\n" in self.buffer:
            raise _DamageError

    def skip_damage(self, *, is_member_broken: bool) -> bool:
        """Moves to the next record after damage; False if there is none.

        In a broken member nothing can be trusted: the next one that holds a record is
        searched for in the compressed bytes.
        """
        if is_member_broken:
            return self._find_member()
        if _FIRST_LINE.match(self.buffer):
            return True
        while True:
            try:
                if super().skip_damage(is_member_broken=False):
                    return True
                self.buffer = b""
                if not self._next_member():
                    return False
                if self._begins_with_record():
                    return True
            except (_MemberError, EOFError):
                return self._find_member()

    def _find_member(self) -> bool:
        """Seeks the next member that begins with a record."""
        self._is_open, self.buffer, self._input = False, b"", b""
        self._compressed.seek(self._start + 1)
        while True:
            at = self._input.find(_GZIP_MAGIC)
            if at < 0:
                self._input = self._input[1 - len(_GZIP_MAGIC) :]
                if not self._read_input():
                    return False
                continue
            self._input = self._input[at:]
            if len(self._input) < _TRIED:
                self._read_input()
            if _holds_record(self._input[:_TRIED]):
                return self._next_member()
            self._input = self._input[1:]


def _holds_record(data: bytes) -> bool:
    try:
        output = isal_zlib.decompressobj(_GZIP_BITS).decompress(data, _MAX_HEAD)
    except _MemberError:
        return False
    return _FIRST_LINE.match(output) is not None


def _read_record(stream: _Plain, max_block_bytes: int, kind: bytes) -> Record | None:
    """Reads the record at which the stream is; None if it is of another kind."""
    while len(stream.buffer) < len(b"WARC/"):
        stream.more()
    if stream.buffer.startswith(b"WARC/"):
        return _read_warc_record(stream, max_block_bytes, kind)
    return _read_arc_record(stream, max_block_bytes)


def _read_warc_record(
    stream: _Plain, max_block_bytes: int, kind: bytes
) -> Record | None:
    while not (end := _END_OF_HEAD.search(stream.buffer, 0, _MAX_HEAD)):
        if len(stream.buffer) >= _MAX_HEAD:
            stream.buffer = stream.buffer[1:]  # so as not to come back to it
            raise _DamageError
        stream.more()
    fields = http.find_fields(stream.buffer[: end.start()], _FIELDS)
    stream.buffer = stream.buffer[end.end() :]
    length = fields.get(b"content-length", [b""])[0]
    if not length.isdigit() or len(length) > 18:
        raise _DamageError
    is_wanted = fields.get(b"warc-type", [b""])[0].lower() == kind
    block = stream.take(int(length), max_block_bytes if is_wanted else 0)
    stream.end_record()
    if not is_wanted:
        return None
    # WARC 1.0 writers such as wget put the address in angle brackets.
    url = fields.get(b"warc-target-uri", [b""])[0].strip(b"<> \t")
    identified = fields.get(b"warc-identified-payload-type", [b""])[0]
    return Record(url.decode("utf-8", "replace"), identified.decode("latin-1"), block)


def _read_arc_record(stream: _Plain, max_block_bytes: int) -> Record | None:
    while b"\n" not in stream.buffer:
        if len(stream.buffer) >= _MAX_HEAD:
            raise _DamageError
        stream.more()
    head = _ARC_HEAD.match(stream.buffer)
    if head is None:
        raise _DamageError
    stream.buffer = stream.buffer[head.end() :]
    url = head[1]
    is_response = url[:4].lower() == b"http"  # others: filedesc (about the file), dns
    block = stream.take(int(head[2]), max_block_bytes if is_response else 0)
    stream.end_record()
    return Record(url.decode("utf-8", "replace"), "", block) if is_response else None
