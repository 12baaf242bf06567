"""Metadata on disk: ordered lists of entries; an entry's id is its position.

A folder holds one Parquet file per metadata (`en.parquet`: entry, source, score), a
page and a manifest with their fingerprints. JSON as MetaCLIP has it is read and written
too: a list of strings, an object of such lists by code, or a folder of LANG.json.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from metaclip_jax import files
from metaclip_jax.data import untrusted_parquet

SCHEMA = pa.schema(
    [("entry", pa.string()), ("source", pa.string()), ("score", pa.float64())]
)
# A JSON list has no language and no sources.
JSON_CODE = "en"
JSON_SOURCE = "json"

_CODE = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
_SURROGATE = re.compile("[\ud800-\udfff]")
# What is wrong with an entry, and the cure.
_FAULTS: tuple[tuple[Callable[[Any], Any], str, str], ...] = (
    (lambda entry: not isinstance(entry, str), "are not strings", ""),
    (_SURROGATE.search, "have lone surrogates, which no text has", "; remove them"),
    (
        lambda entry: not entry.strip(),
        "are empty",
        "; remove them, since an empty entry matches all",
    ),
)
_SHOWN = 5  # offending entries named in an error
_SHOWN_CHARS = 200  # of each


@dataclass(frozen=True, eq=False)
class Metadata:
    """The entries that texts of one language are matched with.

    `code` names it ("en", "zh", "other"). `sources` and `scores` have each entry's
    source (unigram, bigram, title, ...) and its score there (count, PMI, views). Raises
    ValueError if entries are missing, empty or repeated.
    """

    code: str
    entries: tuple[str, ...]
    sources: tuple[str, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.code):
            raise ValueError(
                "wanted a metadata code such as 'en' or 'zh_yue' (lower-case letters "
                f"and digits, parts joined by - or _), got {self.code!r}"
            )
        lengths = {len(self.entries), len(self.sources), len(self.scores)}
        if len(lengths) != 1:
            raise ValueError(
                f"metadata {self.code!r}: wanted {len(self.entries)} sources and "
                f"scores, one per entry, got {len(self.sources)} and {len(self.scores)}"
            )
        _check_entries(self.entries, self.code)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of the ordered entries, which identifies what ids mean."""
        digest = hashlib.sha256()
        for entry in self.entries:
            data = entry.encode()
            # With lengths, since ("ab", "c") and ("a", "bc") differ.
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.hexdigest()


def every_text() -> dict[str, Metadata]:
    """Returns metadata for curation without matching: one entry that all texts match.

    Its code, "other", serves all languages.
    """
    return {"other": Metadata("other", ("*",), ("every_text",), (0.0,))}


def write(folder: epath.PathLike, metadata: Metadata) -> dict[str, Any]:
    """Writes CODE.parquet; returns what the manifest, under "metadata", says of it."""
    columns = [metadata.entries, metadata.sources, metadata.scores]
    with files.staged(files.path(folder) / f"{metadata.code}.parquet") as local:
        table = pa.table(columns, schema=SCHEMA)
        pq.write_table(table, local, compression="zstd")
    return {**identity(metadata), "sources": dict(Counter(metadata.sources))}


def save_json(output: epath.PathLike, metadata: Mapping[str, Metadata]) -> None:
    """Writes entries as JSON, as MetaCLIP has them; sources and scores are lost.

    Args:
      output: FILE.json, for a list if there is English only, else an object of lists by
        code; or a folder, for one CODE.json each and a manifest.
      metadata: by code.

    Raises:
      ValueError: the folder is another output.
    """
    if str(output).endswith(".json"):
        lists = {code: metadata[code].entries for code in sorted(metadata)}
        whole = lists[JSON_CODE] if list(lists) == [JSON_CODE] else lists
        files.write_bytes(output, json.dumps(whole).encode())
        return
    identities = {code: identity(one) for code, one in metadata.items()}
    inputs = {"form": "json", "metadata": identities}
    if files.finished(output, inputs) is not None:
        return
    files.claim(output, inputs)
    for code in sorted(metadata):
        content = json.dumps(metadata[code].entries).encode()
        files.write_bytes(files.path(output) / f"{code}.json", content)
    files.write_manifest(output, inputs=inputs, metadata=identities)


def identity(metadata: Metadata) -> dict[str, Any]:
    """Returns the number of entries and the fingerprint, as in manifests."""
    return {"entries": len(metadata.entries), "fingerprint": metadata.fingerprint}


