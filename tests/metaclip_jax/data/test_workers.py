"""Worker processes: what they may hold, when they start, and how they end."""

import contextlib
import os
import shutil
import signal
import tempfile
import time

import pytest

from metaclip_jax.data import pipeline, tokenizer, workers
from metaclip_jax.data.options import DataOptions
from tests import waiting

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_dataset):
    folder = tmp_path_factory.mktemp("workers")
    write_dataset(folder / "dataset", record_count=64)
    raw = tokenizer.train([f"picture {n} told as {n % 3}" for n in range(9)], 600)
    (folder / "tokenizer.json").write_text(raw.to_str())
    return folder


def open_batches(folder, *, image_size=224, batch=64, steps=30, count=1, prefetch=2):
    return pipeline.batches(
        DataOptions(
            folders=(str(folder / "dataset"),),
            global_batch=batch,
            image_size=image_size,
            context_length=12,
            total_steps=steps,
        ),
        tokenizer.load(folder / "tokenizer.json", family="clip"),
        prefetcher=workers.Prefetcher(worker_count=count, prefetch=prefetch),
    )


def peak(folder, *, image_size):
    """The most bytes that a worker process held over 30 batches of 64 images."""
    stream = open_batches(folder, image_size=image_size)
    for _ in stream:
        pass
    (pid,) = children()
    memory = workers.peak_memory(pid)
    stream.close()
    assert workers.peak_memory(pid) == 0
    return memory


def held(batch, size):
    """Bytes in shared memory of arrays that have the size of a batch's arrays.

    What was handed out has no name any more and is not among them.
    """
    sizes = {batch * row for row in (3 * size**2, 4 * 12, 8, 4, 24)}
    total = 0
    for name in os.listdir("/dev/shm"):
        with contextlib.suppress(FileNotFoundError):  # let go meanwhile
            found = os.stat(f"/dev/shm/{name}")
            if found.st_size in sizes:
                total += found.st_blocks * 512
    return total


def test_a_worker_holds_no_more_than_was_said(folder):
    batch = 64 * 224 * 224 * 3
    bound = workers.plan_memory(
        worker_count=1, prefetch=2, batch_bytes=batch, held_bytes=0
    )
    assert bound == 5 * batch
    bound += workers.shared_bytes(worker_count=1, batch_bytes=batch)  # mapped
    base = peak(folder, image_size=8)
    grown = peak(folder, image_size=224) - base
    assert 2 * batch < grown < bound + 16 * MIB  # what one thread decodes at a time
    assert base < 500 * MIB


@pytest.mark.parametrize(("count", "prefetch"), [(1, 4), (2, 1)])
def test_shared_memory_holds_no_more_than_was_said_and_nothing_afterwards(
    folder, count, prefetch
):
    # A batch of odd sizes, to know its arrays among those of others.
    batch, size = 61 + count, 227
    stream = open_batches(
        folder,
        image_size=size,
        batch=batch,
        steps=10**6,
        count=count,
        prefetch=prefetch,
    )
    row = 3 * size**2 + 4 * 12 + 44
    one = batch * row
    # Made before the first request.
    steady = 4 * count
    waiting.until(lambda: held(batch, size) >= (steady - 0.5) * one)
    most = held(batch, size)
    for _ in range(12):
        kept = next(stream)
        most = max(most, held(batch, size))
    bound = workers.shared_bytes(worker_count=count, batch_bytes=one)
    pages = 4_096 * 6 * bound // one  # arrays end inside a page
    assert most <= bound + pages
    stream.close()
    waiting.until(lambda: not held(batch, size))
    assert kept["image"].any()  # what was handed out stays


def test_workers_that_are_not_asked_for_anything_leave_nothing(folder):
    open_batches(folder, image_size=229, batch=59, count=2).close()
    waiting.until(lambda: not held(59, 229))


def double(step):
    return 2 * step


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_prefetcher_makes_what_it_is_asked_later_and_no_more(count):
    before = set(children())
    with workers.Prefetcher(worker_count=count, prefetch=1) as prefetcher:
        assert len(set(children()) - before) == count
        made = prefetcher.iterate(double, range(3, 10))
        assert list(made) == [6, 8, 10, 12, 14, 16, 18]
        assert next(made, None) is None
        with pytest.raises(RuntimeError, match="a prefetcher iterates once"):
            prefetcher.iterate(double, range(3))
    assert set(children()) <= before


def test_a_prefetcher_without_work_ends_at_once(tmp_path, monkeypatch):
    """Its processes are still loading their libraries, or waiting."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(children())
    for seconds in (0, 6):
        prefetcher = workers.Prefetcher(worker_count=2)
        assert len(set(children()) - before) == 2
        assert list(tmp_path.iterdir())
        time.sleep(seconds)
        start = time.monotonic()
        prefetcher.close()
        assert time.monotonic() - start < 25  # Grain would wait so long for each
        assert set(children()) <= before
        assert not list(tmp_path.iterdir())


def test_workers_hear_no_signals(folder):
    """From their first instant, as a process group hears them together."""
    before = set(children())
    stream = open_batches(folder, image_size=8, steps=40, count=2)
    waiting.until(lambda: len(set(children()) - before) == 2)
    for pid in set(children()) - before:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert len(list(stream)) == 40
    stream.close()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def children():
    """Process ids of this process's workers."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
            with open(f"/proc/{name}/cmdline") as file:
                spawned = "spawn_main" in file.read()
            if spawned and state != "Z" and int(parent) == os.getpid():
                found.append(int(name))
    return found


def test_the_memory_of_workers_is_said_at_the_start(caplog):
    with caplog.at_level("INFO"):
        workers.plan_memory(
            worker_count=3, prefetch=4, batch_bytes=MIB, held_bytes=100 * MIB
        )
    assert "3 worker processes, each with at most 7 MiB of batches" in caplog.text
    assert "about 100 MiB of stored records and file indexes" in caplog.text
    assert "at most 14 MiB of shared memory in all" in caplog.text


def test_batches_that_do_not_fit_into_shared_memory_are_refused():
    free = shutil.disk_usage("/dev/shm").free
    with pytest.raises(ValueError, match=r"2 workers hand over .* lower data.worker"):
        workers.plan_memory(
            worker_count=2, prefetch=2, batch_bytes=free // 9, held_bytes=0
        )
