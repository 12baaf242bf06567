"""Writes a dataset, or metadata, in the form of other tools.

    python -m data_prep.export --format=webdataset --output=tars DATASET
    python -m data_prep.export --format=parquet --output=hub DATASET
    python -m data_prep.export --format=json --output=metadata.json METADATA

webdataset: tars for open_clip, img2dataset's readers and webdataset, with sizes.json
(samples in each). parquet: data/train-*.parquet that the Hugging Face hub shows and
`datasets` loads, with the data card. json: metadata as MetaCLIP has it, in one file (a
list for English, else an object of lists by language) or in a folder with a LANG.json
each. Equal datasets give equal bytes; each file shard becomes one file. A killed run
continues after its last finished file.
"""

import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags
from tqdm import tqdm

from data_prep.metadata import store
from metaclip_jax import files
from metaclip_jax.cli import command
from metaclip_jax.data import records

JSON = "json"
_ROWS = 100  # per row group, since the hub's viewer reads whole row groups
_BATCH = 256  # records read at a time
_EXTENSIONS = {b"\xff\xd8": "jpg", b"RI": "webp"}  # the two formats of records

_TEXTS = ("texts", "text_sources", "languages", "metadata")
_FACTS = ("image_id", "image_url", "page_url", "sha256", "width", "height")
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PARQUET = pa.schema(
    [
        ("image", _IMAGE),
        *((name, pa.list_(pa.string())) for name in _TEXTS),
        *((name, pa.string()) for name in _FACTS[:4]),
        *((name, pa.int32()) for name in _FACTS[4:]),
    ],
    # Tells the hub that the column holds images.
    metadata={"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'},
)


def main(argv: Sequence[str]) -> None:
    """Writes the files that are missing, then prints their number."""
    folder = command.only_argument(argv, "folder of a dataset or of metadata")
    values = flags.FLAGS
    command.refuse_missing({"--format": values.format, "--output": values.output})
    if values.format == JSON:
        metadata = store.load(folder)
        with files.naming_full_disk(values.output):
            store.save_json(values.output, metadata)
        entries = sum(len(each.entries) for each in metadata.values())
        print(f"{entries:,} entries of {len(metadata)} metadata in {values.output}")
        return
    dataset = records.open_dataset(folder)
    with files.naming_full_disk(values.output), files.lock(values.output):
        names = export(dataset, values.output, form=values.format)
    print(f"{len(dataset):,} records in {len(names)} files of {values.output}")


def export(dataset: records.Dataset, output: str, *, form: str) -> list[str]:
    """Writes a dataset in one of FORMATS; returns the names of its files.

    Raises ValueError if a record is damaged, or the folder has another export.
    """
    write, name_of = FORMATS[form]
    shards = records.read_shards(dataset.folder)
    inputs = {"form": form, "shards": [shard["sha256"] for shard in shards]}
    names = [name_of(i, len(shards)) for i in range(len(shards))]
    if files.finished(output, inputs) is not None:
        return names
    files.claim(output, inputs)
    for shard, name in enumerate(tqdm(names, desc="export", unit="file")):
        final = os.path.join(output, name)
        if not files.path(final).exists():
            with files.staged(final) as local:
                write(local, read_shard(dataset, shard))
    if form == "webdataset":
        sizes = dict(zip(names, dataset.shard_lengths, strict=True))
        files.write_json(os.path.join(output, "sizes.json"), sizes)
    files.write_json(os.path.join(output, records.DATA_CARD), dataset.data_card)
    files.write_manifest(output, inputs=inputs, records=len(dataset), files=names)
    return names


def to_webdataset(local: Path, shard: Iterator[records.Record]) -> None:
    """Writes a tar of samples: the image, its first text as .txt, all facts as .json.

    This is the layout of img2dataset, webdataset and open_clip. The .json has all
    `texts`, and `url` and `caption`, as img2dataset names them.
    """
    with tarfile.open(local, "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in shard:
            named = {"url": record.image_url, "caption": record.texts[0]}
            facts = _facts(record) | named
            parts = {
                _extension(record): record.image,
                "json": json.dumps(facts, ensure_ascii=False, sort_keys=True).encode(),
                "txt": record.texts[0].encode(),
            }
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{record.image_id}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def to_parquet(local: Path, shard: Iterator[records.Record]) -> None:
    """Writes rows of schema PARQUET, one per image."""
    with pq.ParquetWriter(local, PARQUET, compression="zstd") as writer:
        while group := list(itertools.islice(shard, _ROWS)):
            rows = []
            for record in group:
                path = f"{record.image_id}.{_extension(record)}"
                image = {"bytes": record.image, "path": path}
                rows.append({"image": image, **_facts(record)})
            writer.write_table(pa.Table.from_pylist(rows, PARQUET))


def read_shard(dataset: records.Dataset, shard: int) -> Iterator[records.Record]:
    """Yields the records of one file shard. Raises ValueError for a damaged one."""
    start = sum(dataset.shard_lengths[:shard])
    stop = start + dataset.shard_lengths[shard]
    for first in range(start, stop, _BATCH):
        wanted = range(first, min(first + _BATCH, stop))
        for position, data in zip(wanted, records.read(dataset, wanted), strict=True):
            try:
                yield records.decode(data)
            except ValueError as error:
                raise ValueError(
                    f"{dataset.shards[shard]}: record {position - start} is damaged: "
                    f"{error}. `python -m data_prep.verify` names all that is wrong"
                ) from error


def _facts(record: records.Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in (*_FACTS, *_TEXTS)}


def _extension(record: records.Record) -> str:
    return _EXTENSIONS.get(record.image[:2], "img")


_Writer = Callable[[Path, Iterator[records.Record]], None]
# How a file of records is written, and the name of file i of n.
FORMATS: dict[str, tuple[_Writer, Callable[[int, int], str]]] = {
    "webdataset": (to_webdataset, lambda i, n: f"{i:05d}.tar"),
    "parquet": (to_parquet, lambda i, n: f"data/train-{i:05d}-of-{n:05d}.parquet"),
}

if __name__ == "__main__":
    flags.DEFINE_enum("format", None, sorted([*FORMATS, JSON]), "The form to write.")
    flags.DEFINE_string("output", None, "Folder for the files.")
    flags.mark_flags_as_required(["format", "output"])
    command.run(main)
