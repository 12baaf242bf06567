"""From stored image bytes to the uint8 array that a model sees.

Training decodes fast: JPEGs are scaled while they are decoded, to just above the crop,
and the crop is a hash of a key, so that it is the same on every host and restart.
Evaluation decodes as the public CLIP processors do, with Pillow's bicubic filter.
"""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from metaclip_jax.data import containers, decoding, draws, jpeg
from metaclip_jax.data.image_tags import UndecodableImage as UndecodableImage

# The paper's RandomResizedCrop: the share of the area that a crop keeps, and its
# aspect ratio (width / height) relative to the image's pixels.
CROP_SCALE = (0.9, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)

# Pixels of a resized image from which on only its centre is made: a strip of 300,000
# x 1 pixels would take gigabytes.
_MAX_RESIZED = 1 << 25
_CROP_ATTEMPTS = 10
_FLIP, _COLOUR = 1, 2  # keep these draws apart from those for the crop
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# Other eighths exist, but decoding to 5/8..7/8 takes longer than decoding all.
_DCT_SCALES = (1 / 8, 1 / 4, 1 / 2)

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class Augmentation(NamedTuple):
    """How training images vary; see `decode_train`."""

    scale: tuple[float, float] = CROP_SCALE
    flip: bool = False
    colour: float = 0.0

    def check(self) -> None:
        """Raises ValueError for values that cannot be used."""
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"crop_scale must hold 0 < low <= high <= 1, got {self.scale}"
            )
        if not 0 <= self.colour < 1:
            raise ValueError(
                f"colour must be at least 0 and below 1, got {self.colour}"
            )


class Preprocess(NamedTuple):
    """How an image becomes what a model sees, before it is normalised: see `fit_eval`.

    It comes with the model; `fit_eval(image, **preprocess._asdict())` applies it.
    """

    size: int  # pixels, height and width
    squash: bool = False  # both sides are resized, whatever their ratio
    shortest: int = 0  # pixels the shortest side has before the crop; 0 = size
    resample: int = Image.Resampling.BICUBIC.value  # Pillow's number of the filter
    # Half of an odd margin is rounded to an even number, as torchvision and so
    # open_clip do, and not down, as transformers does.
    even_margins: bool = False


def crop_box(
    width: int,
    height: int,
    *,
    key: int,
    scale: tuple[float, float] = CROP_SCALE,
    ratio: tuple[float, float] = CROP_RATIO,
) -> Box:
    """Draws the box of a random resized crop, a pure function of its arguments.

    The area is uniform in `scale` times the image's, the ratio (width / height) is
    log-uniform in `ratio`. What does not fit is drawn again; after ten draws, it is the
    largest centred box whose ratio is nearest to the image's.
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
    scale: tuple[float, float] = CROP_SCALE,
    ratio: tuple[float, float] = CROP_RATIO,
    flip: bool = False,
    colour: float = 0.0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes, crops at random and resizes an image for training.

    Returns uint8[size, size, 3], RGB, which is `out` if that is given. The crop is
    drawn from `key` (64 bits); with `flip` every second image is mirrored, and `colour`
    is the most by which brightness, contrast and saturation change (see
    `change_colour`). Raises UndecodableImage.
    """
    decoded = None
    if jpeg.is_jpeg(data):
        header = jpeg.header(data)
        width, height = header.width, header.height
        decoding.check_size(width, height)
        box = crop_box(width, height, key=key, scale=scale, ratio=ratio)
        if header.orientation == 1:
            decoded = _decode_box(data, width, height, box, size)
    if decoded is None:
        pixels = _decode_whole(data)
        height, width = pixels.shape[:2]
        decoded = pixels, crop_box(width, height, key=key, scale=scale, ratio=ratio)
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    _resize(*decoded, out)
    if flip and int(draws.mix(key, _FLIP)) & 1:
        out[:] = out[:, ::-1].copy()
    if colour:
        out[:] = change_colour(out, key=key, most=colour)
    return out


