"""Real training runs, as commands, on a small made-up dataset."""

import dataclasses
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from data_prep.sinks import array_record
from metaclip_jax import evaluate, files, metric_rows, train
from metaclip_jax.data import mixture, records, tokenizer, workers
from metaclip_jax.evaluation import evaluator
from metaclip_jax.evaluation import held_out as held_outs
from metaclip_jax.training import checkpoint, run_config, runtime
from tests import small_records, stopping, waiting

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220)}
TOTAL_STEPS = 30
# Metrics that depend on the machine and the moment; all others are deterministic.
TIMINGS = {
    "examples_per_second",
    "examples_per_second_per_chip",
    "model_teraflops_per_second_per_chip",
    "model_flops_utilisation",
    "data_wait",
    "compile_seconds",
}

RECIPE = """
from metaclip_jax import config as keys

def get_config():
    config = keys.default()
    config.data.mixture = (("{folder}/dataset", 3.0), ("{folder}/more", 1.0))
    config.data.order = "blocks"
    config.data.block_records = 8
    config.data.window_blocks = 5
    config.data.flip = True
    config.data.text_source_weights = (("alt", 2.0),)
    config.data.synthetic_sources = ("made",)
    config.data.synthetic_share = 0.15
    config.tokenizer = "{folder}/tokenizer.json"
    config.evaluation.held_out = "{folder}/held_out"
    config.evaluation.batch = 10
    config.global_batch = 64
    config.total_steps = {total_steps}
    config.log_every_steps = 1
    config.checkpoint_every_steps = 10
    config.eval_every_steps = 10
    config.checkpoint.keep_best = "evaluation/zero_shot/accuracy"
    config.patch_dropout = 0.25
    config.image_size = 16
    config.dtype = "float32"
    config.cpu_devices = 2
    config.mesh.fsdp = 2
    config.checkpoint.keep_last = 10
    config.tensorboard = False
    config.model.patch_size = 8
    config.model.vision_width = 32
    config.model.vision_layers = 2
    config.model.vision_heads = 2
    config.model.text_width = 32
    config.model.text_layers = 2
    config.model.text_heads = 2
    config.model.context_length = 12
    config.model.embed_dim = 32
    config.optimizer.warmup_steps = 5
    config.optimizer.peak_lr = 3e-3
    config.data.read_threads = 2
    return config.lock()
"""


def record(index):
    """A coloured bar; the text names its colour and position."""
    colour = list(COLOURS)[index % 3]
    place = index // 3 % 8
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[:, 4 * place : 4 * place + 4] = COLOURS[colour]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90 - index % 7)
    return small_records.record(
        f"http://images.example/{index}",
        (f"a {colour} bar at {place}", f"bar {place}, {colour}, number {index}"),
        image=buffer.getvalue(),
        entry_ids=[[0], [1]],
        width=32,
        height=32,
        text_sources=("alt", "made"),
    )


