"""Checks a dataset at any time, and names what is wrong.

    python -m data_prep.verify DATASET

Checks that the manifest's files exist with their sizes and checksums; that each record
can be read, and its image has its checksum and decodes to its size; that records and
sidecars agree; that no image occurs twice; and that all counts agree with the
manifest, dataset_info.json, the data card and counts.parquet. Ends with status 1 if
anything is wrong.
"""

import array
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.compute as pc
from tqdm import tqdm

from data_prep.sinks import array_record as sink
from metaclip_jax import files
from metaclip_jax.cli import command
from metaclip_jax.data import decoding, record_files, records
from metaclip_jax.data.image_tags import UndecodableImage

_SHOWN = 20  # faults of one file that are named
_BATCH = 256  # records read at a time


def main(argv: Sequence[str]) -> None:
    """Prints each fault, and the number of records checked."""
    folder = command.only_argument(argv, "dataset folder")
    count = 0
    for fault in faults(folder):
        count += 1
        print(fault)
    if count:
        raise ValueError(
            f"{folder} has {count} fault{'s'[: count > 1]}; restore the files from a "
            "copy, or curate the dataset again"
        )
    print(f"{folder} is as it was written")


def faults(folder: str) -> Iterator[str]:
    """Yields the faults of a dataset, one line each.

    Raises:
      FileNotFoundError: the folder is not a finished dataset.
      ValueError: its manifest, dataset_info.json or data card cannot be read.
    """
    dataset = records.open_dataset(folder, verify=False)
    shards = _shards(folder)
    lengths = [shard["count"] for shard in shards]
    if list(dataset.shard_lengths) != lengths:
        yield (
            f"{records.DATASET_INFO}: wanted {lengths} records in the files, got "
            f"{list(dataset.shard_lengths)}"
        )
    if len(dataset.shards) != len(shards):
        return  # it is not known which files there should be
    seen = _Seen()
    with ThreadPoolExecutor() as threads:
        for index, shard in enumerate(tqdm(shards, desc="verify", unit="file")):
            each_fault = _shard_faults(dataset, index, shard, seen, threads)
            # To the last one, since this also counts the records in `seen`.
            for shown, fault in enumerate(each_fault):
                if shown < _SHOWN:
                    yield f"{shard['file']}: {fault}"
                elif shown == _SHOWN:
                    yield f"{shard['file']}: and more"
    for name, got in (("records", seen.records), ("texts", seen.texts)):
        wanted = dataset.data_card.get(name)
        if wanted != got:
            yield f"{records.DATA_CARD}: says {wanted} {name}, but there are {got}"
    for image_id in seen.repeated_images()[:_SHOWN]:
        yield f"the image {image_id}... is in the dataset twice"
    yield from _count_faults(folder, seen)
    yield from _url_faults(folder, lengths)


def _shards(folder: str) -> list[dict[str, Any]]:
    """Returns what the manifest says of each file, of the right types."""
    path = files.path(folder) / files.MANIFEST
    shards = records.read_shards(folder)
    with files.naming(path, "the manifest of a dataset"):
        for shard in shards:
            numbers = (shard["count"], shard["texts"])
            parts = (shard, shard["entries"])
            numbers += tuple(part["bytes"] for part in parts)
            words = [part[key] for part in parts for key in ("file", "sha256")]
            if not all(isinstance(n, int) and n >= 0 for n in numbers):
                raise ValueError(f"wanted counts, got {numbers}")
            if not all(isinstance(word, str) and "\0" not in word for word in words):
                raise ValueError(f"wanted names and checksums, got {words}")
    return shards


class _Seen:
    """Counts over all records."""

    def __init__(self) -> None:
        self.records = self.texts = 0
        self.entries: Counter[tuple[str, int]] = Counter()
        self._images = array.array("Q")  # 8 bytes an image: there may be billions

    def add(self, record: records.Record) -> None:
        """Adds a record to the counts."""
        self.records += 1
        self.texts += len(record.texts)
        offsets = record.entry_offsets
        for text, code in enumerate(record.metadata):
            ids = record.entry_ids[offsets[text] : offsets[text + 1]].tolist()
            self.entries.update((code, entry) for entry in ids)
        self._images.append(int(record.image_id[:16], 16))

    def repeated_images(self) -> list[str]:
        """Returns the beginnings of image ids that more than one record has."""
        ids = np.sort(np.frombuffer(self._images, np.uint64))
        again = np.unique(ids[1:][ids[1:] == ids[:-1]])
        return [f"{start:016x}" for start in again.tolist()]


