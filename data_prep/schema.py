"""The tables of curation: one Arrow schema each, shared by every stage.

Beam elements are RecordBatches of these schemas, or (key, RecordBatch) pairs around a
shuffle; a pipeline starts with names and numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

_VALUE = str | bytes | bool | int | float | None  # one for all rows of `from_columns`

# One row per (image, text) parsed from a page.
CANDIDATES = pa.schema(
    [
        ("image_id", pa.string()),  # records.image_id(image_url)
        ("image_url", pa.string()),  # absolute, fragment removed
        ("page_url", pa.string()),
        ("text", pa.string()),
        ("text_source", pa.string()),  # alt, title, data-image-title, figcaption
        ("language", pa.string()),  # declared by the page, "" if none
        # Beginning of the page's text if it declares no known language, else "".
        ("page_text", pa.string()),
        # Where the source holds the image's bytes (sources.pairs), "" if it does not.
        ("stored_at", pa.string()),
        # JSON list of the numbers in config.source.score_columns, "" without any.
        ("scores", pa.string()),
    ]
)

# A candidate with its matches. `language` is now that of the text.
MATCHED = pa.schema(
    [
        *(field for field in CANDIDATES if field.name != "page_text"),
        ("metadata", pa.string()),  # code of the metadata it was matched with
        ("entry_ids", pa.list_(pa.int32())),  # ascending, unique
    ]
)

# Matched texts of a partition, each (image, text) once.
MATCHES = pa.schema(
    [
        *MATCHED,
        ("text_key", pa.uint64()),  # records.text_key(image_id, text)
        ("drawn", pa.bool_()),  # whether the rule of the run draws this text
    ]
)

# One row per image after the download; `status` is "ok", "repeated_image" (the bytes
# of another image, which takes over its texts) or the drop reason.
IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_url", pa.string()),
        ("status", pa.string()),
        ("texts", pa.int64()),  # number of texts of this image
        ("text_hash", pa.uint64()),  # of its first text in lower case
        ("sha256", pa.string()),  # of the bytes kept, "" if none
        ("fingerprint", pa.binary()),  # perceptual, images.fingerprint; b"" if none
        ("width", pa.int32()),
        ("height", pa.int32()),
        # For a repeated image, the id of the kept image with the same bytes; for a near
        # duplicate, that of a better one; for an image of an evaluation set, the
        # picture there; else "".
        ("kept_as", pa.string()),
        # Index of its bytes in the partition's file of images, -1 if none are kept.
        ("position", pa.int64()),
    ]
)

# Images whose status changes after a comparison with others.
MARKS = pa.schema([IMAGES.field(name) for name in ("image_id", "status", "kept_as")])

# The columns that decide which images repeat the bytes of others.
BYTES = pa.schema(
    [
        *(MARKS.field(name) for name in MARKS.names),
        *(IMAGES.field(name) for name in ("text_hash", "sha256")),
    ]
)

# Pictures of evaluation sets; `sha256` is that of the form that records have, "" if it
# cannot be decoded.
PICTURES = pa.schema(
    [
        ("picture", pa.string()),  # file, and name or number in it
        *(IMAGES.field(name) for name in ("sha256", "fingerprint")),
        ("count", pa.uint64()),
    ]
)

# Images that were dropped since they are in an evaluation set.
EVALUATED = pa.schema(
    [
        *(IMAGES.field(name) for name in ("image_id", "image_url")),
        PICTURES.field("picture"),
        # Number of bits in which the fingerprints differ: 0 for equal bytes, null if
        # only the embeddings agree.
        ("bits", pa.int32()),
        ("cosine", pa.float64()),  # of the embeddings, else null
        ("count", pa.uint64()),  # addresses
    ]
)

# The columns that decide which images are near duplicates.
PRINTS = pa.schema(
    [
        ("image_id", pa.string()),
        ("digest", pa.string()),  # first digits of the sha256
        ("fingerprint", pa.binary()),
        ("pixels", pa.int64()),
    ]
)

# Embeddings of images, as images.cosine rounds them.
EMBEDDED = pa.schema([IMAGES.field("image_id"), ("embedding", pa.binary())])

# The columns that decide which images of a cell are near duplicates by cosine.
CELLS = pa.schema(
    [
        *(field for field in PRINTS if field.name != "fingerprint"),
        EMBEDDED.field("embedding"),
        ("cell", pa.int32()),  # number of a pivot
    ]
)

# A face in pixels of the stored image, from its upper left corner.
FACE = pa.struct(
    [
        *((name, pa.int32()) for name in ("x", "y", "width", "height")),
        ("score", pa.float64()),
    ]
)

# Columns that the rows of the download stage have after those of IMAGES.
DOWNLOADED = pa.schema(
    [
        ("stage", pa.string()),  # that gave the status: download or screen
        ("http_status", pa.int32()),  # null if no whole answer came
        ("bytes", pa.int64()),  # of the body, as it came; null if there is none
        ("body_sha256", pa.string()),  # of the body, likewise
        ("faces", pa.list_(FACE)),  # null where none was looked for
    ]
)

# One row per image whose download was asked for, beside the dataset.
URLS = pa.schema(
    [
        ("url", pa.string()),
        *(IMAGES.field(name) for name in ("image_id", "status", "kept_as")),
        ("in_dataset", pa.bool_()),  # false also for what balancing left out
        *(DOWNLOADED.field(n) for n in ("http_status", "bytes", "body_sha256")),
    ]
)

# One row per text of a record, beside the dataset; and one f64 column per score.
SCORES = pa.schema(
    [CANDIDATES.field(name) for name in ("image_id", "text", "text_source")]
)

# One row per face of a record, beside the dataset.
FACES = pa.schema([CANDIDATES.field("image_id"), *FACE])

# Images that are excluded, and scores of images or of single texts.
SELECTED = pa.schema(
    [
        ("image_id", pa.string()),
        ("text_key", pa.uint64()),  # null: of all texts of the image
        ("score", pa.float64()),  # null where there is none
        ("excluded", pa.bool_()),
    ]
)

# Some of what was dropped.
REJECTS = pa.schema(
    [
        ("stage", pa.string()),
        ("reason", pa.string()),
        *(IMAGES.field(name) for name in ("image_id", "image_url", "kept_as")),
        ("text", pa.string()),
        ("picture", pa.binary()),  # a small JPEG, b"" if there is none
        ("count", pa.uint64()),
    ]
)

# Texts of repeated images, which move to the kept images. They are drawn with the key
# of their original image.
MOVED = pa.schema([*MATCHES, IMAGES.field("kept_as")])

# Number of matches of each entry; sparse, without entries that have none.
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
        ("weight", pa.float64()),  # images of the partition per sampled image
        *(MATCHES.field(name) for name in ("drawn", "metadata", "entry_ids")),
    ]
)

# Counts of what entered a stage (reason IN), left it (OUT) or was dropped there.
# `unit` is "texts", or "pages" / "files" for drops before there are texts.
FLOW = pa.schema(
    [
        ("stage", pa.string()),
        ("unit", pa.string()),
        ("reason", pa.string()),
        ("count", pa.int64()),
    ]
)

# Number of kept texts by value of a column; for the data card.
TALLIES = pa.schema(
    [("column", pa.string()), ("value", pa.string()), ("count", pa.uint64())]
)

# The file shards that were written, with the sink's facts about each.
SHARDS = pa.schema(
    [
        ("shard", pa.string()),  # file name
        ("facts", pa.string()),  # JSON
        ("count", pa.uint64()),  # records
    ]
)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Returns all rows of `table` as one RecordBatch, also if there are none."""
    return pa.RecordBatch.from_struct_array(table.to_struct_array().combine_chunks())


