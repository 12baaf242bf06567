"""Tables of pairs: each format gives the same candidates, and no row vanishes."""

import contextlib
import csv
import gzip
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep import config, drops, schema
from data_prep.sources import kinds
from metaclip_jax.data import records

ROWS = [
    {"URL": "https://a.example/1.jpg", "TEXT": "a cat, on\na mat", "LANGUAGE": "en"},
    {"URL": "https://a.example/2.jpg#x", "TEXT": 'a "red"\tdog', "LANGUAGE": "en-GB"},
    {"URL": "HTTPS://A.example/ü.jpg", "TEXT": "ein Hund für Ä", "LANGUAGE": "de"},
    {"URL": "https://a.example/4.jpg", "TEXT": "  ", "LANGUAGE": ""},
    {"URL": "ftp://a.example/5.jpg", "TEXT": "a file", "LANGUAGE": None},
    {"URL": "", "TEXT": "no picture", "LANGUAGE": None},
    {"URL": "1.jpg", "TEXT": "relative", "LANGUAGE": None},
]
KEYS = {
    "source.kind": "table",
    "source.url_column": "URL",
    "source.text_columns": ("TEXT",),
    "source.language_column": "LANGUAGE",
}


def spec(**values):
    keys = config.curate()
    keys.update_from_flattened_dict(KEYS | values)
    return kinds.spec_of(keys)


def read(path, wanted):
    """Returns the candidates as a table and the flow as {(stage, unit, reason): n}."""
    flow = []
    batches = list(kinds.read(str(path), wanted, flow))
    rows = [row for part in flow for row in part.to_pylist()]
    table = pa.Table.from_batches(batches, schema=schema.CANDIDATES)
    return table, {(r["stage"], r["unit"], r["reason"]): r["count"] for r in rows}


def as_csv(rows, delimiter=",", head=True):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    if head:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_parquet(rows):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def as_json_lines(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


FORMS = {
    "a.parquet": as_parquet,
    "a.csv": as_csv,
    "a.tsv": lambda rows: as_csv(rows, "\t"),
    "a.jsonl": as_json_lines,
    "a.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "a.jsonl.zst": lambda rows: zstandard.compress(as_json_lines(rows)),
    "A.NDJSON": as_json_lines,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_same_candidates_and_losses(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name](ROWS))
    found, flow = read(tmp_path / name, spec())
    assert found["text"].to_pylist() == [
        "a cat, on a mat",
        'a "red" dog',
        "ein Hund für Ä",
    ]
    assert found["image_url"].to_pylist() == [
        "https://a.example/1.jpg",
        "https://a.example/2.jpg",
        "https://a.example/%C3%BC.jpg",
    ]
    assert found["image_id"][0].as_py() == records.image_id("https://a.example/1.jpg")
    assert found["language"].to_pylist() == ["en", "en", "de"]
    assert set(found["text_source"].to_pylist()) == {"TEXT"}
    assert flow == {
        ("read", "files", drops.IN): 1,
        ("read", "files", drops.OUT): 1,
        ("read", "rows", drops.IN): 7,
        ("read", "rows", drops.OUT): 7,
        ("parse", "texts", drops.IN): 7,
        ("parse", "texts", drops.OUT): 3,
        ("parse", "texts", "empty_text"): 1,
        ("parse", "texts", "image_url_not_http"): 1,
        ("parse", "texts", "no_image_url"): 1,
        ("parse", "texts", "bad_url"): 1,
    }


def test_several_columns_and_lists_give_a_text_each(tmp_path):
    rows = [
        {"u": "https://a.example/1.jpg", "alt": "one", "made": ["two", "", "three"]},
        {"u": "https://a.example/2.jpg", "alt": None, "made": []},
    ]
    keys = {"source.url_column": "u", "source.text_columns": ("alt", "made")}
    wanted = spec(**keys, **{"source.language_column": ""})
    for name, form in (("a.parquet", as_parquet), ("a.jsonl", as_json_lines)):
        (tmp_path / name).write_bytes(form(rows))
        found, flow = read(tmp_path / name, wanted)
        assert found["text_source"].to_pylist() == ["alt", "made", "made"]
        assert found["text"].to_pylist() == ["one", "two", "three"]
        assert flow["parse", "texts", "empty_text"] == 2


def test_a_file_without_a_head_has_the_names_that_are_given(tmp_path):
    (tmp_path / "a.tsv").write_bytes(as_csv(ROWS, "\t", head=False))
    wanted = spec(**{"source.header": ("URL", "TEXT", "LANGUAGE")})
    found, flow = read(tmp_path / "a.tsv", wanted)
    assert found.num_rows == 3 and flow["read", "rows", drops.IN] == 7


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
def test_a_column_that_is_missing_is_an_error_that_names_the_nearest(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name](ROWS))
    wanted = spec(**{"source.url_column": "url"})
    for look in (
        lambda: kinds.find(f"{tmp_path}/a*", wanted),
        lambda: read(tmp_path / name, wanted),
    ):
        with pytest.raises(ValueError, match="column 'url' in .*; did you mean 'URL'"):
            look()


def test_a_name_of_another_format_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"wanted a table, got .*a.txt; its name"):
        kinds.find(f"{tmp_path}/a.txt", spec())


