"""A sample of what was dropped, by reason: people want to see what they lose.

At most MOST rows for each stage and reason, those with the smallest hash, so that the
sample does not depend on workers, partitions or retries. It stays in the workdir: what
was dropped is not part of a dataset.
"""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data_prep import schema
from data_prep.sources import texts
from data_prep.stages import dedup, parts, sums
from metaclip_jax.data import balance, decoding, records

FOLDER, PART = "rejects", "rejects.parquet"
SOURCES = "sources.parquet"  # what was dropped before there are images, beside PART
MOST = 12  # rows for each stage and reason
_BALANCED_AWAY = "balanced_away"
_NOTHING = {"kept_as": "", "picture": b"", "count": 1}
_ORDER = ("stage", "reason", "image_id", "text")
_ODD = np.uint64(0x9E3779B97F4A7C15)
_SIDE = 160  # pixels of the longer side of a picture
# Dropped for what a whole picture would cost, for what nobody should look at, or for a
# format whose decoder gets no bytes of strangers.
_NOT_SHOWN = frozenset(
    {
        "not_an_image",
        "jpeg_xl",
        "heic",
        "too_many_pixels",
        "too_many_scans",
        "too_many_chunks",
        "unsafe_image",
    }
)


def part_of(part: str) -> str:
    """Returns the name of the pictures that screening dropped, beside a part."""
    return f"{part.removesuffix('.parquet')}.rejects.parquet"


def thumbnail(image: bytes) -> bytes:
    """Returns a picture as a small JPEG, b"" if it cannot be decoded."""
    return decoding.thumbnail(image, side=_SIDE, quality=80)


