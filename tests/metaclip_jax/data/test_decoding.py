"""One preparation: what a file shows is the same in curation, training and inference.

Pictures are square and no larger than the model's, so that nothing is resized.
"""

import functools
import io
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from data_prep.images import screening
from metaclip_jax.data import decoding, images
from metaclip_jax.data.image_tags import UndecodableImage
from metaclip_jax.evaluation import encoder

SIDE = 48
SMOOTH = np.asarray(
    Image.fromarray(
        np.random.default_rng(3).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    ).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
)
RAMP = np.linspace(0, 255, SIDE).astype(np.uint8)
ALPHA = np.tile(RAMP, (SIDE, 1))
WIDE = (np.arange(SIDE * SIDE, dtype=np.uint16) * 28).reshape(SIDE, SIDE)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(kind, bits, rows, *chunks):
    """A PNG from rows of bytes, with chunks before its pixels."""

    def chunk(name, payload):
        check = struct.pack(">I", zlib.crc32(name + payload))
        return struct.pack(">I", len(payload)) + name + payload + check

    head = struct.pack(">IIBBBBB", SIDE, SIDE, bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def on_white(pixels, alpha):
    share = alpha[..., None] / 255
    return np.round(pixels * share + 255 * (1 - share)).astype(np.uint8)


def triple(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def readers(data):
    """Each program's result for a file."""
    whole = {
        "key": 1,
        "augmentation": images.Augmentation((1.0, 1.0)),
        "ratio": (1.0, 1.0),
    }
    prepare = functools.partial(
        encoder.prepare_image, preprocess=images.Preprocess(SIDE), name="x"
    )
    yield "training", images.decode_train(data, size=SIDE, **whole)
    yield "evaluation", images.decode_eval(data, images.Preprocess(SIDE))
    yield "bytes", prepare(data)
    image = Image.open(io.BytesIO(data))
    yield "an image of Pillow's", prepare(image)


def curated(data):
    found = screening.screen(
        data,
        min_side=8,
        max_side=512,
        max_aspect=10,
        max_pixels=1 << 20,
    )
    assert found.status == "ok"
    with Image.open(io.BytesIO(found.image)) as image:
        return np.asarray(image.convert("RGB"))


def near(found, wanted, most):
    return np.abs(found.astype(int) - wanted).max() <= most


RGB = Image.fromarray(SMOOTH)
GREY = RGB.convert("L")
PALETTE = RGB.quantize(200)
RGBA = Image.fromarray(np.dstack([SMOOTH, ALPHA]))
LA = Image.merge("LA", (GREY, Image.fromarray(ALPHA)))
WEB = ("PNG", "GIF", "BMP", "WEBP", "AVIF")
CMYK = Image.merge("CMYK", (*RGB.split(), Image.new("L", RGB.size, 30)))
GREY_8 = np.asarray(GREY)
GREY_16 = [row.astype(">u2").tobytes() for row in WIDE]
MODES = {
    # name: file, picture, how near a lossless copy is to it
    "RGB PNG": (encode(RGB, "PNG"), SMOOTH, 0),
    "RGB BMP": (encode(RGB, "BMP"), SMOOTH, 0),
    "RGB TIFF": (encode(RGB, "TIFF"), SMOOTH, 0),
    "RGB WebP": (encode(RGB, "WEBP", lossless=True), SMOOTH, 0),
    "RGB AVIF": (encode(RGB, "AVIF", quality=100, subsampling="4:4:4"), SMOOTH, 3),
    "RGB JPEG": (encode(RGB, "JPEG", quality=100, subsampling="4:4:4"), SMOOTH, 4),
    "grey PNG": (encode(GREY, "PNG"), triple(np.asarray(GREY)), 0),
    "grey JPEG": (encode(GREY, "JPEG", quality=100), triple(np.asarray(GREY)), 4),
    "grey AVIF": (encode(GREY, "AVIF", quality=100), triple(np.asarray(GREY)), 3),
    "CMYK TIFF": (encode(CMYK, "TIFF"), np.asarray(CMYK.convert("RGB")), 0),
    "CMYK JPEG": (
        encode(CMYK, "JPEG", quality=100, subsampling="4:4:4"),
        np.asarray(CMYK.convert("RGB")),
        6,
    ),
    "bits PNG": (
        encode(GREY.convert("1"), "PNG"),
        triple(np.asarray(GREY.convert("1")) * np.uint8(255)),
        0,
    ),
    "palette PNG": (encode(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB")), 0),
    "palette GIF": (encode(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB")), 0),
    "palette BMP": (encode(PALETTE, "BMP"), np.asarray(PALETTE.convert("RGB")), 0),
    "RGBA PNG": (encode(RGBA, "PNG"), on_white(SMOOTH, ALPHA), 1),
    "RGBA WebP": (
        encode(RGBA, "WEBP", lossless=True, exact=True),
        on_white(SMOOTH, ALPHA),
        1,
    ),
    "RGBA AVIF": (
        encode(RGBA, "AVIF", quality=100, subsampling="4:4:4"),
        on_white(SMOOTH, ALPHA),
        4,
    ),
    "grey and alpha": (
        encode(LA, "PNG"),
        on_white(triple(np.asarray(GREY)), ALPHA),
        1,
    ),
    "palette and alpha": (
        encode(PALETTE, "PNG", transparency=bytes(range(200))),
        on_white(np.asarray(PALETTE.convert("RGB")), np.asarray(PALETTE)),
        1,
    ),
    "one clear colour": (
        encode(PALETTE, "GIF", transparency=7),
        np.where(
            (np.asarray(PALETTE) == 7)[..., None],
            255,
            np.asarray(PALETTE.convert("RGB")),
        ),
        0,
    ),
    "one clear grey": (
        png(0, 8, map(bytes, GREY_8), (b"tRNS", struct.pack(">H", GREY_8[0, 5]))),
        triple(np.where(GREY_8 == GREY_8[0, 5], 255, GREY_8)),
        0,
    ),
    "clear and full bits": (
        png(0, 1, map(bytes, np.packbits(GREY_8 > 99, 1)), (b"tRNS", b"\0\0")),
        np.full((SIDE, SIDE, 3), 255),
        0,
    ),
    "16 bits PNG": (encode(Image.fromarray(WIDE), "PNG"), triple(WIDE >> 8), 0),
    "16 bits TIFF": (encode(Image.fromarray(WIDE), "TIFF"), triple(WIDE >> 8), 0),
    "16 bits, big-endian TIFF": (
        encode(
            Image.frombytes("I;16B", RGB.size, WIDE.astype(">u2").tobytes()), "TIFF"
        ),
        triple(WIDE >> 8),
        0,
    ),
    "16 bits PGM": (
        b"P5 %d %d 65535\n" % (SIDE, SIDE) + WIDE.astype(">u2").tobytes(),
        triple(WIDE >> 8),
        0,
    ),
    "16 bits, one clear": (
        png(0, 16, GREY_16, (b"tRNS", struct.pack(">H", WIDE[0, 5]))),
        triple(np.where(WIDE == WIDE[0, 5], 255, WIDE >> 8)),
        0,
    ),
    "16 bits RGB": (
        cv2.imencode(".png", SMOOTH[..., ::-1].astype(np.uint16) * 256 + 99)[
            1
        ].tobytes(),
        SMOOTH,
        0,
    ),
    "32 bits TIFF of 8": (
        encode(Image.fromarray(np.asarray(GREY).astype(np.int32)), "TIFF"),
        triple(np.asarray(GREY)),
        0,
    ),
    "floats TIFF": (
        encode(Image.fromarray((np.asarray(GREY) / 255).astype(np.float32)), "TIFF"),
        triple(np.asarray(GREY)),
        0,
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_every_program_sees_the_same_picture(name):
    data, wanted, most = MODES[name]
    for reader, found in readers(data):
        assert found.shape == (SIDE, SIDE, 3), reader
        assert near(found, wanted, most), reader
    if name.split()[-1] not in ("TIFF", "PGM") and "8" not in name:
        copy = curated(data).astype(int)
        assert np.abs(copy - wanted).mean() < 12  # a JPEG, its colours halved


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_program_holds_a_picture_upright(kind, orientation):
    tag = Image.Exif()
    tag[0x0112] = orientation
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
    coded = options.get(kind, {"quality": 100, "subsampling": "4:4:4"})
    data = encode(RGB, kind, exif=tag, **coded)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert orientation == 1 or not near(wanted, SMOOTH, 20)
    for reader, found in readers(data):
        assert near(found, wanted, 2), reader
    if kind != "TIFF":
        assert np.abs(curated(data).astype(int) - wanted).mean() < 12


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "GIF", "PNG"])
def test_every_program_sees_the_first_frame(kind):
    more = [Image.new("RGB", RGB.size, colour) for colour in ("red", "blue")]
    first = PALETTE if kind == "GIF" else RGB
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    data = encode(first, kind, save_all=True, append_images=more, **lossless)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    wanted = np.asarray(first.convert("RGB"))
    for reader, found in readers(data):
        assert np.abs(found.astype(int) - wanted).mean() < 4, reader
    assert np.abs(curated(data).astype(int) - wanted).mean() < 12


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.full((8, 8), 70_000, np.int32)),
        Image.fromarray(np.full((8, 8), -1, np.int32)),
        Image.fromarray(np.full((8, 8), 1.5, np.float32)),
        Image.fromarray(np.full((8, 8), -0.5, np.float32)),
        Image.fromarray(np.full((8, 8), np.nan, np.float32)),
    ],
)
def test_grey_of_an_unknown_range_is_refused(image):
    for given in (image, encode(image, "TIFF")):
        with pytest.raises(ValueError, match="x cannot be used: unsupported.*scale"):
            encoder.prepare_image(given, images.Preprocess(8), name="x")


def test_only_formats_of_datasets_are_opened():
    """EPS above all: Pillow hands it to another program, which runs it."""
    Image.init()
    refused = 0
    for kind in set(Image.SAVE) - set(decoding.FORMATS) - {"MPO", "DIB", "JPEG2000"}:
        try:
            data = encode(Image.fromarray(SMOOTH), kind)
        except (OSError, ValueError, AttributeError, KeyError):
            continue  # it needs another library, or is no format of one picture
        with pytest.raises(UndecodableImage, match="not_an_image"):
            decoding.decode(data)
        refused += 1
    assert refused > 5
    with pytest.raises(UndecodableImage, match="not_an_image"):
        decoding.decode(encode(Image.fromarray(SMOOTH), "EPS"))


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="x cannot be used: not_an_image"):
        encoder.prepare_image(Image.new("RGB", size), images.Preprocess(8), name="x")


@pytest.mark.parametrize("shape", [(1, 4_000), (4_000, 1), (2, 3_001), (3_001, 2)])
def test_a_strip_is_cut_as_if_it_were_resized_whole(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels = cv2.GaussianBlur(pixels, (5, 5), 2)
    found = images.fit_eval(Image.fromarray(pixels), images.Preprocess(64))
    height, width = (64 * side // min(shape) for side in shape)
    assert width * height > 1 << 22
    across, down = (width - 64) // 2, (height - 64) // 2
    whole = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    wanted = np.asarray(whole)[down : down + 64, across : across + 64]
    assert near(found, wanted, 1)


def test_strips_of_any_length_take_little_memory():
    code = (
        "import io\n"
        "from PIL import Image\n"
        "from metaclip_jax.data import images\n"
        "for size in ((20_000, 1), (1, 9_000), (300_000, 1), (2, 500_000)):\n"
        "    data = io.BytesIO()\n"
        "    Image.new('RGB', size, 'red').save(data, 'PNG')\n"
        "    for squash in (False, True):\n"
        "        preprocess = images.Preprocess(224, squash)\n"
        "        found = images.decode_eval(data.getvalue(), preprocess)\n"
        "        assert (found == (255, 0, 0)).all()\n"
        "    images.decode_train(data.getvalue(), size=224, key=1)\n"
        # Unlike getrusage's, this peak does not count the process that started it.
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 600 << 10  # KiB


def test_turning_is_what_pillow_does():
    for orientation in range(1, 9):
        tag = Image.Exif()
        tag[0x0112] = orientation
        image = Image.open(io.BytesIO(encode(RGB, "PNG", exif=tag)))
        wanted = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(
            np.asarray(decoding.turn(RGB, orientation)), wanted
        )
