"""Runs of several processes, and runs that go wrong."""

import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from metaclip_jax import files, metric_rows
from metaclip_jax.data import pipeline, tokenizer
from metaclip_jax.data.options import DataOptions
from metaclip_jax.training import checkpoint
from tests import pods, waiting
from tests.pods import SAVED, STEPS, is_gone, run, start, start_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_dataset):
    folder = tmp_path_factory.mktemp("pods")
    pods.prepare(folder, write_dataset)
    return folder


LONG = ("--config.total_steps=100000",)  # as long as nothing ends it


def started_and_saved(folder, workdir, *flags, processes=1):
    """The processes of a long run that has saved step STEPS."""
    started = start_all(folder, workdir, processes=processes, flags=(*LONG, *flags))
    saved = folder / workdir / "checkpoints" / f"{STEPS}"
    waiting.until(saved.exists, started[-1])
    return started


def stop(folder, workdir, *, processes, first=0):
    """Trains with loaders, asks processes from `first` on to stop; returns outputs.

    SIGTERM goes to process groups, as from a scheduler. Each process ends well, with
    one checkpoint of all, and nothing is left of it.
    """
    loaders = f"--config.data.worker_count={2 // processes}"
    started = started_and_saved(folder, workdir, loaders, processes=processes)
    for process in started[first:]:
        os.killpg(process.pid, signal.SIGTERM)
    statuses, output = pods.ends(started)
    assert statuses == [0] * processes, output
    step = checkpoint.latest_step(str(folder / workdir))
    assert f"asked to stop: saved step {step}" in output[0]
    assert "leaked" not in "".join(output)
    assert metric_rows.read(str(folder / workdir))[-1]["step"] == step
    assert not (folder / workdir / files.MANIFEST).exists()
    for process in started:
        waiting.until(functools.partial(is_gone, process))
    return output


@pytest.fixture(scope="module")
def stopped(folder):
    """What a run of one process printed that is stopped."""
    (output,) = stop(folder, "alone", processes=1)
    return output


@pytest.fixture(scope="module")
def alone(folder, stopped):
    """The rows of that run."""
    return metric_rows.read(str(folder / "alone"))


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def halted(folder, members, request):
    """The workdir of a run of several processes, and what each printed.

    The loader of one is halted in the end: it waits for data, and its peers for it, in
    a collective.
    """
    workdir = f"of_{request.param}"
    # Of the four, two and two hold the same rows.
    tensor = f"--config.mesh.tensor={request.param // 2}"
    flags = (tensor, "--config.data.worker_count=1", "--stall_seconds=20")
    started = started_and_saved(folder, workdir, *flags, processes=request.param)
    (loader,) = loaders(members(started[1].pid))
    os.kill(loader, signal.SIGSTOP)
    assert all(process.wait(waiting.SECONDS) for process in started)
    os.kill(loader, signal.SIGKILL)  # it holds the pipe open
    _, output = pods.ends(started)
    for process in started:
        waiting.until(functools.partial(is_gone, process))
    return folder / workdir, output


@pytest.fixture(scope="module")
def several(halted):
    """The workdir of a run of several processes."""
    return halted[0]


def assert_alike(rows, others):
    for some in (rows, others):
        assert [row["step"] for row in some[:STEPS]] == list(range(1, STEPS + 1))
    for got, want in zip(rows[:STEPS], others[:STEPS], strict=True):
        for name in ("loss", "gradient_norm", "parameter_norm", "logit_scale"):
            assert got[name] == pytest.approx(want[name], rel=1e-5)


def test_several_processes_train_like_one(several, alone):
    """On as many devices, of real processes that talk over gloo."""
    assert_alike(metric_rows.read(str(several)), alone)
    assert checkpoint.steps(str(several))[:2] == [SAVED, STEPS]


def test_all_processes_count_what_they_mend_together(folder, several, alone):
    counts = ("replaced_images", "replaced_images/not_an_image", "truncated_texts")
    rows = metric_rows.read(str(several))
    for got, want in zip(rows[:STEPS], alone[:STEPS], strict=True):
        assert {key: got.get(key) for key in counts} == {
            key: want.get(key) for key in counts
        }
    assert rows[-1]["truncated_texts"] > STEPS / 2
    # Written down with each checkpoint, and by a run that stops in order.
    assert_lost(folder, several, [row for row in rows if not row["step"] % SAVED][-1])
    assert_lost(folder, folder / "alone", alone[-1])


def assert_lost(folder, workdir, last):
    """The run has written down how often it met each damaged image up to that row."""
    met = Counter()
    with made_batches(folder, last["step"]) as batches:
        for _ in batches:
            met.update(one.image_id for one in batches.losses.replaced)
    assert len(met) == 3
    lost = files.read_json(workdir / "metrics" / "replaced_images.json")
    assert lost == {"not_an_image": met}
    assert met.total() == last["replaced_images"]


