"""WARC files from strangers: whole, broken, and lying."""

import gzip
import itertools
import random

import pytest

from data_prep.sources.warc import MAX_ELEMENTS, LostFile, LostPage, Page, read_pages

BODY = b"<p>hello</p>" * 50
LIMIT = 200_000


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
        (record(head=b"X: y"), "not_html"),
        (record(body=b"a" * (LIMIT + 1)), "page_too_large"),
        (record(body=b"<b>" * (MAX_ELEMENTS + 1)), "too_many_elements"),
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
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "body", "result"),
    [
        (b"Content-Encoding: gzip", gzip.compress(BODY), BODY),
        (b"Transfer-Encoding: chunked", CHUNKED % (len(BODY), BODY), BODY),
        (
            b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked",
            CHUNKED % (len(gzip.compress(BODY)), gzip.compress(BODY)),
            BODY,
        ),
        (b"Content-Encoding: identity", BODY, BODY),
        (b"Content-Encoding: gzip", BODY, "bad_http"),
        (b"Content-Encoding: br", BODY, "bad_http"),
        (b"Content-Encoding: deflate", BODY, "bad_http"),
        (b"Content-Encoding: unheard-of", BODY, "bad_http"),
        (b"Transfer-Encoding: chunked", BODY, "bad_http"),
        (b"Content-Encoding: gzip", gzip.compress(b"a" * 10**7), "page_too_large"),
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


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (record(), "not_gzip"),
        (b"<html>hello", "not_gzip"),
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


def test_damage_in_the_middle_loses_the_rest_and_says_so(read):
    parts = members(*[record() for _ in range(4)])
    parts[2] = parts[2][:40] + b"\0\0\0\0" + parts[2][44:]
    pages = read(b"".join(parts))
    assert [type(p) for p in pages] == [Page, Page, LostFile]
    assert pages[2] == LostFile("corrupt_warc")
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
