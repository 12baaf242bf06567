"""From the pages of a WARC file to candidates: the batches, the flow, the work."""

import sys

import pytest

from data_prep import config, drops, schema
from data_prep.sources import kinds, spec
from examples.quickstart import warc_file

HEAD = (("Content-Type", "text/html"), ("Date", "Thu, 01 Jan 2026 00:00:00 GMT"))


@pytest.fixture
def parse(tmp_path):
    """Writes one page for each body; returns the batches and the flow of the file."""

    def run(*bodies, **keys):
        values = config.curate()
        values.source.update(keys)
        spec = kinds.spec_of(values)
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
    monkeypatch.setattr(spec, "_BATCH_ROWS", 10)
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


LARGER = {
    "<img src=s.jpg srcset='m.jpg 400w, l.jpg 800w' alt=cat>": "l.jpg",
    "<img src=s.jpg srcset='s.jpg 1x, l.jpg 2x' alt=cat>": "l.jpg",
    "<picture><source type=image/avif srcset='l.avif 900w'>"
    "<img src=s.jpg srcset='m.jpg 800w' alt=cat></picture>": "l.avif",
    "<img src=s.jpg srcset='huge.jpg 1601w, l.jpg 1600w' alt=cat>": "l.jpg",
}
AS_WRITTEN = {
    "<img src=s.jpg alt=cat>": "s.jpg",
    "<img src=s.jpg srcset='s.jpg 800w, m.jpg 400w' alt=cat>": "s.jpg",
    "<img src=s.jpg srcset='other.jpg' alt=cat>": "s.jpg",
    "<img src=s.jpg srcset='javascript:a 800w' alt=cat>": "s.jpg",
    "<picture><source type=image/jxl srcset='l.jxl 900w'>"
    "<img src=s.jpg alt=cat></picture>": "s.jpg",
    # The larger one cannot be used; nor can a source, of an unknown type, be instead.
    "<picture><source type=image/jxl srcset=l.jxl>"
    "<img src=s.jpg srcset='javascript:a 800w' alt=cat></picture>": "s.jpg",
}


def test_larger_images_come_before_src_where_asked_for_and_are_counted(parse):
    markup = "".join(LARGER | AS_WRITTEN).encode()
    for prefers in (False, True):
        (batch,), flow = parse(markup, prefer_larger=prefers)
        found = [url.rpartition("/")[2] for url in batch["image_url"].to_pylist()]
        larger = list(LARGER.values()) if prefers else ["s.jpg"] * len(LARGER)
        assert found == larger + list(AS_WRITTEN.values())
        counted = {r["reason"]: r["count"] for r in flow if r["unit"] == "addresses"}
        if prefers:
            assert counted == {
                drops.IN: len(found),
                drops.OUT: len(AS_WRITTEN),
                "larger_address": len(LARGER),
            }
        else:
            assert not counted


def test_the_texts_of_an_image_are_those_that_are_asked_for(parse):
    markup = (
        b"<figure><img src=a.jpg alt=one title=two aria-label=three>"
        b"<figcaption>four</figcaption></figure>"
    )
    for sources, wanted in (
        (("alt", "title", "figcaption"), ["one", "two", "four"]),
        (("aria-label", "alt"), ["three", "one"]),
        (("figcaption",), ["four"]),
    ):
        (batch,), flow = parse(markup, page_texts=sources)
        assert batch["text"].to_pylist() == wanted
        assert set(batch["text_source"].to_pylist()) == set(sources)
    assert not parse(markup, page_texts=())[0]
