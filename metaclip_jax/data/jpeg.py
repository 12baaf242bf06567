"""Checks and strips the marker structure of a JPEG before it is decoded.

A JPEG is a sequence of segments (marker, length, payload) and, after each start of
scan, entropy-coded data. Decoders process all of it, even thousands of scans of a few
bytes, and read runs of fill bytes repeatedly. Reading only the structure is cheap and
linear in the bytes.

`strip` keeps what makes the pixels and writes it in the standard's form, so that
decoders complain only about damage. GPS data, thumbnails, appended files and stray
bytes are dropped; the pixels stay equal, bit for bit.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from metaclip_jax.data import image_tags
from metaclip_jax.data.image_tags import UndecodableImage

MAX_SCANS = 64  # encoders write 1 to 14; even an empty one costs time per pixel
MAX_SEGMENTS = 2_000  # enough for 125 MB of metadata in segments of 64 kB

_SOI, _EOI, _SOS, _DQT, _DHT, _DRI = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD
_APP0, _APP1, _APP2, _APP14, _COM, _DNL = 0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xDC
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
# Beyond these three: lossless, hierarchical and arithmetic coding, which no browser
# shows.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_TAGS = {_APP0, _APP1, _APP2, _APP14}
_SKIPPED = {*range(0xE0, 0xF0), _COM, _DNL}
_ORDINARY = {*range(0xE2, 0xF0), _APP0, _DQT, _DHT, _DRI, _COM}
# Codes for what is not a marker: entropy-coded data without and with fill bytes.
_ENTROPY, _FILLED_ENTROPY = 0, -1

_MARKER = re.compile(rb"\xff[\x01-\xfe]")
# In entropy-coded data, a zero follows each 0xFF that is data.
_AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_AFTER_SCAN_OR_FILL = re.compile(rb"\xff[\x01-\xcf\xd8-\xff]")
_FILL = re.compile(rb"\xff\xff+")

_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"  # the transform follows
_TRANSFORMS = {1: b"\0", 3: b"\0\1", 4: b"\0\2"}  # Adobe's, by channels
_ICC = b"ICC_PROFILE\0"
_WHOLE_SPECTRUM = b"\0\x3f\0"  # coefficients 0 to 63 at full precision


class Header(NamedTuple):
    """Facts from before the first scan; sizes in pixels, as stored.

    `icc` is the colour profile, b"" if there is none (see `image_tags.profile`).
    """

    width: int
    height: int
    channels: int
    orientation: int
    icc: bytes = b""


class Jpeg(NamedTuple):
    """A stripped JPEG.

    Attributes:
      data: the file.
      header: its size, channels, EXIF orientation and colour profile.
      scans: the number of scans.
      ended: whether it had an end marker; without one, the last scan may be truncated.
    """

    data: bytes
    header: Header
    scans: int
    ended: bool


class _Frame(NamedTuple):
    progressive: bool
    width: int
    height: int
    components: bytes  # their ids


def is_jpeg(data: bytes) -> bool:
    """Returns whether the bytes start like a JPEG."""
    return data[:3] == b"\xff\xd8\xff"


def header(data: bytes) -> Header:
    """Reads a JPEG up to its first scan. Raises UndecodableImage."""
    if plain := _plain_header(data):
        return plain
    frame, tags = None, _Tags()
    for code, start, end in _segments(data):
        if code in _FRAMES:
            frame = _read_frame(code, data[start:end])
        elif code in _TAGS:
            tags.add(code, data[start:end])
        elif code == _SOS:
            break
    if frame is None:
        raise UndecodableImage("truncated_image", "a JPEG without a frame")
    return _header(frame, tags)


def strip(data: bytes) -> Jpeg:
    """Strips a JPEG of everything that does not change its pixels.

    Raises:
      UndecodableImage: damaged_image, truncated_image, unsupported_image,
        too_many_chunks, too_many_scans.
    """
    frame, tags, scans, ended = None, _Tags(), 0, False
    picture: list[bytes] = []
    missing: dict[int, bytearray] = {}  # per component, see `_read_scan`
    for code, start, end in _segments(data):
        if code == _ENTROPY:
            picture.append(data[start:end])
        elif code == _FILLED_ENTROPY:
            picture.append(_FILL.sub(b"\xff", data[start:end]).rstrip(b"\xff"))
        elif code in (_DQT, _DHT, _DRI):
            picture.append(data[start - 4 : end])
        elif code in _FRAMES:
            if frame:
                raise UndecodableImage("damaged_image", "two JPEG frames")
            frame = _read_frame(code, data[start:end])
            picture.append(data[start - 4 : end])
        elif code == _SOS:
            if frame is None:
                raise UndecodableImage("damaged_image", "a JPEG scan without a frame")
            scans += 1
            if scans > MAX_SCANS:
                raise UndecodableImage("too_many_scans", f"at most {MAX_SCANS}")
            scan = _read_scan(data[start:end], frame, missing)
            picture.append(data[start - 4 : start] + scan)
        elif code == _EOI:
            ended = True
        elif code in _TAGS and not scans:
            tags.add(code, data[start:end])
    if frame is None or not scans:
        reason = "damaged_image" if ended else "truncated_image"
        raise UndecodableImage(reason, "a JPEG without a scan")
    if not ended and not _complete(frame, missing):
        raise UndecodableImage("truncated_image", "scans of the JPEG are missing")
    return Jpeg(
        data=b"".join([b"\xff\xd8", *tags.colours(frame), *picture, b"\xff\xd9"]),
        header=_header(frame, tags),
        scans=scans,
        ended=ended,
    )


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of payloads, and (code, start, end) of scan data.

    Stops after the end marker, or at the end of the data. Like decoders, it skips stray
    bytes between segments.
    """
    position = 2
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(data, position)
        if marker is None:
            return
        position = start = marker.end()
        code = data[start - 1]
        if code in _ALONE:
            continue
        if code == _EOI:
            yield code, start, start
            return
        length = int.from_bytes(data[start : start + 2], "big")
        if code in _SKIPPED:
            length = max(length, 2)  # decoders accept 0 and 1
        position = start + length
        if max(position, start + 2) > len(data):
            raise UndecodableImage("truncated_image", "inside a JPEG segment")
        if length < 2 or code == _SOI:
            raise UndecodableImage("damaged_image", f"JPEG marker {code:#x}")
        yield code, start + 2, position
        if code == _SOS:
            code, start, position = _scan_data(data, position)
            yield code, start, position
    raise UndecodableImage("too_many_chunks", f"at most {MAX_SEGMENTS}")


