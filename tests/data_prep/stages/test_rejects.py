"""A sample of what was dropped: bounded, the same for any partitions, with pictures."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_prep import config
from data_prep.report import load
from data_prep.report import page as report_page
from data_prep.sources import kinds
from data_prep.sources.texts import Losses
from data_prep.stages import rejects
from examples.quickstart import warc_file
from tests.data_prep import tiny_web


def jpeg(*size):
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


# Good ones, some of equal bytes; too small, too long, no image, gone.
WEB = {f"/good{n}.jpg": tiny_web.picture(n % 25) for n in range(30)}
WEB |= {f"/small{n}.jpg": jpeg(20, 10 + n) for n in range(20)}
WEB |= {"/long.jpg": jpeg(300, 40), "/text.jpg": b"not an image", "/gone.jpg": 404}
ALTS = [(path, f"a cat at {path[1:-4]}") for path in WEB]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All are kept by balancing, so that each bad image has its reason."""
    values = {"balance.rule": "online", "partitions": 3}
    return tiny_web.run(tmp_path_factory.mktemp("all"), ALTS, WEB, **values)


def rows_of(run):
    return load.rejects(run.workdir)


def test_each_reason_has_its_images_with_text_and_picture(everything):
    rows = rows_of(everything)
    counts = Counter((row["stage"], row["reason"]) for row in rows)
    assert counts == {
        ("download", "http_404"): 1,
        ("screen", "not_an_image"): 1,
        ("screen", "bad_aspect"): 1,
        ("screen", "too_small"): rejects.MOST,
        ("image_dedup", "repeated_image"): 5,
    }
    for row in rows:
        name = row["image_url"].rpartition("/")[2]
        assert row["text"] == f"a cat at {name[:-4]}"
        has_picture = row["reason"] not in ("http_404", "not_an_image")
        assert bool(row["picture"]) == has_picture
        if has_picture:
            with Image.open(io.BytesIO(row["picture"])) as picture:
                assert max(picture.size) <= 160
    (wide,) = [row for row in rows if row["reason"] == "bad_aspect"]
    assert Image.open(io.BytesIO(wide["picture"])).size == (160, 21)


@pytest.mark.slow
def test_the_sample_does_not_depend_on_partitions(everything, tmp_path):
    values = {"balance.rule": "online", "partitions": 1}
    again = tiny_web.run(tmp_path, ALTS, WEB, **values)
    assert rows_of(again) == rows_of(everything)


@pytest.mark.slow
def test_texts_that_balancing_drops_are_shown_with_their_image(tmp_path):
    values = {"balance.t": 10, "balance.slack": 3.0}
    run = tiny_web.run(tmp_path, ALTS, WEB, **values)
    rows = [row for row in rows_of(run) if row["reason"] == "balanced_away"]
    assert 0 < len(rows) <= rejects.MOST
    assert all(row["picture"] and "a cat at good" in row["text"] for row in rows)


def test_the_report_shows_pictures_and_texts_of_each_reason(everything):
    dataset, workdir = everything.output, everything.workdir
    html = report_page.build(dataset, curation_workdir=workdir).decode()
    section = html.partition('<section id="dropped">')[2].partition("</section>")[0]
    for reason in ("too small", "bad aspect", "not an image", "repeated image"):
        assert reason in section
    # Six of 12 that are too small, one of a wrong shape.
    assert section.count("<img") >= 7
    assert "a cat at long" in section
    assert 'id="dropped"' not in report_page.build(dataset).decode()


LOST = [
    *((f"/good{n}.jpg", f"<b>no entry</b> {n}") for n in range(30)),
    *(("/good0.jpg", f"a long cat {'x' * n}") for n in range(2_000, 2_003)),
    *((f":port/{n}", f"a cat inside {n}") for n in range(20)),
    ("/good0.jpg", ""),
]


def lost_texts(folder, alts, **values):
    run = tiny_web.run(folder, alts, WEB, **{"balance.rule": "online"} | values)
    rows = [row for row in rows_of(run) if row["stage"] in ("parse", "match")]
    return run, rows


