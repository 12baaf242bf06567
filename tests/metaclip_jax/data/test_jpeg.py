"""JPEGs as strangers write them: pixels stay, all else goes, work is bounded."""

import io
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from metaclip_jax.data import image_tags, jpeg

SECRET = b"52.5200N 13.4050E"
NOISE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE).resize((131, 97), Image.Resampling.BICUBIC)


def encode(image=PICTURE, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def shown(data):
    """The pixels in Pillow's eyes."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def segment(code, payload):
    return bytes([0xFF, code]) + struct.pack(">H", len(payload) + 2) + payload


def profile(space=b"RGB ", name=b"Wide Gamut", size=None):
    """A colour profile with nothing but a name."""
    text = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0"
    body = struct.pack(">I4sII", 1, b"desc", 144, len(text)) + text
    head = bytes(12) + space + b"XYZ " + bytes(12) + b"acsp" + bytes(88)
    whole = struct.pack(">I", 4 + len(head) + len(body)) + head + body
    if size:
        whole = struct.pack(">I", size) + whole[4:].ljust(size - 4, b"\0")
    return whole


def icc(data):
    """Segments of a profile, as many as it needs."""
    parts = [data[i : i + 60_000] for i in range(0, len(data), 60_000)]
    return b"".join(
        segment(0xE2, b"ICC_PROFILE\0" + bytes([n, len(parts)]) + part)
        for n, part in enumerate(parts, 1)
    )


def exif(orientation, *, order="<", kind=3, more=b""):
    value = struct.pack(f"{order}{'H' if kind == 3 else 'I'}", orientation)
    entries = struct.pack(f"{order}HHI4s", 0x010F, 2, 4, b"abc\0")
    entries += struct.pack(f"{order}HHI4s", 0x0112, kind, 1, value)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}IH", 8, 2)
    return b"Exif\0\0" + head + entries + bytes(4) + more


def after_start(*parts):
    return lambda data: data[:2] + b"".join(parts) + data[2:]


def before_markers(what, *, after_scans=False):
    """Puts bytes before each segment, and before the end mark."""

    def change(data):
        out, position, scanned = data[:2], 2, False
        while data[position + 1] != 0xD9:
            end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
            out += b"" if scanned and not after_scans else what
            scanned = data[position + 1] == 0xDA
            while scanned and (data[end] != 0xFF or data[end + 1] in NO_MARKERS):
                end += 1
            out += data[position:end]
            position = end
        return out + (what if after_scans else b"") + data[position:]

    return change


NO_MARKERS = (0, *range(0xD0, 0xD8))  # inside a scan


def before_restarts(data):
    for code in range(0xD0, 0xD8):
        mark = bytes([0xFF, code])
        data = data.replace(mark, b"\xff\xff\xff" + mark)
    return data.replace(b"\xff\0", b"\xff\xff\0")


def spectral_zeros(data):
    """Samsung's phones write 0-0 in place of 0-63."""
    start = data.index(b"\xff\xda")
    end = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
    return data if b"\xff\xc2" in data else data[: end - 2] + b"\0" + data[end - 1 :]


THUMBNAIL = encode(PICTURE.resize((16, 12)))
DECORATIONS = {
    "nothing": lambda data: data,
    "places": after_start(segment(0xE1, exif(1, more=SECRET))),
    "broken EXIF": after_start(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")),
    "comments": after_start(segment(0xFE, SECRET), segment(0xFE, b"")),
    "XMP": after_start(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SECRET)),
    "Photoshop": after_start(segment(0xED, b"Photoshop 3.0\0" + THUMBNAIL + SECRET)),
    "JFIF extension": after_start(segment(0xE0, b"JFXX\0\x10" + THUMBNAIL)),
    "multi-picture": after_start(segment(0xE2, b"MPF\0" + SECRET)),
    "all others": after_start(*(segment(c, SECRET) for c in range(0xE3, 0xF0))),
    "no length": after_start(*(bytes([0xFF, c, 0, 1]) for c in (0xE4, 0xFE))),
    "no profile": after_start(segment(0xE2, b"ICC_PROFILE\0\1\2ab")),
    "sRGB": after_start(icc(profile(name=b"sRGB IEC61966-2.1"))),
    "huge profile": after_start(icc(profile(size=5 << 20))),
    "archive": lambda data: data + b"PK\3\4" + SECRET,
    "second picture": lambda data: data + THUMBNAIL + SECRET,
    "no end": lambda data: data[:-2],
    "half an end": lambda data: data[:-1],
    "stray bytes": before_markers(b"\0\1\2"),
    "stray restart": before_markers(b"\xff\xd3\xff\1"),
    "fill bytes": before_markers(b"\xff" * 7, after_scans=True),
    "fill bytes in a scan": before_restarts,
    "fill bytes at the end": lambda data: data[:-2] + b"\xff" * 50,
    "JFIF 2.01": lambda data: data.replace(b"JFIF\0\1", b"JFIF\0\2"),
    "spectral zeros": spectral_zeros,
}
ENDLESS = ("no end", "half an end", "fill bytes at the end")
CODINGS = [
    {"quality": quality, "subsampling": subsampling, **options}
    for quality, subsampling in ((30, "4:2:0"), (75, "4:2:2"), (95, "4:4:4"))
    for options in (
        {},
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"progressive": True, "restart_marker_rows": 1, "optimize": True},
    )
]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("decoration", DECORATIONS)
def test_stripping_leaves_every_pixel_and_nothing_else(decoration, mode):
    for options in CODINGS:
        data = encode(PICTURE.convert(mode), **options)
        found = jpeg.strip(DECORATIONS[decoration](data))
        np.testing.assert_array_equal(shown(found.data), shown(data))
        if mode != "CMYK":  # Adobe's mark is written anew there
            assert found.data == data
            simplejpeg.decode_jpeg(found.data, "RGB", strict=True)  # no warning
        assert SECRET not in found.data
        bands = PICTURE.convert(mode).getbands()
        assert found.header == (131, 97, len(bands), 1, b"")
        assert found.header == jpeg.header(DECORATIONS[decoration](data))
        assert found.scans >= (2 if options.get("progressive") else 1)
        assert found.ended == (decoration not in ENDLESS)
        assert jpeg.strip(found.data).data == found.data


