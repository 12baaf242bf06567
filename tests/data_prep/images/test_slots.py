"""A host gets a number of requests at once from all processes of a machine."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter

from data_prep.images import download
from tests import waiting
from tests.data_prep import raw_server

_FETCH = """
import json, sys
from data_prep.images import download
settings, urls = json.loads(sys.argv[1])
list(download.fetch(urls, **settings))
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
            found.extend(download.fetch(ours, **settings))

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