class Pictures:
    """Collects pictures that screening drops, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By reason, and by hash: image id and picture.
        self._kept: dict[str, dict[int, tuple[str, bytes]]] = {}

    def offer(self, reason: str, image_id: str, body: bytes) -> None:
        """Keeps the picture if its hash is among the smallest of its reason."""
        key = _hash(image_id)
        with self._lock:
            kept = self._kept.setdefault(reason, {})
            if len(kept) == MOST and key > max(kept):
                return
        picture = b"" if reason in _NOT_SHOWN else thumbnail(body)
        with self._lock:
            kept[key] = image_id, picture
            if len(kept) > MOST:
                del kept[max(kept)]

    def table(self) -> pa.Table:
        """Returns `image_id` and `picture`, sorted."""
        rows = sorted(row for kept in self._kept.values() for row in kept.values())
        ids, pictures = zip(*rows, strict=True) if rows else ((), ())
        columns = {"image_id": ids, "picture": pictures}
        names = [schema.REJECTS.field(name) for name in columns]
        return pa.table(columns, pa.schema(names))


class Texts:
    """Collects texts that reading and matching drop, and pages that reading drops."""

    def __init__(self) -> None:
        self.lost = {"read": texts.Losses(), "parse": texts.Losses()}
        self._matched: list[pa.RecordBatch] = []

    def offer(self, reason: str, rows: pa.Table) -> None:
        """Keeps some of the rows that matching drops: image_id, image_url and text."""
        keys = _keys_of_texts(rows["image_id"], rows["text"])
        # Pages repeat a text of an image; rarely two of its texts have one key.
        smallest = np.unique(keys)[:MOST]
        chosen = rows.filter(pa.array(np.isin(keys, smallest)))
        unique = chosen.group_by(chosen.column_names, use_threads=False).aggregate([])
        self._matched.append(_lost_texts("match", reason, unique))
        if len(self._matched) > 100:
            self._matched = [_merge(self._matched)]

    def rows(self) -> list[dict]:
        """Returns what `of_rows` takes, for JSON."""
        found = list(self._matched)
        for stage, losses in self.lost.items():
            for reason, shown in losses.shown.items():
                rows = {"image_id": "", "image_url": "", "text": list(shown.values())}
                found.append(_lost_texts(stage, reason, rows))
        return _merge(found).drop_columns(list(_NOTHING)).to_pylist()


def of_rows(lost: list[dict]) -> pa.RecordBatch:
    """Returns REJECTS of `Texts.rows`."""
    rows = [row | _NOTHING for row in lost]
    return pa.RecordBatch.from_pylist(rows, schema=schema.REJECTS)


def _lost_texts(
    stage: str, reason: str, rows: Mapping[str, Any] | pa.Table
) -> pa.RecordBatch:
    """Returns REJECTS of image_id, image_url and text."""
    columns = {name: rows[name] for name in ("image_id", "image_url", "text")}
    columns |= {**_NOTHING, "stage": stage, "reason": reason}
    return schema.from_columns(columns, schema.REJECTS)


def _keys_of_texts(image_ids: pa.ChunkedArray, of: pa.ChunkedArray) -> np.ndarray:
    """Returns u64[n]: a hash of the image, and of the text its length alone.

    A hash of every text that matching drops would take as long as matching.
    """
    lengths = pc.utf8_length(of).to_numpy().astype(np.uint64)
    keys = balance.image_keys(image_ids.combine_chunks())
    return np.asarray(keys ^ (lengths * _ODD))


def of_images(
    images: pa.Table, texts: pa.Table, downloads: pa.Table, place: tuple[str, str]
) -> pa.RecordBatch:
    """Returns REJECTS of a partition's images that have no record.

    Args:
      images: IMAGES with their final status.
      texts: MATCHES; an image is shown with its first text.
      downloads: those of the download stage, with DOWNLOADED.
      place: the folder of `downloads`, with its pictures, and their part.
    """
    images = images.filter(pc.not_equal(images["status"], "ok"))
    stage = downloads["stage"].take(
        pc.index_in(images["image_id"], downloads["image_id"])
    )
    compared = pc.is_in(images["status"], pa.array(dedup.REASONS))
    rows = images.select(["image_id", "image_url", "kept_as", "position"])
    rows = rows.append_column("stage", pc.if_else(compared, "image_dedup", stage))
    rows = rows.append_column("reason", images["status"])
    first = pc.index_in(rows["image_id"], texts["image_id"])
    rows = rows.append_column("text", pc.fill_null(texts["text"].take(first), ""))
    return _with_pictures(_smallest(rows), *place)


def of_texts(
    images: pa.Table, texts: pa.Table, place: tuple[str, str]
) -> pa.RecordBatch:
    """Returns REJECTS of texts (MOVED) that balancing drops, of images (IMAGES)."""
    rows = texts.select(["text"]).append_column("image_id", texts["kept_as"])
    where = {"stage": "balance", "reason": _BALANCED_AWAY, "kept_as": ""}
    for name, value in where.items():
        rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
    rows = _smallest(rows)
    at = pc.index_in(rows["image_id"], images["image_id"])
    for name in ("image_url", "position"):
        rows = rows.append_column(name, images[name].take(at))
    return _with_pictures(rows, *place)


def _with_pictures(rows: pa.Table, folder: str, part: str) -> pa.RecordBatch:
    """Turns `position` into `picture`: from the blobs, or what screening dropped."""
    kept = rows["position"].to_pylist()
    places = sorted({at for at in kept if at is not None and at >= 0})
    blobs = part.removesuffix("parquet") + parts.BLOBS
    bodies = parts.read_blobs(folder, blobs, places) if places else iter(())
    small = {at: thumbnail(blob) for at, blob in zip(places, bodies, strict=True)}
    screened = parts.read(folder, part_of(part)).to_pydict()
    dropped = dict(zip(screened["image_id"], screened["picture"], strict=True))
    pictures = [
        small[at] if at in small else dropped.get(image_id, b"")
        for at, image_id in zip(kept, rows["image_id"].to_pylist(), strict=True)
    ]
    columns = {name: rows[name] for name in rows.column_names}
    columns |= {"picture": pictures, "count": 1}
    return schema.from_columns(columns, schema.REJECTS)


def _hash(image_id: str) -> int:
    return xxhash.xxh3_64_intdigest(image_id.encode())


def _smallest(rows: pa.Table) -> pa.Table:
    """Returns the rows with the smallest hashes of each stage and reason."""
    columns = [rows[name].to_pylist() for name in _ORDER]
    found: dict[tuple[str, str], list[tuple[int, str, int]]] = {}
    for row, (stage, reason, image_id, text) in enumerate(zip(*columns, strict=True)):
        key = _key(stage, reason, image_id, text)
        found.setdefault((stage, reason), []).append((key, text, row))
    chosen = [row for some in found.values() for *_, row in sorted(some)[:MOST]]
    return rows.take(pa.array(chosen, pa.int64()))


def _key(stage: str, reason: str, image_id: str, text: str) -> int:
    if stage in ("read", "parse"):
        return xxhash.xxh3_64_intdigest(text.encode())
    if stage == "match":
        return int(image_id[:16], 16) ^ (len(text) * int(_ODD) % 2**64)
    of_text = reason == _BALANCED_AWAY
    return records.text_key(image_id, text) if of_text else _hash(image_id)


def _merge(some: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """Returns the rows of several REJECTS with the smallest hashes, sorted."""
    rows = _smallest(pa.Table.from_batches(some, schema.REJECTS))
    return schema.one_batch(rows.sort_by([(name, "ascending") for name in _ORDER]))


def write(rows: beam.PCollection, workdir: str, part: str = PART) -> None:
    """Writes the sample of a pipeline's REJECTS to WORKDIR/rejects, PART or SOURCES."""
    sums.write_sum(rows, schema.REJECTS, f"{workdir}/{FOLDER}", part, merge=_merge)