def load(source: epath.PathLike) -> dict[str, Metadata]:
    """Reads a metadata folder, or JSON as MetaCLIP has it; a JSON list is {"en": ...}.

    Raises FileNotFoundError if it does not exist; ValueError if a file is damaged,
    differs from the manifest, or has empty or repeated entries.
    """
    place = files.path(source)
    if not place.exists():
        raise FileNotFoundError(
            f"wanted metadata at {source}, got no file or folder; correct the path, "
            "or build it with python -m data_prep.build_metadata"
        )
    if not place.is_dir():
        return _from_json(place)
    manifest = place / files.MANIFEST
    if not manifest.exists():
        if lists := _json_lists(place):
            return lists
        raise FileNotFoundError(
            f"wanted finished metadata, got {source} without {files.MANIFEST}; "
            "correct the path, or run python -m data_prep.build_metadata again"
        )
    with files.naming(manifest, "the manifest of metadata"):
        described = files.read_json(manifest).get("metadata")
        if not isinstance(described, dict) or not described:
            raise ValueError("it has no metadata; it may belong to another folder")
        fingerprints = {code: str(described[code]["fingerprint"]) for code in described}
    return {
        code: _read(place, code, fingerprints[code]) for code in sorted(fingerprints)
    }


def _read(folder: epath.Path, code: str, fingerprint: str) -> Metadata:
    file = folder / f"{code}.json"
    if file.exists():
        metadata = _from_list(files.read_json(file), code, file)
    else:
        file = folder / f"{code}.parquet"
        with files.naming(file, f"Parquet with the columns {SCHEMA.names}"):
            columns = _columns(file)
            metadata = Metadata(
                code,
                tuple(columns["entry"]),
                tuple(columns["source"]),
                tuple(columns["score"]),
            )
    if metadata.fingerprint != fingerprint:
        raise ValueError(
            f"{file}: wanted fingerprint {fingerprint}, as in its manifest, got "
            f"{metadata.fingerprint}; the file was changed, so build the metadata again"
        )
    return metadata


def _columns(file: epath.Path) -> dict[str, list[Any]]:
    """Reads the columns of a file that may be a stranger's.

    Repeats of a value in a batch share one object, so that a small file cannot fill the
    memory.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    with files.local_copy(file) as local:
        with files.open_parquet(local) as parquet:
            missing = set(SCHEMA.names) - set(parquet.schema_arrow.names)
        if missing:
            raise ValueError(f"it lacks {sorted(missing)}")
        for _, batch in untrusted_parquet.batches(local, SCHEMA.names):
            for name, values in columns.items():
                values += untrusted_parquet.to_python(batch[name])
    return columns


def _from_json(file: epath.Path) -> dict[str, Metadata]:
    content = files.read_json(file)
    if not isinstance(content, dict):
        return {JSON_CODE: _from_list(content, JSON_CODE, file)}
    with files.naming(file, "a JSON list of strings, or an object of them by code"):
        if not content:
            raise ValueError("it has no lists")
    return {code: _from_list(content[code], code, file) for code in sorted(content)}


def _json_lists(folder: epath.Path) -> dict[str, Metadata]:
    """Returns the lists of a folder with only LANG.json files, {} for another one."""
    names = sorted(e.name for e in folder.iterdir() if not e.name.startswith("."))
    if not all(name.endswith(".json") for name in names) or files.CLAIM in names:
        return {}
    return {
        (code := name.removesuffix(".json")): _from_list(
            files.read_json(folder / name), code, folder / name
        )
        for name in names
    }


def _from_list(entries: Any, code: str, file: epath.Path) -> Metadata:
    with files.naming(file, "a JSON list of strings"):
        if not isinstance(entries, list):
            raise ValueError(f"it is a {type(entries).__name__}")
        n = len(entries)
        return Metadata(code, tuple(entries), (JSON_SOURCE,) * n, (math.nan,) * n)


def _check_entries(entries: Sequence[Any], code: str) -> None:
    if not entries:
        raise ValueError(f"metadata {code!r}: wanted entries, got none")
    for is_wrong, what, cure in _FAULTS:
        if wrong := [i for i, entry in enumerate(entries) if is_wrong(entry)]:
            raise ValueError(
                f"metadata {code!r}: {len(wrong)} entries {what}: "
                f"{_named(entries, wrong)}{cure}"
            )
    if len(set(entries)) < len(entries):
        first: dict[str, int] = {}
        repeats = [
            i for i, entry in enumerate(entries) if first.setdefault(entry, i) != i
        ]
        named = ", ".join(
            f"{_short(entries[i])} at {first[entries[i]]} and {i}"
            for i in repeats[:_SHOWN]
        )
        raise ValueError(
            f"metadata {code!r}: {len(repeats)} entries are repeated: {named}"
            f"{' ...' if len(repeats) > _SHOWN else ''}; keep one of each, since an "
            "entry's id is its position"
        )


def _named(entries: Sequence[Any], positions: Sequence[int]) -> str:
    shown = ", ".join(f"{_short(entries[i])} at {i}" for i in positions[:_SHOWN])
    return shown + (" ..." if len(positions) > _SHOWN else "")


def _short(entry: Any) -> str:
    text = repr(entry[:_SHOWN_CHARS] if isinstance(entry, str) else entry)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
