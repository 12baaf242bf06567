"""Strips image files of everything but the first picture, before they are decoded.

Text, GPS data, colour profiles, thumbnails, later frames and appended files cost
decoders time and memory, or make them refuse an intact picture. This module walks each
format's structure, in time linear in the bytes, and keeps what makes the pixels.
"""

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from metaclip_jax.data import image_tags, jpeg
from metaclip_jax.data.image_tags import UndecodableImage

MAX_CHUNKS = 1 << 17  # 20 MB of PNG in pieces of 160 bytes; encoders write 4 kB
# Pillow decodes run-length-encoded BMPs in Python, which is slow.
_MAX_RUNS = 1 << 20  # bytes, and pixels

# A JPEG with more scans takes several times as long to decode.
_PLAIN_SCANS = 20

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_FRAME = 12  # bytes of a chunk without its payload
_PNG_USED = (b"IHDR", b"PLTE", b"tRNS", b"iCCP")  # chunks before the pixels
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_TRANSPARENCY = {0: (2, 2), 2: (6, 6), 3: (1, 256)}  # bytes, by colour type
_PNG_PALETTE = 3
_VP8X_ANIMATION, _VP8X_ALPHA = 0x02, 0x10
_GIF_BLOCK = re.compile(rb"[!,;]")  # an extension, an image, the end
_GIF_CONTROL = 0xF9  # the extension that gives the transparent colour
# A naked code stream, and its container.
_JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_AVIF_BRANDS = (b"avif", b"avis", b"mif1", b"msf1")


class Stripped(NamedTuple):
    """An image file without what does not change its picture.

    Attributes:
      kind: Pillow's name of the format; "" if the format is unknown.
      data: the file.
      orientation: EXIF's, 1 to 8, of a JPEG, PNG or WebP; Pillow reads other formats'.
      icc: the colour profile of a JPEG, PNG or WebP, if it is not sRGB; Pillow reads
        other formats'.
      plain: a JPEG or WebP of one frame that all decoders decode equally and fast.
      structure: of a JPEG.
    """

    kind: str
    data: bytes
    orientation: int = 1
    icc: bytes = b""
    plain: bool = False
    structure: jpeg.Jpeg | None = None