def _plain_header(data: bytes) -> Header | None:
    """Reads an ordinary header, without EXIF or profile, in a fifth of the time."""
    position, frame = 2, b""
    try:
        while data[position] == 0xFF:
            code = data[position + 1]
            length = data[position + 2] << 8 | data[position + 3]
            if code == _SOS and frame[0] == 8 and frame[5] in (1, 3, 4):
                height, width = frame[1] << 8 | frame[2], frame[3] << 8 | frame[4]
                return Header(width, height, frame[5], 1) if width and height else None
            if code in (_BASELINE, _PROGRESSIVE):
                frame = data[position + 4 : position + 2 + length]
            elif code not in _ORDINARY or length < 2:
                return None
            elif code == _APP2 and data[position + 4 : position + 16] == _ICC:
                return None
            position += 2 + length
    except IndexError:
        pass
    return None


def _scan_data(data: bytes, start: int) -> tuple[int, int, int]:
    """Returns (code, start, end) of the entropy-coded data from `start` on."""
    marker = _AFTER_SCAN_OR_FILL.search(data, start)
    if marker is None:
        return _FILLED_ENTROPY, start, len(data)  # may end inside a marker
    if data[marker.end() - 1] != 0xFF:
        return _ENTROPY, start, marker.start()
    marker = _AFTER_SCAN.search(data, marker.start())
    return _FILLED_ENTROPY, start, marker.start() if marker else len(data)


