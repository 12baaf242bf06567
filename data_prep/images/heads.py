"""Parses HTTP response heads as leniently as browsers do.

aiohttp's parser refuses heads that browsers accept: long ones, repeated equal lengths,
names with spaces, lines without a colon. So each head is parsed here, up to a size
limit, and aiohttp gets a strict one with the few headers that the downloader uses.
"""

import functools
import re
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

MAX_HEAD_BYTES = 256 * 1024  # per answer, including 1xx heads before it

_STATUS = re.compile(rb"(?:HTTP/(\d)(?:\.(\d))?|ICY)[ \t]+(\d{3})(?!\d)", re.I)
_MAY_BE_STATUS = re.compile(rb"[\r\n]*(?:HTTP/|ICY |.{0,4}\Z)", re.I | re.S)
_END = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"\n[ \t]+")
_CONTROLS = bytes({*range(32), 127} - {ord("\t"), ord("\n")})
_LENGTH = re.compile(rb"\d{1,18}")
_ENCODINGS = {b"x-gzip": b"gzip"} | {
    x: x for x in (b"gzip", b"deflate", b"br", b"zstd")
}
_PASSED_ON = (b"Location", b"Retry-After", b"X-Robots-Tag", b"tdm-reservation")
_REFUSED = b"no head\r\n\r\n"  # aiohttp's parser ends the connection on it


class Connector(aiohttp.TCPConnector):
    """Opens connections that parse heads leniently."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        protocol: type[ResponseHandler] = _Connection
        self._factory = functools.partial(protocol, loop=self._loop)


class _Connection(ResponseHandler):
    """Replaces the heads that arrive by strict ones."""

    _head: bytearray | None = None  # bytes of an incomplete head
    _left = 0  # bytes that heads may still take

    def set_response_params(self, **params: Any) -> None:
        """Prepares for the answer to another request."""
        self._head, self._left = bytearray(), MAX_HEAD_BYTES
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Collects a head; passes on the body unchanged."""
        if self._head is None or self._parser is None:
            super().data_received(data)
            return
        start = max(len(self._head) - 2, 0)
        self._head += data
        while end := _END.search(self._head, start):
            head = bytes(self._head[: end.start()])
            del self._head[: end.end()]
            start, self._left = 0, self._left - end.end()
            answer = strict(head) if self._left >= 0 else _REFUSED
            if answer:
                rest, self._head = bytes(self._head), None
                super().data_received(answer + rest)
                return
        short = len(self._head) < 1024
        if len(self._head) > self._left or (
            short and not _MAY_BE_STATUS.match(self._head)
        ):
            self._head = None
            super().data_received(_REFUSED)


def strict(head: bytes) -> bytes:
    """Returns a strict head with the headers that the downloader uses.

    It ends with the blank line. b"" for an empty or a 1xx head, after which another one
    follows. Bytes that are no HTTP head become a head that aiohttp refuses.
    """
    first, *lines = _FOLD.sub(b" ", head.translate(None, _CONTROLS).strip()).split(
        b"\n"
    )
    status = _STATUS.match(first)
    if not status:
        return _REFUSED if first else b""
    if status[3][:1] == b"1" and status[3] != b"101":
        return b""
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        fields.setdefault(name.strip().lower(), []).append(value.strip())
    length = _length(fields)
    if length is None or status[3] == b"101":
        return _REFUSED
    answer = [b"HTTP/1.1 " + status[3] + b" ", *length, *_encoding(fields)]
    old = status[1] is None or status[1] + (status[2] or b"0") < b"11"
    connection = _tokens(fields, b"connection")
    if b"close" in connection or (old and b"keep-alive" not in connection):
        answer.append(b"Connection: close")
    for name in _PASSED_ON:
        answer += [name + b": " + value for value in fields.get(name.lower(), [])]
    return b"\r\n".join([*answer, b"", b""])


def _length(fields: dict[bytes, list[bytes]]) -> list[bytes] | None:
    """Returns the header with the body's length, None if two differ.

    A length that is no number is ignored: the body ends with the connection.
    """
    if b"chunked" in _tokens(fields, b"transfer-encoding"):
        return [b"Transfer-Encoding: chunked"]
    lengths = filter(_LENGTH.fullmatch, _tokens(fields, b"content-length"))
    different = {int(length) for length in lengths}
    if len(different) > 1:
        return None
    return [b"Content-Length: %d" % length for length in different]


def _encoding(fields: dict[bytes, list[bytes]]) -> list[bytes]:
    """Returns the header with the body's encoding; an unknown one is ignored."""
    named = [name for name in _tokens(fields, b"content-encoding") if name]
    if len(named) != 1 or named[0] not in _ENCODINGS:
        return []
    return [b"Content-Encoding: " + _ENCODINGS[named[0]]]


def _tokens(fields: dict[bytes, list[bytes]], name: bytes) -> list[bytes]:
    values = b",".join(fields.get(name, [])).lower()
    return [token.strip() for token in values.split(b",")]
