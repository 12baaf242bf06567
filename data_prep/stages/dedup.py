"""Duplicates: of (image, text) rows, of images with the same bytes, of similar ones."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import schema
from data_prep.images import cosine, similarity

EVALUATION = "in_evaluation_set"
# Why an image is dropped for what others are; the first that holds is its status.
REASONS = (EVALUATION, "placeholder", "near_duplicate", "repeated_image")


def sort_and_drop_repeats(table: pa.Table) -> pa.Table:
    """Returns the rows of a MATCHED table with unique (image_id, text), sorted.

    Of equal pairs the one with the smallest text source, page URL and so on is kept, so
    the result does not depend on the order of rows.
    """
    order = ["image_id", "text", "text_source", "page_url", "stored_at", "scores"]
    table = table.sort_by([(k, "ascending") for k in order]).combine_chunks()
    if table.num_rows == 0:
        return table
    ids, texts = (table[k].combine_chunks() for k in ("image_id", "text"))
    again = pc.and_(
        pc.equal(ids[1:], ids[:-1]),
        pc.equal(texts[1:], texts[:-1]),
    )
    first = pa.concat_arrays([pa.array([True]), pc.invert(again)])
    return table.filter(first)


def repeated_images(images: pa.Table) -> pa.RecordBatch:
    """Returns MARKS of the images whose bytes belong to a smaller image_id.

    Only rows of IMAGES or BYTES with status "ok" are compared, by sha256. The one with
    the smallest image_id of each group is kept; the others name it in `kept_as` and
    have status "repeated_image".
    """
    ok = images.filter(pc.equal(images["status"], "ok")).sort_by("image_id")
    first = pc.index_in(ok["sha256"], ok["sha256"]).to_numpy()
    again = np.flatnonzero(first != np.arange(ok.num_rows))
    columns = {
        "image_id": ok["image_id"].take(pa.array(again)),
        "status": "repeated_image",
        "kept_as": ok["image_id"].take(pa.array(first[again])),
    }
    return schema.from_columns(columns, schema.MARKS)


def placeholders(images: pa.Table, *, most: int) -> pa.RecordBatch:
    """Returns MARKS of the images whose bytes have too many different texts.

    Placeholders ("image not found") come from many addresses with unrelated texts; a
    logo comes from as many, mostly with one text. An address counts with its first
    text. They have status "placeholder".

    Args:
      images: IMAGES or BYTES, of which those with equal bytes are in one table.
      most: different texts that an image may have.
    """
    ok = images.filter(pc.equal(images["status"], "ok"))
    texts = ok.group_by("sha256").aggregate([("text_hash", "count_distinct")])
    many = texts.filter(pc.greater(texts["text_hash_count_distinct"], most))["sha256"]
    found = ok.filter(pc.is_in(ok["sha256"], many))
    columns = {"status": "placeholder", "kept_as": found["kept_as"]}
    return schema.from_columns({"image_id": found["image_id"], **columns}, schema.MARKS)


def ranked_by(images: pa.Table | pa.RecordBatch) -> dict[str, Any]:
    """Returns the columns of IMAGES that decide which of similar ones is better."""
    sides = (images[name].cast(pa.int64()) for name in ("width", "height"))
    return {
        "image_id": images["image_id"],
        "digest": pc.utf8_slice_codeunits(images["sha256"], 0, 16),
        "pixels": pc.multiply(*sides),
    }


def near_duplicates(prints: pa.Table, *, band: int, most_bits: int) -> pa.RecordBatch:
    """Returns MARKS of the images that resemble a better one.

    An image is better than another if it has more pixels, or as many and a smaller id.
    It is dropped if any better image is similar, also one that is dropped itself.
    `kept_as` is the best similar image.

    Args:
      prints: PRINTS.
      band: of the fingerprints, in which compared images agree.
      most_bits: of the fingerprints, in which similar images differ.
    """
    better = similarity.better_like(
        similarity.Fingerprints.of(prints["fingerprint"]),
        _ranks(prints),
        band=band,
        most_bits=most_bits,
    )
    return _near(prints, better)


def alike(rows: pa.Table, *, least: float) -> pa.RecordBatch:
    """Returns MARKS of the images of a cell, CELLS, that resemble a better one.

    Similar are embeddings of at least the cosine `least`; all else is as for
    `near_duplicates`.
    """
    vectors = cosine.of_column(rows["embedding"])
    return _near(rows, cosine.better_alike(vectors, _ranks(rows), least=least))


def _ranks(rows: pa.Table) -> np.ndarray:
    ids, digests = (rows[name].to_pylist() for name in ("image_id", "digest"))
    return similarity.ranks(ids, digests, rows["pixels"].to_numpy())


def _near(rows: pa.Table, better: np.ndarray) -> pa.RecordBatch:
    ids = rows["image_id"].to_pylist()
    marks = [(ids[i], "near_duplicate", ids[j]) for i, j in enumerate(better) if j >= 0]
    return schema.from_rows(marks, schema.MARKS)


def mark(images: pa.Table, marks: pa.Table) -> pa.Table:
    """Returns IMAGES, sorted by image_id, with the status that MARKS give them.

    Of several marks of an image the first in the order of REASONS counts, then the
    smallest `kept_as`.
    """
    images = images.sort_by("image_id")
    order = pc.index_in(marks["status"], pa.array(REASONS))
    marks = marks.append_column("order", order)
    marks = marks.sort_by([("order", "ascending"), ("kept_as", "ascending")])
    rows = pc.index_in(images["image_id"], marks["image_id"])
    for name in ("status", "kept_as"):
        at = images.column_names.index(name)
        values = pc.coalesce(marks[name].take(rows), images[name])
        images = images.set_column(at, name, values)
    return images


def moved_texts(
    moved: pa.Table, own: pa.Table, *, most: int
) -> tuple[pa.Table, Counter]:
    """Returns which texts of repeated images the kept images take over.

    Args:
      moved: MOVED rows.
      own: MATCHES rows of the kept images themselves.
      most: the most texts that an image takes over.

    Returns:
      MOVED rows with unique (kept_as, text), none of them in `own`, sorted, those with
      the smallest image_id; and a Counter of drops.
    """
    order = ["kept_as", "image_id", "text"]
    moved = moved.sort_by([(k, "ascending") for k in order])
    seen = set(_pairs(own, "image_id"))
    taken: Counter = Counter()
    reasons: list[str | None] = []
    for pair in _pairs(moved, "kept_as"):
        image_id, _ = pair
        if pair in seen:
            reasons.append("repeated_pair")
        elif taken[image_id] == most:
            reasons.append("too_many_texts")
        else:
            reasons.append(None)
            taken[image_id] += 1
        seen.add(pair)
    kept = [reason is None for reason in reasons]
    return moved.filter(pa.array(kept, pa.bool_())), Counter(filter(None, reasons))


def _pairs(rows: pa.Table, image: str) -> Iterator[tuple[str, str]]:
    return zip(rows[image].to_pylist(), rows["text"].to_pylist(), strict=True)


def of_images(texts: pa.Table, images: pa.Table) -> pa.Table:
    """Returns the rows of `texts` whose image_id is one of `images`."""
    return texts.filter(pc.is_in(texts["image_id"], images["image_id"]))


def with_moved(own: pa.Table, moved: pa.Table) -> pa.Table:
    """Returns MATCHES rows of kept images and the texts they take over, as MOVED.

    `image_id` is still that of the text's original image, whose key it is drawn with.
    """
    return pa.concat_tables([own.append_column("kept_as", own["image_id"]), moved])


def by_kept_image(rows: pa.Table) -> pa.Table:
    """Returns MOVED rows as MATCHED of the kept images, sorted by image_id and text."""
    rows = rows.sort_by([("kept_as", "ascending"), ("text", "ascending")])
    at = rows.column_names.index("image_id")
    return rows.set_column(at, "image_id", rows["kept_as"]).select(schema.MATCHED.names)
