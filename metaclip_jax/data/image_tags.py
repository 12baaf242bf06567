"""Reads the metadata of an image file that change its look: orientation and profile.

The other metadata (GPS data, names, thumbnails) do not change the pixels.
"""

import struct

MAX_PROFILE_BYTES = 4 << 20  # printers' profiles have one or two million
_ORIENTATION = 0x0112  # EXIF tag
_SHORT, _LONG = 3, 4  # EXIF types
_PROFILE_HEADER = 128  # bytes; the table of tags follows
_MAX_PROFILE_TAGS = 100
# Colour spaces in a profile, by the image's number of channels.
_COLOUR_SPACES = {1: b"GRAY", 3: b"RGB ", 4: b"CMYK"}


class UndecodableImage(ValueError):
    """Bytes that cannot be decoded; `reason` is one word, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def orientation(exif: bytes) -> int:
    """Returns EXIF's orientation, 1 to 8; 1 (upright) if the EXIF is broken.

    Args:
      exif: TIFF data, with or without the prefix `Exif` and two zeros.
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
    """Returns the colour profile if it changes the image's colours, else b"".

    It does not if it is invalid, of another number of channels, or named sRGB, which is
    the default. Bytes after the profile are cut off.
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
    """Returns the profile's description tag, undecoded."""
    count = int.from_bytes(icc[_PROFILE_HEADER : _PROFILE_HEADER + 4], "big")
    start = _PROFILE_HEADER + 4
    table = icc[start : start + 12 * min(count, _MAX_PROFILE_TAGS)]
    table = table[: len(table) // 12 * 12]
    for tag, offset, length in struct.iter_unpack(">4sII", table):
        if tag == b"desc":
            return icc[offset : offset + length]
    return b""