def write_dataset(folder, some, *, name="tiny"):
    folder.mkdir()
    facts = array_record.write_shard(str(folder / records.shard_name(name, 0, 1)), some)
    array_record.write_dataset(
        str(folder),
        name=name,
        shard_facts=[facts],
        data_card={"name": name},
        counts=None,
        inputs={},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    learned = [record(i) for i in range(120)]
    held_out = [record(i) for i in range(1000, 1024)]
    write_dataset(folder / "dataset", learned)
    more = [record(i) for i in range(2000, 2040)]
    more[3] = dataclasses.replace(more[3], image=b"no image")
    write_dataset(folder / "more", more, name="more")
    write_dataset(folder / "held_out", held_out)
    task = {
        "class_names": list(COLOURS),
        "templates": ["a {} bar", "{}"],
        "labels": {r.image_id: (1000 + i) % 3 for i, r in enumerate(held_out)},
    }
    (folder / "held_out" / "zero_shot.json").write_text(json.dumps(task))
    texts = [text for r in learned for text in r.texts]
    (folder / "tokenizer.json").write_text(tokenizer.train(texts, 560).to_str())
    (folder / "recipe.py").write_text(
        RECIPE.format(folder=folder, total_steps=TOTAL_STEPS)
    )
    return folder


def finish(folder, command):
    """Runs a command; returns the exit status and what it wrote."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=waiting.SECONDS,
    )
    return done.returncode, done.stdout


def training(folder, workdir):
    return f"--config={folder}/recipe.py", f"--workdir={folder / workdir}"


def run(folder, workdir, *extra):
    flags = [*training(folder, workdir), *extra]
    return finish(folder, [sys.executable, "-m", "metaclip_jax.train", *flags])


def stop_after(folder, workdir, function, argument, sign):
    """Trains until `function` is called so; returns the status and the last step."""
    flags = training(folder, workdir)
    status, output = finish(
        folder,
        stopping.command(
            "metaclip_jax.train",
            *flags,
            function=function,
            argument=argument,
            sign=sign,
        ),
    )
    step = checkpoint.latest_step(str(folder / workdir))
    assert step is not None, output
    return status, step


@pytest.fixture(scope="module")
def straight(folder):
    traced = ("--config.profile.first_step=2", "--config.profile.last_step=3")
    status, output = run(folder, "straight", *traced)
    assert status == 0, output
    return folder / "straight", output


@pytest.fixture(scope="module")
def interrupted(folder, straight):
    """Killed after step 10, terminated after a later step, then left alone."""
    workdir = folder / "interrupted"
    saved = r"/checkpoints/10$"
    killed = stop_after(folder, "interrupted", "os.rename", saved, signal.SIGKILL)
    parts = len(list((workdir / "metrics").glob("part-*")))
    flushed = f"part-{parts:06d}.jsonl$"
    write = "metaclip_jax.files.write_bytes"
    terminated = stop_after(folder, "interrupted", write, flushed, signal.SIGTERM)
    unfinished = not (workdir / files.MANIFEST).exists()
    status, output = run(folder, "interrupted")
    assert status == 0, output
    return {
        "workdir": workdir,
        "killed": killed,
        "terminated": terminated,
        "unfinished": unfinished,
        "output": output,
    }


def state_of(workdir, step=TOTAL_STEPS):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(
            workdir / "checkpoints" / str(step) / "state",
            args=ocp.args.PyTreeRestore(
                restore_args=jax.tree.map(
                    lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                    reader.metadata(
                        workdir / "checkpoints" / str(step) / "state"
                    ).item_metadata.tree,
                )
            ),
        )
    return jax.tree_util.tree_leaves_with_path(tree)


def lasting(workdir):
    """All rows without the keys that hold times or rates."""
    return [
        {key: value for key, value in row.items() if key not in TIMINGS}
        for row in metric_rows.read(str(workdir))
    ]


def test_a_run_learns_logs_evaluates_and_saves(straight):
    workdir, output = straight
    rows = metric_rows.read(str(workdir))
    assert [row["step"] for row in rows] == list(range(1, TOTAL_STEPS + 1))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert rows[-1]["examples_seen"] == 64 * TOTAL_STEPS
    # The cycles of a mixture are longer than this run, so its shares hold by chance.
    more = rows[-1]["examples_seen/more"]
    assert abs(more - 64 * TOTAL_STEPS / 4) < 4 * np.sqrt(64 * TOTAL_STEPS * 3 / 16)
    assert rows[-1]["examples_seen/tiny"] == 64 * TOTAL_STEPS - more
    assert rows[-1]["epochs/more"] == more / 40
    bad = records.image_id("http://images.example/2003")
    lost = files.read_json(workdir / "metrics" / "replaced_images.json")
    times = lost["not_an_image"][bad]
    assert 0 < times < more / 40 + 4 * np.sqrt(more / 40)  # by chance, as above
    assert rows[-1]["replaced_images/not_an_image"] == times
    assert rows[-1]["replaced_images"] == times
    assert rows[0]["compile_seconds"] > 0
    assert "compile_seconds" not in rows[1]
    assert all(0 <= row["data_wait"] <= 1 for row in rows)
    best = {
        row["step"]: row["evaluation/zero_shot/accuracy"]
        for row in rows
        if "evaluation/zero_shot/accuracy" in row
    }
    assert list(best) == [10, 20, 30]
    held_out = held_outs.load_held_out(str(workdir.parent / "held_out"))
    assert {f"evaluation/{n}" for n in evaluator.names(held_out)} <= rows[-1].keys()
    for step, score in best.items():
        stored = workdir / "checkpoints" / str(step) / "metrics" / "metrics"
        assert files.read_json(stored)["evaluation/zero_shot/accuracy"] == score
    assert checkpoint.steps(str(workdir)) == [10, 20, 30]
    assert files.read_json(workdir / "manifest.json")["step"] == TOTAL_STEPS
    assert "compiled the step for 2 devices in" in output
    assert "examples/s" in output
    assert all(row["examples_per_second_per_chip"] > 0 for row in rows)


def test_the_steps_asked_for_are_traced(straight):
    (trace,) = straight[0].glob("profile/plugins/profile/*/*.xplane.pb")
    found = jax.profiler.ProfileData.from_file(str(trace))
    steps = {
        dict(event.stats)["step_num"]
        for plane in found.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    }
    assert steps == {2, 3}


def test_a_best_metric_that_is_not_measured_is_refused(folder):
    wrong = "--config.checkpoint.keep_best=evaluation/zero_shot/f1"
    status, output = run(folder, "best", wrong)
    assert status != 0
    assert "keep_best must be one of" in output
    assert "compiled" not in output


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("profile.first_step", 5, "wanted 1 <= first_step <= last_step"),
        ("wandb", "some", "needs the package wandb"),
        ("vocabulary", "xlm_v", "'xlm_v' needs a tokenizer of 901,629 tokens"),
        ("checkpoint.keep_last", 0, "keep_last: wanted an integer of at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_workdir_is_taken(
    folder, tmp_path, monkeypatch, key, value, message
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = runpy.run_path(str(folder / "recipe.py"))["get_config"]()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        train.train(config, str(tmp_path / "run"), workers.Prefetcher())
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_goes_on_before_a_damaged_checkpoint_where_it_may(folder, straight):
    workdir = folder / "damaged"
    shutil.copytree(straight[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "30")
    (workdir / files.MANIFEST).unlink()
    state = workdir / "checkpoints" / "20" / "state"
    for file in state.glob("**/d/*"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    status, output = run(folder, "damaged")
    assert status != 0
    assert f"Error: wanted the checkpoint {workdir}/checkpoints/20" in output
    assert "compiled" not in output and checkpoint.steps(str(workdir)) == [10, 20]

    status, output = run(folder, "damaged", "--config.checkpoint.fallback=True")
    assert status == 0, output
    assert "removing the damaged checkpoint of step 20" in output
    assert checkpoint.steps(str(workdir)) == [10, 20, 30]
    for (path, want), (_, got) in zip(
        state_of(straight[0]), state_of(workdir), strict=True
    ):
        np.testing.assert_array_equal(got, want, err_msg=str(path))
    assert lasting(workdir) == lasting(straight[0])


@pytest.mark.parametrize("devices", [1, 2])
def test_compiled_programs_are_kept_unless_cpu_devices_share_them(tmp_path, devices):
    code = f"""
import jax
from metaclip_jax.training import runtime
runtime.start_jax(cpu_devices={devices}, compilation_cache={str(tmp_path)!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x + 1)(1.0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert bool(list(tmp_path.iterdir())) == (devices == 1)
    assert ("not used on several CPU devices" in done.stderr) == (devices == 2)


def test_killed_and_terminated_runs_stop_where_they_should(interrupted):
    assert interrupted["killed"] == (-signal.SIGKILL, 10)
    status, step = interrupted["terminated"]
    assert status == 0
    assert 10 < step < TOTAL_STEPS
    assert interrupted["unfinished"]
    assert f"goes on from step {step}" in interrupted["output"]


def test_an_interrupted_run_ends_with_the_same_bits(straight, interrupted):
    one, other = state_of(straight[0]), state_of(interrupted["workdir"])
    assert len(one) == len(other) > 50
    for (path, a), (other_path, b) in zip(one, other, strict=True):
        assert path == other_path
        assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


def test_an_interrupted_run_ends_with_the_same_metrics(straight, interrupted):
    assert lasting(interrupted["workdir"]) == lasting(straight[0])
    name = Path("metrics") / "replaced_images.json"
    one, other = straight[0] / name, interrupted["workdir"] / name
    assert one.read_bytes() == other.read_bytes()


def test_a_finished_run_ends_at_once(folder, straight):
    workdir, _ = straight
    before = sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("part-*"))
    status, output = run(folder, "straight")
    assert status == 0
    assert "is finished: 30 steps are done" in output
    assert "compiled" not in output
    assert before == sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("part-*"))


def test_the_workdir_of_another_run_is_refused(folder, straight):
    status, output = run(folder, "straight", "--config.optimizer.peak_lr=1e-4")
    assert status != 0
    assert "optimizer.peak_lr: wanted 0.0001, found 0.003" in output


def test_an_unknown_key_is_refused_with_a_suggestion(folder):
    status, output = run(folder, "unknown", "--config.total_step=3")
    assert status != 0
    assert "did you mean --config.total_steps?" in output


def test_a_missing_dataset_is_refused():
    with pytest.raises(FileNotFoundError, match="'nowhere' is not a finished dataset"):
        mixture.fingerprint(["nowhere"], [1.0])


def test_sigterm_is_noted_and_the_handler_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with runtime.stop_on_sigterm() as stop_wanted:
        assert not stop_wanted(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_wanted(1)
    assert signal.getsignal(signal.SIGTERM) is before


# Evaluation, on one device; the run was trained on two.


@pytest.fixture(scope="module")
def evaluated(folder, straight):
    workdir, _ = straight
    flags = [f"--workdir={workdir}", f"--held_out={folder}/held_out"]
    flags += ["--batch=7", "--cpu_devices=1"]
    status, output = finish(
        folder, [sys.executable, "-m", "metaclip_jax.evaluate", *flags]
    )
    assert status == 0, output
    return workdir, files.read_json(workdir / "evaluation" / "30.json"), output


def test_evaluation_agrees_with_the_one_in_training(evaluated):
    workdir, found, _ = evaluated
    (row,) = [r for r in metric_rows.read(str(workdir)) if r["step"] == TOTAL_STEPS]
    in_training = {k: v for k, v in row.items() if k.startswith("evaluation/")}
    for name, value in in_training.items():
        _, group, last = name.split("/")
        assert found["model"][group][last]["value"] == pytest.approx(value, abs=1 / 24)
    assert len(in_training) == 8


def test_evaluation_stands_beside_chance_and_the_untrained_model(evaluated):
    _, found, _ = evaluated
    assert found["step"] == TOTAL_STEPS
    assert found["candidates"] == 24
    for who in ("model", "untrained"):
        accuracy = found[who]["zero_shot"]["accuracy"]
        assert accuracy["chance"] == pytest.approx(1 / 3)
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        assert found[who]["zero_shot"]["classes"] == 3
        assert set(found[who]["image_to_text"]) == {"R@1", "R@5", "R@10"}
    assert (
        found["model"]["text_to_image"]["R@5"]["value"]
        > found["untrained"]["text_to_image"]["R@5"]["value"]
    )


def test_the_best_texts_of_the_first_images_are_written_in_order(evaluated):
    workdir, _, _ = evaluated
    shown = files.read_json(workdir / "evaluation" / "30_top5.json")
    assert len(shown) == 24
    assert [s["image_id"] for s in shown] == sorted(s["image_id"] for s in shown)
    for image in shown:
        cosines = [text["score"] for text in image["top5"]]
        assert len(cosines) == 5
        assert cosines == sorted(cosines, reverse=True)


def test_the_table_has_a_line_for_each_number(evaluated):
    _, found, output = evaluated
    lines = evaluate.table(found).splitlines()
    assert set(lines) <= set(output.splitlines())
    assert len(lines) == 2 + 8


def test_a_workdir_without_a_run_cannot_be_evaluated(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        run_config.read(str(tmp_path))


def test_held_out_labels_must_be_of_images_that_are_there(folder, tmp_path):
    write_dataset(tmp_path / "held_out", [record(7)])
    (tmp_path / "held_out" / "zero_shot.json").write_text(
        json.dumps(
            {"class_names": ["a", "b"], "templates": ["{}"], "labels": {"f00": 1}}
        )
    )
    with pytest.raises(ValueError, match="got 1 others, the first f00"):
        held_outs.load_held_out(str(tmp_path / "held_out"))
