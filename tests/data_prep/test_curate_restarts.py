"""Curation that is killed after any file it writes ends with the same bytes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import storage, waiting
from tests.data_prep import tiny_web

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 2

# Loads everything once, then runs curation in forked children. A child kills itself
# after its first file that is not in the list yet; the next one continues. Arguments
# after "+" are for every other child, the first one and the last one included. The list
# gets a line "read SOURCE" whenever a file of the source is read.
CHAIN = r"""
import os, re, signal, sys

import apache_beam.runners.portability.fn_api_runner.fn_runner
from absl import app

from data_prep import curate
from data_prep.matching import Matcher
from data_prep.sources import kinds
from metaclip_jax import files

Matcher(["cat"]).match(["a cat"])  # brings the kernels
noted, which, *arguments = sys.argv[1:]
split = arguments.index("+") if "+" in arguments else len(arguments)
turn = 0


def dies(write, position):
    def wrapped(*args):
        write(*args)
        name = os.fspath(args[position])
        if "/metaclip_jax-" in name:
            return  # a local copy of a matcher, of which each start makes another
        if which == "kind":
            name = re.sub(r"\d+-of-", "N-of-", name)
        with open(noted, "a+") as file:
            file.seek(0)
            if name not in file.read().splitlines():
                file.write(name + "\n")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

    return wrapped


def notes(read):
    def wrapped(path, *args):
        with open(noted, "a") as file:
            file.write(f"read {os.path.basename(path)}\n")
        return read(path, *args)

    return wrapped


while True:
    turn += 1
    child = os.fork()
    if child == 0:
        if which:
            kinds.read = notes(kinds.read)
            files.publish = dies(files.publish, 1)
            files.write_bytes = dies(files.write_bytes, 0)
        sys.argv = ["curate", *arguments[:split]]
        sys.argv += arguments[split + 1 :] if turn % 2 else []
        curate.define_flags()
        app.run(curate.main)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL and (
        status or turn % 2 or split == len(arguments)
    ):
        sys.exit(status)
