"""robots.txt is asked before images are downloaded, and obeyed."""

import asyncio
import contextlib
import http.server
import itertools
import threading
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protego import Protego

from data_prep.images import download, request, robots
from tests.data_prep.raw_server import fetch_settings

IMAGE = b"\xff\xd8 not quite a picture"
_hosts = (f"host{n}.example" for n in itertools.count())


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.seen.append(self.path)
        if self.path.startswith("/to/"):  # redirects to the rest as a URL
            self.send_response(302)
            self.send_header("Location", "http://" + self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/robots.txt":
            host = self.headers["Host"]
            self.server.asked.append(host)
            if host in self.server.others:
                answer = self.server.others[host]
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                self.end_headers()
                self.wfile.write(answer[1])
                return
        answers = self.server.robots if self.path == "/robots.txt" else [(200, IMAGE)]
        status, body, *headers = answers.pop(0) if len(answers) > 1 else answers[0]
        if status is None:  # hangs up
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # it may be cut
            self.wfile.write(body)


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.others, server.asked = {}, []  # robots.txt of other hosts
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def statuses(server, answers, paths, host=None, others=None, **options):
    """Fetches paths of a host, a new one by default, that gives its robots.txt so.

    `others` are the answers of other hosts for their robots.txt.
    """
    host = host or next(_hosts)
    server.robots, server.seen = list(answers), []
    server.others, server.asked = others or {}, []
    settings = fetch_settings(server.server_address[1], [host, *server.others])
    settings |= {"robots_txt": True, "user_agent": "our-bot/2.1 me@x.example"}
    urls = [f"http://{host}{path}" for path in paths]
    found = sorted(download.fetch(urls, download.Limits(**settings | options)))
    assert all(bool(one.body) == (one.status == "ok") for one in found)
    return [one.status for one in found]


RULES = (
    b"User-agent: *\nDisallow: /\n\nUser-agent: Our-Bot\nDisallow: /private/*.jpg$\n"
)


def test_images_that_robots_txt_disallows_are_not_asked_for(server):
    paths = ["/a.jpg", "/private/b.jpg", "/private/b.jpg?c", "/pr%69vate/d.jpg"]
    found = statuses(server, [(200, RULES)], paths)
    assert found == ["ok", "robots_disallowed", "ok", "robots_disallowed"]
    assert sorted(server.seen) == ["/a.jpg", "/private/b.jpg?c", "/robots.txt"]
    assert statuses(server, [(200, RULES)], paths, robots_txt=False) == ["ok"] * 4


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((404, b""), "ok"),
        ((403, b"Disallow: /"), "ok"),
        ((200, b""), "ok"),
        ((200, b"\xff\xfe<html>not found</html>"), "ok"),
        ((302, b"", ("Location", "/robots.txt")), "ok"),  # without end
        ((302, b"", ("Location", "http://127.0.0.1/robots.txt")), "private_address"),
        ((500, b""), "robots_unavailable"),
        ((429, b""), "robots_unavailable"),
        ((None, b""), "connection"),
        ((200, b"User-agent: *\nDisallow: /"), "robots_disallowed"),
        ((200, b"\xef\xbb\xbfUser-agent: *\nDisallow: /"), "robots_disallowed"),
    ],
)
def test_each_answer_for_robots_txt_has_its_effect(server, answer, status):
    assert statuses(server, [answer], ["/a.jpg", "/b.jpg"]) == [status] * 2


def test_hosts_that_redirects_name_are_asked_too(server):
    """Once each, and also where the path on the own host is another one."""
    own, allows, forbids, broken = (next(_hosts) for _ in range(4))
    others = {allows: (200, RULES), forbids: (200, b"User-agent: *\nDisallow: /")}
    others[broken] = (500, b"")
    paths = {
        f"/to/{allows}/a.jpg": "ok",
        f"/to/{allows}/private/b.jpg": "robots_disallowed",
        f"/to/{forbids}/a.jpg": "robots_disallowed",
        f"/to/{broken}/a.jpg": "robots_unavailable",
        f"/to/{allows}/to/{forbids}/c.jpg": "robots_disallowed",
        f"/to/{own}/private/b.jpg": "robots_disallowed",
        f"/to/{own}/a.jpg": "ok",
        "/to/127.0.0.1/a.jpg": "private_address",
    }
    for concurrency in (1, 16):
        asked = [*paths] * 3
        found = statuses(
            server,
            [(200, RULES)],
            asked,
            host=own,
            others=others,
            concurrency=concurrency,
            per_host=concurrency,
        )
        assert found == [*paths.values()] * 3
        # What failed is asked again by the next partition.
        wanted = sorted(server.asked)
        assert wanted == ([broken] if concurrency > 1 else sorted([own, *others]))
        assert not {"/c.jpg", "/private/b.jpg"} & set(server.seen)
    found = statuses(
        server, [(200, RULES)], [*paths], host=own, others=others, robots_txt=False
    )
    assert found == ["ok"] * 7 + ["private_address"] and not server.asked


def test_a_busy_server_is_asked_again_for_its_robots_txt(server):
    answers = [(503, b""), (429, b"", ("Retry-After", "0")), (200, RULES)]
    found = statuses(server, answers, ["/a.jpg", "/private/b.jpg"], retries=2)
    assert found == ["ok", "robots_disallowed"]


