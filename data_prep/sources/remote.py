"""Opens the files of a source: local, on gs://, or on a web server (https://).

A web server is read politely: one request for a whole file, a pause after each refusal
that doubles up to two minutes, and a slower pace afterwards. A body that is cut off is
resumed where it ended.
"""

import functools
import io
import ipaddress
import os
import re
import time
import urllib.parse
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import urllib3
from absl import logging
from etils import epath

from data_prep.images import request
from metaclip_jax import files

_BLOCK = 1 << 18  # bytes read at a time; seeks within them need no request
_TIMEOUT_SECONDS = 60.0  # without a byte
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 120.0  # seconds
_TRIES = 12  # without a byte in between: about ten minutes
_TRIES_OF_STRANGERS = 3  # for a server that has never answered
# Statuses of a server that wants to be asked later. Common Crawl also uses 403.
_BUSY = frozenset((403, 408, 425, 429, 500, 502, 503, 504))
_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18})")


class WebFileError(OSError):
    """A web server does not send a file, or sends another version of it."""


def is_on_web(path: epath.PathLike) -> bool:
    """Returns whether a path is an address on a web server."""
    return os.fspath(path).lower().startswith(("https://", "http://"))


def refuse_anonymous(user_agent: str) -> None:
    """Raises ValueError where strangers' servers would not learn whom to write to."""
    if not ("@" in user_agent or "://" in user_agent):
        raise ValueError(
            "config.download.user_agent: wanted your name and an e-mail or web address"
            f" for the owners of servers to write to, got {user_agent!r}; write one,"
            " such as 'my-crawler me@my.example'"
        )


def open_file(path: epath.PathLike, *, user_agent: str = "") -> BinaryIO:
    """Opens a file for reading; it can seek.

    Args:
      path: local, gs:// or http(s)://.
      user_agent: the header that a web server gets. All but this machine's must learn
        from it whom to write to.

    Raises:
      ValueError: a server would not learn it.
      OSError: the storage fails, here or while reading: FileNotFoundError if there is
        no such file, WebFileError if a server refuses for about ten minutes.
    """
    if is_on_web(path):
        return io.BufferedReader(_WebFile(os.fspath(path), user_agent), _BLOCK)
    opened = files.path(path).open("rb")
    # fsspec's files lack parts of Python's interface, such as readline(size).
    return opened if files.is_local(path) else io.BufferedReader(opened, _BLOCK)


def size(path: epath.PathLike, *, user_agent: str = "") -> int:
    """Returns the size of a file in bytes, 0 if a web server does not say it.

    Raises ValueError and OSError as `open_file` does.
    """
    if not is_on_web(path):
        return files.size(path)
    with _WebFile(os.fspath(path), user_agent) as file:
        file.readinto(memoryview(bytearray(1)))
        return file.size or 0


@dataclass
class _Pace:
    """How long the requests to a host wait."""

    seconds: float = 0.0
    is_known: bool = False  # whether it has ever answered

    def slow_down(self, asked_for: float) -> float:
        """Returns the seconds to wait after a refusal."""
        self.seconds = min(max(2 * self.seconds, _FIRST_PAUSE), _LONGEST_PAUSE)
        return max(self.seconds, asked_for)

    def speed_up(self) -> None:
        """Halves the wait after an answer."""
        self.is_known = True
        self.seconds = self.seconds / 2 if self.seconds > _FIRST_PAUSE else 0.0


_PACES: dict[str, _Pace] = {}  # of this process, by host


@functools.cache
def _connections(process: int) -> urllib3.PoolManager:
    """Returns those of a process: a fork must not share sockets."""
    return urllib3.PoolManager(maxsize=16)


class _RefusedError(Exception):
    """A server gives no bytes now."""

    def __init__(self, reason: str, *, asked_for: float = 0.0) -> None:
        super().__init__(reason)
        self.asked_for = asked_for  # seconds that it asks to wait


