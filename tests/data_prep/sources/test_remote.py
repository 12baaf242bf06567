"""Files on a web server: read to the end through refusals, cuts and seeks, politely."""

import contextlib
import gzip
import http.server
import io
import os
import re
import signal
import subprocess
import threading
from collections import Counter

import pytest

from data_prep import config
from data_prep.sources import kinds, remote, warc
from data_prep.sources.spec import Reading
from metaclip_jax import files
from tests import stopping
from tests.data_prep import tiny_web

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@contextlib.contextmanager
def serving(files, decide=lambda number, start: 200, *, ranges=True):
    """Serves files by path on loopback; yields their base URL and what was asked.

    `decide` gets the number of a request and where it starts: it returns a status, or a
    pair of how many bytes to send of the whole body before the connection is cut and
    headers. Requests are recorded as (path, start, User-Agent).
    """
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(found[1]) if found else 0
            asked.append((self.path, start, self.headers["User-Agent"]))
            decided = decide(len(asked) - 1, start)
            status, cut, headers = 200, None, {}
            if isinstance(decided, tuple):
                cut, headers = decided
                if isinstance(headers, int):
                    status, cut, headers = headers, None, {"Retry-After": str(cut)}
            else:
                status = decided
            body = files.get(self.path)
            if body is None:
                status = 404
            if status != 200:
                self.reply(status, b"", headers)
            elif ranges and found and start >= len(body):
                self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            elif ranges and found:
                place = f"bytes {start}-{len(body) - 1}/{len(body)}"
                headers = {"Content-Range": place} | headers
                self.reply(206, body[start:], headers, cut)
            else:
                self.reply(200, body, headers, cut)

        def reply(self, status, body, headers, cut=None):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):  # the reader hangs up where it seeks
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds that were waited, without waiting them."""
    waited = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    monkeypatch.setattr(remote, "_PACES", {})
    return waited


def read(url):
    with remote.open_file(url, user_agent="me@my.example") as file:
        return file.read()


def test_a_file_is_read_by_one_request_with_our_name(pauses):
    with serving({"/a": CONTENT, "/none": b""}) as (base, asked):
        assert read(f"{base}/a") == CONTENT
        assert asked == [("/a", 0, "me@my.example")]
        assert read(f"{base}/none") == b""
    assert not pauses


@pytest.mark.parametrize("ranges", [True, False])
def test_a_body_that_breaks_off_goes_on_where_it_ended(ranges, pauses):
    """Also with a server that sends the whole file each time."""
    step = 300_000

    def decide(number, start):
        return ((number + 1) * step if not ranges else step), {}

    with serving({"/a": CONTENT}, decide, ranges=ranges) as (base, asked):
        assert read(f"{base}/a") == CONTENT
    starts = [start for _, start, _ in asked]
    assert starts == sorted(set(starts)) and len(starts) == 4
    assert len(pauses) >= 3  # not a tight loop


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_pauses_double_after_refusals_and_the_pace_stays_slower(status, pauses):
    def decide(number, start):
        return status if 1 <= number <= 8 else 200

    with serving({"/a": b"first", "/b": b"second"}, decide) as (base, _):
        assert read(f"{base}/a") == b"first"
        assert not pauses
        assert read(f"{base}/b") == b"second"
        refused, pauses[:] = list(pauses), []
        # The spread between workers adds up to a half.
        wanted = [1, 2, 4, 8, 16, 32, 64, 120]
        assert [w <= p < 1.5 * w for w, p in zip(wanted, refused, strict=True)] == (
            [True] * 8
        )
        for _ in range(9):
            read(f"{base}/a")
    assert pauses == [60, 30, 15, 7.5, 3.75, 1.875, 0.9375]


def test_retry_after_is_obeyed(pauses):
    def decide(number, start):
        return (40, 503) if number == 0 else 200

    with serving({"/a": CONTENT}, decide) as (base, _):
        assert read(f"{base}/a") == CONTENT
    assert 40 <= pauses[0] < 60


def test_an_endless_refusal_and_a_missing_file_are_errors(pauses):
    with serving({"/a": CONTENT}, lambda number, start: 403) as (base, asked):
        with pytest.raises(remote.WebFileError, match="HTTP status 403 3 times"):
            read(f"{base}/a")
        assert len(asked) == 3
        with pytest.raises(FileNotFoundError):
            read(f"{base}/b")
    with serving({"/a": CONTENT}, lambda number, start: 200 if not number else 503) as (
        base,
        asked,
    ):
        read(f"{base}/a")
        with pytest.raises(remote.WebFileError, match="503 12 times"):
            read(f"{base}/a")
    assert sum(pauses) > 300
    with serving({"/a": CONTENT}, lambda number, start: 401) as (base, _):
        with pytest.raises(remote.WebFileError, match="status 401; correct"):
            read(f"{base}/a")
    with pytest.raises(remote.WebFileError, match="run the same command again"):
        read(f"{base}/a")  # nobody listens


def test_a_file_that_changes_while_it_is_read_is_an_error():
    def decide(number, start):
        return 300_000, {"ETag": f'"{number}"'}

    with serving({"/a": CONTENT}, decide) as (base, _):
        with pytest.raises(remote.WebFileError, match="another version"):
            read(f"{base}/a")


def test_seeks_read_what_is_there():
    with serving({"/a": CONTENT}) as (base, asked):
        with remote.open_file(f"{base}/a") as file:
            local = io.BytesIO(CONTENT)
            for target in (10, 900_000, 3, 5_000, 1 << 20, 1 << 21, 0):
                assert file.seek(target) == local.seek(target)
                assert file.read(1000) == local.read(1000)
    assert len(asked) < 8


def test_a_warc_file_that_is_cut_at_any_record_gives_all_its_pages(tmp_path):
    pages = {f"http://pages.example/{n}": "x" * 5_000 * n for n in range(30)}
    tiny_web.write_warc(tmp_path / "a.warc.gz", pages)
    data = (tmp_path / "a.warc.gz").read_bytes()
    wanted = list(warc.read_pages(str(tmp_path / "a.warc.gz"), max_page_bytes=1 << 20))
    with serving({"/a": data}, lambda number, start: (1_000, {})) as (base, asked):
        found = list(warc.read_pages(f"{base}/a", max_page_bytes=1 << 20))
    assert found == wanted and len(found) == 30
    # The format is recognised by the first bytes, which are read again.
    assert len(asked) <= 2 * -(-len(data) // 1_000)


def spec_of(kind):
    keys = config.curate()
    keys.source.kind, keys.source.prefix = kind, ""
    return kinds.spec_of(keys)


def test_a_published_list_names_files_below_a_prefix(tmp_path):
    tiny_web.write_warc(
        tmp_path / "a.warc.gz", {"http://pages.example/": "<img alt=a>"}
    )
    warc_file = (tmp_path / "a.warc.gz").read_bytes()
    lines = "crawl/2.warc.gz\ncrawl/1.warc.gz\n"
    served = {f"/crawl/{n}.warc.gz": warc_file for n in (1, 2)}
    served["/lists/warc.paths.gz"] = gzip.compress(lines.encode())
    with serving(served) as (base, _):
        found = kinds.find(
            f"{base}/lists/warc.paths.gz", spec_of("warc"), prefix=f"{base}/"
        )
        wanted = [f"{base}/crawl/{n}.warc.gz" for n in (1, 2)]
        assert found == wanted
        local = tmp_path / "warc.paths"
        local.write_text(lines)
        assert kinds.find(str(local), spec_of("warc"), prefix=f"{base}/") == wanted
        assert kinds.find(wanted[0], spec_of("warc")) == wanted[:1]
        described = kinds.describe(found, spec_of("warc"))
        assert described == [(path, -1) for path in wanted]
        assert kinds.total_bytes(described) == 2 * 10**9
        with pytest.raises(ValueError, match="download them first"):
            kinds.find(wanted[0], spec_of("webdataset"))
        with pytest.raises(ValueError, match="wanted WAT, got WARC"):
            kinds.find(wanted[0], spec_of("wat"))
        reading = Reading()
        for path in found:
            list(kinds.KINDS["warc"].read(path, spec_of("warc"), reading))
        assert reading.items == 2


def test_a_list_that_would_fill_the_memory_or_is_damaged_is_refused(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(kinds, "_MAX_LIST_BYTES", 1000)
    path = tmp_path / "warc.paths.gz"
    path.write_bytes(gzip.compress(b"a\n" * 10**6))
    with pytest.raises(ValueError, match=r"warc\.paths\.gz should be a list"):
        kinds.find(str(path), spec_of("warc"))
    path.write_bytes(gzip.compress(b"a\n" * 100)[:-20])
    with pytest.raises(
        ValueError, match=r"warc\.paths\.gz should be a list.*truncated"
    ):
        kinds.find(str(path), spec_of("warc"))


def test_a_killed_run_goes_on_after_the_last_finished_file(tmp_path):
    alts = [(f"/{n}.jpg", f"a red cat number {n}") for n in range(40)]
    flags = tiny_web.write(tmp_path, alts, warcs=2)
    served = {
        f"/crawl/{path.name}": path.read_bytes() for path in tmp_path.glob("*.gz")
    }
    served["/warc.paths"] = "".join(f"{name[1:]}\n" for name in served).encode()
    # The list, the first file's format, the first file.
    with serving(served, lambda number, _: (400, {}) if number == 2 else 200) as (
        base,
        asked,
    ):
        flags |= {"config.source.paths": f"{base}/warc.paths"}
        flags |= {
            "config.source.prefix": f"{base}/",
            "stop_after": "match",
            "workers": 1,
        }
        flags |= {"workdir": tmp_path / "work", "output": tmp_path / "dataset"}
        arguments = [f"--{name}={value}" for name, value in flags.items()]

        def run(killed_after):
            program = stopping.command(
                "data_prep.curate",
                *arguments,
                function="data_prep.stages.parts.write_sorted",
                argument=killed_after,
            )
            environment = os.environ | {"PYTHONPATH": str(tiny_web.ROOT)}
            run = subprocess.run(program, env=environment, capture_output=True)
            return run.returncode, run.stderr.decode()

        status, said = run("part-00000-of")
        assert status == -signal.SIGKILL, said
        assert ("/crawl/pages-0.warc.gz", 400, "metaclip-jax quick start") in asked
        asked.clear()
        status, said = run("none")
        assert status == 0, said
    found = Counter(path for path, _, _ in asked)
    assert found["/crawl/pages-0.warc.gz"] == 1  # its format alone
    counts = files.read_parquet(tmp_path / "work/matches/counts.parquet")
    assert counts["count"].to_pylist() == [40, 40]
