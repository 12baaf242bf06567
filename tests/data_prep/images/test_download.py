"""The downloader against a real server on loopback, friendly and hostile."""

import email.utils
import gzip
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

import pytest

from data_prep.images import download
from tests import waiting

HOST = "http://images.example"
BODY = b"\xff\xd8 not quite a picture"


class Handler(BaseHTTPRequestHandler):
    """Answers by path; the server object holds what it saw."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        server = self.server
        with server.lock:
            server.seen[self.path] += 1
            server.headers.append(dict(self.headers))
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            self.route(self.path.partition("?")[0], server.seen[self.path])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the downloader had enough
        finally:
            with server.lock:
                server.active -= 1

    def route(self, path, times):
        if path == "/ok":
            self.answer(200, BODY)
        elif path.startswith("/status/"):
            self.answer(int(path.split("/")[2]))
        elif path.startswith("/busy/"):  # /busy/STATUS: the third time it works
            self.answer(*((200, BODY) if times > 2 else (int(path[6:]), b"")))
        elif path == "/ask":
            # A date has whole seconds.
            date = email.utils.formatdate(time.time() + 2, usegmt=True)
            dated = "date" in self.path
            headers = {"Retry_After": date if dated else "0.9"} if times == 1 else {}
            self.answer(429 if times == 1 else 200, BODY, **headers)
        elif path == "/together":  # as many at once as a test wants, and then a moment
            waiting.until(lambda: self.server.most_active >= self.server.wanted)
            time.sleep(0.05)
            self.answer(200, BODY)
        elif path == "/held":
            self.server.released.wait()
            self.answer(200, BODY)
        elif path == "/drip":
            self.send_response(200)
            self.end_headers()
            while True:  # until the downloader has enough
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif path == "/big":
            self.answer(200, b"x" * 5000)
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(5000):
                self.wfile.write(b"x" * 10_000)
        elif path == "/bomb":
            body = gzip.compress(b"\0" * 50_000_000)
            self.answer(200, body, Content_Encoding="gzip")
        elif path == "/zipped":
            self.answer(200, gzip.compress(BODY), Content_Encoding="gzip")
        elif path == "/not_zipped":
            self.answer(200, BODY, Content_Encoding="gzip")
        elif path == "/short":
            self.answer(200, b"abc", Content_Length="10")
            self.close_connection = True
        elif path == "/hangup":
            self.close_connection = True
        elif path == "/gibberish":
            self.wfile.write(b"gibberish\r\n\r\n")
            self.close_connection = True
        elif path == "/loop":
            self.answer(302, Location="/loop")
        elif path == "/hops":
            self.answer(301, Location="other")
        elif path == "/other":
            self.answer(307, Location="//OTHER.example/ok")
        elif path == "/to":
            self.answer(302, Location=unquote(self.path.partition("?")[2]))
        elif path == "/nowhere":
            self.answer(302)
        elif path == "/robots":
            self.answer(200, BODY, X_Robots_Tag=self.path.partition("?")[2])
        elif path == "/reserved":
            self.answer(200, BODY, TDM_Reservation=self.path.partition("?")[2])
        elif path == "/empty":
            self.answer(200)
        else:
            self.answer(404)


class Server(ThreadingHTTPServer):
    # The standard queue holds 5 connections; Linux drops what exceeds it and asks again
    # a second later, longer than some tests here wait.
    request_queue_size = 256


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        server.lock = threading.Lock()
        server.seen = Counter()
        server.headers = []
        server.active = server.most_active = server.wanted = 0
        server.released = threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def fetch(server, urls, **options):
    address = f"127.0.0.1:{server.server_address[1]}"
    settings = {
        "host_map": f"images.example={address},other.example={address}",
        "concurrency": 16,
        "per_host": 8,
        "timeout_seconds": 60.0,  # loads of time on a busy machine
        "max_bytes": 4000,
        "max_held_bytes": 1 << 20,
        "retries": 0,
        "user_agent": "test-agent/1",
        "backoff_seconds": 0.01,
    }
    return download.fetch(urls, download.Limits(**settings | options))


def statuses(server, urls, **options):
    found = sorted(fetch(server, urls, **options))
    assert [result.position for result in found] == list(range(len(urls)))
    assert all(bool(result.body) == (result.status == "ok") for result in found)
    return [result.status for result in found]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ok", "ok"),
        ("/ok#fragment", "ok"),
        ("/missing", "http_404"),
        ("/status/204", "http_204"),
        ("/status/403", "http_403"),
        ("/status/500", "http_5xx"),
        ("/status/599", "http_5xx"),
        ("/status/999", "http_999"),
        ("/big", "too_large"),
        ("/endless", "too_large"),
        ("/bomb", "too_large"),
        ("/zipped", "ok"),
        ("/not_zipped", "bad_http"),
        ("/short", "truncated_body"),
        ("/hangup", "connection"),
        ("/gibberish", "bad_http"),
        ("/empty", "empty_body"),
        ("/loop", "redirect_limit"),
        ("/hops", "ok"),
        ("/nowhere", "http_302"),
        ("/to?ftp://images.example/ok", "not_http"),
        ("/to?http%3A//[bad/", "bad_url"),
    ],
)
def test_each_answer_has_its_status(server, path, status):
    assert statuses(server, [HOST + path]) == [status]


def test_bodies_come_with_the_position_of_their_url(server):
    urls = [f"{HOST}/ok?{i}" if i % 3 else f"{HOST}/missing?{i}" for i in range(60)]
    found = {result.position: result for result in fetch(server, urls)}
    assert sorted(found) == list(range(60))
    for position, result in found.items():
        wanted = ("ok", BODY) if position % 3 else ("http_404", b"")
        assert (result.status, result.body) == wanted


def test_no_urls_give_no_results(server):
    assert list(fetch(server, [])) == []


def test_the_server_sees_our_name_and_the_host_without_port(server):
    assert statuses(server, [HOST + "/ok"]) == ["ok"]
    assert server.headers[0]["User-Agent"] == "test-agent/1"
    assert server.headers[0]["Host"] == "images.example"


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://localhost/ok", "private_address"),
        ("http://127.0.0.1/ok", "private_address"),
        ("http://127.1/ok", "private_address"),
        ("http://2130706433/ok", "private_address"),
        ("http://0x7f000001/ok", "private_address"),
        ("http://[::1]/ok", "private_address"),
        ("http://[::ffff:127.0.0.1]/ok", "private_address"),
        ("http://169.254.169.254/latest/meta-data", "private_address"),
        ("http://1.1.1.1:8080/ok", "port_refused"),
        ("http://localhost:{port}/ok", "port_refused"),
        ("http://127.0.0.1:{port}/ok", "port_refused"),
        ("http://images.example.invalid:22/ok", "port_refused"),
        ("ftp://images.example/ok", "not_http"),
        ("file:///etc/passwd", "not_http"),
        ("data:image/gif;base64,R0lGOD", "not_http"),
        ("http://[bad/ok", "bad_url"),
        ("http://a..b/ok", "dns"),
    ],
)
def test_a_url_and_a_redirect_to_it_are_refused_alike(server, url, status):
    url = url.format(port=server.server_address[1])
    direct, redirected = statuses(server, [url, f"{HOST}/to?{quote(url)}"])
    assert direct == status
    assert redirected == status
    assert len(server.seen) == 1  # the redirect, and nothing came of it


def test_a_url_without_a_host_is_refused(server):
    assert statuses(server, ["/ok", "http:///"]) == ["bad_url", "bad_url"]


@pytest.mark.parametrize(
    "target", ["localhost:80", "127.0.0.1", "127.0.0.1:x", "http://127.0.0.1:80"]
)
def test_a_host_map_wants_addresses_with_ports(server, target):
    with pytest.raises(ValueError, match="wanted HOST=ADDRESS:PORT"):
        list(fetch(server, [HOST + "/ok"], host_map=f"images.example={target}"))


def test_busy_servers_are_asked_again(server):
    urls = [f"{HOST}/busy/{status}" for status in (429, 503)]
    assert statuses(server, urls, retries=1) == ["http_429", "http_5xx"]
    server.seen.clear()
    assert statuses(server, urls, retries=2) == ["ok", "ok"]
    assert statuses(server, [HOST + "/hangup"], retries=3) == ["connection"]
    # aiohttp itself repeats a request on a connection that it had kept open.
    assert server.seen["/hangup"] >= 4


def test_what_will_not_change_is_not_asked_again(server):
    urls = [HOST + path for path in ("/missing", "/big", "/empty", "/robots?noai")]
    statuses(server, urls, retries=5)
    assert set(server.seen.values()) == {1}


def test_a_server_that_asks_to_wait_is_left_alone_that_long(server):
    start = time.monotonic()
    both = [HOST + "/ask", HOST + "/ask?date"]
    assert statuses(server, both, retries=1) == ["ok", "ok"]
    assert time.monotonic() - start >= 0.9
    assert server.seen["/ask"] == server.seen["/ask?date"] == 2


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("robots?noai", "opted_out"),
        ("robots?noindex,NoImageAI", "opted_out"),
        ("robots?somebot:noai", "opted_out"),
        ("robots?noml", "opted_out"),
        ("robots?noindex", "ok"),
        ("robots?all", "ok"),
        ("reserved?1", "opted_out"),
        ("reserved?0", "ok"),
    ],
)
def test_owners_can_opt_out(server, target, status):
    assert statuses(server, [f"{HOST}/{target}"]) == [status]


def test_a_dripping_server_does_not_hold_us(server):
    urls = [f"{HOST}/drip?{i}" for i in range(12)]
    found = statuses(server, urls, timeout_seconds=0.5, retries=3, per_host=16)
    assert found == ["timeout"] * 12
    assert set(server.seen.values()) == {1}


def test_a_server_that_never_accepts_does_not_hold_us(server):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        host_map = f"deaf.example=127.0.0.1:{deaf.getsockname()[1]}"
        urls = [f"http://deaf.example/{i}" for i in range(6)]
        found = statuses(server, urls, host_map=host_map, timeout_seconds=0.3)
    assert found == ["timeout"] * 6


def test_one_host_gets_no_more_requests_than_allowed_at_once(server):
    urls = [f"{HOST}/together?{i}" for i in range(30)]
    server.wanted = 3
    statuses(server, urls, per_host=3)
    assert server.most_active == 3
    server.most_active, server.wanted = 0, 5
    statuses(server, urls, per_host=30, concurrency=5)
    assert server.most_active == 5


def test_as_many_requests_to_a_host_may_be_allowed_as_a_config_can_say(server):
    found = statuses(server, [f"{HOST}/{i}" for i in range(3)], per_host=2**53)
    assert len(found) == 3


def test_a_slow_host_does_not_block_the_others(server):
    urls = [f"{HOST}/held?{i}" for i in range(6)]
    urls += [f"http://other.example/ok?{i}" for i in range(20)]
    results = fetch(server, urls, per_host=2, concurrency=4)
    assert {next(results).position for _ in range(20)} == set(range(6, 26))
    server.released.set()
    assert [result.status for result in results] == ["ok"] * 6


def test_a_slow_consumer_makes_no_timeouts_and_bounds_what_is_held(server):
    urls = [f"{HOST}/ok?{i}" for i in range(40)]
    results = fetch(server, urls, concurrency=2, timeout_seconds=2.0)
    first = next(results)
    time.sleep(3)
    assert sum(server.seen.values()) <= 2 * 2 + 1
    assert {first.status, *(result.status for result in results)} == {"ok"}


def test_leaving_early_ends_the_downloads(server):
    urls = [f"{HOST}/drip?{i}" for i in range(8)] + ["http://other.example/ok"]
    results = fetch(server, urls, timeout_seconds=waiting.SECONDS)
    assert next(results).status == "ok"
    results.close()  # does not wait for what drips without an end
    assert not any(t.name == "download" for t in threading.enumerate())


def test_running_out_of_sockets_is_an_error_not_a_status(server):
    code = (
        "import resource, sys\n"
        "from data_prep.images import download\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))\n"
        "urls = [f'http://images.example/drip?{i}' for i in range(99)]\n"
        "list(download.fetch(urls, download.Limits(\n"
        "    host_map='images.example=' + sys.argv[1], concurrency=99, per_host=99,\n"
        "    timeout_seconds=5, max_bytes=99, max_held_bytes=9999, retries=0,\n"
        "    user_agent='test')))"
    )
    address = f"127.0.0.1:{server.server_address[1]}"
    found = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True
    )
    assert found.returncode == 1
    assert "RuntimeError: wanted another socket" in found.stderr
