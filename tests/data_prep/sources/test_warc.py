"""Pages of WARC files from strangers: whole, broken, and lying."""

import gzip
import itertools
import random

import brotli
import pytest

from data_prep.sources.warc import LostFile, LostPage, Page, read_pages

BODY = b"<p>hello</p>" * 50
LIMIT = 200_000
ZIPPED = b"Content-Type: text/html\r\nContent-Encoding: gzip"
CHUNKED = b"Content-Type: text/html\r\nTransfer-Encoding: chunked"


def record(
    body=BODY,
    url="http://a.example/",
    head=b"Content-Type: text/html",
    status=b"200 OK",
):
    return raw(b"HTTP/1.1 " + status + b"\r\n" + head + b"\r\n\r\n" + body, url)


def raw(http, url="http://a.example/", kind="response"):
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
        "WARC-Date: 2024-01-01T00:00:00Z\r\n"
        "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        "Content-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http)}\r\n\r\n"
    )
    return header.encode() + http + b"\r\n\r\n"


@pytest.fixture
def read(tmp_path):
    def read_bytes(data):
        path = tmp_path / "x.warc.gz"
        path.write_bytes(data)
        return list(read_pages(path, max_page_bytes=LIMIT))

    return read_bytes


def members(*records):
    return [gzip.compress(r, mtime=0) for r in records]


def test_pages_come_in_order_with_address_bytes_and_type(read):
    head = b"content-type: Text/HTML; charset=koi8-r"
    one = record(b"\xff\x00", url="http://a.example/1", head=head)
    two = record(url="<http://a.example/2>")
    pages = read(b"".join(members(one, two)))
    assert pages == [
        Page("http://a.example/1", b"\xff\x00", "Text/HTML; charset=koi8-r"),
        Page("http://a.example/2", BODY, "text/html"),
    ]


def test_only_responses_are_read(read):
    request = raw(b"GET / HTTP/1.1\r\n\r\n", kind="request")
    assert read(b"".join(members(request, record(), request))) == [
        Page("http://a.example/", BODY, "text/html")
    ]


def test_one_gzip_member_over_all_records_is_read(read):
    assert len(read(gzip.compress(record() * 3))) == 3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record(status=b"404 Not Found"), "http_status"),
        (record(status=b"301 Moved"), "http_status"),
        (record(status=b"what"), "bad_http"),
        (record(head=b"Content-Type: image/png"), "not_html"),
        (record(head=b"X: y", body=b"hello <p>"), "not_html"),
        (record(head=b"Content-Type: text/plain"), "not_html"),
        (record(body=b""), "empty_page"),
        (record(body=gzip.compress(b""), head=ZIPPED), "empty_page"),
        (record(body=b"0\r\n\r\n", head=CHUNKED), "empty_page"),
        (record(body=b"\x1f\x8b\x08 no gzip", head=ZIPPED), "bad_http"),
        (record(body=b"a" * (LIMIT + 1)), "page_too_large"),
        (record(url=""), "no_url"),
        (raw(b""), "bad_http"),
        (raw(b"no http at all"), "bad_http"),
        (record(head=b"X: " + b"a" * 100_000), "bad_http"),
    ],
)
def test_a_bad_response_is_a_lost_page_and_its_neighbours_are_not(read, bad, reason):
    good = record()
    pages = read(b"".join(members(good, bad, good)))
    assert [type(p) for p in pages] == [Page, LostPage, Page]
    assert pages[1] == LostPage(reason)


HTML = b"Content-Type: text/html\r\n"


