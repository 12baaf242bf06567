"""A host gets a number of requests at once from all processes of a machine."""

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_prep.images import download, slots
from tests import waiting
from tests.data_prep import raw_server

_FETCH = """
import json, sys
import asyncio
import logging

import pytest

from data_prep.images import download, slots
settings, urls = json.loads(sys.argv[1])
list(download.fetch(urls, download.Limits(**settings)))
"""


class Counted:
    """Answers /KIND?NUMBER; counts the kinds, and the most requests there at once."""

    def __init__(self):
        self._changed = threading.Condition()
        self.seen, self.now, self.most = Counter(), 0, 0
        self.released = threading.Event()

    def __call__(self, target):
        kind = target.decode().partition("?")[0]
        with self._changed:
            self.seen[kind] += 1
            self.now += 1
            self.most = max(self.most, self.now)
        if kind == "/held":
            self.released.wait(waiting.SECONDS)
        time.sleep(0.02)
        with self._changed:
            self.now -= 1
        return raw_server.answer()


def test_processes_share_the_requests_that_a_host_gets_at_once():
    counted = Counted()
    with raw_server.serving(counted) as (port, _):
        settings = raw_server.fetch_settings(port) | {"per_host": 2}
        urls = [f"{raw_server.HOST}/theirs?{n}" for n in range(9)]
        urls += [f"{raw_server.HOST}/held?{n}" for n in range(2)]
        arguments = ["-c", _FETCH, json.dumps([settings, urls])]
        found = []

        def fetch():
            ours = [f"{raw_server.HOST}/ours?{n}" for n in range(20)]
            found.extend(download.fetch(ours, download.Limits(**settings)))

        fetching = threading.Thread(target=fetch, daemon=True)
        with subprocess.Popen([sys.executable, *arguments]) as process:
            waiting.until(lambda: counted.seen["/theirs"], process)
            fetching.start()
            waiting.until(lambda: counted.seen["/held"] == 2, process)
            most = counted.most
            process.kill()
        fetching.join(waiting.SECONDS)
        counted.released.set()
    assert most == 2
    assert [one.status for one in found] == ["ok"] * 20
    assert counted.seen == {"/theirs": 9, "/held": 2, "/ours": 20}


def test_a_host_gets_a_number_of_requests_in_a_second_from_all_that_fetch():
    """Waiting may take longer on a busy machine, so only too many are wrong.

    Two downloads of a process share what processes do: locks of open files.
    """
    times = []

    def answer(target):
        times.append(time.monotonic())
        return raw_server.answer()

    with raw_server.serving(answer) as (port, _):
        settings = raw_server.fetch_settings(port) | {"per_host_rate": 20.0}
        urls = [f"{raw_server.HOST}/{n}" for n in range(6)]

        def fetch(_):
            return [
                one.status for one in download.fetch(urls, download.Limits(**settings))
            ]

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(fetch, range(2))) == [["ok"] * 6] * 2
    assert len(times) == 12 and max(times) - min(times) > 10 * 0.05


def test_a_robots_txt_makes_the_requests_of_a_host_fewer():
    times, rules = [], b"User-agent: *\nCrawl-delay: 0.1\nDisallow: /x"

    def answer(target):
        if target == b"/robots.txt":
            return raw_server.answer(body=rules)
        times.append(time.monotonic())
        return raw_server.answer()

    with raw_server.serving(answer) as (port, _):
        settings = raw_server.fetch_settings(port, ["paced.example"])
        names = ("a", "x1", "b", "x2", "c", "d")
        urls = [f"http://paced.example/{name}" for name in names]
        settings["robots_txt"] = True
        found = list(download.fetch(urls, download.Limits(**settings)))
    assert sum(one.status == "robots_disallowed" for one in found) == 2
    assert len(times) == 4 and max(times) - min(times) > 2 * 0.1


def test_what_is_waited_for_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(slots, "_LOGGED_SECONDS", 0.05)
    host = f"waited {time.monotonic_ns()}.example"

    async def wait():
        async with slots.Slots(1) as theirs, slots.Slots(1) as ours:
            slot = await theirs.take(host)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await ours.take(host)
            theirs.leave(host, slot)

    with caplog.at_level(logging.WARNING):
        asyncio.run(wait())
    logged = [r.getMessage() for r in caplog.records]
    assert 1 <= len(logged) <= 3  # after 0.05 s, twice and four times that
    assert f"for one of the 1 requests that {host} gets at once" in logged[0]