def change_colour(pixels: np.ndarray, *, key: int, most: float) -> np.ndarray:
    """Changes brightness, contrast and saturation, each by a factor drawn from `key`.

    The factors are uniform in [1 - most, 1 + most]. Contrast spreads values about the
    image's mean grey, saturation spreads colours about their own grey. Takes and
    returns uint8[H, W, 3], RGB; one matrix does it all, so that values are cut once.
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


def decode_eval(data: bytes, **preprocess: Any) -> np.ndarray:
    """Decodes an image as the CLIP processors do; returns uint8[size, size, 3], RGB.

    The keywords are those of `fit_eval`. Raises UndecodableImage.
    """
    return fit_eval(decoding.decode(data), **preprocess)


def fit_eval(
    image: Image.Image,
    *,
    size: int,
    squash: bool = False,
    shortest: int = 0,
    resample: int = Image.Resampling.BICUBIC.value,
    even_margins: bool = False,
) -> np.ndarray:
    """Brings an RGB image to uint8[size, size, 3] as the CLIP processors do.

    Its shortest side is resized to `shortest` pixels (0 = `size`) by Pillow's filter
    `resample`, and the centre is cut out; with `squash` both sides are resized to that
    instead, whatever their ratio. `even_margins`: see `Preprocess`.
    """
    shortest, kind = shortest or size, Image.Resampling(resample)
    least = min(image.size)
    width, height = (shortest * side // least for side in image.size)
    if squash:
        width = height = shortest
    margins = width - size, height - size
    left, top = (round(m / 2) if even_margins else m // 2 for m in margins)
    if width * height <= _MAX_RESIZED:
        whole = image.resize((width, height), kind)
        return np.asarray(whole.crop((left, top, left + size, top + size)))
    # The same but for rounding: what is cut out is all that is resized.
    across = [edge * image.width / width for edge in (left, left + size)]
    down = [edge * image.height / height for edge in (top, top + size)]
    source = across[0], down[0], across[1], down[1]
    resized = image.resize((size, size), kind, box=source)
    return np.asarray(resized)


def _decode_box(
    data: bytes, width: int, height: int, box: Box, size: int
) -> tuple[np.ndarray, Box] | None:
    """Decodes enough of a JPEG for a crop: (RGB pixels, the box in these pixels).

    None if decoders complain.
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
    # Pixel k of the scaled image is pixels [k / scale, (k + 1) / scale) of the whole.
    # The box moves to that grid, rather than the image by a part of a pixel.
    right = min(max(round(right * dct_scale), 1), pixels.shape[1])
    bottom = min(max(round(bottom * dct_scale), 1), pixels.shape[0])
    return pixels, (round(left * dct_scale), round(top * dct_scale), right, bottom)


def _decode_whole(data: bytes) -> np.ndarray:
    """Decodes any image as u8[H, W, 3]: RGB, upright, transparent pixels on white."""
    file = containers.strip(data)
    pixels = None
    if file.structure:
        pixels = decoding.decode_jpeg(file.structure)
    elif file.kind in ("PNG", "WEBP"):
        decoding.check_size(*decoding.open_image(file).size)
        pixels = _by_opencv(file.data)
    if pixels is None:
        return np.asarray(decoding.decode(data))
    if file.orientation > 1:
        pixels = np.asarray(decoding.turn(Image.fromarray(pixels), file.orientation))
    return pixels


def _by_opencv(data: bytes) -> np.ndarray | None:
    """Decodes PNG and WebP faster than Pillow; None for what only Pillow decodes."""
    if data[25:26] == b"\0" and data[37:41] == b"tRNS":  # OpenCV shows the clear grey
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # of sides beyond a million, say
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
    if min(height, width) < size:  # it grows along one side at least
        cv2.resize(crop, (size, size), out, interpolation=cv2.INTER_CUBIC)
        return
    ratio = max(height, width) / size
    if ratio > 3:
        cv2.resize(crop, (size, size), out, interpolation=cv2.INTER_AREA)
        return
    # Below that, two taps a side (four in two steps) see every pixel: as close to a
    # true filter as the area filter is, in a third of its time.
    if ratio > 1.5:
        crop = cv2.resize(crop, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
    cv2.resize(crop, (size, size), out, interpolation=cv2.INTER_LINEAR)
