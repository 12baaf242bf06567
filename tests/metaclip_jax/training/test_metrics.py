"""Metrics: what is written is read back, and a resumed run replaces its own rows."""

import json
import math
import os
import subprocess
import sys

import pytest
from tensorboardX.proto import event_pb2

from metaclip_jax import metric_rows
from metaclip_jax.training import metrics
from tests import waiting


def writer(tmp_path, *, start_step=0, tensorboard=False, **options):
    return metrics.Writer(
        str(tmp_path), start_step=start_step, tensorboard=tensorboard, **options
    )


def test_rows_are_read_back_by_step(tmp_path):
    out = writer(tmp_path)
    out.write(10, {"loss": 2.0})
    out.write(20, {"loss": 1.0})
    out.write(10, {"evaluation/R@1": 0.5})
    out.close()
    assert metric_rows.read(str(tmp_path)) == [
        {"step": 10, "loss": 2.0, "evaluation/R@1": 0.5},
        {"step": 20, "loss": 1.0},
    ]


def test_each_flush_makes_a_part_that_is_never_changed(tmp_path):
    out = writer(tmp_path)
    out.write(1, {"loss": 3.0})
    out.flush()
    first = tmp_path / "metrics" / "part-000000.jsonl"
    before = first.read_bytes()
    out.write(2, {"loss": 2.0})
    out.flush()
    out.flush()
    assert first.read_bytes() == before
    assert len(list((tmp_path / "metrics").iterdir())) == 2


def test_a_whole_row_is_flushed_once_it_has_waited(tmp_path):
    """The parts of one row stay together."""
    out = writer(tmp_path, flush_seconds=0.0)
    out.write(1, {"loss": 3.0})
    out.write(1, {"evaluation/R@1": 0.5})
    assert metric_rows.read(str(tmp_path)) == []
    out.write(2, {"loss": 2.0})
    first = {"step": 1, "loss": 3.0, "evaluation/R@1": 0.5}
    assert metric_rows.read(str(tmp_path)) == [first]
    out.close()
    assert metric_rows.read(str(tmp_path)) == [first, {"step": 2, "loss": 2.0}]
    patient = writer(tmp_path, start_step=2, flush_seconds=1e9)
    patient.write(3, {"loss": 1.0})
    patient.write(4, {"loss": 1.0})
    assert len(metric_rows.read(str(tmp_path))) == 2


def test_the_last_row_of_a_step_wins_across_starts(tmp_path):
    killed = writer(tmp_path)
    killed.write(1, {"loss": 3.0})
    killed.write(2, {"loss": 2.0, "compile_seconds": 7.0})
    killed.flush()
    resumed = writer(tmp_path, start_step=1)
    resumed.write(2, {"loss": 1.5})
    resumed.close()
    assert metric_rows.read(str(tmp_path)) == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 1.5},
    ]


def test_parts_are_ordered_by_number_not_by_name(tmp_path):
    folder = tmp_path / "metrics"
    folder.mkdir()
    (folder / "part-1000000.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (folder / "part-999999.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    assert metric_rows.read(str(tmp_path))[0]["loss"] == 1.0
    out = writer(tmp_path)
    out.write(2, {"loss": 0.0})
    out.flush()
    assert (folder / "part-1000001.jsonl").exists()


def test_a_number_that_is_not_finite_is_null(tmp_path):
    out = writer(tmp_path)
    out.write(1, {"loss": math.nan, "norm": math.inf})
    out.close()
    line = (tmp_path / "metrics" / "part-000000.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "loss": None, "norm": None}


def test_a_workdir_without_metrics_has_no_rows(tmp_path):
    assert metric_rows.read(str(tmp_path)) == []


def test_a_damaged_line_is_an_error_that_names_it(tmp_path):
    out = writer(tmp_path)
    out.write(1, {"loss": 1.0})
    out.flush()
    part = tmp_path / "metrics" / "part-000000.jsonl"
    part.write_text(part.read_text() + '{"loss": 1}\n')
    with pytest.raises(ValueError, match="part-000000.jsonl:2: wanted a JSON object"):
        metric_rows.read(str(tmp_path))


def events_of(file):
    """The events of a TensorBoard file: TFRecords of length, 4, message, 4 bytes."""
    data = file.read_bytes()
    found = []
    while data:
        size = int.from_bytes(data[:8], "little")
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_all_numbers_are_in_tensorboards_file_after_each_flush(tmp_path):
    """Also those of a start in the same second as the one before."""
    for start in range(2):
        out = writer(tmp_path, tensorboard=True, start_step=100 * start)
        for step in range(100 * start + 1, 100 * start + 80):
            out.write(step, {"loss": 1 / step, "b": 1.0})
            if step % 20 == 0:
                out.flush()
                newest = sorted((tmp_path / "tensorboard").iterdir())[-1]
                events = [e for e in events_of(newest) if e.HasField("summary")]
                assert len(events) == 2 * (step - 100 * start)
        out.close()
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    events = events_of(second)
    assert events[1].session_log.status == event_pb2.SessionLog.START
    assert events[1].step == 101
    assert len(events_of(first)) == len(events) == 2 + 2 * 79
    (value,) = events[-2].summary.value
    assert (events[-2].step, value.tag) == (179, "loss")
    assert value.simple_value == pytest.approx(1 / 179)


def test_tensorboard_does_not_import_torch_which_stays_importable(tmp_path):
    (tmp_path / "torch.py").write_text("")
    code = f"""
import sys
from metaclip_jax.training import metrics
metrics.Writer({str(tmp_path)!r}, start_step=0, tensorboard=True).close()
assert "torch" not in sys.modules
import torch
"""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True
    )


def test_numbers_also_go_to_weights_and_biases(tmp_path, monkeypatch):
    """Offline, into a file that `wandb sync` would send."""
    pytest.importorskip("wandb", reason="needs wandb: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = writer(tmp_path, wandb="some-project", config={"peak_lr": 0.0625})
    out.write(1, {"loss": 2.5})
    out.write(2, {"loss": 1.5})
    out.close()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    parts = (b"some-project", b"peak_lr", b"0.0625", b"loss", b"2.5", b"1.5")
    # W&B's own process writes it, when it comes to it.
    waiting.until(lambda: all(part in path.read_bytes() for part in parts))


def test_weights_and_biases_without_its_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        writer(tmp_path, wandb="clip")
