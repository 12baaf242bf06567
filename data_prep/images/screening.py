"""Screens downloaded bytes: is this an image, is it complete, is it in bounds?

Sizes are read from the header, so an image that would fill the memory is refused before
decoding. A good JPEG or WebP keeps its coded pixels; everything else, and images that
are too large, are encoded as a plain JPEG: one frame, upright, transparency on white,
three channels, sRGB. All metadata is removed.
"""

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg
from absl import logging
from PIL import Image

from data_prep.images import face_detection, fingerprint, safety
from metaclip_jax.data import colour, containers, decoding
from metaclip_jax.data.image_tags import UndecodableImage

OK = "ok"
JPEG_QUALITY = 90

# Common formats of web pages. No other decoder gets untrusted bytes.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
_HASH_SIDE = 64  # least decoded size for the fingerprint
# A JPEG or WebP with more bytes is re-encoded, since it takes several times as long to
# read and decode in training. Photos of the best quality have 1 to 2.
_BYTES_PER_PIXEL = 2
_TABLES = 4096
# The largest part of its size at which a JPEG is decoded in less time than whole: the
# library has no vector code for 6/8 and 7/8.
_QUICK_SCALE = 5 / 8
# Bilinear scaling reads two pixels in each direction, which is enough down to this part
# of the size. There it is nearer to a Lanczos filter than the mean of an area is, in a
# fifth of the time.
_BILINEAR_SCALE = 0.6
_MOST_PIXELS = 1 << 26  # that threads decode at a time


@dataclasses.dataclass(frozen=True)
class Screened:
    """A screened image. It has bytes only if `status` is "ok".

    `image` is JPEG or WebP, `width` and `height` its upright size in pixels, `sha256`
    its hash in hex, `fingerprint` the perceptual one, from before faces were blurred.
    `faces` is None where none were looked for.
    """

    status: str
    image: bytes = b""
    width: int = 0
    height: int = 0
    sha256: str = ""
    fingerprint: bytes = b""
    faces: tuple[face_detection.Face, ...] | None = None


def screen(
    body: bytes,
    *,
    min_side: int,
    max_side: int,
    max_aspect: float,
    max_pixels: int,
    scorer: safety.Choice | None = None,
    max_score: float = 1.0,
    of_faces: face_detection.Choice | None = None,
) -> Screened:
    """Screens an image, and converts it to the form of records.

    Args:
      body: the downloaded bytes, untrusted.
      min_side: pixels that the shorter side must have.
      max_side: pixels that the longer side may have; a larger image is scaled down.
      max_aspect: longer side / shorter side that an image may have.
      max_pixels: largest width * height to decode.
      scorer: of how unsafe images are, for `safety.load`; None for none.
      max_score: that an image may have.
      of_faces: which faces are found, and whether they are blurred; None for none.

    Returns:
      A `Screened` with status "ok", or with one of the reasons not_an_image, jpeg_xl,
      heic, too_many_pixels, too_many_scans, too_many_chunks, too_small, bad_aspect,
      truncated_image, damaged_image, unsupported_image, unsafe_image. Never raises
      because of `body`.
    """
    found = _screen(body, min_side, max_side, max_aspect, max_pixels)
    if found.status != OK or not (scorer or of_faces):
        return found
    with _DECODED.taken(found.width * found.height):
        pixels = np.asarray(decoding.decode(found.image))
        if scorer and safety.load(scorer).score(pixels) > max_score:
            return Screened("unsafe_image")
        return _with_faces(found, pixels, of_faces) if of_faces else found


def _with_faces(
    found: Screened, pixels: np.ndarray, wanted: face_detection.Choice
) -> Screened:
    """Adds the faces; blurs them, if that is wanted, and encodes the image again."""
    boxes = face_detection.find(pixels, wanted)
    if not boxes or not wanted.blur:
        return dataclasses.replace(found, faces=boxes)
    data = _encoded(face_detection.blurred(pixels, boxes))
    digest = hashlib.sha256(data).hexdigest()
    return dataclasses.replace(found, image=data, sha256=digest, faces=boxes)