def from_columns(columns: Mapping[str, Any], schema: pa.Schema) -> pa.RecordBatch:
    """Returns a RecordBatch of the schema, without other columns than its own.

    Columns are lists or arrays, also chunked; a string or a number is one value for all
    rows, of at least one that is not.
    """
    n = next(len(v) for v in columns.values() if not isinstance(v, _VALUE))
    arrays = []
    for field in schema:
        values = columns[field.name]
        if isinstance(values, _VALUE):
            values = pa.repeat(pa.scalar(values, field.type), n)
        elif isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def from_rows(rows: Sequence[tuple], schema: pa.Schema) -> pa.RecordBatch:
    """Returns a RecordBatch of the schema, from tuples of its fields."""
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return from_columns(dict(zip(schema.names, columns, strict=True)), schema)


def sum_counts(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """Sums `count` over rows of the schema that agree in all other columns; sorted."""
    keys = [name for name in schema.names if name != "count"]
    table = pa.Table.from_batches(batches, schema=schema)
    # By one thread: threads take twice the memory, and longer in all.
    total = table.group_by(keys, use_threads=False).aggregate([("count", "sum")])
    total = total.rename_columns([*keys, "count"])
    total = total.sort_by([(key, "ascending") for key in keys])
    return one_batch(total.cast(schema))
