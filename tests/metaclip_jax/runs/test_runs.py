"""Runs are found, read and compared; what a run does not have is left out."""

import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from metaclip_jax import config as keys
from metaclip_jax import files
from metaclip_jax.runs import __main__ as command
from metaclip_jax.runs import load, page
from tests import waiting


def write_run(folder, *, peak_lr, losses, accuracy=None):
    config = keys.default()
    with config.unlocked():
        config.optimizer.peak_lr = peak_lr
        config.total_steps = 1000
        config.optimizer.warmup_steps = 10
    files.write_json(folder / "config.json", config.to_dict())
    rows = [{"step": 10 * n, "loss": loss} for n, loss in enumerate(losses, 1)]
    (folder / "metrics").mkdir()
    written = "\n".join(map(json.dumps, rows))
    (folder / "metrics" / "part-000000.jsonl").write_text(written)
    if accuracy is not None:
        for step, value in ((5, 0.0), (20, accuracy)):
            cell = {"value": value, "low": 0.0, "high": 1.0, "chance": 0.1}
            found = {"model": {"zero_shot": {"accuracy": cell, "classes": 3}}}
            (folder / "evaluation").mkdir(exist_ok=True)
            files.write_json(folder / "evaluation" / f"{step}.json", found)


@pytest.fixture
def two(tmp_path):
    write_run(tmp_path / "a", peak_lr=1e-3, losses=[3.0, 2.0], accuracy=0.25)
    write_run(tmp_path / "<b>", peak_lr=5e-4, losses=[3.5])
    (tmp_path / "no run").mkdir()
    return tmp_path


def test_runs_are_found_in_a_folder_and_by_themselves(two):
    both = [str(two / "<b>"), str(two / "a")]
    assert load.find([str(two)]) == both
    assert load.find([str(two / "a"), str(two)]) == both[::-1]
    with pytest.raises(FileNotFoundError, match="no run holds no run"):
        load.find([str(two / "no run")])
    with pytest.raises(FileNotFoundError, match="there is no folder .*typo"):
        load.find([str(two / "typo")])


def test_what_differs_is_compared(two):
    runs = [load.read(workdir) for workdir in load.find([str(two)])]
    assert load.differences(runs) == {"optimizer.peak_lr": [5e-4, 1e-3]}
    assert load.metrics(runs) == {
        "loss": [3.5, 2.0],
        "zero_shot/accuracy": [None, 0.25],
    }
    assert [run.scored_step for run in runs] == [None, 20]
    lines = command.table(runs).splitlines()
    assert lines[0] == f"[1] {two}/<b>"
    (row,) = [line.split() for line in lines if "peak_lr" in line]
    assert row == ["config.optimizer.peak_lr", "0.0005", "0.001"]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes).get("class")))


def test_the_page_has_a_chart_a_metric_and_escapes_names(two):
    runs = [load.read(workdir) for workdir in load.find([str(two)])]
    tags = Tags(page.render(runs).decode()).found
    assert tags.count(("div", "chart")) == 1  # of the loss
    assert ("b", None) not in tags


def test_the_command_prints_and_writes(two):
    done = subprocess.run(
        [sys.executable, "-m", "metaclip_jax.runs", str(two), f"--output={two}/r.html"],
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "zero_shot/accuracy" in done.stdout
    assert b"<h1>2 runs</h1>" in (two / "r.html").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "metaclip_jax.runs"],
        capture_output=True,
        timeout=waiting.SECONDS,
    )
    assert done.returncode == 1 and b"wanted folders of runs" in done.stderr