def _shard_faults(
    dataset: records.Dataset,
    index: int,
    shard: Mapping[str, Any],
    seen: _Seen,
    threads: ThreadPoolExecutor,
) -> Iterator[str]:
    """Yields the faults of a shard and its sidecar; adds its records to `seen`."""
    for part in (shard, shard["entries"]):
        yield from _file_faults(dataset.folder, part)
    path = dataset.shards[index]
    count = record_files.count_records(path)
    if count != shard["count"]:
        yield f"wanted {shard['count']} records, {count} can be read"
        return
    try:
        rows = records.read_entries(dataset, index).to_pylist()
    except (ValueError, OSError) as error:
        yield f"its sidecar cannot be read: {error}"
        rows = []
    start = sum(dataset.shard_lengths[:index])
    texts = 0
    for first in range(0, count, _BATCH):
        numbers = range(first, min(first + _BATCH, count))
        encoded = records.read(dataset, [start + number for number in numbers])
        decoded: dict[int, records.Record] = {}
        for number, data in zip(numbers, encoded, strict=True):
            try:
                decoded[number] = records.decode(data)
            except ValueError as error:
                yield f"record {number}: {error}"
        sidecar = [rows[number : number + 1] for number in decoded]
        checked = list(threads.map(_record_faults, decoded.values(), sidecar))
        for (number, record), faults in zip(decoded.items(), checked, strict=True):
            seen.add(record)
            texts += len(record.texts)
            yield from (
                f"record {number} ({record.image_id}): {fault}" for fault in faults
            )
    if texts != shard["texts"]:
        yield f"wanted {shard['texts']} texts, got {texts}"


def _file_faults(folder: str, part: Mapping[str, Any]) -> Iterator[str]:
    path = files.path(folder) / part["file"]
    if not path.exists():
        yield f"{part['file']} is missing"
        return
    if files.size(path) != part["bytes"]:
        yield f"{part['file']}: wanted {part['bytes']} bytes, got {files.size(path)}"
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != part["sha256"]:
        yield f"{part['file']}: wanted sha256 {part['sha256']}, got {digest}"


def _record_faults(
    record: records.Record, row: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Returns the faults of a record; `row` has its row of the sidecar, if any."""
    faults = []
    if hashlib.sha256(record.image).hexdigest() != record.sha256:
        faults.append(f"wanted an image of sha256 {record.sha256}, got another")
    try:
        size = decoding.decode(record.image).size
    except UndecodableImage as error:
        faults.append(f"its image cannot be decoded: {error}")
    else:
        if size != (record.width, record.height):
            wanted = record.width, record.height
            faults.append(f"wanted an image of {wanted} pixels, got {size}")
    if row and row[0] != sink.entries_row(record):
        faults.append("its row in the sidecar differs")
    return faults


def _count_faults(folder: str, seen: _Seen) -> Iterator[str]:
    path = os.path.join(folder, sink.COUNTS)
    if not files.path(path).exists():
        return
    try:
        table = files.read_parquet(path, ["metadata", "entry_id", "kept_count"])
    except ValueError as error:
        yield str(error)
        return
    rows = table.filter(pc.not_equal(table["kept_count"], 0)).to_pydict()
    keys = zip(rows["metadata"], rows["entry_id"], strict=True)
    listed = Counter(dict(zip(keys, rows["kept_count"], strict=True)))
    wrong = {key for key in listed | seen.entries if listed[key] != seen.entries[key]}
    for code, entry in sorted(wrong)[:1]:  # mostly all are wrong for one reason
        yield (
            f"{sink.COUNTS}: says that {listed[code, entry]} texts match entry {entry} "
            f"of {code!r}, but {seen.entries[code, entry]} do"
        )


def _url_faults(folder: str, lengths: Sequence[int]) -> Iterator[str]:
    """Compares the tables of URLs with the records; only curated datasets have them."""
    paths = [
        os.path.join(folder, sink.table_name("urls", index, len(lengths)))
        for index in range(len(lengths))
    ]
    if not any(files.path(path).exists() for path in paths):
        return
    for path, count in zip(paths, lengths, strict=True):
        try:
            inside = files.read_parquet(path, ["in_dataset"])["in_dataset"]
        except (ValueError, FileNotFoundError) as error:
            yield str(error)
            continue
        listed = pc.sum(inside).as_py() or 0
        if listed != count:
            yield f"{path}: wanted {count} URLs in the dataset, got {listed}"


if __name__ == "__main__":
    command.run(main)