def _screen(
    body: bytes, min_side: int, max_side: int, max_aspect: float, max_pixels: int
) -> Screened:
    try:
        file = containers.strip(body)
        if file.kind not in _FORMATS:
            return Screened("not_an_image")
        image = None  # Pillow's, if it is no JPEG
        if file.structure:
            width, height = file.structure.header[:2]
        else:
            image = decoding.open_image(file, _FORMATS)
            width, height = image.size
        if width * height > max_pixels:
            return Screened("too_many_pixels")
        if min(width, height) < max(min_side, 1):
            return Screened("too_small")
        if max(width, height) > max_aspect * min(width, height):
            return Screened("bad_aspect")
        stays = (
            file.plain
            and (image is None or image.mode == "RGB")
            and max(width, height) <= max_side
            and file.orientation == 1
            and not colour.changes(file.icc)
            and len(file.data) <= _TABLES + _BYTES_PER_PIXEL * width * height
        )
        with _DECODED.taken(width * height):
            kept = _keep(file, image) if stays else None
            return kept or _reencode(file, image, max_side)
    except UndecodableImage as error:
        logging.debug("image dropped: %s", error)
        return Screened(error.reason)
    except Exception as error:  # decoders raise many types
        logging.debug("image dropped: %s: %s", type(error).__name__, error)
        return Screened("damaged_image")


class _Pixels:
    """Bounds the memory for pixels that threads decode at the same time."""

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Waits until `count` pixels are free; an image of more is decoded alone."""
        count = min(count, self._most)
        with self._changed:
            self._changed.wait_for(lambda: count <= self._free)
            self._free -= count
        try:
            yield
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()


_DECODED = _Pixels(_MOST_PIXELS)


def _keep(file: containers.Stripped, image: Image.Image | None) -> Screened | None:
    """Returns an image with its coded pixels unchanged.

    None for a JPEG with which some decoders give a warning.
    """
    if image:
        grey, size = np.asarray(image.convert("L")), image.size
    elif file.structure:
        decoded = decoding.decode_jpeg(
            file.structure,
            colours="GRAY",
            min_width=_HASH_SIDE,
            min_height=_HASH_SIDE,
            strict=True,
        )
        if decoded is None:
            return None
        grey, size = decoded[:, :, 0], file.structure.header[:2]
    return _screened(file.data, *size, grey)


def _reencode(
    file: containers.Stripped, image: Image.Image | None, max_side: int
) -> Screened:
    pixels, icc = None, file.icc
    if file.structure:
        stored = file.structure.header[:2]
        size = _within(*stored, max_side)
        quick = max(size) <= _QUICK_SCALE * max(stored)
        pixels = decoding.decode_jpeg(
            file.structure,
            min_width=size[0] if quick else 0,
            min_height=size[1] if quick else 0,
        )
    if pixels is None:
        image = image or decoding.open_image(file, _FORMATS)
        pixels, icc = np.asarray(decoding.upright_rgb(image, file.icc)), b""
        size = _within(pixels.shape[1], pixels.shape[0], max_side)
    if pixels.shape[1::-1] != size:
        near = max(size) >= _BILINEAR_SCALE * max(pixels.shape[:2])
        kind = cv2.INTER_LINEAR if near else cv2.INTER_AREA
        pixels = cv2.resize(pixels, size, interpolation=kind)
    pixels = colour.pixels_to_srgb(pixels, icc)
    if file.orientation > 1:
        upright = decoding.turn(Image.fromarray(pixels), file.orientation)
        pixels = np.asarray(upright)
    data = _encoded(pixels)
    height, width = pixels.shape[:2]
    return _screened(data, width, height, cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))


def _encoded(pixels: np.ndarray) -> bytes:
    pixels = np.ascontiguousarray(pixels)
    return simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, "RGB", "420")


def _within(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Returns the size of an image whose longer side is at most `max_side`."""
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _screened(image: bytes, width: int, height: int, grey: np.ndarray) -> Screened:
    return Screened(
        status=OK,
        image=image,
        width=width,
        height=height,
        sha256=hashlib.sha256(image).hexdigest(),
        fingerprint=fingerprint.fingerprint(grey),
    )
