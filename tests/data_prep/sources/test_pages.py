"""From the pages of a WARC file to candidates: the batches, the flow, the work."""

import sys

import pytest

from data_prep import config, drops, schema
from data_prep.sources import kinds, pages
from examples.quickstart import warc_file

HEAD = (("Content-Type", "text/html"), ("Date", "Thu, 01 Jan 2026 00:00:00 GMT"))


@pytest.fixture
def parse(tmp_path):
    """Writes one page for each body; returns the batches and the flow of the file."""
    spec = kinds.spec_of(config.curate())

    def run(*bodies):
        path = tmp_path / "x.warc.gz"
        answers = [
            warc_file.Answer(f"https://a.example/{i}", 200, HEAD, body)
            for i, body in enumerate(bodies)
        ]
        warc_file.write(path, answers, software="test")
        flow = []
        batches = list(kinds.read(str(path), spec, flow))
        return batches, [row for rows in flow for row in rows.to_pylist()]

    return run


def images(count, first=0):
    return b"".join(
        b"<img src=%d.jpg alt=cat>" % i for i in range(first, first + count)
    )


def test_candidates_come_in_order_in_batches_of_one_schema(parse, monkeypatch):
    monkeypatch.setattr(pages, "_BATCH_ROWS", 10)
    batches, _ = parse(images(3), b"<p>", images(9, 3), b"<p>", images(4, 12), b"<p>")
    assert [b.num_rows for b in batches] == [12, 4]
    assert all(b.schema == schema.CANDIDATES for b in batches)
    names = [
        url.rpartition("/")[2] for b in batches for url in b["image_url"].to_pylist()
    ]
    assert names == [f"{i}.jpg" for i in range(16)]


def test_pages_without_images_make_no_batch_but_are_counted(parse):
    batches, flow = parse(b"<p>one", b"<p>two")
    assert not batches
    counts = {(r["stage"], r["unit"], r["reason"]): r["count"] for r in flow}
    assert counts["read", "pages", drops.IN] == counts["read", "pages", drops.OUT] == 2
    assert counts["parse", "texts", drops.IN] == 0


@pytest.mark.parametrize("body", [b"<p>no picture", images(1)])
def test_the_work_is_in_proportion_to_the_pages(parse, body):
    """Calls are counted in place of seconds: they do not depend on the machine."""

    def calls(count_of_pages):
        count = 0

        def on_event(frame, event, argument):
            nonlocal count
            count += 1

        sys.setprofile(on_event)
        try:
            parse(*[body] * count_of_pages)
        finally:
            sys.setprofile(None)
        return count

    assert calls(800) < 4.4 * calls(200)
