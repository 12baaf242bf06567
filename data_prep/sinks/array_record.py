"""Writes datasets: shards of records, their sidecars, and the folder around them.

Equal input gives equal bytes. A file gets its final name only after it was read back
and its records counted. The folder's manifest is written last.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from google.protobuf.json_format import MessageToDict

from metaclip_jax import files
from metaclip_jax.data import record_files, records

COUNTS = "counts.parquet"

# One record per group, since training reads records in random order.
_WRITER_OPTIONS = "group_size:1,uncompressed"  # images are compressed as they are
_ROWS_PER_BATCH = 1024


def write_shard(
    final_path: str, shard_records: Iterable[records.Record]
) -> dict[str, Any]:
    """Writes one file shard and its sidecar, in the order of the records.

    Args:
      final_path: where the shard goes, named by `records.shard_name`; local or gs://.
      shard_records: its records, an iterable that is not collected in memory.

    Returns:
      Facts for `write_dataset`: `file` (name), `count` (records), `texts`, `bytes` and
      `sha256` of the file, and under `entries` `file`, `bytes` and `sha256` of the
      sidecar.

    Raises:
      OSError: the file cannot be read back completely; no file got its final name.
    """
    entries_path = records.entries_path(final_path)
    with files.staged(entries_path) as sidecar, files.staged(final_path) as shard:
        count, texts = _write(shard, sidecar, shard_records)
        read_back = record_files.count_records(str(shard))
        if read_back != count:
            raise OSError(
                f"{final_path}: wanted to read back {count} records, got {read_back}; "
                "check the disk"
            )
        return _facts(final_path, shard, sidecar, count=count, texts=texts)


def read_facts(final_path: str, *, count: int, texts: int) -> dict[str, Any] | None:
    """Returns what `write_shard` returned for an existing shard, else None.

    Also None where its records are not `count`, or damaged.
    """
    try:
        with (
            files.local_copy(records.entries_path(final_path)) as sidecar,
            files.local_copy(final_path) as shard,
        ):
            with pa.OSFile(str(sidecar)) as file:
                rows = pa.ipc.open_file(file).read_all().num_rows
            whole = record_files.count_whole(str(shard))
            if not rows == whole == count:
                return None
            return _facts(final_path, shard, sidecar, count=count, texts=texts)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def table_name(table: str, index: int, total: int) -> str:
    """Returns the name of a partition's Parquet file beside the shards.

    `table` is "urls", "scores" or "faces" (schema.URLS, SCORES, FACES).
    """
    return f"{table}-{index:05d}-of-{total:05d}.parquet"


def remove_shard(final_path: str) -> None:
    """Removes a shard and its sidecar, if they exist."""
    for path in (records.entries_path(final_path), final_path):
        files.path(path).unlink(missing_ok=True)


def write_dataset(
    folder: str,
    *,
    name: str,
    shard_facts: Sequence[Mapping[str, Any]],
    data_card: Mapping[str, Any],
    counts: pa.Table | None,
    inputs: Mapping[str, Any],
) -> None:
    """Completes a folder of shards to a dataset that `records` and TFDS can open.

    Args:
      folder: already has the files of `shard_facts`; files of other shards of this
        dataset (from a killed run) are removed.
      name: dataset name in lower case, for TFDS, such as "quickstart".
      shard_facts: what `write_shard` returned, in the order of the shards.
      data_card: what the dataset is and how it was made, for data_card.json.
      counts: entry counts for counts.parquet, or None.
      inputs: what decides the dataset, for `files.finished`.

    Raises:
      ValueError: a shard is missing, misnamed or not the one that was written.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(
            "wanted a dataset name of lower-case letters, digits and _ that starts "
            f"with a letter, which TFDS needs, got {name!r}"
        )
    root = files.path(folder)
    _check_shards(root, name, shard_facts)
    # The file that FeaturesDict.save_config writes, but atomically.
    files.write_json(
        root / "features.json", MessageToDict(records.features().to_proto())
    )
    files.write_json(root / records.DATASET_INFO, _dataset_info(name, shard_facts))
    files.write_json(root / records.DATA_CARD, data_card)
    if counts is not None:
        with files.staged(root / COUNTS) as local:
            pq.write_table(counts, local)
    files.write_manifest(
        folder,
        inputs=inputs,
        name=name,
        records=sum(facts["count"] for facts in shard_facts),
        shards=list(shard_facts),
    )


