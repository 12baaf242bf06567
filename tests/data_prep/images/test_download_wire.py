"""The downloader byte by byte: what it asks for, and which answers it takes."""

import gzip
import socket
import threading
import time
import tracemalloc

import pytest

from data_prep.images import download
from tests.data_prep.raw_server import BODY, HOST, answer, fetch_settings, serving


def fetch(port, urls, hosts=("images.example",), **options):
    limits = download.Limits(**fetch_settings(port, hosts) | options)
    found = sorted(download.fetch(urls, limits))
    assert [result.position for result in found] == list(range(len(urls)))
    assert all(bool(result.body) == (result.status == "ok") for result in found)
    return found


def targets(heads):
    return [head.split(b" ")[1].decode("latin-1") for head in heads]


# What is requested for an address, as the URL standard says.
REQUESTED = [
    ("/a.jpg?Signature=qZ%2BPP2g%3D&Key=x%2Fy", None),
    ("/a.jpg?Signature=qZ+PP2g=&Key=x/y", None),
    ("/unsafe/300x300/http%3A%2F%2Fs.example%2Fa.jpg", None),
    ("/unsafe/http://s.example//a.jpg", None),
    ("/a.jpg?u=http%3A%2F%2Fs.example%2Fb.jpg%3Fw%3D1&s=9", None),
    ("/p%28test%29.jpg?s=1", None),
    ("/p(test).jpg?s=(1)", None),
    ("/%7Euser/~user/%61.jpg", None),
    ("/a%27b.jpg?s=%e9%AA", None),
    ("/100%.jpg?discount=5%", None),
    ("/%zz%2.jpg", None),
    ("/a.jpg?", None),
    ("/a.jpg?a=1;b=2&c[]=3&&=", None),
    ("/a;v=1,2:3@4$!*/b|c.jpg", None),
    ("/%252F%2525.jpg", None),
    ("/%", None),
    ("/a b.jpg?c d", "/a%20b.jpg?c%20d"),
    ("/böd/猫.jpg?q=é", "/b%C3%B6d/%E7%8C%AB.jpg?q=%C3%A9"),
    ('/"<>`{}^.jpg', "/%22%3C%3E%60%7B%7D%5E.jpg"),
    ("/a'b.jpg?c'd", "/a'b.jpg?c%27d"),
    ("/x/../a/./b.jpg", "/a/b.jpg"),
    ("/../../a.jpg", "/a.jpg"),
    ("/x/%2e%2E/a.jpg", "/a.jpg"),
    ("/..a/b..jpg", None),
    ("\\a\\b.jpg?c\\d", "/a/b.jpg?c\\d"),
    ("/a.jpg#b?c", "/a.jpg"),
    ("/a\t\n.jpg", "/a.jpg"),
    ("", "/"),
    ("?a=/../b", "/?a=/../b"),
]


def test_an_address_is_requested_as_it_is_written():
    with serving(lambda target: answer()) as (port, heads):
        found = fetch(port, [HOST + written for written, _ in REQUESTED], per_host=1)
    assert {result.status for result in found} == {"ok"}
    assert targets(heads) == [wanted or written for written, wanted in REQUESTED]


@pytest.mark.parametrize("origin", ["", HOST])
def test_a_redirect_leads_to_the_address_as_it_is_written(origin):
    pairs = [(w, wanted or w) for w, wanted in REQUESTED if w[:1] in ("/", "\\")]
    pairs = [(written.replace("\n", ""), wanted) for written, wanted in pairs]

    def decide(target):
        if not target.startswith(b"/from/"):
            return answer()
        place = origin + pairs[int(target[6:])][0]
        return answer(b"Location: " + place.encode() + b"\r\n", b"302 Found", b"")

    urls = [f"{HOST}/from/{i}" for i in range(len(pairs))]
    with serving(decide) as (port, heads):
        found = fetch(port, urls, per_host=1)
    assert {result.status for result in found} == {"ok"}
    assert targets(heads)[1::2] == [wanted for _, wanted in pairs]