@pytest.mark.parametrize(
    ("head", "body", "result"),
    [
        (b"Content-Encoding: gzip", gzip.compress(BODY), BODY),
        (b"CONTENT-ENCODING:GZIP", gzip.compress(BODY), BODY),
        (b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (600, BODY), BODY),
        (
            b"Content-Encoding: gzip\r\nContent-Encoding: br",
            brotli.compress(gzip.compress(BODY)),
            BODY,
        ),
        (
            b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked",
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(gzip.compress(BODY)), gzip.compress(BODY)),
            BODY,
        ),
        (b"Content-Encoding: gzip", BODY, BODY),
        (b"Content-Encoding: unheard-of", BODY, BODY),
        (b"Content-Encoding: unheard-of", gzip.compress(BODY), "bad_http"),
        (b"Content-Encoding: gzip", gzip.compress(b"a" * 10**7), "page_too_large"),
        (b"Content-Encoding: br", brotli.compress(b"a" * 10**7), "page_too_large"),
    ],
)
def test_http_encodings_are_undone_within_bounds(read, head, body, result):
    pages = read(b"".join(members(record(), record(body, head=HTML + head), record())))
    assert len(pages) == 3
    assert isinstance(pages[0], Page) and isinstance(pages[2], Page)
    if isinstance(result, bytes):
        assert pages[1].html == result
    else:
        assert pages[1] == LostPage(result)


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_heads_may_end_their_lines_in_lf_alone(read, end):
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: text/html; charset=x", b"A: b", b""]
    page = Page("http://a.example/", BODY, "text/html; charset=x")
    assert read(gzip.compress(raw(end.join(lines) + end + BODY))) == [page]
    assert read(gzip.compress(raw(b"\r\n".join(lines) + end + BODY))) == [page]


def test_a_page_of_no_type_is_html_by_what_the_crawler_saw_or_by_its_first_tag(read):
    seen = b"\r\nWARC-Identified-Payload-Type: text/html\r\nContent-Length"
    for kind in (b"html", b"", b"text/plain"):
        odd = record(head=b"Content-Type: " + kind, body=b"hello")
        assert read(gzip.compress(odd)) == [LostPage("not_html")]
        named = odd.replace(b"\r\nContent-Length", seen)
        assert [type(page) for page in read(gzip.compress(named))] == [Page]
    assert [type(p) for p in read(gzip.compress(record(head=b"X: y")))] == [Page]


def test_plain_files_and_arc_files_are_read(read):
    page = Page("http://a.example/", BODY, "text/html")
    assert read(record() * 3) == [page] * 3
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + BODY
    arc = b"http://a.example/ 192.0.2.1 20080101000000 text/html %d\n%s\n"
    about = (
        b"filedesc://x.arc 0.0.0.0 20080101000000 text/plain 76\n1 0 InternetArchive"
    )
    about += b"\nURL IP-address Archive-date Content-type Archive-length\n\n"
    parts = [about, *[arc % (len(block), block)] * 3]
    assert read(b"".join(parts)) == [page] * 3
    assert read(b"".join(members(*parts))) == [page] * 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"<html>hello", "not_warc"),
        (gzip.compress(b"<html>hello\r\n\r\n" * 10), "corrupt_warc"),
        (b"\x1f\x8b garbage", "corrupt_warc"),
    ],
)
def test_a_file_that_is_no_warc_is_one_lost_file(read, data, reason):
    assert read(data) == [LostFile(reason)]


def test_wherever_a_file_breaks_off_the_whole_records_before_are_read(read):
    parts = members(*[record(url=f"http://a.example/{i}") for i in range(3)])
    data = b"".join(parts)
    ends = list(itertools.accumulate(map(len, parts)))
    for cut in range(2, len(data)):
        pages = read(data[:cut])
        whole = sum(end <= cut for end in ends)
        assert [type(p) for p in pages[:whole]] == [Page] * whole, cut
        assert len(pages) == whole + (cut not in ends), cut
        if cut not in ends:
            assert isinstance(pages[-1], LostFile), cut


def test_damage_in_the_middle_loses_one_page_and_at_the_end_the_file(read):
    parts = members(*[record() for _ in range(4)])
    parts[2] = parts[2][:40] + b"\0\0\0\0" + parts[2][44:]
    pages = read(b"".join(parts))
    assert [type(p) for p in pages] == [Page, Page, LostPage, Page]
    assert pages[2] == LostPage("damaged_record")
    assert read(b"".join(parts[:3]))[2:] == [LostFile("corrupt_warc")]
    assert read(b"".join(members(record())) + b"junk")[-1] == LostFile("corrupt_warc")


def test_a_record_shorter_than_it_says_is_no_page(read):
    lying = record().replace(b"Content-Length: 6", b"Content-Length: 9")
    assert read(gzip.compress(lying)) == [LostFile("truncated_warc")]


def test_no_damage_raises(read):
    rng = random.Random(0)
    data = b"".join(members(*[record() for _ in range(3)]))
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        assert read(bytes(broken))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_pages(tmp_path / "none.warc.gz", max_page_bytes=LIMIT))
