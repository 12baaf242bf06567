"""Processes of curation are killed, again and again: nothing is read twice."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import waiting
from tests.data_prep import tiny_web

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WARCS, PARTITIONS = 3, 2
LARGER = 12  # times the pages, files and partitions


def alts(count):
    return [(f"/{n}.jpg", f"a red cat and dog number {n % 7}") for n in range(count)]


ALTS = alts(40)
MORE_ALTS = alts(40 * LARGER)
BODIES = {path: tiny_web.picture(n % 30) for n, (path, _) in enumerate(MORE_ALTS)}

# Python runs this first in every process: it writes down which sources are opened.
HOOK = """
import os, sys

def note(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".warc.gz"):
        with open(os.environ["NOTED"], "a") as file:
            file.write(f"{arguments[0]}\\n")

sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def host_map():
    with tiny_web.serve(BODIES) as found:
        yield found


@pytest.fixture(scope="module")
def web(tmp_path_factory, host_map):
    flags = tiny_web.write(tmp_path_factory.mktemp("web"), ALTS, warcs=WARCS)
    places = {"config.download.host_map": host_map, "config.partitions": PARTITIONS}
    return flags | places


@pytest.fixture(scope="module")
def larger_web(tmp_path_factory, web):
    folder = tmp_path_factory.mktemp("larger")
    flags = tiny_web.write(folder, MORE_ALTS, warcs=WARCS * LARGER)
    return web | flags | {"config.partitions": PARTITIONS * LARGER}


class Curation:
    """The command in a process group of its own, and the sources that it opens."""

    def __init__(self, web, place, workers):
        values = web | {"workdir": place / "work", "output": place / "dataset"}
        flags = [f"--{k}={v}" for k, v in (values | {"workers": workers}).items()]
        self.command = [sys.executable, "-m", "data_prep.curate", *flags]
        self.place, self.noted, self.log = place, place / "noted", place / "log"
        (place / "hooks").mkdir(parents=True)
        (place / "hooks/sitecustomize.py").write_text(HOOK)
        self.sources = sorted(Path(web["config.source.paths"]).parent.glob("*.warc.gz"))

    def files(self):
        """Finished files of the run."""
        found = [*self.place.glob("work/*/*"), *self.place.glob("dataset/*")]
        return {path for path in found if not path.name.startswith(".")}

    def finished_sources(self):
        parts = (self.place / "work/matched").glob("part-*.parquet")
        return {str(self.sources[int(part.name[5:10])]) for part in parts}

    def run(self, stop=lambda: False, kill=os.killpg):
        """Runs the command, `kill`s it once `stop()`; returns its exit status.

        Sources whose part was finished before are not opened, except the first, whose
        format is checked at each start.
        """
        finished = self.finished_sources() - {str(self.sources[0])}
        self.noted.write_text("")
        paths = f"{self.place / 'hooks'}:{ROOT}"
        with self.log.open("w") as log:
            process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": paths, "NOTED": str(self.noted)},
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        while process.poll() is None and not stop():
            time.sleep(0.005)
        if process.poll() is None:
            kill(process.pid, signal.SIGKILL)
        status = process.wait(waiting.SECONDS)
        assert not finished.intersection(self.noted.read_text().splitlines())
        return status

    def dataset(self):
        return {p.name: p.read_bytes() for p in (self.place / "dataset").iterdir()}


def more(files):
    """Returns a function: whether there are more files than now."""
    before = files()
    return lambda: files() - before


@pytest.fixture(scope="module")
def undisturbed(web, tmp_path_factory):
    curation = Curation(web, tmp_path_factory.mktemp("undisturbed") / "run", 1)
    assert curation.run() == 0, curation.log.read_text()[-4000:]
    assert len(curation.noted.read_text().splitlines()) == WARCS + 1
    return curation.dataset()


@pytest.mark.parametrize("workers", [1, 2])
def test_all_is_killed_after_each_finished_file(web, undisturbed, tmp_path, workers):
    curation = Curation(web, tmp_path / "run", workers)
    kills = 0
    while status := curation.run(more(curation.files)):
        assert status == -signal.SIGKILL, curation.log.read_text()[-4000:]
        kills += 1
    assert kills > WARCS
    assert curation.dataset() == undisturbed


@pytest.fixture(scope="module")
def larger_undisturbed(larger_web, tmp_path_factory):
    place = tmp_path_factory.mktemp("larger_undisturbed")
    curation = Curation(larger_web, place / "run", 1)
    assert curation.run() == 0, curation.log.read_text()[-4000:]
    return curation.dataset()


@pytest.mark.parametrize("workers", [1, 2])
def test_all_is_killed_at_random_moments(
    larger_web, larger_undisturbed, tmp_path, workers
):
    """Each time after some more files, and a part of a second."""
    curation = Curation(larger_web, tmp_path / "run", workers)
    rng, kills = random.Random(workers), 0
    while True:
        there, wanted = len(curation.files()), rng.randint(1, 60)
        due = []

        def stop(there=there, wanted=wanted, due=due):
            if not due and len(curation.files()) >= there + wanted:
                due.append(time.monotonic() + rng.random() / 2)
            return due and time.monotonic() > due[0]

        if not curation.run(stop):
            break
        kills += 1
    assert kills > 4
    assert curation.dataset() == larger_undisturbed


def below(process):
    """The processes that a process has started, each before its own."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *below(child)]
    return found


def kill_last(command, how):
    """Kills the worker that was started last."""
    for process in below(command)[-1:]:
        os.kill(process, how)


def test_one_worker_is_killed_after_each_part(web, undisturbed, tmp_path):
    """The command ends at once with the reason, and goes on when it is run again."""
    curation = Curation(web, tmp_path / "run", 2)

    def parts():
        return set((tmp_path / "run/work").glob("*/part-*"))

    kills = 0
    while curation.run(more(parts), kill_last):
        assert "one ended with SIGKILL" in curation.log.read_text().splitlines()[-1]
        kills += 1
    assert kills > 0
    assert curation.dataset() == undisturbed