@pytest.mark.parametrize(
    ("location", "target"),
    [
        (b"/caf\xe9.jpg", "/caf%E9.jpg"),  # Latin-1
        (b"/caf\xc3\xa9.jpg", "/caf%C3%A9.jpg"),  # UTF-8
        (b"/\xe7\x8c\xab\xff.jpg?\xe9", "/%E7%8C%AB%FF.jpg?%E9"),
        (b"other.jpg", "/x/other.jpg"),
        (b"../other.jpg", "/other.jpg"),
        (b"?b=%2F", "/x/from?b=%2F"),
        (b"//images.example/a%2Fb", "/a%2Fb"),
        (b"http:other.jpg", "/x/other.jpg"),
    ],
)
def test_a_location_is_read_as_browsers_do(location, target):
    def decide(asked):
        if asked != b"/x/from?a":
            return answer()
        return answer(b"Location: " + location + b"\r\n", b"301 Moved", b"")

    with serving(decide) as (port, heads):
        (found,) = fetch(port, [HOST + "/x/from?a"])
    assert (found.status, targets(heads)[-1]) == ("ok", target)


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("http://IMAGES.example/", "images.example"),
        ("http://images.example:80/", "images.example"),
        ("http://bücher.example/", "xn--bcher-kva.example"),
        ("http://BÜCHER.example/", "xn--bcher-kva.example"),
        ("http://xn--bcher-kva.example/", "xn--bcher-kva.example"),
        ("http://ｆｕｌｌ。example/", "full.example"),
        ("http://%61scii.example/", "ascii.example"),
        ("http://under_score.example/", "under_score.example"),
        ("http://user:pass@images.example/", "images.example"),
        ("http:images.example/", "images.example"),
        ("\x00 http:/images.example/ \n", "images.example"),
    ],
)
def test_a_host_name_is_requested_in_ascii(written, host):
    with serving(lambda target: answer()) as (port, heads):
        (found,) = fetch(port, [written], hosts=[host])
    assert found.status == "ok"
    assert f"\r\nHost: {host}\r\n".encode() in heads[0]


HEADERS = {
    "one long value": b"Content-Security-Policy: " + b"a" * 9_000 + b"\r\n",
    "a longer value": b"Set-Cookie: " + b"a" * 20_000 + b"\r\n",
    "the longest value": b"X: " + b"a" * 250_000 + b"\r\n",
    "a long name": b"X" * 20_000 + b": 1\r\n",
    "many cookies": b"Set-Cookie: a=b; path=/\r\n" * 2_000,
    "many names": b"".join(b"X-%d: 1\r\n" % i for i in range(2_000)),
    "the length twice": b"Content-Length: 23\r\n",
    "the length in a list": b"content-length: 23, 23\r\n",
    "the length with zeros": b"Content-Length: 023\r\n",
    "a length that is no number": b"Content-Length: many\r\n",
    "a space in a name": b"Bad Header: 1\r\n",
    "a space after a name": b"X-Server : 1\r\n",
    "odd names": b'(x)[y]/{z}@\xe9=\xff: 1\r\nX,Y;Z: 2\r\n"a": 3\r\n',
    "no name": b": 1\r\n",
    "no colon": b"Header\r\n",
    "no value": b"Server:\r\nVia: \r\n",
    "a folded value": b"X-Long: one\r\n two\r\n\tthree\r\n",
    "a fold before all": b" folded: 1\r\n",
    "values of any bytes": b"X: \x01\x7f\x80\xff\xe7\x8c\xab\r\n",
    "a bare carriage return": b"X: a\rb\r\n",
    "a nought": b"X: a\x00b\r\n",
    "bare line feeds": b"X: 1\nY: 2\n",
    "an unknown coding": b"Content-Encoding: utf-8\r\n",
    "an empty coding": b"Content-Encoding:\r\n",
    "no coding": b"Content-Encoding: identity\r\n",
    "an old key": b"Sec-WebSocket-Key1: 1\r\n",
    "an upgrade": b"Upgrade: h2,h2c\r\nConnection: Upgrade\r\n",
    "a bad date": b"Date: yesterday\r\nExpires: 0\r\nExpires: -1\r\n",
}
STARTS = {
    "old": b"HTTP/1.0 200 OK\r\n",
    "new": b"HTTP/2 200\r\n",
    "no reason": b"HTTP/1.1 200\r\n",
    "an odd reason": b"HTTP/1.1 200 \xe9\x01:\r\n",
    "a long reason": b"HTTP/1.1 200 " + b"a" * 20_000 + b"\r\n",
    "spaces": b"HTTP/1.1   200   OK \r\n",
    "small letters": b"http/1.1 200 ok\r\n",
    "radio": b"ICY 200 OK\r\n",
    "line ends before": b"\r\n\r\n\nHTTP/1.1 200 OK\r\n",
    "a bare line feed": b"HTTP/1.1 200 OK\n",
    "early hints": b"HTTP/1.1 103 \r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n",
    "to go on": b"HTTP/1.1 100 Continue\n\n" * 3 + b"HTTP/1.1 200 OK\r\n",
}