def strip(data: bytes) -> Stripped:
    """Strips an image file; bytes of an unknown format are returned unchanged.

    Raises:
      UndecodableImage: truncated_image, damaged_image, unsupported_image,
        too_many_chunks, too_many_scans; jpeg_xl and heic for these formats.
    """
    if jpeg.is_jpeg(data):
        return _strip_jpeg(data)
    if data.startswith(_PNG):
        return _strip_png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _strip_webp(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return Stripped("GIF", _strip_gif(data))
    if data[:2] == b"BM":
        _check_bmp(data)
        return Stripped("BMP", data)
    if data[4:8] == b"ftyp" and data[8:12] in _AVIF_BRANDS:
        _check_boxes(data)
        return Stripped("AVIF", data)
    if data.startswith(_JPEG_XL):
        raise UndecodableImage("jpeg_xl", "Pillow does not read JPEG XL")
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        raise UndecodableImage("heic", "Pillow does not read HEIC")
    return Stripped("", data)


def _strip_jpeg(data: bytes) -> Stripped:
    stripped = jpeg.strip(data)
    return Stripped(
        "JPEG",
        stripped.data,
        orientation=stripped.header.orientation,
        icc=stripped.header.icc,
        plain=stripped.header.channels in (1, 3) and stripped.scans <= _PLAIN_SCANS,
        structure=stripped,
    )


def _strip_png(data: bytes) -> Stripped:
    """Returns a PNG with only its header, palette, transparency and pixels."""
    chunks: dict[bytes, bytes] = {}
    pixels, ended = [], False
    for kind, start, end in _png_chunks(data):
        if kind == b"IDAT":
            if end - start > _PNG_FRAME:
                pixels.append(data[start:end])
        elif kind == b"IEND":
            ended = True
        elif kind == b"eXIf" or kind in _PNG_USED and not pixels:
            checksum = zlib.crc32(data[start + 4 : end - 4]).to_bytes(4, "big")
            if data[end - 4 : end] == checksum:
                chunks.setdefault(kind, data[start:end])
    header = chunks.get(b"IHDR", b"")
    colour_type = header[17] if len(header) == 25 else None
    if colour_type is None or not pixels:
        reason = "damaged_image" if ended else "truncated_image"
        raise UndecodableImage(reason, "a PNG without its header or pixels")
    kept = [_PNG, header]
    if colour_type == _PNG_PALETTE:
        if b"PLTE" not in chunks:
            raise UndecodableImage("damaged_image", "a PNG without its palette")
        kept.append(chunks[b"PLTE"])
    least, most = _PNG_TRANSPARENCY.get(colour_type, (1, 0))
    transparency = chunks.get(b"tRNS", b"")
    if least <= len(transparency) - _PNG_FRAME <= most:
        kept.append(transparency)
    channels = 1 if colour_type in (0, 4) else 3
    return Stripped(
        "PNG",
        b"".join([*kept, *pixels, _PNG_END if ended else b""]),
        orientation=image_tags.orientation(chunks.get(b"eXIf", b"")[8:-4]),
        icc=_png_profile(chunks.get(b"iCCP", b"")[8:-4], channels),
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, start, end) of chunks: length, kind, payload, checksum.

    Stops at the end of the data, or before bytes that are not a chunk.
    """
    start = len(_PNG)
    for _ in range(MAX_CHUNKS):
        kind = data[start + 4 : start + 8]
        if len(kind) < 4 or not kind.isalpha():
            return
        end = start + _PNG_FRAME + int.from_bytes(data[start : start + 4], "big")
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end
    raise UndecodableImage("too_many_chunks", f"at most {MAX_CHUNKS} in a PNG")


def _png_profile(payload: bytes, channels: int) -> bytes:
    packed = payload.partition(b"\0")[2][1:]  # skip the name and the method
    most = image_tags.MAX_PROFILE_BYTES + 1  # enough to see that it is too large
    try:
        icc = zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        return b""
    return image_tags.profile(icc, channels=channels)


def _strip_webp(data: bytes) -> Stripped:
    end = int.from_bytes(data[4:8], "little") + 8
    if end > len(data):
        raise UndecodableImage("truncated_image", f"a WebP of {end} bytes")
    chunks: dict[bytes, bytes] = {}
    for kind, payload in _webp_chunks(data[:end]):
        chunks.setdefault(kind, payload)
        if kind != b"VP8X" and b"VP8X" not in chunks:
            break  # the simple format has one chunk
    head, frame = chunks.get(b"VP8X", b""), chunks.get(b"ANMF", b"")
    pixels = b"VP8L" if b"VP8L" in chunks else b"VP8 "
    icc = image_tags.profile(chunks.get(b"ICCP", b""), channels=3)
    orientation = image_tags.orientation(chunks.get(b"EXIF", b""))
    if len(head) == 10 and head[0] & _VP8X_ANIMATION and frame:
        flags = bytes([head[0] & (_VP8X_ANIMATION | _VP8X_ALPHA)])
        kept = (flags + head[1:], chunks.get(b"ANIM", bytes(6)), frame)
        frames = map(_webp_chunk, (b"VP8X", b"ANIM", b"ANMF"), kept)
        return Stripped("WEBP", _webp(*frames), orientation, icc)
    if pixels not in chunks:
        raise UndecodableImage("damaged_image", "a WebP without pixels")
    parts = [_webp_chunk(pixels, chunks[pixels])]
    if len(head) == 10 and b"ALPH" in chunks and pixels == b"VP8 ":
        alpha = _webp_chunk(b"ALPH", chunks[b"ALPH"])
        flags = bytes([_VP8X_ALPHA])
        parts = [_webp_chunk(b"VP8X", flags + head[1:]), alpha, *parts]
    return Stripped("WEBP", _webp(*parts), orientation, icc, plain=True)


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    for _ in range(MAX_CHUNKS):
        start = position + 8
        if start > len(data):
            return
        length = int.from_bytes(data[start - 4 : start], "little")
        if start + length > len(data):
            raise UndecodableImage("truncated_image", "inside a WebP chunk")
        yield data[start - 8 : start - 4], data[start : start + length]
        position = start + length + length % 2
    raise UndecodableImage("too_many_chunks", f"at most {MAX_CHUNKS} in a WebP")


def _webp_chunk(kind: bytes, payload: bytes) -> bytes:
    padding = b"\0" * (len(payload) % 2)
    return kind + len(payload).to_bytes(4, "little") + payload + padding


def _webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _strip_gif(data: bytes) -> bytes:
    """Returns a GIF with only its first image and the graphic control before it."""
    position = 13 + _gif_colours(data[10:11])
    head, control = data[:position], b""
    for _ in range(MAX_CHUNKS):
        block = _GIF_BLOCK.search(data, position)
        start = block.start() if block else len(data)
        kind = data[start : start + 1]
        if kind == b"!":
            position = _gif_blocks_end(data, start + 2)
            if data[start + 1 : start + 2] == bytes([_GIF_CONTROL]):
                control = data[start:position]
        elif kind == b",":
            blocks = start + 11 + _gif_colours(data[start + 9 : start + 10])
            end = _gif_blocks_end(data, blocks)
            closed = b";" if end <= len(data) else b""
            return head + control + data[start:end] + closed
        else:
            return head
    raise UndecodableImage("too_many_chunks", f"at most {MAX_CHUNKS} in a GIF")


def _gif_colours(flags: bytes) -> int:
    """Returns the size of a colour table in bytes; `flags` is one byte, or none."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _gif_blocks_end(data: bytes, position: int) -> int:
    for _ in range(MAX_CHUNKS):
        if position >= len(data):
            return len(data) + 1  # truncated
        length = data[position]
        position += 1 + length
        if not length:
            return position
    raise UndecodableImage("too_many_chunks", f"at most {MAX_CHUNKS} in a GIF")


def _check_bmp(data: bytes) -> None:
    if int.from_bytes(data[14:18], "little") < 40 or len(data) < 34:
        return  # an older header, without compression
    width, height, compression = (
        int.from_bytes(data[i : i + 4], "little", signed=True) for i in (18, 22, 30)
    )
    if compression in (1, 2) and max(len(data), abs(width * height)) > _MAX_RUNS:
        raise UndecodableImage("unsupported_image", "a large BMP of run lengths")


def _check_boxes(data: bytes) -> None:
    """Raises UndecodableImage if an AVIF ends inside a box."""
    position = 0
    for _ in range(MAX_CHUNKS):
        length = int.from_bytes(data[position : position + 4], "big")
        if length == 1:
            length = int.from_bytes(data[position + 8 : position + 16], "big")
        if length < 8:  # 0 = the box ends with the file
            return
        position += length
        if position > len(data):
            raise UndecodableImage("truncated_image", "inside an AVIF box")
    raise UndecodableImage("too_many_chunks", f"at most {MAX_CHUNKS} in an AVIF")
