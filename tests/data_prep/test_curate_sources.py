"""The same pictures through every kind of source give the same records."""

import csv
import dataclasses
import gzip
import io
import json
import math
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from data_prep import config as config_lib
from data_prep import curate, export
from data_prep.sources import kinds
from metaclip_jax import files
from metaclip_jax.data import records
from tests.data_prep import tiny_web
from tests.data_prep.sources.test_wat import wat_of

ROOT = Path(__file__).resolve().parents[2]
COUNT = 1_000
TEXTS = ("a cat", "one red dog", "a bird", "red cat, dog")


def path_of(i):
    return f"/{i}.jpg"


def url_of(i):
    return f"http://{tiny_web.IMAGES}{path_of(i)}"


def text_of(i):
    return f"{TEXTS[i % len(TEXTS)]} number {i}"


# Some are too small, and three have the bytes of others.
BODIES = [
    tiny_web.picture(i - 1 if i % 13 == 5 else i, side=20 if i % 11 == 3 else 48)
    for i in range(COUNT)
]
ROWS = [{"url": url_of(i), "text": text_of(i), "language": "en"} for i in range(COUNT)]


ALTS = [(path_of(i), text_of(i)) for i in range(COUNT)]


def as_warc(folder):
    tiny_web.write(folder, ALTS)
    return {"kind": "warc", "paths": folder / "pages-0.warc.gz"}


def unzipped(folder):
    as_warc(folder)
    return gzip.decompress((folder / "pages-0.warc.gz").read_bytes())


def as_plain_warc(folder):
    (folder / "pages.warc").write_bytes(unzipped(folder))
    return {"kind": "warc", "paths": folder / "pages.warc"}


def as_zstd_warc(folder):
    (folder / "a.warc.zst").write_bytes(zstandard.compress(unzipped(folder)))
    return {"kind": "warc", "paths": folder / "*.zst"}


def as_listed_warc(folder):
    """Half of the pages in each of two files, named by a list as Common Crawl's."""
    tiny_web.write(folder / "crawl", ALTS, warcs=2)
    with gzip.open(folder / "warc.paths.gz", "wt") as file:
        file.write("crawl/pages-0.warc.gz\ncrawl/pages-1.warc.gz\n")
    return {"kind": "warc", "paths": folder / "warc.paths.gz"}


def as_arc(folder):
    about = b"1 0 org\nURL IP-address Archive-date Content-type Archive-length\n"
    blocks = [("filedesc://x.arc", b"0.0.0.0", about)]
    for i in range(COUNT):
        html = f"<html lang=en><img src='{url_of(i)}' alt='{text_of(i)}'></html>"
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + html.encode()
        blocks.append((f"http://pages.example/{i}", b"192.0.2.1", answer))
    with gzip.open(folder / "a.arc.gz", "wb") as file:
        for url, address, block in blocks:
            head = b"%s %s 20080101000000 text/html %d\n"
            file.write(head % (url.encode(), address, len(block)) + block + b"\n")
    return {"kind": "warc", "paths": folder / "a.arc.gz"}


def as_wat(folder):
    meta = "<meta http-equiv=content-language content=en>"
    pages = {
        f"http://pages.example/{i}": f"{meta}<img src='{url_of(i)}' alt='{text_of(i)}'>"
        for i in range(COUNT)
    }
    (folder / "a.wat.gz").write_bytes(wat_of(pages))
    return {"kind": "wat", "paths": folder / "a.wat.gz"}


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def as_csv(folder):
    write_csv(folder / "pairs.csv", ROWS)
    return {"kind": "table", "paths": folder / "*.csv"}


def as_parquet(folder):
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
    return {"kind": "table", "paths": folder / "a.parquet"}


def as_json_lines(folder):
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "a.jsonl").write_text(text)
    return {"kind": "table", "paths": folder / "a.jsonl"}


def as_parquet_with_images(folder):
    """Two files of several row groups, as the Hugging Face hub has them."""
    for part in range(2):
        rows = [
            {**ROWS[i], "image": {"bytes": BODIES[i], "path": None}}
            for i in range(part, COUNT, 2)
        ]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=7)
    return {"kind": "parquet", "paths": folder / "*.parquet"}


