"""The downloader byte by byte: what it asks for, and which answers it takes."""

import socket
import threading
from contextlib import contextmanager

import pytest

from data_prep.images import download

HOST = "http://images.example"
BODY = b"\xff\xd8 not quite a picture"


def answer(headers=b"", status=b"200 OK", body=BODY, version=b"HTTP/1.1"):
    """A whole answer; `headers` end with their line end."""
    length = b"Content-Length: %d\r\n" % len(body)
    head = version + b" " + status + b"\r\n" + length + headers
    return head + b"Connection: close\r\n\r\n" + body


@contextmanager
def serving(decide):
    """A server on loopback: `decide` maps the raw target to the bytes of the answer.

    Yields the port and the heads of all requests, as they came.
    """
    heads = []

    def serve(connection):
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                got = connection.recv(1 << 16)
                if not got:
                    return
                head += got
            heads.append(head)
            try:
                connection.sendall(decide(head.split(b" ")[1]))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
            except OSError:
                return  # the downloader had enough

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield listener.getsockname()[1], heads
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def fetch(port, urls, hosts=("images.example",), **options):
    settings = {
        "host_map": dict.fromkeys(hosts, f"127.0.0.1:{port}"),
        "concurrency": 16,
        "per_host": 16,
        "timeout_seconds": 5.0,
        "max_bytes": 4000,
        "retries": 0,
        "user_agent": "test-agent/1",
        "backoff_seconds": 0.01,
    }
    found = sorted(download.fetch(urls, **(settings | options)))
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
