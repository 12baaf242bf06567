"""Datasets in the forms of other tools: webdataset tars, Parquet for the hub.

Equal datasets give equal bytes; each file shard becomes one file.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from metaclip_jax.data import records

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


def to_webdataset(local: Path, shard: Iterator[records.Record]) -> None:
    """Writes a tar of samples: the image, its first text as .txt, all facts as .json.

    This is the layout of img2dataset, webdataset and open_clip. The .json has all
    `texts`, and `url` and `caption`, as img2dataset names them.
    """
    with tarfile.open(local, "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in shard:
            facts = {name: getattr(record, name) for name in (*_FACTS, *_TEXTS)}
            facts |= {"url": record.image_url, "caption": record.texts[0]}
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
        rows: list[Mapping[str, Any]] = []
        for record in shard:
            path = f"{record.image_id}.{_extension(record)}"
            facts = {name: getattr(record, name) for name in (*_FACTS, *_TEXTS)}
            rows.append({"image": {"bytes": record.image, "path": path}, **facts})
            if len(rows) == _ROWS:
                writer.write_table(pa.Table.from_pylist(rows, PARQUET))
                rows = []
        if rows:
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


def _extension(record: records.Record) -> str:
    return _EXTENSIONS.get(record.image[:2], "img")