def _read_frame(code: int, payload: bytes) -> _Frame:
    channels = payload[5] if len(payload) > 5 else 0
    if len(payload) != 6 + 3 * channels:
        raise UndecodableImage("damaged_image", "a JPEG frame of another length")
    if code not in (_BASELINE, _EXTENDED, _PROGRESSIVE) or payload[0] != 8:
        raise UndecodableImage(
            "unsupported_image", f"JPEG of coding {code:#x}, {payload[0]} bits"
        )
    if channels not in (1, 3, 4):
        raise UndecodableImage("unsupported_image", f"JPEG of {channels} channels")
    height, width = (int.from_bytes(payload[i : i + 2], "big") for i in (1, 3))
    if not width or not height:
        raise UndecodableImage("damaged_image", f"a JPEG of {width} x {height} pixels")
    return _Frame(code == _PROGRESSIVE, width, height, payload[6::3])


def _read_scan(payload: bytes, frame: _Frame, missing: dict[int, bytearray]) -> bytes:
    """Returns the header of a scan in the standard's form.

    Updates `missing`: by component, how many low bits of each of its 64 coefficients
    later scans must still give.
    """
    count = payload[0] if payload else 0
    if not 1 <= count <= 4 or len(payload) != 2 * count + 4:
        raise UndecodableImage("damaged_image", "a JPEG scan of another length")
    first, last, bits = payload[-3:]
    if not frame.progressive:
        first, last, bits = _WHOLE_SPECTRUM  # some cameras write other values
        payload = payload[:-3] + _WHOLE_SPECTRUM
    if not first <= last < 64:
        raise UndecodableImage("damaged_image", f"JPEG coefficients {first} to {last}")
    for component in payload[1:-3:2]:
        bits_of = missing.setdefault(component, bytearray(b"\xff" * 64))
        bits_of[first : last + 1] = bytes([bits & 15]) * (last + 1 - first)
    return payload


def _complete(frame: _Frame, missing: dict[int, bytearray]) -> bool:
    return all(
        component in missing and not any(missing[component])
        for component in frame.components
    )


def _header(frame: _Frame, tags: "_Tags") -> Header:
    orientation = image_tags.orientation(tags.exif)
    channels = len(frame.components)
    return Header(frame.width, frame.height, channels, orientation, tags.profile(frame))


class _Tags:
    """The segments before the first scan that give colours and orientation."""

    def __init__(self) -> None:
        self.exif = b""
        self._jfif = False
        self._transform = b""  # of Adobe's segment
        self._profile: dict[int, bytes] = {}  # pieces by number

    def add(self, code: int, payload: bytes) -> None:
        if code == _APP0 and payload[:5] == b"JFIF\0" and len(payload) >= 14:
            self._jfif = True
        elif code == _APP1 and payload[:6] == b"Exif\0\0":
            self.exif = self.exif or payload
        elif code == _APP2 and payload[:12] == _ICC and len(payload) > 14:
            self._profile.setdefault(payload[12], payload[14:])
        elif code == _APP14 and payload[:5] == b"Adobe" and len(payload) >= 12:
            self._transform = payload[11:12]

    def colours(self, frame: _Frame) -> Iterator[bytes]:
        """Yields the segments that give decoders the channels' colour space."""
        if self._jfif:
            yield _JFIF
        if self._transform:
            known = _TRANSFORMS[len(frame.components)]
            # Decoders take the last known value for an unknown one, with a warning.
            yield _ADOBE + (self._transform if self._transform in known else known[-1:])

    def profile(self, frame: _Frame) -> bytes:
        pieces = [self._profile[number] for number in sorted(self._profile)]
        channels = len(frame.components)
        return image_tags.profile(b"".join(pieces), channels=channels)
