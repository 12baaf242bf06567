"""Decodes image files to 8-bit sRGB, upright, with transparency on white.

Curation, training, evaluation and inference all use these functions, so that a file has
the same pixels everywhere. 16-bit channels keep their upper 8 bits. Colours are
converted by the file's profile.
"""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from metaclip_jax.data import colour, containers, image_tags, jpeg
from metaclip_jax.data.containers import Stripped
from metaclip_jax.data.image_tags import UndecodableImage

MAX_PIXELS = 1 << 26  # 67 million: 200 MB as RGB; more is an attack or a mistake

# Pillow knows others: the decoder of EPS runs another program, most are hardly used.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF", "PPM", "TGA")

_UPRIGHT = {  # the transposition that brings each EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Words of simplejpeg's errors for colours and subsamplings that only Pillow decodes.
_LEFT_TO_PILLOW = ("colo", "subsampling")


def check_size(width: int, height: int) -> None:
    """Raises UndecodableImage for a picture of no pixels or of more than MAX_PIXELS."""
    if width < 1 or height < 1:
        raise UndecodableImage("not_an_image", f"{width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise UndecodableImage(
            "too_many_pixels", f"{width} x {height}, at most {MAX_PIXELS} pixels"
        )


def open_image(file: Stripped, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Opens an image with Pillow, which reads its size but decodes no pixel yet.

    `formats` are the names of the formats that are allowed. Raises UndecodableImage.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # also of the size; we check MAX_PIXELS
            return Image.open(io.BytesIO(file.data), formats=formats)
    except Image.DecompressionBombError as error:
        raise UndecodableImage("too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise UndecodableImage("not_an_image", "no format that is known") from error
    except Exception as error:
        raise _failure(error) from error


def decode(data: bytes) -> Image.Image:
    """Decodes a file at full size with Pillow, as RGB and upright; see `upright_rgb`.

    Raises UndecodableImage.
    """
    file = containers.strip(data)
    image = open_image(file)
    check_size(*image.size)
    if file.structure and not file.structure.ended:
        check_jpeg(file.structure)
    return turn(upright_rgb(image, file.icc), file.orientation)


def thumbnail(data: bytes, *, side: int, quality: int) -> bytes:
    """Returns a JPEG within side x side pixels, b"" if `data` cannot be decoded."""
    try:
        image = decode(data)
    except UndecodableImage:
        return b""
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def upright_rgb(image: Image.Image, icc: bytes = b"") -> Image.Image:
    """Returns a Pillow image as sRGB, upright, with transparent pixels on white.

    `icc` is the file's colour profile, if it is not the image's own.

    Raises UndecodableImage: unsupported_image for grey values of an unknown range, and
    all reasons of decoding if the image is not decoded yet.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and palettes
            flat = _to_rgb(image, icc or _profile(image))
            return turn(flat, _orientation(image))
    except Exception as error:
        raise _failure(error) from error


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Rotates and mirrors an image of this EXIF orientation upright."""
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
    """Decodes a JPEG, scaled down while decoding if the result stays large enough.

    It reads all data, so it finds truncation and damage at any scale.

    Args:
      file: from jpeg.strip.
      colours: "RGB", or "GRAY" for one channel.
      min_width: least width of the result in pixels, if the file has as many; 0 = full
        size.
      min_height: likewise.
      strict: whether to return None if stray bytes follow the data of a scan. All
        decoders skip them, some with a warning.

    Returns:
      u8[H, W, C] as stored (see `turn`); None for what only Pillow decodes (four
      channels, rare subsamplings), and for stray bytes if `strict`.

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
    # The stray bytes follow the complete data of a scan.
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


def _profile(image: Image.Image) -> bytes:
    icc = image.info.get("icc_profile")
    channels = {"CMYK": 4, "L": 1, "LA": 1, "1": 1}.get(image.mode, 3)
    if image.mode.startswith("I"):
        channels = 1
    return image_tags.profile(icc, channels=channels) if icc else b""


def _to_rgb(image: Image.Image, icc: bytes) -> Image.Image:
    """Returns an image of any mode as sRGB, with transparent pixels on white."""
    if image.mode.startswith("I") or image.mode == "F":
        return colour.to_srgb(_wide_grey(image), icc)
    if image.mode == "CMYK":
        return colour.to_srgb(image, icc)
    if not image.has_transparency_data:
        return colour.to_srgb(image.convert("RGB"), icc)
    whole = image.convert("RGBA")
    converted = colour.to_srgb(whole.convert("RGB"), icc)
    converted.putalpha(whole.getchannel("A"))
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, converted).convert("RGB")


def _wide_grey(image: Image.Image) -> Image.Image:
    """Returns grey of 16 or 32 bits as RGB; Pillow's own conversion clips it to white.

    16-bit values keep their upper 8 bits. 32-bit integers must hold 8-bit or 16-bit
    values, floats values from 0 to 1.
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
            f"wanted integers of 8 or 16 bits or floats from 0 to 1, got {low} to"
            f" {high}; scale the values",
        )
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(pixels == clear, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF is common, and such an image is fine
        return 1


def _failure(error: Exception) -> Exception:
    """Returns an UndecodableImage with the reason, from the decoder's message.

    Decoders raise all types of exceptions, even ZeroDivisionError.
    """
    if isinstance(error, UndecodableImage | MemoryError):
        return error
    message = str(error).lower()
    cut = any(word in message for word in ("truncated", "premature end"))
    reason = "truncated_image" if cut else "damaged_image"
    return UndecodableImage(reason, str(error))
