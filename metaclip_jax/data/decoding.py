"""From an image file to its pixels: RGB, upright, transparency on white, 8 bits.

Curation, training, evaluation and inference prepare pictures by these functions, so
that a file looks the same to all of them. Of 16 bits the upper 8 count.
"""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from metaclip_jax.data import containers, jpeg
from metaclip_jax.data.containers import Stripped
from metaclip_jax.data.image_tags import UndecodableImage

MAX_PIXELS = 1 << 26  # 67 million: 200 MB as RGB; more is an attack or a mistake

_UPRIGHT = {  # what brings an orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What simplejpeg says of colours and subsamplings that it leaves to Pillow.
_LEFT_TO_PILLOW = ("colo", "subsampling")


def check_size(width: int, height: int) -> None:
    """Raises UndecodableImage for a picture of no pixels or of more than MAX_PIXELS."""
    if width < 1 or height < 1:
        raise UndecodableImage("not_an_image", f"{width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise UndecodableImage(
            "too_many_pixels", f"{width} x {height}, at most {MAX_PIXELS} pixels"
        )


def open_image(file: Stripped, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Opens an image with Pillow, which reads its size but decodes no pixel yet.

    `formats` are the names of the formats that are allowed; None = all.
    Raises UndecodableImage.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, say: MAX_PIXELS is ours
            return Image.open(io.BytesIO(file.data), formats=formats)
    except Image.DecompressionBombError as error:
        raise UndecodableImage("too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise UndecodableImage("not_an_image", "no format that is known") from error
    except Exception as error:
        raise _failure(error) from error


def decode(data: bytes) -> Image.Image:
    """Decodes a file whole, with Pillow, as RGB and upright; see `upright_rgb`.

    Raises UndecodableImage.
    """
    file = containers.strip(data)
    image = open_image(file)
    check_size(*image.size)
    if file.structure and not file.structure.ended:
        check_jpeg(file.structure)
    return turn(upright_rgb(image), file.orientation)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Returns a Pillow image as RGB, upright, transparent pixels on white.

    Raises UndecodableImage: unsupported_image for grey of an unknown range; others if
    the image has yet to be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow on odd EXIF and palettes
            flat = _to_rgb(image)
            return turn(flat, _orientation(image))
    except Exception as error:
        raise _failure(error) from error


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Brings an image upright that is stored in an EXIF orientation."""
    if orientation not in _UPRIGHT:
        return image
    return image.transpose(_UPRIGHT[orientation])


def decode_jpeg(
    file: jpeg.Jpeg,
    *,
    colours: str = "RGB",
    min_width: int = 0,
    min_height: int = 0,
    strict: bool = False,
) -> np.ndarray | None:
    """Decodes a JPEG, at a fraction of its size if it can.

    All its data is read nevertheless, so truncation and damage show.

    Args:
      file: from jpeg.strip.
      colours: "RGB", or "GRAY" for one channel.
      min_width: pixels that the result has at least, if the file has; 0 = all.
      min_height: likewise.
      strict: whether stray bytes after the data of a scan count. All decoders pass
        over them, some with a warning.

    Returns:
      u8[H, W, C] as stored (see `turn`); None where only Pillow gives the pixels
      (four channels, rare subsamplings), and for stray bytes if `strict`.

    Raises:
      UndecodableImage: truncated_image or damaged_image.
    """
    four = file.header.channels == 4
    try:
        pixels = simplejpeg.decode_jpeg(
            file.data,
            "CMYK" if four else colours,
            min_width=min_width,
            min_height=min_height,
            min_factor=1,
            strict=True,
        )
        return None if four else pixels
    except ValueError as error:
        message = str(error).lower()
        if any(word in message for word in _LEFT_TO_PILLOW):
            return None
        if "extraneous bytes" not in message:
            raise _failure(error) from error
    if strict or four:
        return None
    # They follow the data of a scan, which is whole.
    return simplejpeg.decode_jpeg(
        file.data,
        colours,
        min_width=min_width,
        min_height=min_height,
        min_factor=1,
        strict=False,
    )


def check_jpeg(file: jpeg.Jpeg) -> None:
    """Raises UndecodableImage if a JPEG is truncated or damaged."""
    decode_jpeg(file, colours="GRAY", min_width=1, min_height=1)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as RGB; transparent pixels are put on white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _wide_grey(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _wide_grey(image: Image.Image) -> Image.Image:
    """Returns grey of 16 or 32 bits as RGB; Pillow's own conversion cuts it to white.

    Of 16 bits the upper 8 count. Integers of 32 bits have 8 or 16, floats are 0 to 1.
    """
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if image.mode == "F" and low >= 0 and high <= 1:
        grey = (pixels * 255 + 0.5).astype(np.uint8)
    elif image.mode != "F" and low >= 0 and high <= 0xFFFF:
        eight = image.mode == "I" and high <= 0xFF
        grey = (pixels if eight else pixels >> 8).astype(np.uint8)
    else:
        raise UndecodableImage(
            "unsupported_image",
            f"want integers of 8 or 16 bits or floats from 0 to 1, got {low} to {high};"
            " scale them",
        )
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(pixels == clear, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF is common; it says nothing, the image is fine
        return 1


def _failure(error: Exception) -> Exception:
    """Names why decoding failed; the decoders say it only in their messages.

    Their exceptions are of all types, down to ZeroDivisionError.
    """
    if isinstance(error, UndecodableImage | MemoryError):
        return error
    message = str(error).lower()
    cut = any(word in message for word in ("truncated", "premature end"))
    reason = "truncated_image" if cut else "damaged_image"
    return UndecodableImage(reason, str(error))