def statuses(answers, **options):
    with serving(lambda target: answers[int(target[1:])]) as (port, _):
        found = fetch(port, [f"{HOST}/{i}" for i in range(len(answers))], **options)
    return [result.status for result in found]


def test_heads_that_browsers_take_are_taken():
    answers = {name: answer(headers) for name, headers in HEADERS.items()}
    for name, start in STARTS.items():
        answers[name] = start + b"Content-Length: 23\r\n\r\n" + BODY
        answers[f"{name}, to the end"] = start + b"Server: a\r\n\r\n" + BODY
    found = dict(zip(answers, statuses(list(answers.values())), strict=True))
    assert found == dict.fromkeys(answers, "ok")


def test_chunks_are_read_however_they_are_announced():
    body = b"3\r\nabc\r\n4;name=value\r\ndefg\r\n0\r\nTrailer: 1\r\n\r\n"
    start = b"HTTP/1.1 200 OK\r\n"
    headers = (
        b"Transfer-Encoding: chunked\r\n",
        b"transfer-encoding: Chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 9999\r\n",
        b"Content-Length: 1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n",
    )
    answers = [start + header + b"\r\n" + body for header in headers]
    with serving(lambda target: answers[int(target[1:])]) as (port, _):
        found = fetch(port, [f"{HOST}/{i}" for i in range(len(answers))])
    assert {(result.status, result.body) for result in found} == {("ok", b"abcdefg")}


def test_zipped_bodies_are_read_by_either_name():
    zipped = gzip.compress(BODY)
    names = (b"gzip", b"GZIP", b"x-gzip", b"gzip,", b" , gzip")
    answers = [
        answer(b"Content-Encoding: " + name + b"\r\n", body=zipped) for name in names
    ]
    with serving(lambda target: answers[int(target[1:])]) as (port, _):
        found = fetch(port, [f"{HOST}/{i}" for i in range(len(answers))])
    assert {result.body for result in found} == {BODY}


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (answer(b"X: " + b"a" * 300_000 + b"\r\n"), "bad_http"),
        (answer(b"X: 1\r\n" * 60_000), "bad_http"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000, "bad_http"),
        (b"HTTP/1.1 103 \r\n\r\n" * 20_000, "bad_http"),
        (b"\r\n" * 200_000, "bad_http"),
        (answer(b"Content-Length: 24\r\n"), "bad_http"),
        (answer(b"Content-Length: 23, 2\r\n"), "bad_http"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n", "bad_http"),
        (b"HTTP/1.1 20 OK\r\n\r\n" + BODY, "bad_http"),
        (b"HTTP/1.1 2000 OK\r\n\r\n" + BODY, "bad_http"),
        (b"HTTP/1.1 OK\r\n\r\n" + BODY, "bad_http"),
        (b"<html>\r\n\r\n</html>", "bad_http"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "bad_http"),
        (b"\x16\x03\x01\x02\x00", "bad_http"),
        (b"HTTP/1.1 200 OK\r\nContent-Len", "connection"),
        (b"", "connection"),
        (answer()[:-1], "truncated_body"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 18 + b"\r\n\r\n", "too_large"),
    ],
)
def test_heads_that_are_none_and_heads_without_end_have_their_status(reply, status):
    assert statuses([reply]) == [status]