def test_a_long_robots_txt_is_read_up_to_its_last_whole_line(server):
    rule = b"Disallow: /private/\n"
    filler = b"#" * (robots.MAX_BYTES - 30 - len(rule)) + b"\n"
    answer = b"User-agent: *\n" + rule + filler + b"Disallow: /a.jpg" * 9
    assert len(answer) > robots.MAX_BYTES
    found = statuses(server, [(200, answer)], ["/a.jpg", "/private/b.jpg"])
    assert found == ["ok", "robots_disallowed"]


def test_a_host_is_asked_once_also_by_later_partitions(server):
    host = next(_hosts)
    paths = [f"/{n}.jpg" for n in range(40)]
    for asked in (1, 0):
        assert statuses(server, [(200, RULES)], paths, host=host) == ["ok"] * 40
        assert server.seen.count("/robots.txt") == asked


def test_what_failed_is_asked_again_by_later_partitions(server):
    host = next(_hosts)
    assert statuses(server, [(500, b"")], ["/a.jpg"], host=host) != ["ok"]
    assert statuses(server, [(200, RULES)], ["/a.jpg"], host=host) == ["ok"]


NAMES = ["*", "our-bot", "Our", "bot", "other", "our-bot*", "", "another crawler"]
LINES = st.one_of(
    st.tuples(
        st.sampled_from(["User-agent: ", "user agent:", "USERAGENT ", " user-agent :"]),
        st.sampled_from(NAMES),
    ),
    st.tuples(
        st.sampled_from(["Allow: ", "Disallow:", "disallow ", "Dissallow: "]),
        st.sampled_from(["/", "/a", "/a*b", "/b$", "*.jpg$", "", "/a/b #c"]),
    ),
    st.tuples(st.sampled_from(["Crawl-delay: ", "Sitemap: ", "#", "x"]), st.just("1")),
).map("".join)


@given(
    st.lists(LINES, max_size=12),
    st.lists(st.sampled_from(["/", "/a", "/acb", "/b", "/a/b", "/x.jpg"]), min_size=1),
)
def test_names_of_other_crawlers_do_not_matter(lines, paths):
    """The parser decides alike on the whole file and on what is left of it."""
    text = "\n".join(lines)
    whole = Protego.parse(text)
    urls = {n: f"http://x.example{path}" for n, path in enumerate(paths)}

    async def answer(url):
        return request.Answer("ok", text.encode())

    found = asyncio.run(robots.judge(urls, answer, "our-bot/1", robots.Rules()))
    want = {n for n, url in urls.items() if not whole.can_fetch(url, "our-bot")}
    assert found.refused == dict.fromkeys(want, "robots_disallowed")
    assert found.pause_seconds == (whole.crawl_delay("our-bot") or 0)


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ("Crawl-delay: 2.5", 2.5),
        ("Crawl-delay: 86400", 60),
        ("Crawl-delay: -1", 0),
        ("Crawl-delay: nan", 0),
        ("Crawl-delay: soon", 0),
        ("Request-rate: 1/5", 5),
        ("Request-rate: 0/5", 0),
        ("Crawl-delay: 1\nRequest-rate: 10/1m", 6),
        ("Crawl-delay: 1\nUser-agent: other\nCrawl-delay: 9", 1),
    ],
)
def test_a_robots_txt_says_how_often_a_host_may_be_asked(lines, seconds):
    async def answer(url):
        return request.Answer("ok", f"User-agent: *\n{lines}".encode())

    urls = {0: "http://x.example/a.jpg"}
    found = asyncio.run(robots.judge(urls, answer, "us", robots.Rules()))
    assert found == ({}, seconds)


@given(st.text(max_size=60), st.text(max_size=20))
def test_any_robots_txt_and_any_url_are_judged(text, url):
    async def answer(url):
        return request.Answer("ok", text.encode("utf-8", "replace"))

    asyncio.run(
        robots.judge({0: f"http://{url}", 1: url}, answer, "us", robots.Rules())
    )


def test_many_names_times_many_rules_stay_small():
    names = b"".join(b"User-agent: %x\n" % n for n in range(15_000))
    rules = b"".join(b"Disallow: /%x*\n" % n for n in range(15_000))
    body = (names + rules)[: robots.MAX_BYTES]

    async def answer(url):
        return request.Answer("ok", body)

    tracemalloc.start()
    start = time.process_time()
    asyncio.run(
        robots.judge({0: "http://x.example/"}, answer, "our-bot", robots.Rules())
    )
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    assert seconds < 20


def test_rules_of_many_hosts_are_dropped_and_those_of_today_are_kept(monkeypatch):
    rules = robots.Rules()
    for n in range(100):
        rules.put(f"http://{n}", "us", "x" * 500_000)
    known = [n for n in range(100) if rules.get(f"http://{n}", "us") is not None]
    assert known == list(range(100 - len(known), 100))
    assert 50 < len(known) < 70
    tomorrow = time.monotonic() + 90_000
    monkeypatch.setattr(time, "monotonic", lambda: tomorrow)
    assert rules.get("http://99", "us") is None
