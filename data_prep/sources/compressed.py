"""Bytes of files that are plain, .gz or .bz2, whatever their names say.

Ranges of a file can be read independently: the bytes of a plain file, or the bz2
streams that begin in the range. The first range of any other file has all of it.
"""

import bz2
import codecs
import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from isal import igzip_lib

_BLOCK = 1 << 18  # bytes read at a time
_MAX_OUTPUT = 1 << 20  # bytes decompressed at a time
_GZIP, _BZ2 = b"\x1f\x8b", b"BZh"
_HEAD_BYTES = 10  # of a bz2 stream, and at least of a gzip member
_PADDING = b"\0\r\n"  # harmless after a compressed stream
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


class DamageError(ValueError):
    """A file cannot be read further; the message is "truncated" or "corrupt"."""


class _Form(NamedTuple):
    head: re.Pattern[bytes]
    decompressor: Callable[[], Any]  # a new one, with the interface of bz2's


_BZ2_FORM = _Form(re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor)
_GZIP_FORM = _Form(
    re.compile(rb"\x1f\x8b\x08"),
    partial(igzip_lib.IgzipDecompressor, flag=igzip_lib.DECOMP_GZIP),
)
_IsalError: Any = igzip_lib.error  # its stub has an instance


def has_ranges(start: bytes) -> bool:
    """Returns whether a file can be read in ranges, given its first bytes."""
    return not start.startswith(_GZIP) and start[:2] not in _UTF16


def head(file: BinaryIO, size: int) -> bytes:
    """Returns the first decompressed bytes: `size` or more, or all undamaged ones."""
    data = b""
    with contextlib.suppress(DamageError):
        for more, _ in read(file):
            data += more
            if len(data) >= size:
                break
    return data


def lines(file: BinaryIO, *, most: int) -> Iterator[bytes | None]:
    """Yields the lines of a file with their ends, None for one of more than `most`.

    Raises DamageError as `read` does.
    """
    left, is_too_long = b"", False
    for data, _ in read(file):
        *whole, left = (left + data).split(b"\n")
        for line in whole:
            yield None if is_too_long or len(line) > most else line + b"\n"
            is_too_long = False
        if is_too_long or len(left) > most:
            left, is_too_long = b"", True
    if left or is_too_long:
        yield None if is_too_long else left


def read(file: BinaryIO, start: int = 0, stop: int = 0) -> Iterator[tuple[bytes, bool]]:
    """Yields decompressed bytes, UTF-16 as UTF-8, and whether they are of the range.

    Those after the range are yielded too, to the end of the file; at its end sometimes
    (b"", False), before anything after it is decompressed.

    Args:
      file: seekable.
      start, stop: range of the bytes of the file; 0 and 0 is the whole file.

    Raises:
      DamageError: the file is truncated or corrupt, after its good bytes.
    """
    file.seek(0)
    magic = file.read(4)
    if magic.startswith(_BZ2):
        found = _of_streams(file, start, stop, _BZ2_FORM)
    elif magic.startswith(_GZIP):
        found = _of_streams(file, 0, 0, _GZIP_FORM)
    else:
        found = _of_plain(file, start, stop)
    decoder: codecs.IncrementalDecoder | None = None
    for i, (data, is_inside) in enumerate(found):
        if not (i or start) and data[:2] in _UTF16:
            decoder = codecs.getincrementaldecoder(_UTF16[data[:2]])("replace")
            data = data[2:]
        if decoder:
            data = decoder.decode(data).encode("utf-8", "replace")
        yield data, is_inside


def _of_plain(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, bool]]:
    file.seek(start)
    while data := file.read(_BLOCK):
        inside = max(0, stop - start) if stop else len(data)
        if data[:inside]:
            yield data[:inside], True
        if data[inside:]:
            yield data[inside:], False
        start += len(data)


def _of_streams(
    file: BinaryIO, start: int, stop: int, form: _Form
) -> Iterator[tuple[bytes, bool]]:
    """Yields what `read` does, of a series of gzip members or bz2 streams."""
    file.seek(start)
    data = _first_stream(file, stop) if start else file.read(_BLOCK)
    while data:
        if len(data) < _HEAD_BYTES:
            data += file.read(_BLOCK)
        # The next range searches for its first stream, and would not miss this one.
        if not form.head.match(data):
            raise DamageError("corrupt" if len(data) >= _HEAD_BYTES else "truncated")
        is_inside = not stop or file.tell() - len(data) < stop
        if not is_inside:
            yield b"", False  # often nothing more is needed, whatever state it is in
        stream = form.decompressor()
        while not stream.eof:
            if stream.needs_input and not data:
                data = file.read(_BLOCK)
                if not data:
                    raise DamageError("truncated")
            given, data = (data, b"") if stream.needs_input else (b"", data)
            try:
                found = stream.decompress(given, _MAX_OUTPUT)
            except (OSError, ValueError, _IsalError) as error:
                raise DamageError("corrupt") from error
            if found:
                yield found, is_inside
        data = _after_padding(file, stream.unused_data)


def _after_padding(file: BinaryIO, data: bytes) -> bytes:
    """Returns bytes after padding, b"" at the end of the file.

    `data` is what was read of the file and not used.
    """
    while not (rest := data.lstrip(_PADDING)) and (data := file.read(_BLOCK)):
        pass
    return rest


def _first_stream(file: BinaryIO, stop: int) -> bytes:
    """Returns bytes from the next stream on that begins before `stop`, b"" for none."""
    data = b""
    while file.tell() - len(data) < stop and (block := file.read(_BLOCK)):
        data += block
        if mark := _BZ2_FORM.head.search(data):
            data = data[mark.start() :]
            return data if file.tell() - len(data) < stop else b""
        data = data[1 - _HEAD_BYTES :]
    return b""
