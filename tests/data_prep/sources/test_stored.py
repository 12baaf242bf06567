"""Sources that hold their images: tars, folders, Parquet, records, and their damage."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from data_prep import config, drops, schema
from data_prep.sources import kinds


def spec_of(kind, paths, **values):
    keys = config.curate()
    keys.update_from_flattened_dict(
        {"source.kind": kind, "source.paths": str(paths)}
        | {f"source.{key}": value for key, value in values.items()}
    )
    return kinds.spec_of(keys)


def read(kind, paths, **values):
    """Returns the candidates, what was lost by unit and reason, and the images."""
    spec = spec_of(kind, paths, **values)
    batches, flow = [], []
    for path in kinds.find(str(paths), spec):
        batches += kinds.read(path, spec, flow)
    table = pa.Table.from_batches(batches, schema=schema.CANDIDATES)
    lost = {}
    for row in (row for part in flow for row in part.to_pylist()):
        if row["reason"] not in (drops.IN, drops.OUT) and row["count"]:
            key = row["unit"], row["reason"]
            lost[key] = lost.get(key, 0) + row["count"]
    images = kinds.images(table["stored_at"].to_pylist(), spec)
    bodies = {index: (status, body) for index, status, body in images}
    return table, lost, [bodies[i] for i in range(table.num_rows)]


def tar_of(samples):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def test_a_tar_may_hold_any_layout_of_samples(tmp_path):
    samples = [
        ("a/1.JPG", b"one"),
        ("a/1.txt", b"text one"),
        ("a/1.json", json.dumps({"caption": "made one"}).encode()),
        ("a/2.txt", b"no picture"),
        ("README", b"no extension"),
        ("a/3.png", b"three"),
        ("a/3.txt", b"text\xff three"),
        ("a/4.webp", b"four"),
        ("a/4.txt", b"text four"),
        ("a/4.json", b"{no json"),
        ("a/5.x.jpg", b"several dots: x.jpg is no image"),
        ("b/1.avif", b"another one"),
        ("b/1.txt", b"  "),
        ("b/2.jpg", b"twice"),
        ("b/2.jpg", b"twice"),
        ("b/3.jpg", b"last" * 100),
        ("b/3.txt", b"text last"),
    ]
    (tmp_path / "x.tar").write_bytes(tar_of(samples))
    table, lost, bodies = read(
        "webdataset", tmp_path / "*.tar", text_columns=("txt", "caption")
    )
    assert table["text"].to_pylist() == [
        "text one", "made one", "text\ufffd three", "text last",
    ]  # fmt: skip
    assert table["image_url"].to_pylist()[0] == "source:x.tar/a/1.jpg"
    assert [body for _, body in bodies] == [b"one", b"one", b"three", b"last" * 100]
    assert lost == {
        ("samples", "no_image"): 2,
        ("samples", "not_a_sample"): 1,
        ("samples", "bad_facts"): 1,
        ("samples", "repeated_name"): 1,
        # Where a column is missing, it is one empty text.
        ("texts", "empty_text"): 4,
    }


@pytest.mark.parametrize(
    ("cut", "whole"), [(0, 0), (700, 0), (2_000, 0), (3_000, 1), (4_096, 2), (4_100, 2)]
)
def test_a_tar_that_breaks_off_is_counted(tmp_path, cut, whole):
    samples = [(f"{i}.{e}", b"x" * 300) for i in range(9) for e in ("jpg", "txt")]
    (tmp_path / "x.tar").write_bytes(tar_of(samples)[:cut])
    table, lost, bodies = read("webdataset", tmp_path / "x.tar")
    reason = "damaged_tar" if cut else "empty_file"
    assert lost == {("files", reason): 1}
    assert table.num_rows == len(bodies) == whole


def test_a_column_that_no_sample_has_is_an_error(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_of([("1.jpg", b"x"), ("1.txt", b"y")]))
    with pytest.raises(ValueError, match=r"text_columns=\('text',\).*\['jpg', 'txt'\]"):
        read("webdataset", tmp_path / "x.tar", text_columns=("text",))


def test_a_file_of_captions_names_no_file_outside_its_folder(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    inside = tmp_path / "pictures"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub/ok.jpg").write_bytes(b"fine")
    names = ["sub/ok.jpg", "../secret.jpg", f"{tmp_path}/secret.jpg", "", "gone.jpg"]
    names.append("sub/../../secret.jpg")
    rows = "".join(json.dumps({"file_name": n, "text": "a cat"}) + "\n" for n in names)
    (inside / "metadata.jsonl").write_text(rows)
    table, lost, bodies = read("folder", inside)
    assert bodies == [("ok", b"fine")]
    assert table["image_url"].to_pylist() == ["source:sub/ok.jpg"]
    assert lost == {("images", "bad_name"): 4, ("images", "no_image"): 1}


def test_no_page_and_no_table_makes_a_reference(tmp_path):
    """Nor would one be looked at: their images are downloaded."""
    (tmp_path / "x.jpg").write_bytes(b"secret")
    named = f"@{tmp_path}/x.jpg"
    rows = [{"url": named, "text": "a", "stored_at": named}]
    rows += [{**rows[0], "url": "https://a.example/1.jpg"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    spec = spec_of("table", tmp_path / "a.parquet")
    (batch,) = kinds.read(str(tmp_path / "a.parquet"), spec, [])
    assert batch["stored_at"].to_pylist() == [""]
    for kind in ("warc", "wat", "table"):
        assert kinds.images([named], spec_of(kind, "x")) is None


def test_images_that_are_gone_or_too_large_have_a_reason(tmp_path, monkeypatch):
    for name in ("1", "2", "3"):
        (tmp_path / f"{name}.jpg").write_bytes(b"x" * 50 * int(name))
        (tmp_path / f"{name}.txt").write_text("a cat")
    spec = spec_of("folder", tmp_path)
    (batch,) = kinds.read(str(tmp_path), spec, [])
    (tmp_path / "1.jpg").unlink()
    keys = config.curate()
    keys.source.kind, keys.download.max_bytes = "folder", 120
    found = kinds.images(batch["stored_at"].to_pylist(), kinds.spec_of(keys))
    assert sorted((i, status) for i, status, _ in found) == [
        (0, "missing_file"), (1, "ok"), (2, "too_large"),
    ]  # fmt: skip


def example(**features):
    found = tf_example_pb2.Example()
    for name, values in features.items():
        found.features.feature[name].bytes_list.value.extend(values)
    return found.SerializeToString()


def test_records_of_any_features_are_read_by_their_names(tmp_path):
    data = [
        example(image=[b"one"], texts=[b"a", b"b"], language=[b"de"]),
        example(texts=[b"no picture"]),
        b"\xffno example",
        example(image=[b"two"], texts=[]),
        example(image=[b"three"], texts=[b"c"], language=[]),
    ]
    path = tmp_path / "x-train.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for one in data:
        writer.write(one)
    writer.close()
    table, lost, bodies = read("array_record", path, language_column="language")
    assert table["text"].to_pylist() == ["a", "b", "c"]
    assert table["language"].to_pylist() == ["de", "de", ""]
    assert [body for _, body in bodies] == [b"one", b"one", b"three"]
    assert lost == {
        ("records", "no_image"): 1,
        ("records", "damaged_record"): 1,
        ("texts", "empty_text"): 1,
    }
    with pytest.raises(ValueError, match="a feature 'caption' in .*; name them in"):
        read("array_record", path, text_columns=("caption",))
    path.write_bytes(path.read_bytes()[:-9])
    _, lost, _ = read("array_record", path)
    assert lost == {("files", "damaged_records"): 1}


def test_parquet_may_hold_images_as_bytes_or_as_the_hub_has_them(tmp_path):
    images = [b"a", b"b", None, b"d"]
    forms = {
        "bytes": pa.array(images, pa.binary()),
        "hub": pa.array([{"bytes": one, "path": "x.jpg"} for one in images]),
    }
    for name, column in forms.items():
        table = pa.table({"image": column, "text": ["one", "two", "three", "four"]})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
        found, lost, bodies = read("parquet", tmp_path / f"{name}.parquet")
        assert found["image_url"].to_pylist()[3] == f"source:{name}.parquet/3"
        assert bodies == [
            ("ok", b"a"), ("ok", b"b"), ("missing_file", b""), ("ok", b"d"),
        ]  # fmt: skip
        assert not lost
