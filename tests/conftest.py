"""Eight virtual CPU devices for whatever test starts jax; jax is not imported here.

The quick start on a small web, run once for all tests that look at its results.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Tests compile much and compute little: this takes a third of the time to compile.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)


@pytest.fixture(scope="session")
def quickstart():
    """Runs it, with fewer pictures and steps, in a folder; returns what it prints."""

    # Here most time goes into steps.
    optimised = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    def run(workdir, *extra, timeout=400):
        command = [sys.executable, "-m", "metaclip_jax.quickstart"]
        small = [f"--workdir={workdir}", "--pictures=400", "--steps=6"]
        done = subprocess.run(
            [*command, *small, *extra],
            cwd=ROOT,
            env=optimised,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stdout[-12_000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def finished(quickstart, tmp_path_factory):
    """A finished quick start: its folder, and what it printed."""
    workdir = tmp_path_factory.mktemp("quickstart") / "run"
    return workdir, quickstart(workdir)