class _WebFile(io.RawIOBase):
    """A file on a web server, read by one request for each seek or broken body."""

    def __init__(self, url: str, user_agent: str) -> None:
        self._url, self._user_agent = url, user_agent
        parts = urllib.parse.urlsplit(url)
        if not _is_this_machine(parts.hostname or ""):
            refuse_anonymous(user_agent)
        self._pace = _PACES.setdefault(parts.netloc, _Pace())
        self._position = 0
        self.size: int | None = None  # None before an answer, or if it does not say it
        self._tag = ""  # the version that is read
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._failures = 0  # since the last byte

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a position from the start, or from the current one."""
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("the end of a file on a web server")
        target = offset + (self._position if whence == os.SEEK_CUR else 0)
        if target != self._position:
            self._hang_up()
            self._position = target
        return target

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Reads some bytes, none at the end of the file."""
        while self.size is None or self._position < self.size:
            try:
                if self._answer is None:
                    self._ask()
                    continue
                got = self._answer.read(len(buffer), decode_content=False)
                if not got and self.size is not None:
                    raise _RefusedError("fewer bytes than asked for")
                if not got:  # a body whose length is not known has ended
                    break
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if isinstance(error, FileNotFoundError | WebFileError):
                    raise
                self._fail(_RefusedError(f"{type(error).__name__}: {error}"))
            except _RefusedError as refusal:
                self._fail(refusal)
            else:
                self._failures = 0
                self._position += len(got)
                buffer[: len(got)] = got
                return len(got)
        self._hang_up()
        return 0

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _hang_up(self) -> None:
        if self._answer is not None:
            self._answer.close()  # not drained: it may have gigabytes left
            self._answer = None

    def _fail(self, refusal: _RefusedError) -> None:
        """Waits before the next request; raises WebFileError after too many."""
        self._hang_up()
        self._failures += 1
        most = _TRIES if self._pace.is_known else _TRIES_OF_STRANGERS
        if self._failures >= most:
            raise WebFileError(
                f"wanted bytes from {self._position:,} on of {self._url}, got {refusal}"
                f" {self._failures} times in a row; run the same command again later"
            )
        pause = self._pace.slow_down(refusal.asked_for)
        # Workers that were refused at the same time should not come back together.
        spread = zlib.crc32(f"{os.getpid()} {self._url} {self._failures}".encode())
        pause *= 1 + spread / 2**33
        logging.warning("%s: %s; waiting %.0f s", self._url, refusal, pause)
        time.sleep(pause)

    def _ask(self) -> None:
        """Requests the bytes from the current position on."""
        if self._pace.seconds and not self._failures:
            time.sleep(self._pace.seconds)
        answer = _connections(os.getpid()).request(
            "GET",
            self._url,
            headers={
                "User-Agent": self._user_agent,
                "Accept-Encoding": "identity",
                "Range": f"bytes={self._position}-",
            },
            preload_content=False,
            retries=urllib3.Retry(0, redirect=5, raise_on_redirect=True),
            timeout=_TIMEOUT_SECONDS,
        )
        try:
            self._check(answer)
        except BaseException:
            answer.close()
            raise
        self._answer = answer
        self._pace.speed_up()

    def _check(self, answer: urllib3.BaseHTTPResponse) -> None:
        """Checks the head of an answer, and skips what was read before."""
        status = answer.status
        if status in (404, 410):
            raise FileNotFoundError(2, f"HTTP status {status}", self._url)
        if status in _BUSY:
            asked_for = request.seconds_to_wait(answer.headers.get("Retry-After", ""))
            raise _RefusedError(f"HTTP status {status}", asked_for=asked_for)
        place = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if status == 416 and place and int(place[2]) <= self._position:
            self.size = int(place[2])
            return
        if status not in (200, 206) or (status == 206 and not place):
            raise WebFileError(
                f"wanted the file {self._url}, got HTTP status {status}; correct "
                "the path of the source"
            )
        length = answer.headers.get("Content-Length", "")
        size = int(place[2]) if place else int(length) if length.isdigit() else None
        tag = answer.headers.get("ETag", "")
        start = int(place[1] or 0) if place else 0
        changed = self._tag and tag != self._tag or self.size not in (None, size)
        if changed or start > self._position:
            raise WebFileError(
                f"wanted {self._url} as it was when its reading began, got another "
                "version; run the same command again"
            )
        self.size, self._tag = size, tag
        left = self._position - start  # of a server that knows no ranges
        while left:
            skipped = answer.read(min(left, _BLOCK), decode_content=False)
            if not skipped:
                raise _RefusedError("a shorter file")
            left -= len(skipped)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
