"""HTTP responses as crawlers store them: heads, media types, content codings.

Crawlers store what servers sent, but some decode the body and keep the header of its
coding. Servers misspell. What browsers accept is accepted here, too.
"""

import io
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import brotli
import zstandard

HTML_TYPES = ("text/html", "application/xhtml+xml")
_MAX_HEAD = 1 << 16
_END_OF_HEAD = re.compile(rb"\r*\n\r*\n")
_STATUS_LINE = re.compile(rb"HTTP\S*[ \t]+(\d{3})(?!\d)[^\n]*", re.I)
_FOLD = re.compile(rb"\r*\n[ \t]+")
_MEDIA_TYPE = re.compile(r"[\s\"']*([\w!#$&^.+-]+/[\w!#$&^.+-]+)")
_UNKNOWN_TYPES = ("unknown/unknown", "application/unknown")
# The MIME sniffing standard's signs of HTML and of binary data.
_HTML_SIGN = re.compile(
    rb"[\t\n\f\r ]*<(?:!doctype html|html|head|script|iframe|h1|div|font|table|a|style"
    rb"|title|b|body|br|p)[ >]|[\t\n\f\r ]*<!--",
    re.I,
)
_BINARY = re.compile(rb"[\0-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SNIFFED = 1445
_STEP = 4096  # compressed bytes decoded at a time: an error loses what they hold
_MAX_WINDOW = 1 << 23  # of zstd, as RFC 9659 has it
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_IDENTITY = ("", "identity")

# The names in lower case, each with its values in their order.
Fields = dict[bytes, list[bytes]]


@dataclass(frozen=True, slots=True)
class Response:
    """A response's status, the fields that are read, and its body as stored."""

    status: int
    fields: Fields
    body: bytes

    def get(self, name: bytes) -> str:  # in lower case
        """Returns a field's values, joined by ", "; "" where there is none."""
        return b", ".join(self.fields.get(name, [])).decode("latin-1")


def parse(block: bytes) -> Response | None:
    """Parses a stored response; None if the block is not an HTTP response.

    Lines may end in LF alone, fields may be folded, the reason phrase may be missing.
    Interim responses (1xx) before the response are skipped.
    """
    while True:
        block = block.lstrip(b"\r\n")
        line = _STATUS_LINE.match(block)
        end = _END_OF_HEAD.search(block, 0, _MAX_HEAD)
        if line is None or end is None:
            return None
        body = block[end.end() :]
        status = int(line[1])
        if status >= 200:
            return Response(status, find_fields(block[: end.start()], _FIELDS), body)
        block = body


def find_fields(head: bytes, names: re.Pattern[bytes]) -> Fields:
    """Returns the values of the fields that are asked for, see `named`."""
    if b"\n " in head or b"\n\t" in head:
        head = _FOLD.sub(b" ", head)
    fields: Fields = {}
    for name, value in names.findall(head):
        fields.setdefault(name.lower(), []).append(value.strip())
    return fields


def named(*names: str) -> re.Pattern[bytes]:
    """Returns what finds fields of these names, in any case, below a first line."""
    any_name = "|".join(map(re.escape, names))
    return re.compile(rf"\n({any_name})[ \t]*:([^\n]*)".encode(), re.I)


_FIELDS = named("content-type", "content-encoding", "transfer-encoding")


@lru_cache
def is_html(content_type: str, identified: str) -> bool | None:
    """Says whether a response is HTML, None where only its body can tell.

    Args:
      content_type: the header. Of several types, the last well-formed one counts.
      identified: what the crawler found the body to be, "" where it did not look.
    """
    declared = _media_type(content_type)
    found = _media_type(identified)
    if declared in HTML_TYPES or found in HTML_TYPES:
        return True
    return False if declared or found else None


def looks_like_html(body: bytes) -> bool:
    """Whether a body of unknown type is HTML, by the MIME sniffing standard."""
    return _HTML_SIGN.match(body) is not None


def decode(body: bytes, codings: Sequence[str], *, limit: int) -> bytes:
    """Undoes codings, the last one first, up to `limit` bytes.

    Skips a coding that the body does not have, and unknown codings. Of a truncated or
    damaged body, returns what could be decoded.

    Raises ValueError where bytes are left that are neither text nor of those codings.
    """
    fits = True
    for coding in reversed(codings):
        coding = coding.strip().lower()
        if coding in _IDENTITY:
            continue
        undo = _CODINGS.get(coding)
        decoded = undo(body, limit) if undo else None
        if decoded is None:
            fits = False
        else:
            body = decoded
    if not fits and _is_binary(body):
        raise ValueError(f"wanted a body in {', '.join(codings)}, got other bytes")
    return body


def _media_type(value: str) -> str:
    """Returns the last well-formed type of a header in lower case, "" for none."""
    for part in reversed(value.split(",")):
        found = _MEDIA_TYPE.match(part)
        if found and found[1].lower() not in _UNKNOWN_TYPES:
            return found[1].lower()
    return ""


def _is_binary(body: bytes) -> bool:
    if body.startswith(_UTF16_MARKS):
        return False
    return _BINARY.search(body, 0, _SNIFFED) is not None


def _dechunked(body: bytes, limit: int) -> bytes | None:
    """Returns the data of the chunks, without extensions, trailers and what follows."""
    parts = []
    position = size = 0
    while chunk := _CHUNK.match(body, position):
        length = int(chunk[1], 16)
        start, position = chunk.end(), chunk.end() + length
        if length and position < len(body) and body[position] not in b"\r\n":
            return None  # a line of hexadecimal digits in a text
        parts.append(body[start : min(position, start + limit)])
        size += length
        if not length or size >= limit or position >= len(body):
            break
        position += 2 if body.startswith(b"\r\n", position) else 1
    return b"".join(parts) if parts else None


def _inflated(body: bytes, limit: int, *, may_be_raw: bool = False) -> bytes | None:
    """Undoes gzip or deflate, whichever the bytes show: servers confuse their names."""
    if body.startswith(b"\x1f\x8b"):
        out = b""
        while body.startswith(b"\x1f\x8b") and len(out) < limit:  # several members
            more, body, is_right = _inflate(body, zlib.MAX_WBITS | 16, limit - len(out))
            out += more
        return out if out or is_right else None
    if len(body) > 1 and body[0] & 15 == 8 and not (body[0] * 256 + body[1]) % 31:
        out, _, _ = _inflate(body, zlib.MAX_WBITS, limit)
        return out or None
    if may_be_raw:  # the standard wants zlib's header; without it there is no mark
        out, _, is_right = _inflate(body, -zlib.MAX_WBITS, limit)
        return out if out and is_right and _is_binary(body) else None
    return None


def _inflate(body: bytes, window: int, limit: int) -> tuple[bytes, bytes, bool]:
    """Returns up to `limit` bytes, the bytes after the end, whether all were valid."""
    inflater = zlib.decompressobj(window)
    parts = []
    for start in range(0, len(body), _STEP):
        try:
            parts.append(inflater.decompress(body[start : start + _STEP], limit))
        except zlib.error:
            return b"".join(parts), b"", False
        limit -= len(parts[-1])
        if inflater.eof:
            return b"".join(parts), inflater.unused_data + body[start + _STEP :], True
        if limit <= 0:
            break
    return b"".join(parts), b"", True


def _unbrotlied(body: bytes, limit: int) -> bytes | None:
    """Undoes brotli, which has no magic bytes: an invalid byte shows another coding."""
    if not _is_binary(body):
        return None
    pieces = [body[i : i + _STEP] for i in range(0, len(body), _STEP)]
    out, right = _unbrotli(pieces, limit)
    if right < len(pieces):  # unless the stream has ended before the wrong byte
        wrong = pieces[right]
        pieces[right:] = [wrong[i : i + 1] for i in range(len(wrong))]
        out, right = _unbrotli(pieces, limit)
    return out if out and right == len(pieces) else None


def _unbrotli(pieces: Sequence[bytes], limit: int) -> tuple[bytes, int]:
    """Returns about `limit` bytes, and how many pieces are valid or after the end."""
    decoder = brotli.Decompressor()
    parts = []
    for number, piece in enumerate(pieces):
        try:
            while True:
                parts.append(decoder.process(piece, output_buffer_limit=limit))
                limit -= len(parts[-1])
                if limit <= 0 or decoder.is_finished():
                    return b"".join(parts), len(pieces)
                if decoder.can_accept_more_data():
                    break
                piece = b""
        except brotli.error:
            return b"".join(parts), number
    return b"".join(parts), len(pieces)


def _unzstded(body: bytes, limit: int) -> bytes | None:
    decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    out = b""
    with decoder.stream_reader(io.BytesIO(body)) as reader:
        try:
            while len(out) < limit and (more := reader.read(_STEP)):
                out += more
        except zstandard.ZstdError:
            pass
    return out or None


# By the names of codings: returns the decoded body, None if it is not in this coding.
_CODINGS: dict[str, Callable[[bytes, int], bytes | None]] = {
    "chunked": _dechunked,
    "gzip": _inflated,
    "x-gzip": _inflated,
    "deflate": partial(_inflated, may_be_raw=True),
    "br": _unbrotlied,
    "zstd": _unzstded,
}
