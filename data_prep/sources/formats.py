"""Recognizes the format of a file by its first bytes, to refuse a wrong source kind."""

import re

from data_prep.sources import compressed, remote

_LOOKED_AT = 1 << 16  # bytes, decompressed
_STARTS = {
    b"PAR1": "Parquet",
    b"PK\x03\x04": "zip",
    b"\x83\xaf\x70\xd1\x0d\x88\x4a\x3f": "ArrayRecord",
    b"filedesc:": "WARC",  # the older ARC, which the same reader reads
}
_TEXT_TABLE = re.compile(r"\.([ct]sv|jsonl|ndjson)(\.gz|\.bz2|\.zst)?$")
_RECORD = re.compile(rb"^WARC-Type: *(\w+)", re.M | re.I)


def of(path: str, *, user_agent: str = "") -> str:
    """Returns the format of a file, "" where nothing identifies it.

    One of: WARC, WAT, WET, Parquet, tar, ArrayRecord, zip, text table. gzip and bz2
    files are looked into; a text table (CSV, TSV, JSON lines) is known by its name.

    Raises ValueError and OSError as `remote.open_file` does.
    """
    with remote.open_file(path, user_agent=user_agent) as file:
        start = compressed.head(file, _LOOKED_AT)
    if _TEXT_TABLE.search(path.lower()):
        return "text table" if start else ""
    for mark, name in _STARTS.items():
        if start.startswith(mark):
            return name
    if start[257:262] == b"ustar":
        return "tar"
    return _of_archive(start) if start.startswith(b"WARC/") else ""


def _of_archive(start: bytes) -> str:
    """Tells Common Crawl's three WARC formats apart by the first record of content."""
    kinds = (kind.lower() for kind in _RECORD.findall(start))
    first = next((kind for kind in kinds if kind != b"warcinfo"), b"")
    if first == b"metadata" and b"application/json" in start:
        return "WAT"
    return "WET" if first == b"conversion" else "WARC" if first else ""
