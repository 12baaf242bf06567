import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import drops
from data_prep.stages import parts
from data_prep.stages.matches import by_partition
from metaclip_jax.data import records


def test_partitions_are_equal_ranges_of_the_image_id():
    ids = pa.array([f"{i:03x}" + "0" * 21 for i in range(4096)])
    for n in (1, 3, 4, 1000):
        found = parts.partition_of(ids, n)
        assert found.min() == 0 and found.max() == n - 1
        assert np.all(np.diff(found) >= 0)
        counts = np.bincount(found, minlength=n)
        assert counts.max() - counts.min() <= 1


def test_the_largest_image_id_falls_into_the_last_partition():
    assert parts.partition_of(pa.array(["f" * 24]), 7).tolist() == [6]


def test_a_slice_is_partitioned_as_its_own_rows():
    ids = pa.array([records.image_id(f"http://a.example/{i}") for i in range(20)])
    whole = parts.partition_of(ids, 5)
    assert parts.partition_of(ids[7:11], 5).tolist() == whole[7:11].tolist()


@pytest.mark.parametrize("bad", ["abc", "g" * 24, "0" * 22])
def test_what_is_no_image_id_is_refused(bad):
    with pytest.raises(ValueError, match="hex"):
        parts.partition_of(pa.array([bad]), 2)


def test_a_part_brings_its_rows_and_its_flow_back(tmp_path):
    table = pa.table({"x": [1, 2, 3]})
    flow = drops.flow("dedup", entered=5, left=3, drops={"repeated_pair": 2})
    parts.write(tmp_path, "p.parquet", table, flow)
    assert parts.read(tmp_path, "p.parquet").equals(table)
    assert parts.read_flow(tmp_path, "p.parquet").equals(flow)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    table = pa.table({"x": [1, 2, 3]})
    flow = drops.flow("dedup", entered=3, left=3, drops={})
    for name in ("a", "b"):
        parts.write(tmp_path, name, table, flow)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_blobs_come_back_by_position(tmp_path):
    blobs = [bytes([i]) * (i + 1) for i in range(40)]
    with parts.blob_writer(tmp_path, "blobs") as write_blob:
        positions = [write_blob(b) for b in blobs]
    assert positions == list(range(40))
    order = [39, 0, 7, 7, 12]
    back = parts.read_blobs(tmp_path, "blobs", order, batch=2)
    assert list(back) == [blobs[i] for i in order]


def test_blobs_of_another_table_are_an_error_and_damage(tmp_path):
    """Two workers may download a partition at once, each in an order of its own."""
    blobs = [bytes([i]) * 9 for i in range(5)]
    digests = [hashlib.sha256(blob).hexdigest() for blob in blobs]
    table = pa.table({"position": [*range(5), -1], "sha256": [*digests, ""]})
    parts.write(tmp_path, "part.parquet", table)
    for order, whole in ((blobs, True), (blobs[::-1], False)):
        with parts.blob_writer(tmp_path, "part.images") as write_blob:
            for blob in order:
                write_blob(blob)
        assert parts.is_damaged(tmp_path, "part.images") != whole
    with pytest.raises(ValueError, match="part.images has other images than its"):
        list(parts.read_blobs(tmp_path, "part.images", range(5), digests=digests))


def test_an_interrupted_blob_file_gets_no_name(tmp_path):
    with pytest.raises(KeyError), parts.blob_writer(tmp_path, "blobs") as write_blob:
        write_blob(b"x")
        raise KeyError
    assert not parts.exists(tmp_path, "blobs")
    assert list(tmp_path.iterdir()) == []


def test_rows_go_to_their_partitions_in_order():
    ids = [f"{i:08x}{'0' * 16}" for i in (0xFFFFFFFF, 0, 0x80000000, 1, 0xFFFFFFFE)]
    rows = pa.RecordBatch.from_pydict({"image_id": ids, "n": [0, 1, 2, 3, 4]})
    found = {p: part["n"].to_pylist() for p, part in by_partition(rows, 3)}
    assert found == {0: [1, 3], 1: [2], 2: [0, 4]}
    assert list(by_partition(rows.slice(0, 0), 3)) == []


def test_a_range_is_read_of_rows_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_RUN_BYTES", 20_000)  # several runs
    monkeypatch.setattr(parts, "_GROUP_ROWS", 100)
    order = np.random.default_rng(0).permutation(3_000)
    ids = [f"{i:024x}" for i in range(3_000)]
    rows = pa.RecordBatch.from_pydict({"image_id": [ids[i] for i in order]})
    batches = [rows.slice(start, 300) for start in range(0, 3_000, 300)]
    flow = drops.flow("match", entered=3_000, left=3_000, drops={})
    parts.write_sorted(tmp_path, "p", batches, rows.schema, flow=lambda: flow)
    for start, stop in ((0, 3_000), (0, 1), (500, 1_700), (2_999, 3_000), (7, 7)):
        found = parts.read_range(tmp_path, "p", ids[start], (*ids, "g")[stop])
        assert sorted(found["image_id"].to_pylist()) == ids[start:stop]
    assert len(parts._chunks(tmp_path / "p", 0)) > 10


def test_no_changed_bit_of_a_footer_changes_the_flow(tmp_path):
    flow = drops.flow("dedup", entered=5, left=3, drops={"repeated_pair": 2})
    parts.write(tmp_path, "p.parquet", pa.table({"x": [1, 2, 3]}), flow)
    path = tmp_path / "p.parquet"
    content = path.read_bytes()
    assert pq.read_table(path)["x"].to_pylist() == [1, 2, 3]  # for every reader
    noticed = 0
    for at in range(len(content) - 1_000, len(content), 17):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            assert parts.read_flow(tmp_path, "p.parquet").equals(flow)
        except ValueError:
            noticed += 1
    assert noticed > 40