def one_scan_each(planes):
    """A baseline JPEG whose channels follow one another."""
    files = [encode(Image.fromarray(plane), quality=90) for plane in planes]
    first = files[0]
    frame, scan = first.index(b"\xff\xc0"), first.index(b"\xff\xda")
    channels = b"".join(bytes([n + 1, 0x11, 0]) for n in range(len(planes)))
    out = first[:frame] + segment(
        0xC0, first[frame + 4 : frame + 9] + bytes([len(planes)]) + channels
    )
    out += first[frame + 13 : scan]  # the tables
    for n, data in enumerate(files):
        start = data.index(b"\xff\xda") + 10
        out += segment(0xDA, bytes([1, n + 1, 0, 0, 63, 0])) + data[start:-2]
    return out + b"\xff\xd9"


def test_channels_may_come_one_by_one_and_none_may_be_missing():
    planes = np.asarray(PICTURE.convert("YCbCr")).transpose(2, 0, 1)
    data = one_scan_each(list(np.ascontiguousarray(planes)))
    assert np.abs(shown(data).astype(int) - np.asarray(PICTURE)).mean() < 6
    assert jpeg.strip(data).data == data
    assert jpeg.strip(data[:-2]).data == data
    last_scan = data.rindex(b"\xff\xda")
    with pytest.raises(image_tags.UndecodableImage, match="truncated_image"):
        jpeg.strip(data[:last_scan])


def without_jfif(data):
    return data[:2] + data[20:]


@pytest.mark.parametrize("transform", [0, 1, 2, 77])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_adobes_mark_goes_on_to_say_what_the_channels_are(mode, transform):
    data = encode(PICTURE.convert(mode), subsampling="4:4:4")
    if mode != "CMYK":
        data = without_jfif(data)
    at = data.find(b"Adobe")
    if at > 0:
        data = data[: at - 4] + data[at + 12 :]
    mark = segment(0xEE, b"Adobe\0\x64\x80\0\0\1" + bytes([transform]) + SECRET)
    for marked in (
        after_start(mark)(data),
        data[: data.index(b"\xff\xda")] + mark + data[data.index(b"\xff\xda") :],
        data,
    ):
        found = jpeg.strip(marked).data
        assert SECRET not in found
        np.testing.assert_array_equal(shown(found), shown(marked))


def test_channels_may_be_named_red_green_and_blue():
    data = without_jfif(encode(subsampling="4:4:4"))
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    named = bytearray(data)
    for n, name in enumerate(b"RGB"):
        named[frame + 10 + 3 * n] = named[scan + 5 + 2 * n] = name
    named = bytes(named)
    assert (shown(named) != shown(data)).any()
    assert jpeg.strip(named).data == named


