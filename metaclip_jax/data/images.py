"""Image preprocessing: from stored bytes to the model's uint8 input.

Training decodes fast: JPEGs are scaled while they are decoded, to just above the size
of the crop. The crop is a hash of a key, so that it is equal on every host and after a
restart. Evaluation decodes as the public CLIP processors do, with Pillow's filters.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from metaclip_jax.data import colour as colour_profiles
from metaclip_jax.data import containers, decoding, draws, jpeg
from metaclip_jax.data.image_tags import UndecodableImage as UndecodableImage

# The paper's RandomResizedCrop: the crop's share of the image's area, and the crop's
# aspect ratio (width / height).
CROP_SCALE = (0.9, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)

# If the resized image had more pixels, only its centre is computed: resizing a strip of
# 300,000 x 1 pixels would take gigabytes.
_MAX_RESIZED = 1 << 25
_CROP_ATTEMPTS = 10
_FLIP, _COLOUR = 1, 2  # keys that make these draws independent of the crop's
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# JPEG has other eighths, but decoding at 5/8 to 7/8 is slower than at full size.
_DCT_SCALES = (1 / 8, 1 / 4, 1 / 2)

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images; see `decode_train`."""

    crop_scale: tuple[float, float] = CROP_SCALE
    flip: bool = False
    colour: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                "data.crop_scale: wanted (low, high) with 0 < low <= high <= 1, got"
                f" {self.crop_scale}"
            )
        if not 0 <= self.colour < 1:
            raise ValueError(
                f"data.colour: wanted at least 0 and below 1, got {self.colour}"
            )


CROP_ONLY = Augmentation()


class Preprocess(NamedTuple):
    """A model's image preprocessing, up to normalisation; `fit_eval` applies it."""

    size: int  # pixels, height and width
    squash: bool = False  # resize both sides to `shortest`, ignoring the aspect ratio
    shortest: int = 0  # pixels of the shortest side before the crop; 0 = size
    resample: int = Image.Resampling.BICUBIC.value  # Pillow's number of the filter
    # Round half of an odd margin to an even number, as torchvision and so open_clip do,
    # instead of down, as transformers does.
    even_margins: bool = False


