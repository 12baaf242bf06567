"""What strangers put beside a picture: gone before a decoder works through it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from metaclip_jax.data import containers, image_tags, images

WHOLE_AREA = images.Augmentation((1.0, 1.0))

SECRET = b"52.5200N 13.4050E"
PICTURE = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
).resize((45, 45), Image.Resampling.BICUBIC)
EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010E] = SECRET.decode()
MEGABYTES = 16 << 20


def encode(kind, image=PICTURE, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def profile():
    """A colour profile that is not sRGB, nor anything else."""
    return (
        struct.pack(">I", 132) + bytes(12) + b"RGB " + bytes(16) + b"acsp" + bytes(92)
    )


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def strip(data):
    """Strips a file; what is left is the same picture and cannot be stripped more."""
    found = containers.strip(data)
    assert SECRET not in found.data
    again = containers.strip(found.data)
    assert (again.data, again.orientation, again.icc) == (found.data, 1, b"")
    return found


def chunk(kind, payload, *, wrong=0):
    check = struct.pack(">I", zlib.crc32(kind + payload) ^ wrong)
    return struct.pack(">I", len(payload)) + kind + payload + check


PNG = encode("PNG")
BOMB = zlib.compress(bytes(64 << 20), 9)
BESIDE = {
    "text": chunk(b"tEXt", b"a\0" + SECRET),
    "large text": chunk(b"tEXt", b"a\0" + b"x" * MEGABYTES),
    "packed text": chunk(b"zTXt", b"a\0\0" + BOMB),
    "packed texts": chunk(b"zTXt", b"a\0\0" + BOMB) * 20,
    "broken packed text": chunk(b"zTXt", b"a\0\0" + SECRET),
    "international text": chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + SECRET),
    "raw EXIF": chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
    "broken profile": chunk(b"iCCP", b"a\0\0" + SECRET),
    "packed profile": chunk(b"iCCP", b"a\0\0" + BOMB),
    "wrong checksum": chunk(b"tEXt", b"a\0b", wrong=1),
    "wrong checksum of EXIF": chunk(b"eXIf", EXIF.tobytes()[6:], wrong=1),
    "wrong checksum of a clear colour": chunk(b"tRNS", bytes(6), wrong=1),
    "clear colour of another type": chunk(b"tRNS", bytes(2)),
    "palette": chunk(b"PLTE", bytes(5)),
    "short": b"".join(chunk(kind, b"\0") for kind in (b"pHYs", b"gAMA", b"cHRM")),
    "animation": chunk(b"acTL", bytes(3)) + chunk(b"fcTL", b""),
    "private": chunk(b"prVt", SECRET) * 1_000,
    "no pixels": chunk(b"IDAT", b"") * 1_000,
    "time": chunk(b"tIME", bytes(99)),
}


@pytest.mark.parametrize("name", BESIDE)
def test_other_chunks_of_a_png_do_not_count(name):
    for data in (
        PNG[:33] + BESIDE[name] + PNG[33:],
        PNG[:-12] + BESIDE[name] + PNG[-12:],
    ):
        if name == "wrong checksum of EXIF":
            assert containers.strip(data).orientation == 1
        found = strip(data + SECRET)
        assert found.data == containers.strip(PNG).data
        np.testing.assert_array_equal(pixels(found.data), np.asarray(PICTURE))
        for decoded in (
            images.decode_eval(data, images.Preprocess(45)),
            images.decode_train(
                data, size=45, key=1, augmentation=WHOLE_AREA, ratio=(1, 1)
            ),
        ):
            np.testing.assert_array_equal(decoded, np.asarray(PICTURE))


def test_pixels_of_a_png_may_be_in_any_number_of_chunks():
    packed = PNG[41:-16]
    for size in (1, 7, 100_000):
        parts = (packed[i : i + size] for i in range(0, len(packed), size))
        data = PNG[:33] + b"".join(chunk(b"IDAT", part) for part in parts) + PNG[-12:]
        np.testing.assert_array_equal(pixels(strip(data).data), np.asarray(PICTURE))
    with pytest.raises(image_tags.UndecodableImage, match="too_many_chunks"):
        containers.strip(PNG[:33] + chunk(b"IDAT", b"") * 1_000_000 + PNG[33:])


def test_a_png_without_header_palette_or_pixels_is_damaged():
    palette = encode("PNG", PICTURE.quantize(9))
    start = palette.index(b"PLTE") - 4
    without = palette[:start] + palette[start + 12 + 27 :]
    for data in (PNG[:33] + PNG[-12:], PNG[:8] + PNG[33:], without):
        with pytest.raises(image_tags.UndecodableImage, match="damaged_image"):
            containers.strip(data)
    with pytest.raises(image_tags.UndecodableImage, match="truncated_image"):
        containers.strip(PNG[:40])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_and_profile_are_taken_out(kind):
    data = encode(kind, exif=EXIF, icc_profile=profile(), comment=SECRET)
    found = strip(data)
    assert (found.kind, found.orientation, found.icc) == (kind, 6, profile())
    np.testing.assert_array_equal(pixels(found.data), pixels(data))


def test_exif_of_a_png_may_follow_its_pixels():
    tag = chunk(b"eXIf", EXIF.tobytes()[6:])
    found = strip(PNG[:-12] + tag + PNG[-12:])
    assert (found.orientation, found.data) == (6, PNG)


def test_of_several_pictures_in_a_jpeg_the_first_is_left():
    more = [PICTURE.rotate(90), PICTURE.rotate(180)]
    data = encode("MPO", save_all=True, append_images=more, exif=EXIF)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    found = strip(data)
    assert (found.kind, found.orientation, found.plain) == ("JPEG", 6, True)
    assert found.data == containers.strip(encode("JPEG")).data


def webp(*chunks):
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
        for kind, payload in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_a_webp_of_one_frame_becomes_the_simple_format(options):
    data = encode("WEBP", **options)
    head = b"\x2c\0\0\0" + struct.pack("<I", 44)[:3] * 2
    more = [(b"EXIF", SECRET), (b"XMP ", SECRET), (b"abcd", bytes(MEGABYTES))]
    coded = data[12:16], data[20 : 20 + struct.unpack_from("<I", data, 16)[0]]
    for file in (
        data,
        data + SECRET,
        webp(coded, *more),
        webp((b"VP8X", head), *more, coded, *more),
        webp((b"VP8X", head), (b"ICCP", b"none"), coded, *more * 2) + SECRET,
        webp((b"VP8X", head), *[(b"abcd", b"")] * 100_000, coded),
    ):
        found = strip(file)
        assert found.data == data
        assert found.plain
    with pytest.raises(image_tags.UndecodableImage, match="too_many_chunks"):
        containers.strip(webp((b"VP8X", head), *[(b"abcd", b"")] * 500_000, coded))
    with pytest.raises(image_tags.UndecodableImage, match="damaged_image"):
        containers.strip(webp((b"VP8X", head), *more))
    for end in range(12, len(data)):
        with pytest.raises(image_tags.UndecodableImage, match="truncated_image"):
            containers.strip(data[:end])


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
def test_of_an_animation_the_first_frame_is_left(kind):
    frames = [PICTURE.rotate(90 * n).quantize(64) for n in range(4)]
    one = encode(kind, frames[0], save_all=True, append_images=frames[1:2])
    data = encode(kind, frames[0], save_all=True, append_images=frames[1:])
    found = strip(data + SECRET)
    assert not found.plain
    assert found.data == containers.strip(one).data
    assert getattr(Image.open(io.BytesIO(found.data)), "n_frames", 1) == 1
    np.testing.assert_array_equal(pixels(found.data), pixels(data))


GIF = encode("GIF", PICTURE.quantize(64), transparency=3)
BLOCK = b"\xff" + b"x" * 255


@pytest.mark.parametrize(
    "extra",
    [
        b"!\xfe\x11" + SECRET + b"\0",
        b"!\xfe" + BLOCK * (MEGABYTES >> 8) + b"\0",
        b"!\xfe\1x\0" * 100_000,
        b"!\xff\x0bXMP DataXMP" + BLOCK * 100 + b"\0",
        b"!\1\0",
        SECRET,
        bytes(MEGABYTES),
    ],
)
def test_other_blocks_of_a_gif_do_not_count(extra):
    start = GIF.index(b"!\xf9")
    data = GIF[:start] + extra + GIF[start:] + SECRET
    assert strip(data).data == containers.strip(GIF).data
    np.testing.assert_array_equal(pixels(containers.strip(GIF).data), pixels(GIF))
    np.testing.assert_array_equal(
        images.decode_eval(data, images.Preprocess(45)),
        images.decode_eval(GIF, images.Preprocess(45)),
    )


def test_blocks_of_a_gif_are_bounded():
    start = GIF.index(b"!\xf9")
    for extra in (b"!\xfe\1x\0" * 1_000_000, b"!\xfe" + b"\1x" * 1_000_000):
        with pytest.raises(image_tags.UndecodableImage, match="too_many_chunks"):
            containers.strip(GIF[:start] + extra + GIF[start:])


def bmp(side, compression, data):
    """A BMP of 8 bits a pixel."""
    head = struct.pack(
        "<IiiHHIIiiII", 40, side, side, 1, 8, compression, 0, 0, 0, 256, 0
    )
    start = 14 + len(head) + 1024
    return struct.pack("<2sIHHI", b"BM", 0, 0, 0, start) + head + bytes(1024) + data


def test_run_lengths_of_a_bmp_are_bounded():
    runs = b"".join(bytes([50, 7, 0, 0]) for _ in range(50)) + b"\0\1"
    assert (pixels(containers.strip(bmp(50, 1, runs)).data) == 0).all()
    for side, data in ((50, runs + bytes(2 << 20)), (2_000, runs)):
        with pytest.raises(image_tags.UndecodableImage, match="unsupported_image"):
            containers.strip(bmp(side, 1, data))
        containers.strip(bmp(side, 0, data))


@pytest.mark.parametrize("frames", [1, 3])
def test_an_avif_that_is_cut_is_found_by_its_boxes(frames):
    more = [PICTURE.rotate(90 * n) for n in range(1, frames)]
    data = encode("AVIF", exif=EXIF, save_all=True, append_images=more)
    assert containers.strip(data) == containers.Stripped("AVIF", data)
    for end in np.linspace(40, len(data) - 1, 30, dtype=int):
        with pytest.raises(image_tags.UndecodableImage, match="truncated_image"):
            containers.strip(data[:end])


@pytest.mark.parametrize("data", [b"", b"BM", b"GIF89a", b"....ftypmp42", b"<html>"])
def test_what_is_no_picture_goes_through_as_it_is(data):
    assert containers.strip(data).data == data
