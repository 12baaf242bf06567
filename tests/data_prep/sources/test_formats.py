"""Each kind of source reads its formats, and refuses the others before a run begins."""

import gzip
import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from data_prep import config
from data_prep.sources import formats, kinds
from tests.data_prep import tiny_web
from tests.data_prep.sources.test_wat import wat_of

PAGES = {"http://pages.example/": "<img src=/a.jpg alt='a cat'>"}
ROW = {"url": "http://images.example/a.jpg", "text": "a cat", "image": b"picture"}
NAMES = {
    "WARC": "a.warc.gz",
    "WAT": "a.wat.gz",
    "WET": "a.wet.gz",
    "Parquet": "a.parquet",
    "text table": "a.csv",
    "tar": "a.tar",
    "ArrayRecord": "a.array_record",
    "zip": "a.zip",
}


def tar_of(fields):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in fields.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    tiny_web.write_warc(folder / "a.warc.gz", PAGES)
    (folder / "a.wat.gz").write_bytes(wat_of(PAGES))
    wet = gzip.decompress(wat_of(PAGES)).replace(b": metadata", b": conversion")
    (folder / "a.wet.gz").write_bytes(gzip.compress(wet))
    pq.write_table(pa.Table.from_pylist([ROW]), folder / "a.parquet")
    (folder / "a.csv").write_text(f"url,text\n{ROW['url']},a cat\n")
    (folder / "a.tar").write_bytes(tar_of({"a.jpg": b"picture", "a.txt": b"a cat"}))
    (folder / "a.zip").write_bytes(b"PK\x03\x04" + bytes(99))
    example = tf_example_pb2.Example()
    for name, value in {"image": b"picture", "texts": b"a cat"}.items():
        example.features.feature[name].bytes_list.value.append(value)
    writer = ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
    writer.write(example.SerializeToString())
    writer.close()
    return folder


def spec_of(kind):
    keys = config.curate()
    keys.source.kind = kind
    return kinds.spec_of(keys)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_of_its_format_and_read_by_the_kinds_of_that_format(folder, name):
    path = str(folder / NAMES[name])
    assert formats.of(path) == name
    for kind, row in kinds.KINDS.items():
        if name in row.formats:
            assert kinds.find(path, spec_of(kind)) == [path]
        elif row.formats:
            with pytest.raises(ValueError, match=f"kind={kind}: wanted .*, got {name}"):
                kinds.find(path, spec_of(kind))


def test_a_refused_file_names_the_kinds_that_read_it(folder):
    for name, cure in {
        "WARC": "choose config.source.kind=warc,",
        "Parquet": "choose config.source.kind=table or parquet,",
        "zip": "correct config.source.paths",
    }.items():
        with pytest.raises(ValueError, match=cure):
            kinds.find(str(folder / NAMES[name]), spec_of("wat"))


@pytest.mark.parametrize("data", [b"", b"<html>", b"\x1f\x8b\x08", b"\x1f\x8b" * 9])
def test_a_damaged_first_file_is_counted_when_it_is_read(tmp_path, data):
    (tmp_path / "a.warc.gz").write_bytes(data)
    assert formats.of(str(tmp_path / "a.warc.gz")) == ""
    for kind in ("warc", "wat", "array_record"):
        assert kinds.find(str(tmp_path / "a.warc.gz"), spec_of(kind))


def test_the_beginning_of_a_large_file_shows_its_format(tmp_path):
    pages = {f"http://pages.example/{i}": f"<p>{i * 99}" * 999 for i in range(99)}
    tiny_web.write_warc(tmp_path / "a.warc.gz", pages)
    data = (tmp_path / "a.warc.gz").read_bytes()
    (tmp_path / "cut.warc.gz").write_bytes(data[:5_000])
    for name in ("a.warc.gz", "cut.warc.gz"):
        assert formats.of(str(tmp_path / name)) == "WARC"


@pytest.mark.parametrize("kind", [k for k, row in kinds.KINDS.items() if row.formats])
def test_a_folder_for_a_kind_of_files_is_refused_with_the_glob_to_add(folder, kind):
    with pytest.raises(ValueError, match="got the folder '.*'; write '.*") as error:
        kinds.find(f"{folder}/", spec_of(kind))
    glob = str(error.value).rpartition("write ")[2].strip("'")
    assert kinds.find(glob, spec_of(kind))
