"""The benchmark of accelerators runs end to end on a CPU, at a size for that."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.accelerator"]
# Several CPU devices may hang where steps are not awaited one by one.
ENVIRONMENT = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}


def run(*flags):
    return subprocess.run(
        [*COMMAND, *flags], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )


def measured(tmp_path, *flags):
    """Runs it on a small model; returns the page, and the table's rows as cells."""
    page = tmp_path / "page.md"
    small = ["--models=s16:4", "--layers=2", "--image_size=32", "--seconds=0.01"]
    done = run(*small, "--remat=dots", f"--output={page}", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(
        r"^\| (metaclip-jax|open_clip|transformers) (.*)", page.read_text(), re.M
    )
    return page.read_text(), [
        (name, [c.strip() for c in row.split("|")]) for name, row in rows
    ]


@pytest.mark.slow
def test_it_writes_a_page_with_rates_of_ours(tmp_path):
    page, rows = measured(tmp_path, "--notheirs", "--attention=xla,cudnn")
    assert [name for name, _ in rows] == ["metaclip-jax"] * 2  # no cuDNN on CPUs
    for (_, cells), layers in zip(rows, ("looped", "unrolled"), strict=True):
        _, attention, remat, form, batch, rate, share, memory, compiled, _ = cells
        assert (attention, remat, form, batch) == ("xla", "dots", layers, "4")
        assert float(rate) > 0 and share == "unknown"
        assert float(memory) > 0 and float(compiled) >= 0
    assert re.search(r"Device: 1 x cpu, driver none, .* jax \d", page)
    assert re.search(r"A core loads [\d,]+ images/s here", page)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="make test-parity installs torch and transformers",
)
def test_it_trains_torchs_model_in_the_same_run(tmp_path):
    page, rows = measured(tmp_path, "--remat=none", "--unroll=false")
    (_, ours), (library, theirs) = rows
    assert library in ("open_clip", "transformers")
    assert float(ours[5]) > 0 and float(theirs[5]) > 0
    assert f"x {library}'s" in page


@pytest.mark.slow
def test_the_trainer_is_fed_by_the_loader(tmp_path):
    flags = ["--notheirs", "--unroll=false", "--workers=1", "--loader_steps=4"]
    page, _ = measured(tmp_path, *flags)
    row = re.search(r"^\| s16 \| 4 \| ([\d,]+) \| [\d.]+% \|$", page, re.M)
    assert int(row[1].replace(",", "")) > 0


def test_without_an_accelerator_it_says_so_and_writes_nothing(tmp_path):
    done = run(f"--output={tmp_path}/page.md")
    assert done.returncode == 0 and "none here" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("models", ["b32", "b32:", "b32:many", "nothing:4"])
def test_models_without_batches_and_unknown_ones_are_refused(models):
    done = run(f"--models={models}")
    assert done.returncode != 0
    assert f"got \"['{models}']\"" in done.stderr
