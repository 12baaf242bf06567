"""Writes WARC 1.1 files with fastwarc; equal answers give equal bytes."""

import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from etils import epath
from fastwarc.stream_io import GzipWriter
from fastwarc.warc import WarcRecord, WarcRecordType

from metaclip_jax import files

# Hop-by-hop headers: the body is stored decoded from its transfer coding.
_HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding"})


@dataclass(frozen=True)
class Answer:
    """The answer to one URL: status code, headers, whole body.

    `status` 0 means that there is no answer; `reason` says why.
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
    """Writes a .warc.gz file: a warcinfo record, then one response per answer.

    The warcinfo has the first answer's date. Each record is a gzip member.
    """
    answers = list(answers)
    about = f"software: {software}\r\nformat: WARC File Format 1.1\r\n".encode()
    date = _date(answers[0]) if answers else datetime.now(UTC)
    name = files.path(final).name
    info = _record(WarcRecordType.warcinfo, date, about, {"WARC-Filename": name})
    info.headers["Content-Type"] = "application/warc-fields"
    with files.staged(final) as local, local.open("wb") as file:
        stream = GzipWriter(file)
        info.write(stream, checksum_data=True)
        stream.finish()
        for answer in answers:
            address = {"WARC-Target-URI": answer.url}
            record = _record(
                WarcRecordType.response, _date(answer), _http_block(answer), address
            )
            record.is_http = True  # which sets its content type
            digest = hashlib.sha1(answer.body).digest()
            record.write(stream, checksum_data=True, payload_digest=digest)
            stream.finish()


def _http_block(answer: Answer) -> bytes:
    known = {status.value: status.phrase for status in HTTPStatus}
    lines = [f"HTTP/1.1 {answer.status} {known.get(answer.status, 'Unknown')}"]
    skipped = _HOP_HEADERS | {"content-length"}
    lines += [f"{k}: {v}" for k, v in answer.headers if k.lower() not in skipped]
    lines += [f"Content-Length: {len(answer.body)}", "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + answer.body


def _record(
    kind: WarcRecordType, date: datetime, block: bytes, fields: dict[str, str]
) -> WarcRecord:
    """Returns a record whose id is a hash of its content, so that runs agree."""
    content = hashlib.sha256(repr(sorted(fields.items())).encode() + block).hexdigest()
    record = WarcRecord()
    urn = f"uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}"
    record.init_headers(kind, urn.encode())
    record.record_date = date
    for name, value in fields.items():
        record.headers[name] = value
    record.set_bytes_content(block)
    return record


def _date(answer: Answer) -> datetime:
    """Returns the answer's Date, so that two crawls of an unchanged site are equal."""
    try:
        return parsedate_to_datetime(answer.header("Date"))
    except ValueError:  # missing or malformed
        return datetime.now(UTC)
