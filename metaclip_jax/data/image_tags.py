"""The two tags of an image file that change how it looks: orientation and profile.

Everything else that cameras and programs write beside the pixels (places, names,
thumbnails) says nothing about them.
"""

import struct

MAX_PROFILE_BYTES = 65_519  # what one JPEG segment holds
_ORIENTATION = 0x0112  # EXIF tag
_SHORT, _LONG = 3, 4  # EXIF types
_PROFILE_HEADER = 128  # bytes; the table of tags follows
_MAX_PROFILE_TAGS = 100
# The names of colour spaces in a profile, by the channels of the image.
_COLOUR_SPACES = {1: b"GRAY", 3: b"RGB "}


class UndecodableImage(ValueError):
    """Bytes that give no image; `reason` is one word for the counts."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def orientation(exif: bytes) -> int:
    """Returns the orientation that EXIF asks for: 1 (upright, also if broken) to 8.

    Args:
      exif: a TIFF file, with or without `Exif` and two zeros before it.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    start = struct.unpack_from(f"{order}I", exif, 4)[0]
    if start + 2 > len(exif):
        return 1
    count = struct.unpack_from(f"{order}H", exif, start)[0]
    entries = exif[start + 2 : start + 2 + 12 * count]
    entries = entries[: len(entries) // 12 * 12]
    for tag, kind, length, value in struct.iter_unpack(f"{order}HHI4s", entries):
        if tag == _ORIENTATION and length == 1 and kind in (_SHORT, _LONG):
            form = f"{order}H" if kind == _SHORT else f"{order}I"
            found = struct.unpack_from(form, value)[0]
            return found if 1 <= found <= 8 else 1
    return 1


def profile(icc: bytes, *, channels: int) -> bytes:
    """Returns a colour profile where it says something about an image, else b"".

    What is no profile, belongs to another number of channels, or is sRGB (which an
    image without a profile has) says nothing. What follows a profile is cut off.
    """
    size = int.from_bytes(icc[:4], "big")
    if not _PROFILE_HEADER + 4 <= size <= min(len(icc), MAX_PROFILE_BYTES):
        return b""
    if icc[36:40] != b"acsp" or icc[16:20] != _COLOUR_SPACES.get(channels):
        return b""
    icc = icc[:size]
    name = _profile_name(icc)
    is_srgb = b"sRGB" in name or "sRGB".encode("utf-16-be") in name
    return b"" if is_srgb else icc


def _profile_name(icc: bytes) -> bytes:
    """Returns the tag that describes a profile, in whatever encoding it has."""
    count = int.from_bytes(icc[_PROFILE_HEADER : _PROFILE_HEADER + 4], "big")
    start = _PROFILE_HEADER + 4
    table = icc[start : start + 12 * min(count, _MAX_PROFILE_TAGS)]
    table = table[: len(table) // 12 * 12]
    for tag, offset, length in struct.iter_unpack(">4sII", table):
        if tag == b"desc":
            return icc[offset : offset + length]
    return b""
