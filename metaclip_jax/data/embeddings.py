"""Embeddings of a dataset on disk: Parquet by image id, one part per file shard.

A folder has part-00000-of-000NN.parquet, with the rows of file shard 0 in its order,
the parts of the other shards, and manifest.json, which is written last. Each part
records its inputs, so that a resumed run cannot mix two models. Curation joins the rows
by image_id.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metaclip_jax import files

_INPUTS = b"inputs"
OK = "ok"


class Part(NamedTuple):
    """Rows of a file shard. `embedding` f32[n, E], zero where `status` is not "ok"."""

    image_ids: list[str]
    status: list[str]
    embedding: np.ndarray


def schema(embed_dim: int) -> pa.Schema:
    """Returns the schema of a part.

    `embedding` has unit norm; `text_scores` are the cosines of the image with each of
    its texts, whose keys are in `text_keys`. `status` is "ok", or why the image could
    not be decoded; then the embedding is zero and text_scores is null.
    """
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("embedding", pa.list_(pa.float32(), embed_dim)),
            ("text_keys", pa.list_(pa.uint64())),
            ("text_scores", pa.list_(pa.float32())),
            ("status", pa.string()),
        ]
    )


def part_path(folder: str, shard: int, shard_count: int) -> str:
    """Returns the path of the part of file shard `shard` of `shard_count`."""
    return str(files.path(folder) / f"part-{shard:05d}-of-{shard_count:05d}.parquet")


def write_part(path: str, table: pa.Table, *, inputs: Mapping[str, Any]) -> None:
    """Writes a part atomically; the same table and inputs give the same bytes."""
    table = table.replace_schema_metadata({_INPUTS: _dumps(inputs)})
    with files.staged(path) as local:
        pq.write_table(table, local, compression="zstd", use_dictionary=False)


def has_part(path: str, *, inputs: Mapping[str, Any], rows: int) -> bool:
    """Returns whether the part exists.

    Raises:
      ValueError: it has other inputs or another number of rows.
    """
    if not files.path(path).exists():
        return False
    wanted = "a part of embeddings"
    with files.naming(path, wanted), files.open_parquet(path) as parquet:
        found = (parquet.schema_arrow.metadata or {}).get(_INPUTS, b"{}")
        count = parquet.metadata.num_rows
        found.decode()  # raises here, where the file is named, if it is damaged
    if found != _dumps(inputs) or count != rows:
        raise ValueError(
            f"{path} belongs to another run: wanted {rows} rows of {dict(inputs)},"
            f" found {count} of {found.decode()}. Choose another folder, or remove this"
            " one"
        )
    return True


def read_status(path: str) -> list[str]:
    """Reads the status of each row of a part."""
    return files.read_parquet(path, ["status"])["status"].to_pylist()


def read_manifest(folder: str) -> dict[str, Any]:
    """Reads the manifest of a finished folder.

    Raises:
      FileNotFoundError: there is none.
    """
    path = files.path(folder) / files.MANIFEST
    if not path.exists():
        raise FileNotFoundError(
            f"wanted finished embeddings in {folder}, but it has no {files.MANIFEST};"
            " finish metaclip_jax.embed, or check the path"
        )
    return files.read_json(path)


def read_parts(folder: str) -> Iterator[Part]:
    """Yields the parts of a finished folder in the order of the file shards."""
    manifest = read_manifest(folder)
    with files.naming(files.path(folder) / files.MANIFEST, "embeddings' manifest"):
        shards, width = int(manifest["shards"]), int(manifest["embed_dim"])
    for shard in range(shards):
        path = part_path(folder, shard, shards)
        table = files.read_parquet(path, ["image_id", "status", "embedding"])
        with files.naming(path, "a part of embeddings"):
            column = pa.concat_arrays(table["embedding"].chunks)
            part = Part(
                image_ids=table["image_id"].to_pylist(),
                status=table["status"].to_pylist(),
                embedding=column.flatten().to_numpy().reshape(-1, width),
            )
        yield part


def _dumps(inputs: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(inputs), sort_keys=True).encode()
