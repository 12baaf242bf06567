"""Reads tars of image-text samples as webdataset, img2dataset and open_clip use them.

Files whose names agree up to the first dot are a sample: an image, texts (.txt) and
facts (.json). The images stay where they are until the download stage takes them.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from data_prep.sources import pairs
from data_prep.sources.spec import Bodies, Kind, Reading, Spec
from data_prep.sources.texts import Row
from metaclip_jax import files
from metaclip_jax.data import untrusted_tar

IMAGES = ("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp")

_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.S)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
MAX_TEXT = 1 << 24  # bytes of a text or of facts; no sample of ours has more
_Member = tuple[str, tarfile.TarInfo]  # extension, member


@pairs.reader
def read(path: str, spec: Spec, reading: Reading) -> Iterator[list[Row]]:
    """Yields the CANDIDATES of a tar.

    A text column is an extension of the tar's files (txt) or else a key of its .json.
    A truncated or damaged tar is lost from there on (damaged_tar, or empty_file). Lost
    samples: not_a_sample (a name without extension), no_image, repeated_name (also of
    further images of a sample), bad_facts (malformed .json).

    Raises OSError where the file cannot be opened or the storage fails.
    """
    if not files.size(path):
        reading.lost_files["empty_file"] += 1
        return
    with files.local_copy(path) as local, local.open("rb") as file:
        for key, members in _samples(file, files.size(local), reading):
            fields = dict(members)
            found = [extension for extension in IMAGES if extension in fields]
            if not found or len(fields) < len(members):
                reason = "repeated_name" if found else "no_image"
                reading.lost_items[reason] += 1
                continue
            if len(found) > 1:  # a.jpg beside a.png
                reading.lost_items["repeated_name"] += len(found) - 1
            facts = _facts(file, fields)
            if facts is None:
                reading.lost_items["bad_facts"] += 1
                continue
            image = fields[found[0]]
            yield pairs.rows(
                _chosen(file, fields, facts, spec.columns),
                spec,
                reading,
                name=f"{spec.name_of(path)}/{key}.{found[0]}",
                stored_at=pairs.reference(path, f"{image.offset_data}+{image.size}"),
            )


def check(path: str, spec: Spec) -> None:
    """Raises ValueError for a compressed tar, or a first sample without texts."""
    with files.path(path).open("rb") as file:
        start = file.read(max(map(len, _COMPRESSED)))
        for mark, name in _COMPRESSED.items():
            if start.startswith(mark):
                raise ValueError(
                    f"config.source.paths: wanted tars that are not compressed, since "
                    f"images are read by their places in them, got {name} in {path}; "
                    "decompress them"
                )
        file.seek(0)
        for _, members in _samples(file, files.size(path), Reading()):
            fields = dict(members)
            facts = _facts(file, fields) or {}
            if not _chosen(file, fields, facts, spec.text_columns):
                raise ValueError(
                    f"config.source.text_columns={spec.text_columns}: wanted one of "
                    f"the files or facts of a sample of {path}, which are "
                    f"{list(dict.fromkeys([*fields, *facts]))}"
                )
            return


def images(path: str, positions: Sequence[str], spec: Spec) -> Bodies:
    """Yields images of a tar. Raises OSError where the storage fails."""
    with files.path(path).open("rb") as file:
        for position in positions:
            offset, size = map(int, position.split("+"))
            if size > spec.max_image_bytes:
                yield "too_large", b""
                continue
            file.seek(offset)
            body = file.read(size)
            yield (pairs.OK, body) if len(body) == size else ("damaged_file", b"")


def _samples(
    file: BinaryIO, size: int, reading: Reading
) -> Iterator[tuple[str, list[_Member]]]:
    """Yields (key, members) of each sample, whose members are adjacent in a tar."""
    key, members = "", list[_Member]()
    try:
        for member in untrusted_tar.members(file, size):
            name = _NAME.fullmatch(member.name)
            if name is None:
                reading.lost_items["not_a_sample"] += 1
                continue
            if name[1] != key and members:
                yield key, members
                members = []
            key = name[1]
            members.append((name[2].lower(), member))
    except untrusted_tar.NoEndError:
        reading.lost_files["damaged_tar"] += 1
    except tarfile.TarError:
        reading.lost_files["damaged_tar"] += 1
        return  # the last sample may lack its texts
    if members:
        yield key, members


def _facts(file: BinaryIO, fields: Mapping[str, tarfile.TarInfo]) -> dict | None:
    if "json" not in fields:
        return {}
    try:
        found = json.loads(_content(file, fields["json"]))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _chosen(
    file: BinaryIO,
    fields: Mapping[str, tarfile.TarInfo],
    facts: Mapping[str, Any],
    names: Sequence[str],
) -> dict[str, Any]:
    """Returns files and facts of a sample by name; a file comes before a fact."""
    return {name: facts[name] for name in names if name in facts} | {
        name: _content(file, fields[name.lower()])
        for name in names
        if name.lower() in fields
    }


def _content(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(min(member.size, MAX_TEXT))


KIND = Kind(read, "samples", ("tar",), "*.tar", ("txt",), images, check)
