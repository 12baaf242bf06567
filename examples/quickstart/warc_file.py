"""Writes WARC 1.1 files: one gzip member a record, equal answers give equal bytes."""

import base64
import gzip
import hashlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from etils import epath

from metaclip_jax import files

# About the transport; the body is stored whole.
_HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding"})


@dataclass(frozen=True)
class Answer:
    """What came for one address: the status line's number, headers, whole body.

    `status` 0 means that nothing came; `reason` says why.
    """

    url: str
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    reason: str = ""

    def header(self, name: str) -> str:
        """Returns the first header of that name, "" if there is none."""
        same = (value for key, value in self.headers if key.lower() == name.lower())
        return next(same, "")


def write(final: epath.PathLike, answers: Iterable[Answer], *, software: str) -> None:
    """Writes a .warc.gz file: a warcinfo record, then one response an answer.

    The warcinfo's date is that of the first answer.
    """
    answers = list(answers)
    with files.staged(final) as local, local.open("wb") as file:
        about = f"software: {software}\r\nformat: WARC File Format 1.1\r\n".encode()
        file.write(
            _record(
                "warcinfo",
                _date(answers[0]) if answers else _iso(datetime.now(UTC)),
                {
                    "WARC-Filename": files.path(final).name,
                    "Content-Type": "application/warc-fields",
                },
                about,
            )
        )
        for answer in answers:
            file.write(response(answer))


def response(answer: Answer) -> bytes:
    """Returns an answer as a response record, a whole gzip member."""
    digest = base64.b32encode(hashlib.sha1(answer.body).digest()).decode()
    fields = {
        "WARC-Target-URI": answer.url,
        "WARC-Payload-Digest": f"sha1:{digest}",
        "Content-Type": "application/http; msgtype=response",
    }
    return _record("response", _date(answer), fields, _http_block(answer))


def _http_block(answer: Answer) -> bytes:
    known = {status.value: status.phrase for status in HTTPStatus}
    lines = [f"HTTP/1.1 {answer.status} {known.get(answer.status, 'Unknown')}"]
    skipped = _HOP_HEADERS | {"content-length"}
    lines += [f"{k}: {v}" for k, v in answer.headers if k.lower() not in skipped]
    lines += [f"Content-Length: {len(answer.body)}", "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + answer.body


def _record(kind: str, date: str, fields: Mapping[str, str], block: bytes) -> bytes:
    content = hashlib.sha256(repr(sorted(fields.items())).encode() + block).hexdigest()
    lines = [
        "WARC/1.1",
        f"WARC-Type: {kind}",
        f"WARC-Record-ID: <urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}>",
        f"WARC-Date: {date}",
        *(f"{name}: {value}" for name, value in fields.items()),
        f"Content-Length: {len(block)}",
        "",
        "",
    ]
    data = "\r\n".join(lines).encode() + block + b"\r\n\r\n"
    return gzip.compress(data, mtime=0)


def _date(answer: Answer) -> str:
    """The answer's own Date, so that a site that stands still is crawled alike."""
    try:
        return _iso(parsedate_to_datetime(answer.header("Date")))
    except ValueError:  # none, or none that can be read
        return _iso(datetime.now(UTC))


def _iso(date: datetime) -> str:
    return date.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