def test_a_wide_profile_is_taken_out():
    wide = profile()
    for data in (
        after_start(icc(wide))(encode()),
        after_start(icc(wide + SECRET))(encode()),  # what follows it goes
        after_start(*reversed(parts_of(wide)))(encode()),
    ):
        found = jpeg.strip(data)
        assert found.header.icc == wide
        assert found.data == encode()
        assert jpeg.header(data) == found.header
    grey = encode(PICTURE.convert("L"))
    assert jpeg.strip(after_start(icc(wide))(grey)).header.icc == b""
    dots = profile(space=b"GRAY", name=b"Dot Gain 20%")
    assert jpeg.strip(after_start(icc(dots))(grey)).header.icc == dots


def parts_of(data):
    half = len(data) // 2
    return [
        segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 2]) + part)
        for n, part in ((1, data[:half]), (2, data[half:]))
    ]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"abc",
        profile()[:100],
        profile().replace(b"acsp", b"xxxx"),
        profile(space=b"CMYK"),
        profile(name="sRGB v4".encode("utf-16-be")),
        struct.pack(">I", 2**32 - 1) + profile()[4:],
    ],
)
def test_what_is_no_profile_or_says_nothing_is_none(broken):
    assert image_tags.profile(broken, channels=3) == b""


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_is_read_from_exif(order, kind):
    for orientation in range(12):
        tag = exif(orientation, order=order, kind=kind)
        wanted = orientation if 1 <= orientation <= 8 else 1
        assert image_tags.orientation(tag) == wanted
        assert image_tags.orientation(tag[6:]) == wanted
        data = after_start(segment(0xE1, b"http://x"), segment(0xE1, tag))(encode())
        assert jpeg.header(data).orientation == wanted
        assert jpeg.strip(data).header.orientation == wanted
        assert jpeg.strip(data).data == encode()
    for cut in range(len(tag)):
        assert image_tags.orientation(tag[:cut]) in (1, *range(2, 9))


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: {1: 0xC3},  # lossless
        lambda frame: {1: 0xC5},  # hierarchical
        lambda frame: {1: 0xC9},  # arithmetic coding
        lambda frame: {1: 0xCA},
        lambda frame: {4: 12},  # bits
    ],
)
def test_codings_that_no_browser_shows_are_refused(change):
    data = bytearray(encode())
    frame = data.index(b"\xff\xc0")
    for place, value in change(frame).items():
        data[frame + place] = value
    for read in (jpeg.strip, jpeg.header):
        with pytest.raises(image_tags.UndecodableImage, match="unsupported_image"):
            read(bytes(data))


def test_scans_and_segments_are_bounded():
    progressive = encode(progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    kept = jpeg.MAX_SCANS - jpeg.strip(progressive).scans
    most = progressive[:-2] + kept * scan + progressive[-2:]
    assert jpeg.strip(most).scans == jpeg.MAX_SCANS
    with pytest.raises(image_tags.UndecodableImage, match="too_many_scans"):
        jpeg.strip(most[:-2] + 100_000 * scan + b"\xff\xd9")
    for piece in (segment(0xFE, b""), segment(0xDD, b"\0\0"), b"\xff\xd0", b"\xff\1"):
        with pytest.raises(image_tags.UndecodableImage, match="too_many_chunks"):
            jpeg.strip(after_start(piece * 1_000_000)(progressive))


def test_megabytes_of_fill_leave_no_trace():
    data = encode(restart_marker_blocks=3)
    fill = b"\xff" * (8 << 20)
    for place in (b"\xff\xdb", b"\xff\xda", b"\xff\xd1", b"\xff\0", b"\xff\xd9"):
        at = data.index(place)
        assert jpeg.strip(data[:at] + fill + data[at:]).data == data


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_is_found_in_the_structure_or_by_the_decoder(progressive):
    data = encode(progressive=progressive)
    reference = simplejpeg.decode_jpeg(data)
    found = set()
    for end in range(3, len(data)):
        try:
            stripped = jpeg.strip(data[:end])
            pixels = simplejpeg.decode_jpeg(stripped.data, strict=True)
        except image_tags.UndecodableImage as error:
            found.add(error.reason)
        except ValueError as error:
            found.add("decoder" if "premature end" in str(error) else str(error))
        else:
            np.testing.assert_array_equal(pixels, reference)
            assert end >= len(data) - 2
            assert not stripped.ended
    assert found == {"truncated_image", "decoder"}