def test_a_head_may_come_in_any_pieces():
    whole = [
        b"\r\n" + answer(b"Bad Header: 1\r\n"),
        STARTS["early hints"] + b"Server: a\n\n" + BODY,
        answer(b"Location: /0\r\n", b"302 Found", b""),
    ]

    def pieces(reply, at):
        yield reply[:at]
        time.sleep(0.001)  # so that the pieces do not leave together
        yield reply[at:]

    replies = [pieces(reply, at) for reply in whole for at in range(len(reply))]
    found = statuses([answer(), *replies])
    assert found == ["ok"] * len(found)


def test_a_connection_serves_one_odd_head_after_the_other():
    """Kept alive: where one answer ends the next head begins."""
    replies = [
        b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 OK\r\nBad Header: 1\r\n"
        b"Content-Length: 23\r\nContent-Length: 23\r\n\r\n" + BODY,
        b"HTTP/1.1 404 \r\nno colon\r\nContent-Length: 0\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n1\r\na\r\n0\r\n\r\n",
        answer(),
    ]
    served = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                for reply in replies:
                    served.append(connection.recv(1 << 16))
                    connection.sendall(reply)

        server = threading.Thread(target=serve)
        server.start()
        urls = [f"{HOST}/{i}" for i in range(len(replies))]
        found = fetch(listener.getsockname()[1], urls, per_host=1)
        server.join()
    assert targets(served) == [f"/{i}" for i in range(len(replies))]
    assert [r.status for r in found] == ["ok", "http_404", "ok", "ok"]


MIB = 1 << 20
START = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "form",
    [
        lambda body: answer(body=body),
        lambda body: START + b"\r\n" + body,
        lambda body: answer(b"Content-Encoding: gzip\r\n", body=gzip.compress(body)),
    ],
    ids=["announced", "to the end", "zipped"],
)
def test_bodies_hold_no_more_memory_than_allowed(form):
    size, allowed, concurrency = 2 * MIB, 8 * MIB, 16
    body = b"x" * size
    reply = form(body)
    settings = {
        "concurrency": concurrency,
        "per_host": concurrency,
        "max_bytes": size,
        "max_held_bytes": allowed,
    }
    tracemalloc.start()
    try:
        with serving(lambda target: reply) as (port, heads):
            urls = [f"{HOST}/{i}" for i in range(40)]
            limits = download.Limits(**fetch_settings(port) | settings)
            for result in download.fetch(urls, limits):
                assert (result.status, result.body) == ("ok", body)
                time.sleep(0.01)  # meanwhile many could be fetched
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Beside the bodies: one being copied, one that the loop above still names, and what
    # asyncio and aiohttp read ahead on each connection.
    assert peak < allowed + 2 * size + concurrency * MIB // 2
    assert len(heads) <= 2 * len(urls)


@pytest.mark.parametrize("concurrency", [1, 3, 16, 100])
def test_bodies_that_leave_no_room_for_others_are_fetched_too(concurrency):
    sizes = [1000, 999, 1, 500, 1000, 501, 1000] * 5
    answers = [answer(body=b"x" * size) for size in sizes]
    answers += [START + b"\r\n" + b"x" * size for size in sizes]
    answers += [answer(body=b"x" * 1001), START + b"\r\n" + b"x" * 1001]
    with serving(lambda target: answers[int(target[1:])]) as (port, _):
        found = fetch(
            port,
            [f"{HOST}/{i}" for i in range(len(answers))],
            concurrency=concurrency,
            per_host=concurrency,
            max_bytes=1000,
            max_held_bytes=2000,
        )
    assert [len(result.body) for result in found] == [*sizes, *sizes, 0, 0]
    assert {result.status for result in found[-2:]} == {"too_large"}


def test_too_little_memory_for_a_body_is_an_error():
    with pytest.raises(
        ValueError, match="at least 2 \\* max_bytes \\(8000\\), got 7999"
    ):
        fetch(80, [HOST], max_held_bytes=7999)
    with pytest.raises(ValueError, match="at least 4 \\* max_bytes"):
        fetch(80, [HOST], max_held_bytes=15999, held=3)
