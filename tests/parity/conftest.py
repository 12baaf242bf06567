"""Parity with the real libraries; skipped, with the reason, where they are missing.

`make test-parity` installs them. open_clip imports torchvision, which has no build for
the torch that is used here: a stub with the names it wants stands in.
"""

import importlib.util

import pytest

from benchmarks import open_clip_alone

if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
    # test_installed.py stays, and says so.
    collect_ignore_glob = ["test_[!i]*"]


@pytest.fixture(scope="session")
def open_clip():
    """The real open_clip, without torchvision."""
    pytest.importorskip("transformers", reason="make test-parity installs it")
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("no open_clip: make test-parity installs it")
    return open_clip_alone.load()
