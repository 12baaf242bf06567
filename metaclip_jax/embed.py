"""Embeds the images of a dataset, and scores each image's texts by cosine.

    python -m metaclip_jax.embed --model=NAME_OR_PATH --dataset=DIR --output=DIR

Writes Parquet by image id (metaclip_jax/data/embeddings.py has the columns), a part per
file shard, and the manifest last. A killed run resumes and writes the same bytes.
"""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tqdm
from absl import flags, logging

from metaclip_jax import files
from metaclip_jax.cli import command
from metaclip_jax.data import embeddings, records
from metaclip_jax.data.image_tags import UndecodableImage
from metaclip_jax.inference import model as inference
from metaclip_jax.inference import model_flags

_LOSSES_TO_LOG = 20


def embed_dataset(model: inference.Model, dataset_folder: str, output: str) -> None:
    """Writes the missing parts, then the manifest.

    Args:
      model: that embeds.
      dataset_folder: a dataset of curation.
      output: folder of the parts, which is locked.

    Raises:
      FileNotFoundError: the dataset is missing or unfinished.
      ValueError: the output belongs to another model or dataset.
    """
    dataset = records.open_dataset(dataset_folder)
    inputs = {
        "dataset": records.fingerprint(dataset_folder),
        "model": model.fingerprint,
    }
    with files.lock(output):
        if files.finished(output, inputs) is not None:
            logging.info("%s is finished already", output)
            return
        status: collections.Counter[str] = collections.Counter()
        count = len(dataset.shards)
        with tqdm.tqdm(total=len(dataset), unit="image", disable=None) as bar:
            for shard, length in enumerate(dataset.shard_lengths):
                path = embeddings.part_path(output, shard, count)
                if not embeddings.has_part(path, inputs=inputs, rows=length):
                    table = embed_shard(model, dataset, shard, bar)
                    embeddings.write_part(path, table, inputs=inputs)
                else:
                    bar.update(length)
                status.update(embeddings.read_status(path))
        files.write_manifest(
            output,
            inputs=inputs,
            model=model.name,
            licence=model.licence,
            dtype=model.architecture.dtype,
            embed_dim=model.architecture.embed_dim,
            logit_scale=model.logit_scale,
            logit_bias=model.logit_bias,
            records=len(dataset),
            shards=count,
            status=dict(status),
        )


def embed_shard(
    model: inference.Model, dataset: records.Dataset, shard: int, bar: Any
) -> pa.Table:
    """Embeds the records of one file shard; returns its rows in their order."""
    start, total = sum(dataset.shard_lengths[:shard]), dataset.shard_lengths[shard]
    ids: list[str] = []
    texts: list[tuple[str, ...]] = []
    status = [embeddings.OK] * total

    def read(rows: np.ndarray) -> list[bytes]:
        batch = [records.decode(data) for data in records.read(dataset, start + rows)]
        ids.extend(record.image_id for record in batch)
        texts.extend(record.texts for record in batch)
        bar.update(len(rows))
        return [record.image for record in batch]

    def note(row: int, error: Exception) -> None:
        if not isinstance(error.__cause__, UndecodableImage):
            raise error
        status[row] = error.__cause__.reason

    image = model.encoder.encode_images(  # [n, E]
        read, names=lambda row: f"image {ids[row]}", total=total, on_broken=note
    )
    lost = [row for row, state in enumerate(status) if state != embeddings.OK]
    for row in lost[:_LOSSES_TO_LOG]:
        logging.warning("image %s has no embedding: %s", ids[row], status[row])
    counts = [len(own) for own in texts]
    flat = [text for own in texts for text in own]
    text = model.embed_texts(flat)  # [m, E]
    cosines = (image.repeat(counts, axis=0) * text).sum(axis=1)
    keys = records.text_keys(np.repeat(ids, counts).tolist(), flat)
    ok = np.array([state == embeddings.OK for state in status], np.float32)
    ends = np.cumsum(counts)
    parts = [slice(end - n, end) for end, n in zip(ends, counts, strict=True)]
    rows = {
        "image_id": ids,
        # Zeros instead of nulls: Parquet readers fail on null lists of a fixed size.
        "embedding": list(image * ok[:, None]),
        "text_keys": [keys[part] for part in parts],
        "text_scores": [
            cosines[part] if good else None
            for good, part in zip(ok, parts, strict=True)
        ],
        "status": status,
    }
    return pa.table(rows, schema=embeddings.schema(model.architecture.embed_dim))


def main(argv: Sequence[str]) -> None:
    """Embeds a dataset from the command line."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    model = model_flags.load(values)
    embed_dataset(model, values.dataset, values.output)
    manifest = embeddings.read_manifest(values.output)
    print(f"{values.output}: {manifest['records']} images, {manifest['status']}")


if __name__ == "__main__":
    model_flags.define()
    flags.DEFINE_string("dataset", None, "Dataset folder.", required=True)
    flags.DEFINE_string("output", None, "Folder for the Parquet files.", required=True)
    command.run(main)
