"""Stored HTTP responses: heads as servers wrote them, bodies as crawlers left them."""

import gzip
import itertools
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_prep.sources import http

HTML = "".join(f"<p>café 東京 {i * i} " for i in range(100)).encode()
LIMIT = 100_000


def raw_deflate(data):
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


def chunked(data, size=1000, line=b"%x\r\n", end=b"0\r\n\r\n"):
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(line % len(p) + p + line[-2:] for p in pieces) + end


APPLY = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "x-gzip": lambda data: gzip.compress(data, mtime=0),
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "chunked": chunked,
}
NONE = ("", "identity", "none", "utf-8", "x-unheard-of", "text/html", "compress")


def undo(body, *codings, limit=LIMIT):
    return http.decode(body, codings, limit=limit)


def test_of_the_codings_named_those_that_the_body_has_are_undone():
    for named in itertools.product([*APPLY, *NONE], repeat=2):
        for applied in itertools.product([True, False], repeat=2):
            body = HTML
            for coding, is_there in zip(named, applied, strict=True):
                if is_there:
                    body = APPLY.get(coding, bytes)(body)
            assert undo(body, *named) == HTML, (named, applied)


@given(st.lists(st.tuples(st.sampled_from([*APPLY, *NONE]), st.booleans()), max_size=5))
def test_any_codings_are_undone_in_their_order(codings):
    body = HTML
    for coding, is_there in codings:
        if is_there:
            body = APPLY.get(coding, bytes)(body)
    assert undo(body, *(coding for coding, _ in codings)) == HTML


def test_names_of_codings_are_taken_in_any_case_and_with_space():
    assert undo(gzip.compress(HTML), " GZip ") == HTML


@pytest.mark.parametrize("named", ["gzip", "deflate", "x-gzip"])
@pytest.mark.parametrize("has", [gzip.compress, zlib.compress])
def test_gzip_and_deflate_are_told_apart_by_their_bytes(named, has):
    assert undo(has(HTML), named) == HTML


def test_deflate_without_its_header_is_read():
    assert undo(raw_deflate(HTML), "deflate") == HTML


def test_several_gzip_members_are_one_body():
    body = gzip.compress(HTML[:300]) + gzip.compress(b"") + gzip.compress(HTML[300:])
    assert undo(body, "gzip") == HTML


AFTER = (b"\r\n", b"\0\0\0", b"<!-- x -->", b"\xff\xfe\x00junk" * 9, HTML)
FORMS = [*APPLY, "raw"]


def form(name):
    return raw_deflate(HTML) if name == "raw" else APPLY[name](HTML)


def coding_of(name):
    return "deflate" if name == "raw" else name


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("name", FORMS)
def test_bytes_after_the_end_are_left_out(name, after):
    assert undo(form(name) + after, coding_of(name)) == HTML


