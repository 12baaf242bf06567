"""Small Parquet files whose values would fill the memory are read in a part of it."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import config, drops
from data_prep.sources import kinds

ROWS = 1_000
LONG = "x" * 3_000_000  # 3 GB if each row has its own
MEMORY = 500 << 20  # bytes, in each case less than the values would take


def repeated(value, rows=ROWS):
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [value])


def listed(values):
    offsets = pa.array([0, len(values)], pa.int32())
    return pa.ListArray.from_arrays(offsets, values)


URLS = [f"https://a.example/{i}.jpg" for i in range(ROWS)]
URL, CAT = pa.array(URLS), pa.array(["a cat"] * ROWS)
PLAIN = {"use_dictionary": False, "write_batch_size": 1, "data_page_size": 1}
# Columns, options of the writer, what is lost of texts or else of files or images.
BOMBS = {
    "text": ({"url": URL, "text": repeated(LONG)}, {}, {"text_too_long": ROWS}),
    "bytes": (
        {"url": URL, "text": repeated(LONG.encode())},
        {},
        {"text_too_long": ROWS},
    ),
    "address": (
        {"url": repeated(f"https://a.example/{LONG}"), "text": CAT},
        {},
        {"image_url_too_long": ROWS},
    ),
    "page": ({"url": URL, "text": CAT, "page": repeated(LONG)}, {}, {}),
    "language": ({"url": URL, "text": CAT, "language": repeated(LONG)}, {}, {}),
    "list": (
        {"url": URL[:1], "text": listed(repeated(LONG, 20_000))},
        {},
        {"text_too_long": 10_000, "too_many_texts": 10_000},
    ),
    "nulls": (
        {"url": URL[:1], "text": listed(pa.nulls(10_000_000, pa.int8()))},
        {},
        {"table_too_large": 1},
    ),
    "pages": (
        {"url": URL[:40], "text": pa.array([LONG] * 40)},
        PLAIN,
        {"text_too_long": 40},
    ),
    "one page": (
        {"url": URL[:1], "text": pa.array(["x" * (70 << 20)])},
        PLAIN,
        {"table_too_large": 1},
    ),
    "prefixes": (
        {"url": URL, "text": pa.array([LONG] * 80 + ["a cat"] * (ROWS - 80))},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        {"text_too_long": 80},
    ),
    "image": ({"text": CAT, "image": repeated(LONG.encode())}, {}, {}),
}


def read(path):
    """Returns what was lost by reason."""
    name = Path(path).stem
    is_images = name == "image"
    keys = config.curate()
    keys.update_from_flattened_dict(
        {
            "source.kind": "parquet" if is_images else "table",
            "source.url_column": "" if is_images else "url",
            "source.text_columns": ("text",),
            "source.page_column": "page" if name == "page" else "",
            "source.language_column": "language" if name == "language" else "",
        }
    )
    spec, flow, references = kinds.spec_of(keys), [], []
    kinds.find(path, spec)
    for batch in kinds.read(path, spec, flow):
        references += batch["stored_at"].to_pylist()
    for _ in kinds.images(references, spec) or ():
        pass
    lost = {}
    for row in (row for part in flow for row in part.to_pylist()):
        if row["reason"] not in (drops.IN, drops.OUT) and row["count"]:
            lost[row["reason"]] = row["count"]
    return lost


def resident(name):
    """Returns a size of this process's memory in bytes; name: VmRSS, VmHWM (peak)."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) << 10


@pytest.mark.parametrize("name", BOMBS)
def test_values_that_would_fill_the_memory_are_counted(tmp_path, name):
    columns, options, lost = BOMBS[name]
    path = tmp_path / f"{name}.parquet"
    pq.write_table(
        pa.table(columns),
        path,
        compression="zstd",
        dictionary_pagesize_limit=1 << 30,
        **options,
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
    before = resident("VmRSS")
    assert read(str(path)) == lost
    assert resident("VmHWM") - before < MEMORY


@pytest.mark.parametrize(
    "texts",
    [
        listed(listed(repeated(LONG))),
        pa.StructArray.from_arrays([repeated(LONG)], ["a"]),
    ],
)
def test_texts_in_structures_are_refused_before_they_are_read(tmp_path, texts):
    path = tmp_path / "nested.parquet"
    pq.write_table(pa.table({"url": URL[: len(texts)], "text": texts}), path)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    with pytest.raises(ValueError, match="wanted texts or lists of texts in 'text'"):
        read(str(path))
    assert resident("VmHWM") - before < MEMORY
