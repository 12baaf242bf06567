"""open_clip without torchvision, which has no build for the torch that is used here.

Its transforms are not called: images are prepared by others.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any


class _AnyAttribute(type):
    """Classes of which open_clip names constants."""

    def __getattr__(cls, attribute: str) -> str:
        return attribute


class _Named(metaclass=_AnyAttribute):
    """Something that open_clip's transforms are built of; never called here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


def _any_name(attribute: str) -> type[_Named]:
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return _Named


def _stub(name: str, **names: types.ModuleType) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(names)
    module.__dict__["__getattr__"] = _any_name
    sys.modules[name] = module
    return module


def load() -> Any:
    """Imports open_clip; without torchvision, a stub has the names that it wants.

    Raises:
      ModuleNotFoundError: open_clip is not installed.
    """
    from transformers import utils

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
        return importlib.import_module("open_clip")
    finally:
        for stub in stubs:
            del sys.modules[stub.__name__]