def test_rows_that_are_none_are_counted(tmp_path):
    good = ROWS[:2]
    lines = as_json_lines(good).splitlines()
    bad = [b"{", b"[1]", b"\xff", b'{"a": ' * 5_000]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([lines[0], *bad, b"", lines[1]]))
    (tmp_path / "a.csv").write_bytes(as_csv(good) + b"one\r\na,b,c,d\r\n")
    for name, count in (("a.jsonl", 4), ("a.csv", 2)):
        found, flow = read(tmp_path / name, spec())
        assert found.num_rows == 2
        assert flow["read", "rows", "bad_row"] == count
        assert flow["read", "rows", drops.IN] == 2 + count


def test_bytes_that_are_no_utf8_do_not_end_a_file(tmp_path):
    data = as_csv(ROWS[:2]).replace(b"mat", b"m\xe4t")
    (tmp_path / "a.csv").write_bytes(data)
    found, _ = read(tmp_path / "a.csv", spec())
    assert found["text"].to_pylist()[0] == "a cat, on a m\ufffdt"


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("cut", [0.0, 0.5, 0.9])
def test_a_file_that_breaks_off_is_counted_and_ends_no_run(tmp_path, name, cut):
    rows = [
        {"URL": f"https://a.example/{i}.jpg", "TEXT": f"cat {i * i}", "LANGUAGE": "en"}
        for i in range(20_000)
    ]
    data = FORMS[name](rows)
    (tmp_path / name).write_bytes(data[: int(cut * len(data))])
    found, flow = read(tmp_path / name, spec())
    assert flow["read", "files", "damaged_table" if cut else "empty_file"] == 1
    assert flow["parse", "texts", drops.OUT] == found.num_rows < 20_000


@pytest.mark.parametrize("filling", [b"x", b" "])
def test_a_compressed_line_that_would_fill_the_memory_is_a_bad_row(tmp_path, filling):
    good = as_json_lines(ROWS[:1])
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", 1) as file:
        file.write(good + b'{"URL": "')
        for _ in range(40):
            file.write(filling * (1 << 20))
        file.write(b"\n" + good)
    with held_memory() as peak:
        found, flow = read(tmp_path / "a.jsonl.gz", spec())
    assert found.num_rows == 2 and flow["read", "rows", "bad_row"] == 1
    assert peak() < 100 << 20


@contextlib.contextmanager
def held_memory():
    """Gives the most bytes that Python has held since the block began."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("head", [b"x" * 200_000, b'"' + b"x\n" * 200_000 + b'"'])
def test_a_head_that_is_no_head_is_a_damaged_table(tmp_path, head):
    (tmp_path / "a.csv").write_bytes(head + b",URL,TEXT,LANGUAGE\n")
    found, flow = read(tmp_path / "a.csv", spec())
    assert not found.num_rows and flow["read", "files", "damaged_table"] == 1


@pytest.mark.parametrize("texts", [[{"a": "dog"}], [[["dog"]]]])
def test_a_column_of_structures_is_an_error(tmp_path, texts):
    columns = {"URL": ["https://a.example/1.jpg"], "TEXT": texts, "LANGUAGE": [""]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="wanted texts or lists of texts in 'TEXT'"):
        read(tmp_path / "a.parquet", spec())


def test_a_table_in_utf16_is_an_error_with_its_cure(tmp_path):
    (tmp_path / "a.csv").write_text("URL,TEXT,LANGUAGE\n", encoding="utf-16")
    with pytest.raises(ValueError, match="wanted a table in UTF-8.*iconv"):
        read(tmp_path / "a.csv", spec())


TIMES = [
    pa.array([2**62], pa.timestamp("us")),
    pa.array([1], pa.timestamp("us", "Mars/Olympus")),
]


@pytest.mark.parametrize("values", TIMES)
def test_a_column_of_impossible_times_is_a_damaged_table(tmp_path, values):
    columns = {"URL": ["https://a.example/1.jpg"], "TEXT": values, "LANGUAGE": [""]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found, flow = read(tmp_path / "a.parquet", spec())
    assert not found.num_rows and flow["read", "files", "damaged_table"] == 1


def test_damaged_row_groups_lose_their_own_images(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"text": f"cat {i}", "image": b"%d" % i * 400} for i in range(12)]
    pq.write_table(
        pa.Table.from_pylist(rows), path, row_group_size=4, use_dictionary=False
    )
    wanted = spec(
        **{
            "source.kind": "parquet",
            "source.url_column": "",
            "source.text_columns": (),
            "source.language_column": "",
        }
    )
    column = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(data)
    found, _ = read(path, wanted)
    references = found["stored_at"].to_pylist()
    assert len(references) == 12
    statuses = [status for _, status, _ in kinds.images(references, wanted)]
    assert statuses == ["ok"] * 4 + ["damaged_file"] * 4 + ["ok"] * 4
    pq.write_table(pa.table({"text": ["cat"]}), path)  # another file in its place
    statuses = {status for _, status, _ in kinds.images(references, wanted)}
    assert statuses == {"damaged_file"}
    path.write_bytes(b"no Parquet")
    statuses = [status for _, status, _ in kinds.images(references, wanted)]
    assert statuses == ["damaged_file"] * 12
