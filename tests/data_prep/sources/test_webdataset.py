"""Untrusted tars: no header ends a run with an error, or makes it endless."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import pyarrow as pa
import pytest
import zstandard

from data_prep import config, schema
from data_prep.sources import kinds

EVERY_TYPE = b"01234567xgLKSZ"


def spec(**values):
    keys = config.curate()
    keys.update_from_flattened_dict({"source.kind": "webdataset"} | values)
    return kinds.spec_of(keys)


def read(path, data, **values):
    """Returns the candidates and bodies of a tar, and {(unit, reason): n}."""
    path.write_bytes(data)
    flow, wanted = [], spec(**values)
    batches = list(kinds.read(str(path), wanted, flow))
    found = pa.Table.from_batches(batches, schema=schema.CANDIDATES)
    bodies = [body for *_, body in kinds.images(found["stored_at"].to_pylist(), wanted)]
    rows = [row for part in flow for row in part.to_pylist()]
    return found, bodies, {(row["unit"], row["reason"]): row["count"] for row in rows}


def header(name, size, kind=b"0"):
    """One block of a tar; a size that no octal number says is a binary one."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT)[:512])
    block[156:157] = kind
    negative = size.to_bytes(12, "big", signed=True)
    block[124:136] = negative if size < 0 else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name, content, kind=b"0"):
    padding = b"\0" * (-len(content) % 512)
    return header(name, len(content), kind) + content + padding


SAMPLE = member("a.jpg", b"picture") + member("a.txt", b"a cat")
END = bytes(1024)


@pytest.mark.parametrize("kind", EVERY_TYPE.decode())
@pytest.mark.parametrize("size", [-1, -512, -1024, -100_000])
def test_a_negative_size_ends_a_tar(tmp_path, kind, size):
    bad = header("b.jpg", size, kind.encode())
    found, bodies, flow = read(tmp_path / "a.tar", SAMPLE + bad + SAMPLE + END)
    assert set(found["text"].to_pylist()) <= {"a cat"}
    assert set(bodies) <= {b"picture"}
    assert flow["files", ">in"] == 1


@pytest.mark.parametrize("kind, content", [(b"x", b"8 a=bcd\n"), (b"L", b"name\0")])
def test_headers_about_headers_end_a_tar(tmp_path, kind, content):
    chain = member("x", content, kind) * 3_000
    *_, flow = read(tmp_path / "a.tar", SAMPLE + chain + SAMPLE + END)
    assert flow["files", "damaged_tar"] == 1


def test_names_in_no_encoding_stay_apart(tmp_path):
    names = [b"\xe4".decode("utf-8", "surrogateescape"), "\udcf6"]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            for extension, data in (("jpg", name), ("txt", "a cat")):
                content = data.encode("utf-8", "surrogateescape")
                entry = tarfile.TarInfo(f"{name}.{extension}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    found, bodies, _ = read(
        tmp_path / "a.tar", out.getvalue(), **{"source.paths": f"{tmp_path}/a.tar"}
    )
    assert sorted(bodies) == [b"\xe4", b"\xf6"]
    assert found["image_url"].to_pylist() == [
        "source:a.tar/\\udce4.jpg",
        "source:a.tar/\\udcf6.jpg",
    ]


def test_facts_of_any_type_and_with_lone_surrogates_are_texts(tmp_path):
    lone, end = "\ud800", END
    for fact in (lone, 1, None, [lone, 1], {"a": lone}, float("nan"), True):
        facts = json.dumps(dict.fromkeys(("text", "url", "page", "language"), fact))
        data = member("a.jpg", b"picture") + member("a.json", facts.encode()) + end
        found, bodies, _ = read(
            tmp_path / "a.tar",
            data,
            **{
                "source.text_columns": ("text",),
                "source.page_column": "page",
                "source.language_column": "language",
            },
        )
        assert len(bodies) == found.num_rows
        found.validate(full=True)


def test_two_images_of_a_sample_are_one_and_a_repeated_name(tmp_path):
    two = member("a.png", b"another") + SAMPLE
    _, bodies, flow = read(tmp_path / "a.tar", two + END)
    assert bodies == [b"picture"] and flow["samples", "repeated_name"] == 1
    assert flow["samples", ">in"] == 2 and flow["samples", "<out"] == 1


@pytest.mark.parametrize("code", [gzip, bz2, lzma, zstandard])
def test_a_compressed_tar_is_an_error_with_its_cure(tmp_path, code):
    (tmp_path / "a.tar.gz").write_bytes(code.compress(SAMPLE + END))
    with pytest.raises(ValueError, match=r"not compressed, .* got \w+ in .*decompress"):
        kinds.find(f"{tmp_path}/*", spec())


def test_a_header_of_many_digits_costs_no_time(tmp_path):
    slow = member("x", b"1" * 1_000_000, b"x")  # half an hour in Python 3.11.7
    *_, flow = read(tmp_path / "a.tar", SAMPLE + slow + SAMPLE + END)
    assert flow["files", "damaged_tar"] == 1