def as_webdataset(folder):
    for part in range(2):
        with tarfile.open(folder / f"{part:05}.tar", "w") as tar:
            for i in range(part, COUNT, 2):
                facts = json.dumps({"url": url_of(i), "language": "en", "key": i})
                fields = {"json": facts, "jpg": BODIES[i], "txt": text_of(i)}
                for extension, content in fields.items():
                    data = content if isinstance(content, bytes) else content.encode()
                    member = tarfile.TarInfo(f"{i:09}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return {"kind": "webdataset", "paths": folder / "*.tar"}


def as_folder(folder):
    """Pictures in folders of a folder, with one file of captions above them."""
    for i in range(COUNT):
        (folder / f"pictures/{i % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"pictures/{i % 3}/{i}.jpg").write_bytes(BODIES[i])
    rows = [{"file_name": f"{i % 3}/{i}.jpg", **ROWS[i]} for i in range(COUNT)]
    write_csv(folder / "pictures/metadata.csv", rows)
    return {"kind": "folder", "paths": folder / "pictures"}


def as_array_record(folder):
    """Examples as TFDS writes them."""
    for part in range(2):
        path = folder / f"pairs-train.array_record-{part:05}-of-00002"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for i in range(part, COUNT, 2):
            example = tf_example_pb2.Example()
            for name, value in {**ROWS[i], "image": BODIES[i]}.items():
                data = value if isinstance(value, bytes) else value.encode()
                example.features.feature[name].bytes_list.value.append(data)
            writer.write(example.SerializeToString())
        writer.close()
    paths = folder / "*.array_record-*"
    return {"kind": "array_record", "paths": paths, "text_columns": ("text",)}


KINDS = {
    form.__name__[3:]: form
    for form in (
        as_warc,
        as_plain_warc,
        as_zstd_warc,
        as_listed_warc,
        as_arc,
        as_wat,
        as_csv,
        as_parquet,
        as_json_lines,
        as_parquet_with_images,
        as_webdataset,
        as_folder,
        as_array_record,
    )
}
PAGES = ("warc", "plain_warc", "zstd_warc", "listed_warc", "arc", "wat")
SERVED = (*PAGES, "csv", "parquet", "json_lines")


def curated(folder, source, host_map="", **values):
    """Curates a source in this process; returns the run."""
    config = config_lib.curate()
    keys = {f"source.{key}": value for key, value in source.items()}
    keys["source.paths"] = str(keys["source.paths"])
    keys |= {"name": "tiny", "partitions": 2, "download.retries": 0}
    keys |= {"balance.rule": "online", "download.host_map": host_map}
    config.update_from_flattened_dict(keys | values)
    if config.matching.mode != "none":
        (folder / "metadata.json").write_text(json.dumps(["cat", "dog", "red"]))
        config.metadata = str(folder / "metadata.json")
    run = curate.plan(config, f"{folder}/work", f"{folder}/dataset", [])
    curate.run_stages(run)
    return run


def read(run):
    dataset = records.open_dataset(run.output)
    found = map(records.decode, records.read(dataset, range(len(dataset))))
    return list(found), dataset.data_card


def without_source(record):
    """The bytes of a record, without the names that depend on its source."""
    nothing = ("",) * len(record.texts)
    return records.encode(
        dataclasses.replace(record, page_url="", text_sources=nothing)
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run of each kind of source, made on first use."""
    made = {}
    served = {path_of(i): body for i, body in enumerate(BODIES)}

    def run(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            source = KINDS[kind](folder)
            if kind not in PAGES:
                source["language_column"] = "language"
            if kind in SERVED:
                with tiny_web.serve(served) as host_map:
                    made[kind] = curated(folder, source, host_map)
            else:
                made[kind] = curated(folder, source)
        return made[kind]

    return run


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "warc"])
def test_every_kind_gives_the_records_of_the_web_pages(runs, kind):
    wanted, of_pages = read(runs("warc"))
    found, card = read(runs(kind))
    assert 0 < len(wanted) < COUNT
    assert [without_source(r) for r in found] == [without_source(r) for r in wanted]
    assert card["config"]["source"]["kind"] == runs(kind).config.source.kind

    def texts(data_card):
        return [row for row in data_card["funnel"] if row["unit"] == "texts"]

    assert texts(card) == texts(of_pages)


def test_a_dataset_that_was_written_can_be_read_as_a_source(runs, tmp_path):
    wanted, _ = read(runs("warc"))
    source = {
        "kind": "array_record",
        "paths": f"{runs('warc').output}/*.array_record-*",
        "url_column": "image_url",
        "language_column": "languages",
        "page_column": "page_url",
    }
    found, _ = read(curated(tmp_path, source))
    assert [without_source(r) for r in found] == [without_source(r) for r in wanted]
    assert [r.page_url for r in found] == [r.page_url for r in wanted]


@pytest.mark.slow  # test_verify_and_export.py has fewer pictures
@pytest.mark.parametrize("form", export.FORMATS)
def test_what_is_exported_and_read_back_gives_the_same_records(runs, tmp_path, form):
    wanted, _ = read(runs("warc"))
    dataset = records.open_dataset(runs("warc").output)
    names = export.export(dataset, str(tmp_path / "out"), form=form)
    columns = {"text_columns": ("texts",), "language_column": "languages"}
    if form == "parquet":
        columns["url_column"] = "image_url"
    paths = f"{tmp_path}/out/{os.path.dirname(names[0])}/*{Path(names[0]).suffix}"
    found, _ = read(curated(tmp_path, {"kind": form, "paths": paths} | columns))
    assert [without_source(r) for r in found] == [without_source(r) for r in wanted]


def test_without_metadata_every_text_of_a_good_picture_is_kept(tmp_path):
    source = as_folder(tmp_path) | {"language_column": "language"}
    run = curated(tmp_path, source, **{"matching.mode": "none", "balance.t": 2})
    found, card = read(run)
    good = {i for i in range(COUNT) if i % 11 != 3}
    texts = {text for record in found for text in record.texts}
    assert texts == {text_of(i) for i in good}
    assert {m for record in found for m in record.metadata} == {"other"}
    assert card["balanced"] is None and card["config"]["balance"]["rule"] == "online"
    assert card["texts"] == len(good)
    lost = {why for row in card["funnel"] for why, n in row["drops"].items() if n}
    assert lost == {"too_small", "repeated_image"}


SCORES = [0.25, None, math.nan, -1.5, 7, 0.1, math.inf, 2.0]


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_scores_of_a_source_are_beside_the_dataset_by_text(tmp_path, kind):
    """Two captions of a row have its scores; what is no finite number is null."""
    n = len(SCORES)
    rows = [
        {"url": url_of(i), "text": f"a cat {i}", "synthetic": f"a red dog {i}"}
        | {"similarity": SCORES[i], "aesthetic": f"{i}.5"}
        for i in range(n)
    ]
    if kind == "parquet":
        found = [row | {"image": {"bytes": BODIES[i]}} for i, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(found), tmp_path / "a.parquet")
    else:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for i, row in enumerate(rows):
                for ending, body in (
                    ("jpg", BODIES[i]),
                    ("json", json.dumps(row).encode()),
                ):
                    member = tarfile.TarInfo(f"{i}.{ending}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
    source = {
        "kind": kind,
        "paths": f"{tmp_path}/a.*",
        "text_columns": ("text", "synthetic"),
        "score_columns": ("similarity", "aesthetic"),
    }
    run = curated(tmp_path, source, **{"matching.mode": "none"})
    table = pa.concat_tables(
        files.read_parquet(path) for path in sorted(tmp_path.glob("dataset/scores-*"))
    )
    found = {(row.pop("image_id"), row.pop("text")): row for row in table.to_pylist()}
    inside = [(r.image_id, text) for r in read(run)[0] for text in r.texts]
    assert sorted(found) == sorted(inside) and len(inside) > n
    for row in rows:
        similarity = row["similarity"]
        good = similarity is not None and math.isfinite(similarity)
        for column in ("text", "synthetic"):
            of_text = found.get((records.image_id(row["url"]), row[column]))
            assert of_text in (
                None,  # of a picture that is too small
                {
                    "text_source": column,
                    "similarity": similarity if good else None,
                    "aesthetic": float(row["aesthetic"]),
                },
            )


def test_pages_have_no_scores(runs):
    spec = dataclasses.replace(runs("warc").source, score_columns=("similarity",))
    with pytest.raises(ValueError, match="whose pages have no scores"):
        kinds.find(str(runs("warc").source_files[0]), spec)


def test_a_folder_needs_neither_addresses_nor_captions_in_one_file(tmp_path):
    """name.jpg and name.txt; the names of the files take the place of addresses."""
    for i in range(6):
        place = tmp_path / f"pictures/{'ab'[i % 2]}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.JPG").write_bytes(BODIES[i])
        (place / f"{i}.txt").write_text(f"picture {i}\n")
    (tmp_path / "pictures/a/7.txt").write_text("without a picture")
    (tmp_path / "pictures/a/notes.md").write_text("not read")
    found, card = read(
        curated(
            tmp_path,
            {"kind": "folder", "paths": tmp_path / "pictures"},
            **{"matching.mode": "none"},
        )
    )
    urls = {record.texts[0]: record.image_url for record in found}
    assert (
        urls["picture 2"] == "source:a/2.JPG" and urls["picture 1"] == "source:b/1.JPG"
    )
    (images,) = [
        row
        for row in card["funnel"]
        if row["unit"] == "images" and row["stage"] == "read"
    ]
    assert images["drops"] == {"no_image": 1}
