"""Lists the files of tars of unknown origin, by headers that cannot be trusted."""

import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, cast

_END = b"\0" * tarfile.BLOCKSIZE  # a tar without it may have been cut off
# Python before 3.11.10 takes time in proportion to the square of a run of digits.
_DIGITS = re.compile(rb"\d{256}")


class NoEndError(tarfile.ReadError):
    """A tar has whole files, but nothing marks its end."""


class _Headers:
    """A file as `tarfile` needs it to read headers."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if _DIGITS.search(data):
            raise tarfile.ReadError("a header with a number of too many digits")
        return data


def members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """Yields the plain files of a tar, whose content is `size` bytes at offset_data.

    Sparse files, links and folders are passed over. The caller may read from `file`.

    Args:
      file: at the start of a tar that is not compressed.
      size: of the tar in bytes.

    Raises:
      NoEndError: after all files, where the mark of the end is missing.
      tarfile.TarError: a header is damaged, or a file is cut off.
      OSError: the storage fails.
    """
    try:
        headers = cast(BinaryIO, _Headers(file))
        with tarfile.open(fileobj=headers, mode="r:") as tar:
            for member in tar:
                if tar.offset <= member.offset:  # a negative size would never end
                    raise tarfile.ReadError("a file that is followed by itself")
                if not member.isreg() or member.issparse():
                    continue
                if not 0 <= member.size <= size - member.offset_data:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                yield member
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != _END:
                raise NoEndError("its end is missing")
    except (ValueError, EOFError, RecursionError) as error:
        raise tarfile.ReadError(f"a damaged header: {error}") from error
