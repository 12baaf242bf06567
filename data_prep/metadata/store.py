"""Metadata on disk: ordered lists of entries, an entry's id is its position.

A folder holds one Parquet file per metadata (`en.parquet`: entry, source, score) and a
manifest with their fingerprints. MetaCLIP's own metadata.json, a JSON list of strings,
loads as it is.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from metaclip_jax import files

SCHEMA = pa.schema(
    [("entry", pa.string()), ("source", pa.string()), ("score", pa.float64())]
)
# A JSON list says neither what language it is in nor where its entries come from.
JSON_CODE = "en"
JSON_SOURCE = "json"

_CODE = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
_SHOWN = 5  # offending entries named in an error


@dataclass(frozen=True, eq=False)
class Metadata:
    """The entries that texts of one language are matched with.

    `code` names it ("en", "zh", "other"). `sources` and `scores` say for each entry
    where it comes from (unigram, bigram, title, ...) and how it ranked there (count,
    PMI, views). Raises ValueError where entries are missing, empty or repeated.
    """

    code: str
    entries: tuple[str, ...]
    sources: tuple[str, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.code):
            raise ValueError(
                f"metadata code {self.code!r} should be like 'en' or 'zh_yue': "
                "lower-case letters and digits, parts joined by - or _"
            )
        lengths = {len(self.entries), len(self.sources), len(self.scores)}
        if len(lengths) != 1:
            raise ValueError(
                f"metadata {self.code!r}: {len(self.entries)} entries need as many "
                f"sources and scores, got {len(self.sources)} and {len(self.scores)}"
            )
        _check_entries(self.entries, self.code)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of the entries in their order: what entry ids mean."""
        digest = hashlib.sha256()
        for entry in self.entries:
            data = entry.encode()
            # The length keeps ("ab", "c") and ("a", "bc") apart.
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.hexdigest()

    @property
    def source_counts(self) -> dict[str, int]:
        """How many entries come from each source."""
        return dict(Counter(self.sources))


def every_text() -> dict[str, Metadata]:
    """Returns what stands for metadata where none is matched: one entry, all texts.

    Its code is that of all languages.
    """
    return {"other": Metadata("other", ("*",), ("every_text",), (0.0,))}


def save(
    folder: epath.PathLike,
    metadata: Mapping[str, Metadata],
    *,
    inputs: Mapping[str, Any],
    **facts: Any,
) -> None:
    """Writes one Parquet file per metadata, then the manifest with `inputs` and facts.

    Args:
      folder: made where it is missing.
      metadata: by code.
      inputs: what the metadata is made from, any JSON object.
      **facts: more for the manifest, such as counts of what was read.
    """
    for code in sorted(metadata):
        one = metadata[code]
        table = pa.table([one.entries, one.sources, one.scores], schema=SCHEMA)
        with files.staged(files.path(folder) / f"{code}.parquet") as local:
            pq.write_table(table, local, compression="zstd")
    described = {
        code: {
            "entries": len(one.entries),
            "fingerprint": one.fingerprint,
            "sources": one.source_counts,
        }
        for code, one in metadata.items()
    }
    files.write_manifest(folder, inputs=inputs, metadata=described, **facts)


def load(source: epath.PathLike) -> dict[str, Metadata]:
    """Reads a metadata folder, or a JSON list of entries as {"en": ...}.

    Raises FileNotFoundError where there is nothing, ValueError where a file is broken,
    is not the one that the manifest describes, or has empty or repeated entries.
    """
    place = files.path(source)
    if not place.exists():
        raise FileNotFoundError(
            f"no metadata at {source}; build it with python -m data_prep.build_metadata"
        )
    if not place.is_dir():
        return {JSON_CODE: _from_json(place)}
    manifest = place / files.MANIFEST
    if not manifest.exists():
        raise FileNotFoundError(
            f"{source} has no {files.MANIFEST}: it is no metadata folder, or its "
            "making was cut off; run python -m data_prep.build_metadata again"
        )
    with files.naming(manifest, "the manifest of metadata"):
        described = files.read_json(manifest).get("metadata")
        if not isinstance(described, dict) or not described:
            raise ValueError("it describes no metadata; is it another folder's?")
        fingerprints = {code: str(described[code]["fingerprint"]) for code in described}
    return {
        code: _read(place / f"{code}.parquet", code, fingerprints[code])
        for code in sorted(fingerprints)
    }


def _read(file: epath.Path, code: str, fingerprint: str) -> Metadata:
    with files.naming(file, f"Parquet with the columns {SCHEMA.names}"):
        columns = files.read_parquet(file, SCHEMA.names).to_pydict()
        metadata = Metadata(
            code,
            tuple(columns["entry"]),
            tuple(columns["source"]),
            tuple(columns["score"]),
        )
    if metadata.fingerprint != fingerprint:
        raise ValueError(
            f"{file} has fingerprint {metadata.fingerprint}, its manifest says "
            f"{fingerprint}: the file was changed; build the metadata again"
        )
    return metadata


def _from_json(file: epath.Path) -> Metadata:
    entries = files.read_json(file)
    with files.naming(file, "a JSON list of strings"):
        if not isinstance(entries, list):
            raise ValueError(f"it is a {type(entries).__name__}")
        n = len(entries)
        return Metadata(JSON_CODE, tuple(entries), (JSON_SOURCE,) * n, (math.nan,) * n)


def _check_entries(entries: Sequence[Any], code: str) -> None:
    if not entries:
        raise ValueError(f"metadata {code!r} has no entries")
    strange = [i for i, entry in enumerate(entries) if not isinstance(entry, str)]
    if strange:
        raise ValueError(
            f"metadata {code!r}: {len(strange)} entries are no strings: "
            f"{_named(entries, strange)}"
        )
    empty = [i for i, entry in enumerate(entries) if not entry.strip()]
    if empty:
        raise ValueError(
            f"metadata {code!r}: {len(empty)} entries are empty: "
            f"{_named(entries, empty)}. Remove them: an empty entry matches every text"
        )
    if len(set(entries)) < len(entries):
        first: dict[str, int] = {}
        repeats = [
            i for i, entry in enumerate(entries) if first.setdefault(entry, i) != i
        ]
        named = ", ".join(
            f"{entries[i]!r} at {first[entries[i]]} and {i}" for i in repeats[:_SHOWN]
        )
        raise ValueError(
            f"metadata {code!r}: {len(repeats)} entries are repeated: {named}"
            f"{' ...' if len(repeats) > _SHOWN else ''}. Keep one of each: an entry's "
            "id is its position"
        )


def _named(entries: Sequence[Any], positions: Sequence[int]) -> str:
    shown = ", ".join(f"{entries[i]!r} at {i}" for i in positions[:_SHOWN])
    return shown + (" ..." if len(positions) > _SHOWN else "")
