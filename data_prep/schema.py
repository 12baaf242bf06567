"""The tables of curation: one Arrow schema each, shared by every stage.

Beam elements are RecordBatches of these schemas, or (partition, RecordBatch) pairs
around a shuffle; a pipeline starts from RecordBatches of one value each.
"""

from collections.abc import Iterable

import pyarrow as pa

# One row per (image, text) parsed from a page.
CANDIDATES = pa.schema(
    [
        ("image_id", pa.string()),  # records.image_id(image_url)
        ("image_url", pa.string()),  # absolute, fragment removed
        ("page_url", pa.string()),
        ("text", pa.string()),
        ("text_source", pa.string()),  # alt, title, data-image-title, figcaption
        ("language", pa.string()),  # declared by the page, "" where it is not
        # Identified from the page's text where it declares none that is known, or "".
        ("page_language", pa.string()),
        # Where a source holds the image's bytes (sources.stored), "" where it does not.
        ("stored_at", pa.string()),
    ]
)

# A candidate that met its metadata. `language` is now that of the text.
MATCHED = pa.schema(
    [
        *(field for field in CANDIDATES if field.name != "page_language"),
        ("metadata", pa.string()),  # code of the metadata it was matched with
        ("entry_ids", pa.list_(pa.int32())),  # ascending, unique
    ]
)

# A matched text among all of its partition: each (image, text) once.
MATCHES = pa.schema(
    [
        *MATCHED,
        ("text_key", pa.uint64()),  # records.text_key(image_id, text)
        ("drawn", pa.bool_()),  # whether the rule of the run draws this text
    ]
)

# One row per image after the download; `status` is "ok", "repeated_image" (the bytes
# of another image) or the drop reason.
IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_url", pa.string()),
        ("status", pa.string()),
        ("texts", pa.int64()),  # texts that hang on this image
        ("sha256", pa.string()),  # of the bytes kept, "" where there are none
        ("fingerprint", pa.uint64()),  # perceptual, images.fingerprint
        ("width", pa.int32()),
        ("height", pa.int32()),
        # Of a repeated image, the image with the same bytes that is kept; else "".
        ("kept_as", pa.string()),
        # Index of its bytes in the partition's file of images, -1 where none are kept.
        ("position", pa.int64()),
    ]
)

# Texts of repeated images, on their way to the images that are kept. They are drawn
# as texts of their own address.
MOVED = pa.schema([*MATCHES, IMAGES.field("kept_as")])

# How many matches each entry has; sparse, one row per entry that has any.
COUNTS = pa.schema(
    [
        ("metadata", pa.string()),
        ("entry_id", pa.int32()),
        ("count", pa.uint64()),
    ]
)

# Texts of a uniform sample of images, from which the size of the dataset is predicted
# for any t: counts alone do not determine it, since texts match many entries.
SAMPLE = pa.schema(
    [
        ("partition", pa.int32()),
        ("image_id", pa.string()),
        ("weight", pa.float64()),  # images of the partition that this one stands for
        *(MATCHES.field(name) for name in ("drawn", "metadata", "entry_ids")),
    ]
)

# What entered a stage (reason IN), left it (reason OUT) or was lost there.
# `unit` is "texts", or "pages" / "files" for what is lost before there are texts.
FLOW = pa.schema(
    [
        ("stage", pa.string()),
        ("unit", pa.string()),
        ("reason", pa.string()),
        ("count", pa.int64()),
    ]
)

# How many kept texts have each value of a column; for the data card.
TALLIES = pa.schema(
    [("column", pa.string()), ("value", pa.string()), ("count", pa.uint64())]
)

# The file shards that were written, with what the sink says of each.
SHARDS = pa.schema(
    [
        ("shard", pa.string()),  # file name
        ("facts", pa.string()),  # JSON
        ("count", pa.uint64()),  # records
    ]
)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Returns all rows of `table` as one RecordBatch, also when there are none."""
    return pa.RecordBatch.from_struct_array(table.to_struct_array().combine_chunks())


def from_columns(columns: dict[str, object], of: pa.Schema) -> pa.RecordBatch:
    """Returns a RecordBatch of schema `of`; columns may be lists or arrays."""
    return pa.RecordBatch.from_arrays(
        [pa.array(columns[field.name], field.type) for field in of], schema=of
    )


def sum_counts(batches: Iterable[pa.RecordBatch], of: pa.Schema) -> pa.RecordBatch:
    """Sums `count` over rows of schema `of` that agree in all other columns; sorted."""
    keys = [name for name in of.names if name != "count"]
    table = pa.Table.from_batches(batches, schema=of)
    total = table.group_by(keys).aggregate([("count", "sum")])
    total = total.rename_columns([*keys, "count"])
    total = total.sort_by([(key, "ascending") for key in keys])
    return one_batch(total.cast(of))
