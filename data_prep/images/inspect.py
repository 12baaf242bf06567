"""Looks at downloaded bytes: is this an image, is it whole, is it worth keeping?

Sizes come from the header, so an image that would fill the memory is refused before
it is decoded. A good JPEG or WebP keeps its bytes; everything else (and what is too
large) becomes a plain JPEG: one frame, upright, transparency on white, three channels.
"""

import hashlib
import io
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from absl import logging
from PIL import Image, UnidentifiedImageError

from data_prep.images import fingerprint

OK = "ok"
JPEG_QUALITY = 90

# The common formats of web pages. No other decoder sees bytes from strangers.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_UPRIGHT = {  # what brings an orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HASH_SIDE = 64  # decoded size that the fingerprint needs at least


@dataclass(frozen=True)
class Inspected:
    """What became of an image. Unless `status` is "ok", there are no bytes.

    `image` is JPEG or WebP, `width` and `height` its upright size in pixels, `sha256`
    its hash in hex, `fingerprint` the perceptual one (64 bits).
    """

    status: str
    image: bytes = b""
    width: int = 0
    height: int = 0
    sha256: str = ""
    fingerprint: int = 0


def inspect(
    body: bytes, *, min_side: int, max_side: int, max_aspect: float, max_pixels: int
) -> Inspected:
    """Checks an image and brings it into the form that records hold.

    Args:
      body: the bytes as downloaded, from anyone.
      min_side: pixels that the shorter side must have.
      max_side: pixels that the longer side may have; a larger image is scaled down.
      max_aspect: longer side / shorter side that an image may have.
      max_pixels: width * height that is decoded at all.

    Returns:
      An `Inspected` with status "ok", or with one of the reasons not_an_image,
      too_many_pixels, too_small, bad_aspect, truncated_image, damaged_image,
      unsupported_image. Never raises because of `body`.
    """
    try:
        picture = Image.open(io.BytesIO(body), formats=_FORMATS)
    except UnidentifiedImageError:
        return Inspected("truncated_image" if _is_cut(body) else "not_an_image")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Inspected("too_many_pixels")
    except Exception as error:  # decoders raise all sorts of things on broken headers
        return Inspected(_decode_failure(error, body))
    with picture:
        reason = _size_reason(
            *picture.size,
            min_side=min_side,
            max_aspect=max_aspect,
            max_pixels=max_pixels,
        )
        if reason:
            return Inspected(reason)
        try:
            if _can_stay(picture, max_side):
                return _keep(body, picture)
            return _reencode(body, picture, max_side)
        except Exception as error:  # as above
            return Inspected(_decode_failure(error, body))


def _size_reason(
    width: int, height: int, *, min_side: int, max_aspect: float, max_pixels: int
) -> str | None:
    if width * height > max_pixels:
        return "too_many_pixels"
    if min(width, height) < max(min_side, 1):
        return "too_small"
    if max(width, height) > max_aspect * min(width, height):
        return "bad_aspect"
    return None


def _can_stay(picture: Image.Image, max_side: int) -> bool:
    """Says whether decoders agree on what these bytes show, at a size we keep."""
    return (
        picture.format in ("JPEG", "WEBP")
        and picture.mode in ("RGB", "L")
        and max(picture.size) <= max_side
        and not getattr(picture, "is_animated", False)
        and _orientation(picture) not in _UPRIGHT
    )


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF is common; it says nothing, the image is fine
        return 1


def _keep(body: bytes, picture: Image.Image) -> Inspected:
    if picture.format == "JPEG":
        grey = _decode_jpeg(body, "L", (_HASH_SIDE, _HASH_SIDE))
    else:
        grey = np.asarray(picture.convert("L"))
    return _inspected(body, *picture.size, grey)


def _decode_jpeg(body: bytes, mode: str, least: tuple[int, int]) -> np.ndarray:
    """Decodes a JPEG of three or one channels, at a fraction of its size if it can.

    All the data is read nevertheless, so truncation and damage show: raises ValueError
    where decoders usually only warn.

    Args:
      body: the file.
      mode: "RGB" for u8[H, W, 3] or "L" for u8[H, W].
      least: width and height in pixels that the result has at least, if the file has.
    """
    width, height = least
    try:
        pixels = simplejpeg.decode_jpeg(
            body,
            {"RGB": "RGB", "L": "GRAY"}[mode],
            min_height=height,
            min_width=width,
            min_factor=1,
            strict=True,
        )
    except ValueError as error:
        # Stray bytes between the markers are common and harm nothing.
        if "extraneous bytes" not in str(error):
            raise
        with Image.open(io.BytesIO(body), formats=("JPEG",)) as picture:
            return np.asarray(picture.convert(mode))
    return pixels if mode == "RGB" else pixels[:, :, 0]


def _reencode(body: bytes, picture: Image.Image, max_side: int) -> Inspected:
    scale = min(1.0, max_side / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if picture.format == "JPEG" and picture.mode in ("RGB", "L"):
        pixels = _decode_jpeg(body, "RGB", size)
    else:
        flat = _to_rgb(picture)
        if flat is None:
            return Inspected("unsupported_image")
        pixels = np.asarray(flat)
    if pixels.shape[1::-1] != size:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    if (orientation := _orientation(picture)) in _UPRIGHT:
        upright = Image.fromarray(pixels).transpose(_UPRIGHT[orientation])
        pixels = np.asarray(upright)
    image = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), JPEG_QUALITY, "RGB", "420"
    )
    height, width = pixels.shape[:2]
    return _inspected(image, width, height, cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))


def _to_rgb(picture: Image.Image) -> Image.Image | None:
    """Returns a picture of any mode as RGB; None for what has no pixel brightness."""
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow would clip it to white
        high_bytes = np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255)
        return Image.fromarray(high_bytes.astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        return None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _inspected(image: bytes, width: int, height: int, grey: np.ndarray) -> Inspected:
    return Inspected(
        status=OK,
        image=image,
        width=width,
        height=height,
        sha256=hashlib.sha256(image).hexdigest(),
        fingerprint=fingerprint.fingerprint(grey),
    )


def _decode_failure(error: Exception, body: bytes) -> str:
    """Names why decoding failed; the decoders say it only in their messages."""
    message = str(error).lower()
    logging.debug("image dropped: %s: %s", type(error).__name__, error)
    if "truncated" in message or "premature end" in message or _is_cut(body):
        return "truncated_image"
    return "damaged_image"


def _is_cut(body: bytes) -> bool:
    """Says whether a JPEG lacks its end, or a WebP is shorter than it says it is."""
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return len(body) < int.from_bytes(body[4:8], "little") + 8
    return body[:3] == b"\xff\xd8\xff" and b"\xff\xd9" not in body[-64:]