def crop_box(
    width: int,
    height: int,
    *,
    key: int,
    scale: tuple[float, float] = CROP_SCALE,
    ratio: tuple[float, float] = CROP_RATIO,
) -> Box:
    """Returns the box of a random resized crop, a pure function of its arguments.

    The area is uniform in `scale` times the image's area, the aspect ratio (width /
    height) log-uniform in `ratio`. A box that does not fit is drawn again; after ten
    draws it is the largest centred box whose aspect ratio is in `ratio` and nearest to
    the image's.
    """
    draw = draws.stream(key)
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * next(draw))
        aspect = math.exp(log_low + (log_high - log_low) * next(draw))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int((width - box_width + 1) * next(draw))
            top = int((height - box_height + 1) * next(draw))
            return left, top, left + box_width, top + box_height
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_width = max(1, min(width, round(height * aspect)))
    box_height = max(1, min(height, round(width / aspect)))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def decode_train(
    data: bytes,
    *,
    size: int,
    key: int,
    augmentation: Augmentation = CROP_ONLY,
    ratio: tuple[float, float] = CROP_RATIO,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes, crops at random and resizes an image for training.

    Returns uint8[size, size, 3], RGB; it is `out` if that is given. All draws come from
    `key` (64 bits): the crop; with `augmentation.flip`, whether the image is mirrored;
    and with `augmentation.colour`, how brightness, contrast and saturation change (see
    `change_colour`). Raises UndecodableImage.
    """
    scale = augmentation.crop_scale
    decoded = None
    if jpeg.is_jpeg(data):
        header = jpeg.header(data)
        width, height = header.width, header.height
        decoding.check_size(width, height)
        box = crop_box(width, height, key=key, scale=scale, ratio=ratio)
        if header.orientation == 1 and not colour_profiles.changes(header.icc):
            decoded = _decode_box(data, width, height, box, size)
    if decoded is None:
        pixels = _decode_whole(data)
        height, width = pixels.shape[:2]
        decoded = pixels, crop_box(width, height, key=key, scale=scale, ratio=ratio)
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    _resize(*decoded, out)
    if augmentation.flip and int(draws.mix(key, _FLIP)) & 1:
        out[:] = out[:, ::-1].copy()
    if augmentation.colour:
        out[:] = change_colour(out, key=key, most=augmentation.colour)
    return out


def change_colour(pixels: np.ndarray, *, key: int, most: float) -> np.ndarray:
    """Changes brightness, contrast and saturation, each by a factor drawn from `key`.

    The factors are uniform in [1 - most, 1 + most]. Contrast scales the distance to the
    image's mean grey, saturation the distance to the pixel's grey. Takes and returns
    uint8[H, W, 3], RGB. A single matrix applies all three, so that values are clipped
    only once.
    """
    draw = draws.stream(int(draws.mix(key, _COLOUR)))
    brightness, contrast, saturation = (
        1 + most * (2 * next(draw) - 1) for _ in range(3)
    )
    grey = np.tile(_LUMA, (3, 1))
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    mean_grey = float(np.dot(cv2.mean(pixels)[:3], _LUMA))
    offset = np.full((3, 1), brightness * (1 - contrast) * mean_grey)
    return cv2.transform(pixels, np.hstack([matrix, offset]))


def decode_eval(data: bytes, preprocess: Preprocess) -> np.ndarray:
    """Decodes an image as the CLIP processors do; returns uint8[size, size, 3], RGB.

    Raises UndecodableImage.
    """
    return fit_eval(decoding.decode(data), preprocess)


def fit_eval(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Resizes and crops an RGB image as the CLIP processors do: uint8[size, size, 3].

    The shortest side is resized with Pillow's filter, and the centre is cropped.
    """
    size, shortest = preprocess.size, preprocess.shortest or preprocess.size
    kind = Image.Resampling(preprocess.resample)
    least = min(image.size)
    width, height = (shortest * side // least for side in image.size)
    if preprocess.squash:
        width = height = shortest
    margins = width - size, height - size
    left, top = (round(m / 2) if preprocess.even_margins else m // 2 for m in margins)
    if width * height <= _MAX_RESIZED:
        whole = image.resize((width, height), kind)
        return np.asarray(whole.crop((left, top, left + size, top + size)))
    # Resize only the crop, which gives the same pixels except for rounding.
    across = [edge * image.width / width for edge in (left, left + size)]
    down = [edge * image.height / height for edge in (top, top + size)]
    source = across[0], down[0], across[1], down[1]
    resized = image.resize((size, size), kind, box=source)
    return np.asarray(resized)


def _decode_box(
    data: bytes, width: int, height: int, box: Box, size: int
) -> tuple[np.ndarray, Box] | None:
    """Decodes a JPEG at the lowest scale that suffices for a crop.

    Returns RGB pixels and the box in these pixels, or None if the decoder complains.
    """
    left, top, right, bottom = box
    wanted = max(size / (right - left), size / (bottom - top))
    dct_scale = next((s for s in _DCT_SCALES if s >= wanted), 1)
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            min_width=math.ceil(width * dct_scale),
            min_height=math.ceil(height * dct_scale),
        )
    except ValueError:
        return None
    # Pixel k of the scaled image covers pixels [k / scale, (k + 1) / scale) at full
    # size. Round the box to that grid instead of shifting the image by part of a pixel.
    right = min(max(round(right * dct_scale), 1), pixels.shape[1])
    bottom = min(max(round(bottom * dct_scale), 1), pixels.shape[0])
    return pixels, (round(left * dct_scale), round(top * dct_scale), right, bottom)


def _decode_whole(data: bytes) -> np.ndarray:
    """Decodes any image at full size: u8[H, W, 3], sRGB, upright, alpha on white."""
    file = containers.strip(data)
    pixels = None
    if file.structure:
        pixels = decoding.decode_jpeg(file.structure)
    elif file.kind in ("PNG", "WEBP"):
        decoding.check_size(*decoding.open_image(file).size)
        pixels = _by_opencv(file.data)
    if pixels is None:
        return np.asarray(decoding.decode(data))
    pixels = colour_profiles.pixels_to_srgb(pixels, file.icc)
    if file.orientation > 1:
        pixels = np.asarray(decoding.turn(Image.fromarray(pixels), file.orientation))
    return pixels


def _by_opencv(data: bytes) -> np.ndarray | None:
    """Decodes PNG and WebP faster than Pillow; None for what only Pillow decodes."""
    # OpenCV ignores the transparent colour of a grey PNG.
    if data[25:26] == b"\0" and data[37:41] == b"tRNS":
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # for example a side of more than a million pixels
        return None
    if pixels is not None and pixels.dtype == np.uint16:
        pixels = (pixels // 256).astype(np.uint8)
    if pixels is None or pixels.dtype != np.uint8:
        return None
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 4:
        return _on_white(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA))
    to_rgb = cv2.COLOR_GRAY2RGB if channels == 1 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(pixels, to_rgb)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Blends uint8[H, W, 4] RGBA with white; returns uint8[H, W, 3]."""
    alpha = pixels[..., 3:].astype(np.uint16)
    colour = pixels[..., :3] * alpha + np.uint16(255) * (255 - alpha)
    return ((colour + 127) // 255).astype(np.uint8)


def _resize(pixels: np.ndarray, box: Box, out: np.ndarray) -> None:
    """Resizes a box of the pixels into uint8[size, size, 3]."""
    size = len(out)
    left, top, right, bottom = box
    crop = pixels[top:bottom, left:right]
    height, width = crop.shape[:2]
    if min(height, width) < size:  # at least one side is enlarged
        cv2.resize(crop, (size, size), out, interpolation=cv2.INTER_CUBIC)
        return
    ratio = max(height, width) / size
    if ratio > 3:
        cv2.resize(crop, (size, size), out, interpolation=cv2.INTER_AREA)
        return
    # Up to 3, linear filters (in two steps above 1.5) still use every pixel: as close
    # to an antialiased resize as INTER_AREA, in a third of its time.
    if ratio > 1.5:
        crop = cv2.resize(crop, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
    cv2.resize(crop, (size, size), out, interpolation=cv2.INTER_LINEAR)
