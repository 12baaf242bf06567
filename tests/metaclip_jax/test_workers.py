"""Worker processes: what they may hold, and that they hold no more."""

import os
import shutil
import signal

import pytest

from metaclip_jax.data import pipeline, tokenizer, workers

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_dataset):
    folder = tmp_path_factory.mktemp("workers")
    write_dataset(folder / "dataset", record_count=64)
    raw = tokenizer.train([f"picture {n} told as {n % 3}" for n in range(9)], 600)
    (folder / "tokenizer.json").write_text(raw.to_str())
    return folder


def peak(folder, *, image_size):
    """The most bytes that a worker process held over 30 batches of 64 images."""
    stream = pipeline.batches(
        str(folder / "dataset"),
        tokenizer_path=str(folder / "tokenizer.json"),
        global_batch=64,
        image_size=image_size,
        context_length=12,
        seed=0,
        total_steps=30,
        worker_count=1,
        prefetch=2,
    )
    for _ in stream:
        pass
    stream.close()
    (memory,) = stream.memory.values()
    return memory


def test_a_worker_holds_no_more_than_was_said(folder):
    batch = 64 * 224 * 224 * 3
    bound = workers.plan_memory(
        worker_count=1, prefetch=2, batch_bytes=batch, stored_bytes=0
    )
    assert bound == 9 * batch
    base = peak(folder, image_size=8)
    grown = peak(folder, image_size=224) - base
    assert 2 * batch < grown < bound + 16 * MIB  # what one thread decodes at a time
    assert base < 500 * MIB


def test_workers_make_batches_after_their_process_group_was_told_to_end(folder):
    """The trainer still needs some until all processes have agreed on a last step."""
    stream = pipeline.batches(
        str(folder / "dataset"),
        tokenizer_path=str(folder / "tokenizer.json"),
        global_batch=16,
        image_size=8,
        context_length=12,
        seed=0,
        total_steps=40,
        worker_count=2,
        prefetch=1,
    )
    batches = [next(stream) for _ in range(4)]
    assert len(stream.memory) == 2
    for process in stream.memory:
        os.kill(process, signal.SIGTERM)
        os.kill(process, signal.SIGINT)
    assert len(batches + list(stream)) == 40
    stream.close()


def test_the_memory_of_workers_is_said_at_the_start(caplog):
    with caplog.at_level("INFO"):
        workers.plan_memory(
            worker_count=3, prefetch=4, batch_bytes=MIB, stored_bytes=100 * MIB
        )
    assert "3 worker processes, each with at most 107 MiB" in caplog.text
    assert "and 6 MiB of shared memory" in caplog.text


def test_batches_that_do_not_fit_into_shared_memory_are_refused():
    free = shutil.disk_usage("/dev/shm").free
    with pytest.raises(ValueError, match=r"2 workers hand over .* lower data.prefetch"):
        workers.plan_memory(
            worker_count=2, prefetch=2, batch_bytes=free // 4, stored_bytes=0
        )
