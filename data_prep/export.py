"""Writes a dataset, or metadata, in the form of other tools.

    python -m data_prep.export --format=webdataset --output=tars DATASET
    python -m data_prep.export --format=parquet --output=hub DATASET
    python -m data_prep.export --format=json --output=metadata.json METADATA

webdataset: tars for open_clip, img2dataset's readers and webdataset, with sizes.json
(samples in each). parquet: data/train-*.parquet that the Hugging Face hub shows and
`datasets` loads, with the data card. json: metadata as MetaCLIP has it, in one file (a
list for English, else an object of lists by language) or in a folder with a LANG.json
each. A killed run continues after its last finished file.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from data_prep.metadata import store
from data_prep.sinks import exports
from metaclip_jax import files
from metaclip_jax.cli import command
from metaclip_jax.data import records

_Writer = Callable[[Path, Iterator[records.Record]], None]
JSON = "json"
# How a file of records is written, and the name of file i of n.
FORMATS: dict[str, tuple[_Writer, Callable[[int, int], str]]] = {
    "webdataset": (exports.to_webdataset, lambda i, n: f"{i:05d}.tar"),
    "parquet": (
        exports.to_parquet,
        lambda i, n: f"data/train-{i:05d}-of-{n:05d}.parquet",
    ),
}


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
                write(local, exports.read_shard(dataset, shard))
    if form == "webdataset":
        sizes = dict(zip(names, dataset.shard_lengths, strict=True))
        files.write_json(os.path.join(output, "sizes.json"), sizes)
    files.write_json(os.path.join(output, records.DATA_CARD), dataset.data_card)
    files.write_manifest(output, inputs=inputs, records=len(dataset), files=names)
    return names


if __name__ == "__main__":
    flags.DEFINE_enum("format", None, sorted([*FORMATS, JSON]), "The form to write.")
    flags.DEFINE_string("output", None, "Folder for the files.")
    flags.mark_flags_as_required(["format", "output"])
    command.run(main)
