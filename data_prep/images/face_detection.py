"""Finds and blurs faces, by a detector that is asked for.

A detector is an object with `name`, which the data card gives, and `detect`. yuface is
built in; others are given as package.module:name.
"""

import functools
import importlib
import importlib.metadata
import math
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from ml_collections import ConfigDict

_YUFACE = "yuface"
_LOADING = threading.Lock()
# The longest side that yuface is made for; it warns of larger ones.
_MOST_SIDE = 960
# As in "A Study of Face Obfuscation in ImageNet" (Yang et al., 2022): a box grows by a
# tenth of its diagonal to each side, and so wide is the Gaussian filter.
_GROWTH = 0.1
_MASK_SIGMAS = 3  # where the blurred edge of a mask has ended


class Face(NamedTuple):
    """A box in pixels of the image, from its upper left corner; `score` is 0 to 1."""

    x: int
    y: int
    width: int
    height: int
    score: float


class FaceDetector(Protocol):
    """Finds faces; it is called from several threads."""

    name: str  # of the model, with its version

    def detect(self, pixels: np.ndarray) -> Iterable[tuple[float, ...]]:
        """Returns (x, y, width, height, score) a face of an image u8[H, W, 3], sRGB."""


@dataclass(frozen=True)
class Choice:
    """Which faces are found: the keys of `config.safety`, which say more."""

    detector: str
    least_score: float
    blur: bool


class Yuface:
    """libfacedetection, by the author of YuNet (BSD licence), on the CPU."""

    def __init__(self) -> None:
        threads = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"  # its library reads it once
        try:
            self._module = importlib.import_module(_YUFACE)
        except ImportError as error:
            raise ValueError(
                f"config.safety.face_detector={_YUFACE}: wanted the package, got none"
                f" ({error}); pip install 'metaclip-jax[safety]' with Python 3.11, for"
                " which it has wheels, or give a detector of your own"
            ) from error
        finally:
            del os.environ["OMP_NUM_THREADS"]
            if threads is not None:
                os.environ["OMP_NUM_THREADS"] = threads
        self.name = f"{_YUFACE} {importlib.metadata.version(_YUFACE)}"

    def detect(self, pixels: np.ndarray) -> list[tuple[float, ...]]:
        """Returns (x, y, width, height, score) a face."""
        scale = min(1.0, _MOST_SIDE / max(pixels.shape[:2]))
        if scale < 1:
            pixels = cv2.resize(
                pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
            )[:_MOST_SIDE, :_MOST_SIDE]
        scores, boxes, _ = self._module.detect(
            np.ascontiguousarray(pixels[:, :, ::-1]), conf=0
        )
        return [
            (*(edge / scale for edge in box), score / 100)
            for box, score in zip(boxes.tolist(), scores.tolist(), strict=True)
        ]


def load(spec: str) -> FaceDetector:
    """Returns the detector that the configuration names, one for this process.

    Args:
      spec: "yuface", or "package.module:name" of a callable without arguments that
        makes a FaceDetector. The module has to be installed on every worker.

    Raises ValueError if it is not installed.
    """
    with _LOADING:
        return _load(spec)


@functools.cache
def _load(spec: str) -> FaceDetector:
    if spec == _YUFACE:
        return Yuface()
    module, _, name = spec.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"config.safety.face_detector: wanted {_YUFACE}, or package.module:name of"
            f" a callable that makes a FaceDetector, got {spec!r}: {error}; correct the"
            " name, or install the package"
        ) from error
    made: FaceDetector = make()
    return made


def chosen(config: ConfigDict) -> Choice | None:
    """Returns which faces the configuration asks for, None if it asks for none."""
    wanted = config.safety
    if not wanted.face_detector:
        return None
    return Choice(wanted.face_detector, wanted.least_face_score, wanted.blur_faces)


def find(pixels: np.ndarray, choice: Choice) -> tuple[Face, ...]:
    """Returns the faces of an image u8[H, W, 3] with at least the score, sorted.

    Boxes are cut at the edges of the image.
    """
    height, width = pixels.shape[:2]
    found = []
    for x, y, w, h, score in load(choice.detector).detect(pixels):
        left, top = max(0, math.floor(x)), max(0, math.floor(y))
        right, bottom = min(width, math.ceil(x + w)), min(height, math.ceil(y + h))
        if score >= choice.least_score and left < right and top < bottom:
            found.append(Face(left, top, right - left, bottom - top, score))
    return tuple(sorted(found))


def blurred(pixels: np.ndarray, faces: Iterable[Face]) -> np.ndarray:
    """Returns a copy of u8[H, W, 3] with blurred faces; boxes have soft edges.

    Integers only, so that all machines give the same bytes.
    """
    out = pixels.copy()
    height, width = pixels.shape[:2]
    for face in faces:
        sigma = _GROWTH * math.hypot(face.width, face.height)
        grown, margin = round(sigma), math.ceil((1 + _MASK_SIGMAS) * sigma)
        left, top = max(0, face.x - margin), max(0, face.y - margin)
        right = min(width, face.x + face.width + margin)
        bottom = min(height, face.y + face.height + margin)
        mask = np.zeros((bottom - top, right - left), np.uint8)
        rows = slice(max(0, face.y - grown - top), face.y + face.height + grown - top)
        columns = slice(
            max(0, face.x - grown - left), face.x + face.width + grown - left
        )
        mask[rows, columns] = 255
        mask = cv2.GaussianBlur(mask, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        part = out[top:bottom, left:right]
        soft = cv2.GaussianBlur(part, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        weight = mask[:, :, None].astype(np.uint32)
        mixed = weight * soft + (255 - weight) * part + 127
        out[top:bottom, left:right] = mixed // 255
    return out