def _write(
    shard: Path, sidecar: Path, shard_records: Iterable[records.Record]
) -> tuple[int, int]:
    """Writes the two local files; returns the numbers of records and texts."""
    count = texts = 0
    rows: list[dict[str, Any]] = []
    writer = ArrayRecordWriter(str(shard), _WRITER_OPTIONS)
    with pa.ipc.new_file(sidecar, records.ENTRIES) as sidecar_writer:
        for record in shard_records:
            writer.write(records.encode(record))
            count += 1
            texts += len(record.texts)
            rows.append(entries_row(record))
            if len(rows) == _ROWS_PER_BATCH:
                sidecar_writer.write(_entries_batch(rows))
                rows = []
        sidecar_writer.write(_entries_batch(rows))
    writer.close()
    return count, texts


def entries_row(record: records.Record) -> dict[str, Any]:
    """Returns a record's row of the sidecar (records.ENTRIES)."""
    offsets = record.entry_offsets.tolist()
    ids = record.entry_ids.tolist()
    return {
        "image_id": record.image_id,
        "text_keys": [records.text_key(record.image_id, t) for t in record.texts],
        "metadata": list(record.metadata),
        "entry_ids": [
            ids[start:end] for start, end in zip(offsets, offsets[1:], strict=False)
        ],
        "text_sources": list(record.text_sources),
    }


def _entries_batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=records.ENTRIES)


def _facts(
    final_path: str, shard: Path, sidecar: Path, *, count: int, texts: int
) -> dict[str, Any]:
    entries = _file_facts(records.entries_path(final_path), sidecar)
    counts = {"count": count, "texts": texts, "entries": entries}
    return _file_facts(final_path, shard) | counts


def _file_facts(final_path: str, local: Path) -> dict[str, Any]:
    with local.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": final_path.rpartition("/")[2],
        "bytes": files.size(local),
        "sha256": digest,
    }


def _check_shards(
    root: epath.Path, name: str, shard_facts: Sequence[Mapping[str, Any]]
) -> None:
    """Checks that the folder has exactly the shards of `shard_facts`."""
    if not shard_facts:
        raise ValueError(
            f"wanted at least one shard for {root}, got none; write an empty one"
        )
    for index, facts in enumerate(shard_facts):
        wanted = records.shard_name(name, index, len(shard_facts))
        if facts["file"] != wanted:
            raise ValueError(
                f"shard {index} of {root}: wanted {wanted}, got {facts['file']}; pass "
                "the facts in the order of the shards"
            )
        for part in (facts, facts["entries"]):
            file = root / part["file"]
            if not file.exists() or files.size(file) != part["bytes"]:
                raise ValueError(
                    f"wanted {file} with {part['bytes']} bytes, got another or no "
                    "file; write the shard again"
                )
    ours = {part["file"] for facts in shard_facts for part in (facts, facts["entries"])}
    for pattern in (f"{name}-train.array_record-*", f"{name}-train.entries-*"):
        for file in root.glob(pattern):
            if file.name not in ours:
                file.unlink()


def _dataset_info(
    name: str, shard_facts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns TFDS's DatasetInfo message in its JSON form (64-bit numbers as text)."""
    return {
        "name": name,
        "version": "1.0.0",
        "description": "Images with their texts, curated by MetaCLIP's recipe.",
        "fileFormat": "array_record",
        "splits": [
            {
                "name": "train",
                "shardLengths": [str(facts["count"]) for facts in shard_facts],
                "numBytes": str(sum(facts["bytes"] for facts in shard_facts)),
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        ],
    }