@pytest.mark.parametrize("name", FORMS)
def test_of_a_body_that_breaks_off_what_was_read_is_kept(name):
    body = form(name)
    read = 0
    for cut in range(40, len(body)):
        try:
            found = undo(body[:cut], coding_of(name))
        except ValueError:  # nothing of it could be decoded
            continue
        assert HTML.startswith(found)
        read = max(read, len(found))
    assert read > 0 or name == "zstd", "zstd decodes whole blocks only"


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_of_a_damaged_body_what_comes_before_is_kept(name):
    html = b"".join(b"<p>%d" % i for i in range(20_000))
    body = bytearray(APPLY[name](html))
    body[len(body) // 2 :] = b"\xff" * (len(body) // 2)
    found = undo(bytes(body), name)
    assert len(found) > len(html) // 4
    assert html.startswith(found[: len(html) // 4])


@pytest.mark.parametrize("name", [n for n in FORMS if n != "chunked"])
def test_bytes_of_another_coding_are_refused(name):
    with pytest.raises(ValueError, match="wanted a body in .*, got other bytes"):
        undo(form(name), "x-unheard-of")
    with pytest.raises(ValueError, match="other bytes"):
        undo(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9, coding_of(name))


@pytest.mark.parametrize("codec", ["utf-16", "utf-8-sig", "koi8-r", "shift_jis"])
def test_plain_text_of_any_charset_stays_as_it_is(codec):
    text = "<html><p>кошка".encode(codec)
    for coding in (*APPLY, *NONE):
        assert undo(text, coding) == text


@pytest.mark.parametrize(
    "body",
    [
        b"9;name=value\r\n<p>chunks\r\n8 ; x=\"y\"\r\n and end\r\n0\r\n\r\n",
        b"9\n<p>chunks\n8\n and end\n0\n\n",
        b"0009  \r\n<p>chunks\r\n0000000008\r\n and end\r\n00\r\n\r\n",
        b"11\r\n<p>chunks and end\r\n0\r\nTrailer: x\r\nOther: 5\r\n\r\n",
        b"11\r\n<p>chunks and end\r\n0\r\n\r\nmore",
        b"11\r\n<p>chunks and end\r\n",
        b"11\r\n<p>chunks and end",
        b"9\r\n<p>chunks\r\nFF\r\n and end",
        b"1\r\n<\r\nf\r\np>chunks and en\r\n1\r\nd\r\n0\r\n",
    ],
)  # fmt: skip
def test_chunks_are_joined_however_they_are_written(body):
    assert undo(body, "chunked") == b"<p>chunks and end"


@given(st.binary(max_size=60), st.integers(1, 20))
def test_chunks_of_any_bytes_and_size_are_joined(data, size):
    body = chunked(data, size)
    assert undo(body, "chunked") == data if data else undo(body, "chunked") == b""


@pytest.mark.parametrize("name", FORMS)
def test_no_more_than_the_limit_is_decoded(name):
    bomb = b"a" * 20_000_000
    body = raw_deflate(bomb) if name == "raw" else APPLY[name](bomb)
    found = undo(body, coding_of(name), limit=1000)
    assert 1000 <= len(found) <= 200_000 and set(found) == {ord("a")}


LINE_ENDS = (b"\r\n", b"\n", b"\r\r\n")
STATUS_LINES = (
    b"HTTP/1.1 200 OK", b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.0 200 Fine",
    b"HTTP/2 200", b"HTTP/2.0 200 OK", b"HTTP/3 200", b"http/1.1 200 ok", b"HTTP 200",
    b"HTTP/1.1\t200\tOK", b"HTTP/1.1  200  OK", b"HTTP/1.1 200 \xc3\xa9",
)  # fmt: skip


@given(
    st.sampled_from(STATUS_LINES),
    st.lists(st.sampled_from(LINE_ENDS), min_size=6, max_size=6),
    st.integers(0, 2**12 - 1),
    st.sampled_from([b"", b" ", b"\t "]),
    st.sampled_from([b"", b" ", b"  \t"]),
    st.sampled_from([b"", b"\r\n", b"\n"]),
)
def test_heads_are_read_however_they_are_written(
    line, ends, case, before_colon, after, before
):
    name = "".join(
        c.upper() if case >> i & 1 else c for i, c in enumerate("content-type")
    ).encode()
    field = name + before_colon + b":" + after + b"text/html;" + after
    lines = [line, b"X-Long: one", b" Content-Type: folded", field, b"no colon", b""]
    head = before + b"".join(map(b"".join, zip(lines, ends, strict=True)))
    found = http.parse(head + b"\n\r\nbody")
    assert found.status == 200
    assert found.get(b"content-type") == "text/html;"
    assert found.get(b"content-encoding") == ""
    assert found.body == b"\n\r\nbody"


def test_folded_and_repeated_fields_are_joined():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html;\r\n\tcharset=koi8-r\r\n"
    found = http.parse(head + b"content-type: b\r\nContent-Type:\r\n\r\n")
    assert found.get(b"content-type") == "text/html; charset=koi8-r, b, "
    assert found.body == b""


@pytest.mark.parametrize("interim", [b"100 Continue", b"103 Early Hints"])
def test_an_interim_response_is_passed_over(interim):
    early = b"HTTP/1.1 " + interim + b"\r\nLink: x\r\n\r\n"
    found = http.parse(early + early + b"HTTP/1.1 404 None\r\nA: b\r\n\r\nbody")
    assert (found.status, found.body) == (404, b"body")


@pytest.mark.parametrize(
    "block",
    [
        b"", b"\r\n", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK\r\nA: b\r\n", b"<html>",
        b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 99_999,
    ],
)  # fmt: skip
def test_what_is_no_response_is_said_so(block):
    assert http.parse(block) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed(data):
    http.parse(data)
    http.parse(b"HTTP/1.1 200 OK\n" + data)
    for coding in (*APPLY, *NONE):
        try:
            assert len(undo(data, coding, limit=500)) <= 40_000
        except ValueError as error:
            assert "other bytes" in str(error)


@pytest.mark.parametrize(
    ("content_type", "identified", "wanted"),
    [
        ("text/html", "", True),
        ("Text/HTML;charset=x", "", True),
        ("application/xhtml+xml", "", True),
        ("text/html charset=utf-8", "", True),
        ("text/html,text/html", "", True),
        ("text/html; charset=a, text/html; charset=UTF-8", "", True),
        ('"text/html"', "", True),
        ("'text/html; charset=utf-8'", "", True),
        ("text/plain, text/html", "", True),
        ("text/html;", "", True),
        ("text/html, */*", "", True),
        ("text/html, text/plain", "", False),
        ("image/png", "", False),
        ("application/json; x=text/html", "", False),
        ("text/htmlx", "", False),
        ("html", "", None),
        ("", "", None),
        (";charset=utf-8", "", None),
        ("text/", "", None),
        ("*/*", "", None),
        ("unknown/unknown", "", None),
        ("application/unknown", "", None),
        ("html", "text/html", True),
        ("", "application/xhtml+xml", True),
        ("", "Text/HTML; version=5", True),
        ("text/plain", "text/html", True),
        ("application/octet-stream", "text/html", True),
        ("html", "image/png", False),
        ("", "application/pdf", False),
        ("text/html", "text/plain", True),
    ],
)
def test_the_type_is_the_headers_or_what_the_crawler_saw(
    content_type, identified, wanted
):
    assert http.is_html(content_type, identified) is wanted


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"<!DOCTYPE html>", True),
        (b" \n\t<HTML lang=en>", True),
        (b"<!-- x --><p>", True),
        (b"<p>hello", True),
        (b"<a href=x>", True),
        (b"<abc>", False),
        (b"<htmlx>", False),
        (b"hello <p>", False),
        (b"", False),
        (b"<?xml version='1.0'?><rss>", False),
        (b"\x89PNG", False),
    ],
)
def test_a_body_of_unknown_type_is_html_by_its_first_tag(body, wanted):
    assert http.looks_like_html(body) is wanted