"""

# Every file of a curation, in no order.
KINDS = {
    "dataset": (
        "unfinished.json tiny-train.array_record-N-of-00002 "
        "tiny-train.entries-N-of-00002.arrow urls-N-of-00002.parquet "
        "counts.parquet data_card.json dataset_info.json features.json manifest.json"
    ),
    "work/balance": (
        "accepted.parquet flow.parquet keep-HASH kept.parquet shards.parquet "
        "tallies.parquet"
    ),
    "work/downloads": (
        "part-N-of-00002.images part-N-of-00002.parquet part-N-of-00002.rejects.parquet"
        " flow.parquet"
    ),
    "work/images": (
        "unfinished.json part-N-of-00002.parquet part-N-of-00002.moved.parquet "
        "accepted.parquet flow.parquet outcomes.parquet manifest.json"
    ),
    "work/rejects": "rejects.parquet sources.parquet",
    "work/matched": (
        "unfinished.json part-N-of-00001.parquet flow.parquet sizes.parquet "
        "manifest.json"
    ),
    "work/matchers": "MATCHER",
    "work/matches": (
        "unfinished.json part-N-of-00002.parquet part-N-of-00002.sample.parquet "
        "counts.parquet drawn.parquet flow.parquet manifest.json"
    ),
}


def curate(flags, place, *more, kills="", noted="", environment=None):
    """Curates into the folder `place`, with a kill after each new "kind" or "file"."""
    values = flags | {"workdir": f"{place}/work", "output": f"{place}/dataset"}
    named = [f"--{name}={value}" for name, value in values.items()]
    done = subprocess.run(
        [sys.executable, "-c", CHAIN, noted, kills, *named, *more],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def content(folder):
    """The files below a folder by name, without the order in which images arrived."""
    return {
        str(path.relative_to(folder)): without_arrival(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "downloads"
    }


def without_arrival(path):
    """The bytes of a file; of a table of images without their positions in blobs."""
    if path.parent.name != "images" or not path.match("part-*-of-*.parquet"):
        return path.read_bytes()
    table = pq.read_table(path)
    positions = [name for name in table.column_names if name == "position"]
    return table.drop_columns(positions).to_pylist(), table.schema.metadata


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    alts = [(f"/{n}.jpg", f"a cat and dog number {n}") for n in range(12)]
    bodies = {path: tiny_web.picture(n) for n, (path, _) in enumerate(alts)}
    bodies |= {"/8.jpg": bodies["/7.jpg"], "/9.jpg": b"no image"}
    del bodies["/3.jpg"]
    with tiny_web.serve(bodies) as host_map:
        web = tiny_web.write(tmp_path_factory.mktemp("web"), alts)
        yield web | {
            "config.download.host_map": host_map,
            "config.partitions": str(PARTITIONS),
        }


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory):
    place = tmp_path_factory.mktemp("undisturbed")
    curate(flags, place)
    return content(place)


def test_a_kill_after_any_kind_of_file_changes_no_byte(flags, undisturbed, tmp_path):
    noted = tmp_path / "noted"
    curate(flags, tmp_path / "run", kills="kind", noted=noted)
    names = noted.read_text().replace(f"{tmp_path}/run/", "").splitlines()
    names.remove("read pages-0.warc.gz")  # once, whatever was killed later
    found = [re.sub("matchers/.*", "matchers/MATCHER", name) for name in names]
    found = [re.sub("keep-[0-9a-f]{16}$", "keep-HASH", name) for name in found]
    wanted = [f"{place}/{kind}" for place in KINDS for kind in KINDS[place].split()]
    assert sorted(found) == sorted(wanted)
    assert content(tmp_path / "run") == undisturbed


def test_the_same_on_gs(flags, undisturbed, tmp_path, cloud_storage):
    with cloud_storage(tmp_path / "buckets") as storage:
        noted = tmp_path / "noted"
        curate(
            flags,
            "gs://bucket1/run",
            kills="kind",
            noted=noted,
            environment=storage.environment,
        )
    names = noted.read_text().splitlines()
    names.remove("read pages-0.warc.gz")
    assert len(names) == len(" ".join(KINDS.values()).split())
    assert content(tmp_path / "buckets/bucket1/run") == undisturbed


# Slow, since each failed request is waited for before it is made again.
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_requests_that_fail_change_no_byte(
    flags, undisturbed, tmp_path, cloud_storage, share
):
    buckets = tmp_path / "buckets"
    with (
        cloud_storage(buckets) as server,
        storage.proxy(server.url, share=share) as proxy,
    ):
        curate(flags, "gs://bucket1/run", environment=proxy.environment)
    failed = proxy.faults()
    assert failed.total() > share / 2 * len(proxy.asked)
    assert failed.keys() == set(storage.FAULTS) or share < 0.2
    assert content(buckets / "bucket1/run") == undisturbed


@pytest.mark.slow
def test_a_bucket_that_vanishes_is_one_line_and_when_it_is_back_the_run_goes_on(
    flags, undisturbed, tmp_path, cloud_storage
):
    buckets, place = tmp_path / "buckets", "gs://bucket1/run"
    values = flags | {"workdir": f"{place}/work", "output": f"{place}/dataset"}
    command = [sys.executable, "-m", "data_prep.curate"]
    with cloud_storage(buckets) as server:
        run = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in values.items())],
            cwd=ROOT,
            env=server.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        waiting.until(lambda: list(buckets.glob("bucket1/run/work/matches/*")), run)
    said, _ = run.communicate(timeout=waiting.SECONDS)
    assert run.returncode == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("Error: wanted gs://bucket1"), said
    assert "got no connection" in said
    with cloud_storage(buckets) as server:
        curate(flags, place, environment=server.environment)
    assert content(buckets / "bucket1/run") == undisturbed


@pytest.fixture(scope="module")
def healed(tmp_path_factory):
    """Flags and a finished curation of images that are well again; the right bytes."""
    alts = [(f"/{n}.jpg", f"a cat and dog number {n}") for n in range(8)]
    bodies = {path: tiny_web.picture(n) for n, (path, _) in enumerate(alts)}
    # While 3 is ill, 7 takes over the text of 1, and then 3 both, in the other part.
    bodies |= dict.fromkeys(("/1.jpg", "/7.jpg"), bodies["/3.jpg"])
    place = tmp_path_factory.mktemp("healed")
    with tiny_web.serve(bodies) as host_map:
        flags = tiny_web.write(place / "web", alts) | {
            "config.download.host_map": host_map,
            "config.partitions": str(PARTITIONS),
        }
        curate(flags, place / "well")
        well, ill = dict(bodies), {f"/{n}.jpg": 503 for n in (0, 2, 3, 4)}
        bodies |= ill
        curate(flags, place / "ill")
        bodies |= well
        assert content(place / "ill") != content(place / "well")
        yield flags, place / "ill", content(place / "well")


def test_a_kill_in_the_midst_of_a_retry_changes_no_byte(healed, tmp_path):
    flags, ill, well = healed
    shutil.copytree(ill, tmp_path / "run")
    noted = tmp_path / "noted"
    once_more = ("--retry_failed", "--stop_after=download")
    curate(flags, tmp_path / "run", *once_more, kills="kind", noted=noted)
    assert len(noted.read_text().splitlines()) == 13  # of four folders
    curate(flags, tmp_path / "run", "--retry_failed")
    assert content(tmp_path / "run") == well


# Forked children that may write files of some length only, more and more; the last one
# has no limit. Each leaves what it says in a file of its own.
NARROW = r"""
import os, resource, sys