def test_texts_that_parsing_and_matching_drop_are_shown_and_escaped(tmp_path):
    alts = [*ALTS, *LOST, *LOST]  # a second time, which adds nothing
    run, rows = lost_texts(tmp_path, alts)
    found = {}
    for row in rows:
        found.setdefault((row["stage"], row["reason"]), []).append(row["text"])
    assert all(row["picture"] == b"" for row in rows)
    assert found.keys() == {
        ("match", "no_match"),
        ("parse", "text_too_long"),
        ("parse", "bad_url"),
    }
    for stage, texts in found.items():
        assert len(set(texts)) == len(texts) <= rejects.MOST, stage
    assert len(found["match", "no_match"]) == rejects.MOST
    assert set(found["match", "no_match"]) <= {text for _, text in LOST}
    assert len(found["parse", "bad_url"]) == rejects.MOST
    # Those of one beginning are one.
    assert found["parse", "text_too_long"] == [f"a long cat {'x' * 289}"]
    html = report_page.build(run.output, curation_workdir=run.workdir).decode()
    section = html.partition('<section id="dropped">')[2].partition("</section>")[0]
    assert "&lt;b&gt;no entry&lt;/b&gt;" in section and "<b>no entry" not in html


@pytest.mark.slow
def test_lost_texts_do_not_depend_on_how_the_sources_are_read(tmp_path):
    alts = [*ALTS, *LOST]
    flags = tiny_web.write(tmp_path, alts, warcs=5)
    assert flags
    found = []
    for size in (1, 2, 5):
        folder = tmp_path / str(size)
        _, rows = lost_texts(folder, alts, sources_per_part=size, partitions=size)
        found.append(rows)
    assert found[0] == found[1] == found[2]


def test_pages_that_are_lost_whole_are_shown_by_their_addresses(tmp_path):
    head = (("Content-Type", "text/html"), ("Date", "Thu, 01 Jan 2026 00:00:00 GMT"))
    addresses = [f"https://a.example/{n}" for n in range(30)]
    answers = [warc_file.Answer(url, 404, head, b"<p>") for url in addresses]
    path = tmp_path / "pages.warc.gz"
    warc_file.write(path, answers, software="test")
    lost = rejects.Texts()
    spec = kinds.spec_of(config.curate())
    assert not list(kinds.read(str(path), spec, [], lost.lost))
    rows = rejects.of_rows(lost.rows()).to_pylist()
    assert {(row["stage"], row["reason"]) for row in rows} == {("read", "http_status")}
    assert len(rows) == len({row["text"] for row in rows}) == rejects.MOST
    assert {row["text"] for row in rows} <= set(addresses)


def test_a_sample_of_lost_texts_does_not_depend_on_their_order():
    texts = [f"lost {n}" for n in range(100)]
    shown = []
    for order in (texts, texts[::-1]):
        losses = Losses()
        for start in range(0, 100, 7):
            of_page = Losses()
            for text in order[start : start + 7]:
                of_page.lose("text_too_long", text)
            losses.add(of_page)
        assert losses == {"text_too_long": 100}
        shown.append(losses.shown)
    assert shown[0] == shown[1] and len(shown[0]["text_too_long"]) == rejects.MOST


def test_a_picture_of_the_smallest_hash_is_kept_whatever_the_order():
    body = tiny_web.picture(0)
    ids = [f"{n:024x}" for n in range(100)]
    tables = []
    for order in (ids, ids[::-1]):
        pictures = rejects.Pictures()
        for image_id in order:
            pictures.offer("too_small", image_id, body)
        pictures.offer("too_many_pixels", "a", body)
        tables.append(pictures.table())
    assert tables[0] == tables[1]
    assert tables[0].num_rows == rejects.MOST + 1
    (whole,) = [r for r in tables[0].to_pylist() if r["image_id"] == "a"]
    assert whole["picture"] == b""