def made_batches(folder, total_steps, *, start_step=0):
    """The batches of a run's steps after `start_step`, to be closed."""
    options = DataOptions(
        folders=(str(folder / "dataset"),),
        global_batch=32,
        image_size=16,
        context_length=12,
        total_steps=total_steps,
    )
    vocabulary = tokenizer.load(folder / "tokenizer.json", family="clip")
    return contextlib.closing(
        pipeline.batches(options, vocabulary, start_step=start_step)
    )


def copied_until_saved(workdir):
    """A copy of the run as it was at the checkpoint SAVED, without rows."""
    copy = workdir.with_name(f"moved_{workdir.name}")
    shutil.copytree(workdir, copy)
    for step in checkpoint.steps(str(copy)):
        if step > SAVED:
            shutil.rmtree(copy / "checkpoints" / f"{step}")
    shutil.rmtree(copy / "metrics")
    return copy


def test_a_run_goes_on_with_another_number_of_processes(folder, several, alone):
    """From the first checkpoint to a nearer end, on as many devices."""
    moved = copied_until_saved(several)
    statuses, output = run(folder, moved.name)
    assert statuses == [0], output
    assert f"goes on from step {SAVED}" in output[0]
    rows = alone[:SAVED] + metric_rows.read(str(moved))
    assert len(rows) == STEPS
    assert_alike(rows, alone)
    assert_lost(folder, moved, rows[-1])
    assert rows[-1]["truncated_texts"] == alone[STEPS - 1]["truncated_texts"]


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(folder, alone):
    moved = copied_until_saved(folder / "alone")
    statuses, output = run(folder, moved.name, processes=2)
    assert statuses == [0, 0], output
    assert_alike(alone[:SAVED] + metric_rows.read(str(moved)), alone)


def test_a_signal_to_loaders_too_saves_and_leaves_nothing(stopped):
    said = stopped.index("worker processes, each with at most")
    assert said < stopped.index("compiled the step")


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
def test_a_signal_to_all_or_one_of_two_saves_and_leaves_nothing(folder, first):
    stop(folder, f"stopped_from_{first}", processes=2, first=first)


