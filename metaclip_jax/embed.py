"""Embeds a dataset: every image, and how well each of its texts fits it.

    python -m metaclip_jax.embed --model=NAME_OR_PATH --dataset=DIR --output=DIR

Writes Parquet by image id (metaclip_jax/data/embeddings.py says which columns), a part
per file shard and the manifest last. A run that was killed goes on where it was and
leaves the same bytes.
"""

import collections
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import tqdm
from absl import flags, logging

from metaclip_jax import files
from metaclip_jax.cli import command
from metaclip_jax.data import embeddings, images, records
from metaclip_jax.evaluation import encoder
from metaclip_jax.inference import model as inference
from metaclip_jax.inference import model_flags

_DECODE_THREADS = 8
_LOSSES_TO_LOG = 20


class Portion(NamedTuple):
    """Decoded records. `pixels` uint8[n, size, size, 3], black where not "ok"."""

    records: list[records.Record]
    pixels: np.ndarray
    status: list[str]


def embed_dataset(model: inference.Model, dataset_folder: str, output: str) -> None:
    """Embeds what is not embedded yet, then writes the manifest.

    Args:
      model: decides the embeddings.
      dataset_folder: as curation writes it.
      output: folder for the parts; one run at a time writes into it.

    Raises:
      FileNotFoundError: the dataset is missing or unfinished.
      ValueError: the output belongs to another model or dataset.
    """
    dataset = records.open_dataset(dataset_folder)
    shards = records.read_shards(dataset_folder)
    inputs = {
        "dataset": hashlib.sha256(
            json.dumps(shards, sort_keys=True).encode()
        ).hexdigest(),
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
    rows: dict[str, list[Any]] = {
        name: [] for name in embeddings.schema(model.architecture.embed_dim).names
    }
    with ThreadPoolExecutor(_DECODE_THREADS) as pool:
        for portion in encoder.one_ahead(_portions(model, dataset, shard, pool)):
            image = model.embed_images(portion.pixels)  # [n, E]
            texts = [text for record in portion.records for text in record.texts]
            counts = [len(record.texts) for record in portion.records]
            text = model.embed_texts(texts)  # [m, E]
            cosines = (image.repeat(counts, axis=0) * text).sum(axis=1)
            keys = records.text_keys(
                np.repeat([r.image_id for r in portion.records], counts).tolist(), texts
            )
            ends = np.cumsum(counts)[:-1]
            ok = [status == embeddings.OK for status in portion.status]
            rows["image_id"] += [record.image_id for record in portion.records]
            # No nulls here: Parquet's readers fail on null lists of a fixed size.
            rows["embedding"] += list(image * np.array(ok, np.float32)[:, None])
            rows["text_keys"] += np.split(keys, ends)
            rows["text_scores"] += [
                row if good else None
                for row, good in zip(np.split(cosines, ends), ok, strict=True)
            ]
            rows["status"] += portion.status
            bar.update(len(portion.records))
    return pa.table(rows, schema=embeddings.schema(model.architecture.embed_dim))


def _portions(
    model: inference.Model,
    dataset: records.Dataset,
    shard: int,
    pool: ThreadPoolExecutor,
) -> Iterator[Portion]:
    preprocess = model.encoder.preprocess
    size = preprocess.size
    start = sum(dataset.shard_lengths[:shard])
    logged = 0

    def decode(data: bytes) -> tuple[records.Record, np.ndarray, str]:
        record = records.decode(data)
        try:
            pixels = images.decode_eval(record.image, **preprocess._asdict())
            return record, pixels, embeddings.OK
        except images.UndecodableImage as error:
            return record, np.zeros((size, size, 3), np.uint8), error.reason

    for first in range(0, dataset.shard_lengths[shard], model.batch):
        last = min(first + model.batch, dataset.shard_lengths[shard])
        positions = np.arange(start + first, start + last)
        decoded = list(pool.map(decode, records.read(dataset, positions)))
        for record, _, status in decoded:
            if status != embeddings.OK and logged < _LOSSES_TO_LOG:
                logged += 1
                logging.warning(
                    "image %s has no embedding: %s", record.image_id, status
                )
        yield Portion(
            records=[record for record, _, _ in decoded],
            pixels=np.stack([pixels for _, pixels, _ in decoded]),
            status=[status for _, _, status in decoded],
        )


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
