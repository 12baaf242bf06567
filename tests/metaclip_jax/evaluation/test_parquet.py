"""Folders of Parquet files that would fill the memory, or are damaged, are refused."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metaclip_jax.evaluation import parquet

ROWS = 1_000


def repeated(value):
    return pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), [value])


def many_texts():
    offsets = pa.array([0, 5_000_000], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.nulls(5_000_000, pa.string()))


IMAGE = pa.array([b"image"])
REFUSED = {
    "texts of at most": {"image": repeated(b"x"), "text": repeated("x" * 3_000_000)},
    "5,000,000 rows or values": {"image": IMAGE, "text": many_texts()},
    "bytes of images": {"image": repeated(b"x" * 3_000_000), "text": repeated("cat")},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_fill_the_memory_is_refused(tmp_path, monkeypatch, message):
    monkeypatch.setattr(parquet, "_MAX_GROUP", 1 << 20)
    pq.write_table(
        pa.table(REFUSED[message]),
        tmp_path / "test.parquet",
        dictionary_pagesize_limit=1 << 30,
    )
    with pytest.raises(ValueError, match=message):
        parquet.open_folder(str(tmp_path)).read(pa.array([0]).to_numpy())


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "test.parquet"
    pq.write_table(pa.table({"image": IMAGE, "text": ["cat"]}), path)
    path.write_bytes(path.read_bytes()[:-9] + b"\xff" * 9)
    with pytest.raises(ValueError, match=r"test.parquet is damaged .* download it"):
        parquet.open_folder(str(tmp_path))
