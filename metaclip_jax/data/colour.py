"""Converts the colours of images to sRGB, by the colour profile of the file.

Cameras and phones store Display P3 or Adobe RGB, printers' files CMYK; without their
profile the colours are wrong. Profiles are from strangers: broken ones count as none.
"""

import functools
import io
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

Mode = Literal["L", "RGB", "CMYK"]

# Profiles of sRGB have many names and roundings: smaller differences do not count.
_SAME = 2  # levels of 255
_CACHED = 64  # profiles; few are in use, each in many files


def mode_of(icc: bytes) -> Mode:
    """Returns Pillow's mode of the colours that a profile describes."""
    known: dict[bytes, Mode] = {b"GRAY": "L", b"CMYK": "CMYK"}
    return known.get(icc[16:20], "RGB")


def changes(icc: bytes) -> bool:
    """Whether converting by this profile, b"" for none, would change colours."""
    return bool(icc) and _transform(icc) is not None


def to_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """Returns an L, RGB or CMYK image as RGB in the colours of sRGB.

    Pillow converts images without a profile, or with one of other channels.
    """
    if image.mode == "RGB" and icc and mode_of(icc) == "L":
        image = image.getchannel(0)  # grey that was decoded as RGB
    transform = _transform(icc) if icc else None
    if transform is None or image.mode != mode_of(icc):
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


def pixels_to_srgb(pixels: np.ndarray, icc: bytes) -> np.ndarray:
    """Returns uint8[H, W, 3], RGB, in the colours of sRGB; grey has equal channels."""
    if not changes(icc):
        return pixels
    return np.asarray(to_srgb(Image.fromarray(pixels), icc))


@functools.lru_cache(_CACHED)
def _transform(icc: bytes) -> ImageCms.ImageCmsTransform | None:
    """Returns the conversion; None if it changes nothing, or the profile is broken."""
    mode = mode_of(icc)
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(icc)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.PERCEPTUAL,
        )
        if mode == "CMYK":
            return transform
        levels = np.linspace(0, 255, 9).astype(np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        if mode == "L":
            colours = np.arange(256, dtype=np.uint8)[None]
        sample = Image.fromarray(np.ascontiguousarray(colours))
        converted = ImageCms.applyTransform(sample, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    plain = np.asarray(sample.convert("RGB")).astype(int)
    return transform if np.abs(np.asarray(converted) - plain).max() > _SAME else None