import apache_beam.runners.portability.fn_api_runner.fn_runner

from data_prep import curate
from data_prep.matching import Matcher
from metaclip_jax.cli import command

Matcher(["cat"]).match(["a cat"])  # brings the kernels
said, rooms, *arguments = sys.argv[1:]
for number, room in enumerate(rooms.split(",")):
    child = os.fork()
    if child == 0:
        out = os.open(f"{said}.{number}", os.O_CREAT | os.O_WRONLY)
        os.dup2(out, 1), os.dup2(out, 2)
        if room:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
        sys.argv = ["curate", *arguments]
        curate.define_flags()
        command.run(curate.main)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == bool(room), (room, status)
"""


def test_a_full_disk_is_one_line_and_with_room_the_run_goes_on(
    flags, undisturbed, tmp_path
):
    place = tmp_path / "run"
    values = flags | {"workdir": f"{place}/work", "output": f"{place}/dataset"}
    named = [f"--{name}={value}" for name, value in values.items()]
    rooms = ("900", "4000", "100000", "")
    done = subprocess.run(
        [sys.executable, "-c", NARROW, tmp_path / "said", ",".join(rooms), *named],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    met = []
    for number in range(len(rooms) - 1):
        lines = (tmp_path / f"said.{number}").read_text().splitlines()
        (last,) = [line for line in lines if "File too large" in line]
        assert last == lines[-1]
        assert not any("Traceback" in line for line in lines)
        met.append(re.match(rf"Error: wanted room for {place}/work/(\w+)/", last)[1])
    assert met == ["matched", "matched", "downloads"]
    assert content(place) == undisturbed


@pytest.mark.slow
def test_runs_between_retries_that_are_killed_change_no_byte(healed, tmp_path):
    flags, ill, well = healed
    shutil.copytree(ill, tmp_path / "run")
    every_other = ("+", "--retry_failed")
    noted = tmp_path / "noted"
    curate(flags, tmp_path / "run", *every_other, kills="file", noted=noted)
    assert content(tmp_path / "run") == well


@pytest.mark.slow
@pytest.mark.parametrize("partitions", [1, 5])
def test_a_kill_after_any_single_file_changes_no_byte(flags, tmp_path, partitions):
    more = flags | {"config.partitions": str(partitions)}
    curate(more, tmp_path / "straight")
    curate(more, tmp_path / "run", kills="file", noted=tmp_path / "noted")
    assert content(tmp_path / "run") == content(tmp_path / "straight")
