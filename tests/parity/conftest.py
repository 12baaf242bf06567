"""Parity with the real libraries; skipped, with the reason, where they are missing.

`make test-parity` installs them. open_clip imports torchvision, which has no build for
the torch that is used here: a stub with the names it wants stands in.
"""

import importlib.util
import sys
import types

import pytest

if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
    # test_installed.py stays, and says so.
    collect_ignore_glob = ["test_[!i]*"]


class _AnyAttribute(type):
    """Classes of which open_clip names constants."""

    def __getattr__(cls, attribute):
        return attribute


class _Named(metaclass=_AnyAttribute):
    """Something that open_clip's transforms are built of; never called here."""

    def __init__(self, *args, **kwargs):
        pass


def _any_name(attribute):
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return _Named


def _stub(name, **names):
    module = types.ModuleType(name)
    module.__dict__.update(names)
    module.__getattr__ = _any_name
    sys.modules[name] = module
    return module


@pytest.fixture(scope="session")
def open_clip():
    """The real open_clip, without torchvision."""
    utils = pytest.importorskip("transformers.utils", reason="make test-parity")
    utils.is_torchvision_available()  # it remembers the answer: not the stub's
    stubs = []
    if importlib.util.find_spec("torchvision") is None:
        functional = _stub("torchvision.transforms.functional")
        transforms = _stub("torchvision.transforms", functional=functional)
        misc = _stub("torchvision.ops.misc")
        ops = _stub("torchvision.ops", misc=misc)
        stubs = [functional, transforms, misc, ops]
        stubs.append(_stub("torchvision", transforms=transforms, ops=ops))
    try:
        return pytest.importorskip("open_clip", reason="make test-parity installs it")
    finally:
        for stub in stubs:
            del sys.modules[stub.__name__]