def loaders(pids):
    """Those of the processes that are workers of a loader."""
    return [
        pid
        for pid in pids
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_workers_are_there_before_jax_is(folder, members):
    """Which, in one process of two, waits for the other before it does anything."""
    flags = ("--config.data.worker_count=2", "--process_count=2", "--process_index=1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        coordinator = f"--coordinator=127.0.0.1:{silent.getsockname()[1]}"
        process = start(folder, "waiting", coordinator, *flags)
        waiting.until(lambda: len(loaders(members(process.pid))) == 2, process)
        time.sleep(5)  # they have their libraries by now, and wait
        assert len(loaders(members(process.pid))) == 2
        process.kill()
        process.communicate(timeout=waiting.SECONDS)
    waiting.until(lambda: is_gone(process))


@pytest.mark.parametrize("missing", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_that_never_comes_is_named(folder, missing):
    """Within the time to wait, in one line; no process is left."""
    flags = ("--wait_seconds=5", "--config.data.worker_count=1")
    started = start_all(folder, f"without_{missing}", processes=2, flags=flags)
    os.killpg(started[missing].pid, signal.SIGKILL)
    began = time.monotonic()
    statuses, output = pods.ends(started)
    assert statuses[1 - missing] == 1, output
    assert (
        f"wanted 2 processes within 5 seconds, got nothing from process {missing}"
        in (output[1 - missing])
    )
    assert "Traceback" not in output[1 - missing]
    assert time.monotonic() - began < waiting.SECONDS
    waiting.until(functools.partial(is_gone, started[1 - missing]))


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_all(folder, members):
    """Its loader is killed; its peer, which waits for it, hears of it."""
    workdir = "failing"
    flags = (*LONG, "--config.data.worker_count=1")
    started = start_all(folder, workdir, processes=2, flags=flags)
    waiting.until((folder / workdir / "checkpoints" / f"{SAVED}").exists, started[1])
    (loader,) = loaders(members(started[1].pid))
    os.kill(loader, signal.SIGKILL)
    output = [process.communicate(timeout=waiting.SECONDS)[0] for process in started]
    assert all(process.returncode for process in started), output
    assert "worker" in output[1] and "process 1 fails" in output[1]
    assert checkpoint.latest_step(str(folder / workdir)) >= SAVED
    for process in started:
        waiting.until(functools.partial(is_gone, process))


def test_a_process_that_waits_without_end_is_named_and_ends_all(halted):
    _, output = halted
    said = r"process 0 was computing step (\d+); process 1 was waiting for the batch of"
    assert re.search(rf"{said} step \1\b", output[0]), output[0][-3000:]
    assert "process 1 makes no progress: it was waiting for the batch" in output[1]


HANGS = """
import runpy, sys, time
from metaclip_jax.training import job, watchdog

watchdog._START_SECONDS = 20.0  # less than gloo waits
if "--process_index=1" in sys.argv:
    job.prepare = lambda *_: time.sleep(1e6)
sys.argv[0] = "train"
runpy.run_module("metaclip_jax.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_process_that_hangs_before_the_first_step_is_named_and_ends_all(folder):
    flags = ("--stall_seconds=1",)
    statuses, output = run(folder, "hangs", processes=2, flags=flags, code=HANGS)
    assert all(statuses)
    said = "process 0 was looking for a checkpoint; process 1 was preparing;"
    assert said in output[0], output[0][-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("silent", [0, 2])
def test_a_host_that_stops_answering_is_named_and_ends_all(folder, silent):
    """JAX misses its heartbeat, and says which it was."""
    started = started_and_saved(folder, f"silent_{silent}", processes=4)
    os.killpg(started[silent].pid, signal.SIGSTOP)
    assert all(p.wait(waiting.SECONDS) for n, p in enumerate(started) if n != silent)
    os.killpg(started[silent].pid, signal.SIGKILL)
    _, output = pods.ends(started)
    # Process 0 has the service that would say so.
    named = "stopped sending heartbeats):\n2\n"
    if not silent:
        named = "CoordinationService/Heartbeat"
    assert all(named in text for n, text in enumerate(output) if n != silent)


@pytest.mark.slow
def test_a_run_killed_while_it_saves_leaves_nothing_behind_and_goes_on(folder, alone):
    """No process, no broken checkpoint; the losses are those of a run left alone."""
    flags = ("--config.checkpoint_every_steps=1", "--config.data.worker_count=2")
    checkpoints = folder / "killed" / "checkpoints"

    def unfinished():
        return list(checkpoints.glob("*tmp*"))

    saved = {"function": "os.rename", "argument": r"/checkpoints/4$", "when": "before"}
    (process,) = start_all(folder, "killed", flags=flags, stops=saved)
    output, _ = process.communicate(timeout=waiting.SECONDS)
    assert process.returncode == -signal.SIGKILL, output
    waiting.until(lambda: is_gone(process))
    assert unfinished()
    assert checkpoint.latest_step(str(folder / "killed")) == 3
    statuses, output = run(folder, "killed")
    assert statuses == [0], output
    rows = metric_rows.read(str(folder / "killed"))
    assert [row["loss"] for row in rows] == [row["loss"] for row in alone[:STEPS]]
    assert not unfinished()


@pytest.mark.slow
def test_several_processes_start_from_the_parameters_of_another_run(folder, alone):
    """From its last step: the first loss is that of a step more, on other data."""
    flags = (f"--config.init_from={folder / 'alone'}", "--config.total_steps=1")
    flags += ("--config.optimizer.warmup_steps=0",)
    losses = []
    for processes in (1, 2):
        workdir = f"started_by_{processes}"
        statuses, output = run(folder, workdir, processes=processes, flags=flags)
        assert statuses == [0] * processes, output
        losses += [row["loss"] for row in metric_rows.read(str(folder / workdir))]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0] < alone[0]["loss"] - 0.1


def test_steps_that_are_not_finite_are_written_down_and_end_the_run(folder):
    """A learning rate that overflows: the first step is taken, no later one."""
    flags = ("--config.optimizer.peak_lr=1e38", "--config.max_skipped_steps=3")
    statuses, output = run(folder, "overflow", flags=flags)
    assert statuses != [0]
    assert "not finite in 3 steps in a row, up to step" in output[0]
    workdir = folder / "overflow"
    assert not (workdir / files.MANIFEST).exists()
    skipped = [
        files.read_json(path)
        for path in sorted((workdir / "metrics" / "skipped").iterdir())
    ]
    last = skipped[-1]["step"]
    assert [one["step"] for one in skipped] == [last - 2, last - 1, last]
    with made_batches(folder, last, start_step=last - 3) as batches:
        for one, batch in zip(skipped, batches, strict=True):
            assert one["image_ids"] == np.char.decode(batch["image_id"]).tolist()


def test_a_run_that_ends_in_steps_that_are_not_finite_is_not_finished(folder):
    """With room for them, too: the second start finds all steps done."""
    flags = ("--config.optimizer.peak_lr=1e38", "--config.max_skipped_steps=100")
    flags += ("--config.total_steps=6", "--config.optimizer.warmup_steps=5")
    workdir = folder / "all_skipped"
    for _ in range(2):
        statuses, output = run(folder, "all_skipped", flags=flags)
        assert statuses != [0]
        assert "steps at the end of" in output[0]
        assert "a higher total_steps" in output[0]
        assert checkpoint.latest_step(str(workdir)) == 6
        assert not (workdir / files.MANIFEST).exists()
    (*_, last) = metric_rows.read(str(workdir))
    assert last["loss"] is None or last["skipped_steps"] > 0
    assert last["parameter_norm"] is not None


def test_a_save_in_the_background_that_fails_ends_the_run(folder):
    """A disk that takes no file of more than 64 KiB."""
    statuses, output = run(folder, "full", limit="ulimit -f 64;")
    assert statuses != [0]
    assert "File too large" in output[0]
    assert checkpoint.steps(str(folder / "full")) == []
    assert not (folder / "full" / files.MANIFEST).exists()
