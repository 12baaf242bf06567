"""What becomes of downloaded bytes: kept, re-encoded, or dropped with a reason."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep.images import fingerprint, inspect

LIMITS = {"min_side": 16, "max_side": 128, "max_aspect": 3.0, "max_pixels": 10**6}


def picture(width=96, height=64, seed=0):
    """A smooth random picture: JPEG changes it little, other seeds a lot."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encode(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixels(body):
    with Image.open(io.BytesIO(body)) as image:
        assert image.format == "JPEG"
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def check(body, **limits):
    found = inspect.inspect(body, **(LIMITS | limits))
    if found.status == "ok":
        with Image.open(io.BytesIO(found.image)) as image:
            assert image.size == (found.width, found.height)
            assert image.format in ("JPEG", "WEBP")
        assert found.sha256 == hashlib.sha256(found.image).hexdigest()
    else:
        assert found == inspect.Inspected(found.status)
    return found


@pytest.mark.parametrize(
    "body",
    [
        encode(picture(), "JPEG"),
        encode(picture(), "JPEG", progressive=True),
        encode(picture().convert("L"), "JPEG"),
        encode(picture(128, 128), "JPEG"),
        encode(picture(), "WEBP"),
        encode(picture(), "WEBP", lossless=True),
    ],
)
def test_small_jpeg_and_webp_keep_their_bytes(body):
    assert check(body).image == body


@pytest.mark.parametrize(
    "body",
    [
        encode(picture(), "PNG"),
        encode(picture(), "BMP"),
        encode(picture().quantize(256), "GIF"),
        encode(picture().convert("CMYK"), "JPEG", quality=95),
        encode(picture().convert("RGBA"), "PNG"),
        encode(
            picture(),
            "WEBP",
            lossless=True,
            save_all=True,
            append_images=[picture(seed=1)],
        ),
    ],
)
def test_all_else_becomes_a_jpeg_of_the_same_picture(body):
    found = check(body)
    assert found.status == "ok"
    difference = pixels(found.image) - np.asarray(picture()).astype(int)
    assert np.abs(difference).mean() < 8


def test_large_images_are_scaled_to_the_longest_side_allowed():
    for body in (encode(picture(400, 200), "JPEG"), encode(picture(400, 200), "PNG")):
        found = check(body)
        assert (found.width, found.height) == (128, 64)
        wanted = np.asarray(picture(128, 64)).astype(int)
        assert np.abs(pixels(found.image) - wanted).mean() < 6


def test_transparency_becomes_white():
    clear = np.zeros((32, 32, 4), np.uint8)
    clear[8:24, 8:24] = (255, 0, 0, 255)
    image = Image.fromarray(clear)
    bodies = [encode(image, "PNG"), encode(image, "WEBP", lossless=True)]
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (8, 8, 24, 24))
    bodies += [encode(palette, "GIF", transparency=0)]
    bodies += [encode(palette, "PNG", transparency=0)]
    grey = Image.new("LA", (32, 32), (0, 0))
    grey.paste((76, 255), (8, 8, 24, 24))
    bodies += [encode(grey, "PNG")]
    for body in bodies:
        found = pixels(check(body).image)
        assert found[2, 2].min() > 245
        assert found[16, 16].mean() < 100


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(orientation):
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32] = 255  # white top left corner
    undo = {  # what a camera does that writes this orientation
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = check(encode(stored, "JPEG", exif=exif, quality=95))
    assert (found.width, found.height) == (64, 32)
    assert np.abs(pixels(found.image) - upright).mean() < 6
    assert Image.open(io.BytesIO(found.image)).getexif().get(0x0112, 1) == 1


def test_sixteen_bit_grey_keeps_its_range():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    found = pixels(check(encode(Image.fromarray(ramp), "PNG")).image)
    assert np.abs(found[:, :, 0] - (ramp >> 8)).mean() < 3


def test_only_the_first_frame_of_an_animation_counts():
    frames = [picture(seed=seed).quantize(256) for seed in range(3)]
    animated = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert check(animated).image == check(encode(frames[0], "GIF")).image


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", "not_an_image"),
        (b"<html><body>404, sorry</body></html>", "not_an_image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image"),
        (b"GIF89a", "not_an_image"),
        (encode(picture(), "TIFF"), "not_an_image"),
        (encode(picture(96, 15), "PNG"), "too_small"),
        (encode(picture(1, 1), "GIF"), "too_small"),
        (encode(picture(97, 32), "PNG"), "bad_aspect"),
        (encode(picture(32, 97), "JPEG"), "bad_aspect"),
        (encode(Image.new("1", (1001, 1000)), "PNG"), "too_many_pixels"),
    ],
)
def test_each_refusal_has_its_reason(body, status):
    assert check(body).status == status


def test_limits_themselves_are_allowed():
    assert check(encode(picture(96, 32), "PNG")).status == "ok"
    assert check(encode(picture(16, 16), "PNG")).status == "ok"
    assert check(encode(Image.new("L", (1000, 1000)), "PNG")).status == "ok"


@pytest.mark.parametrize("side", [2_000, 10_000, 20_000, 2**31 - 1])
def test_a_pixel_bomb_is_refused_by_its_header(side):
    """A PNG that claims to be huge, as those do that hold gigabytes of zeros."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    assert check(body).status == "too_many_pixels"


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("PNG", {}),
        ("BMP", {}),
    ],
)
def test_truncated_images_are_found_wherever_they_end(image_format, options):
    body = encode(picture(), image_format, **options)
    # A PNG is whole in its pixels without its last bytes (checksums, end mark).
    last = len(body) - 2 if image_format != "PNG" else len(body) - 40
    found = {check(body[:end]).status for end in np.linspace(12, last, 50, dtype=int)}
    assert found <= {"truncated_image", "not_an_image"}
    for end in np.linspace(len(body) // 2, last, 10, dtype=int):
        assert check(body[:end]).status == "truncated_image"


def test_a_large_jpeg_that_is_cut_is_found_too():
    body = encode(picture(400, 300), "JPEG")
    for share in (0.3, 0.6, 0.95):
        assert check(body[: int(len(body) * share)]).status == "truncated_image"


def test_garbage_inside_an_image_never_raises():
    random = np.random.default_rng(0)
    for image_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        body = encode(picture(32, 32), image_format)
        for _ in range(60):
            broken = bytearray(body)
            start = random.integers(0, len(body) - 4)
            broken[start : start + 4] = random.bytes(4)
            check(bytes(broken))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_does_not_cost_the_image():
    body = encode(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    assert check(body).image == body


def test_stray_bytes_between_markers_do_not_cost_the_image():
    body = encode(picture(), "JPEG")
    assert check(body[:-2] + b"\0" + body[-2:]).status == "ok"
    assert check(body + b"trailing").status == "ok"


def test_fingerprints_survive_scaling_and_compression_and_tell_pictures_apart():
    prints = []
    for seed in range(20):
        versions = [
            encode(picture(seed=seed), "JPEG", quality=95),
            encode(picture(seed=seed), "JPEG", quality=40),
            encode(picture(seed=seed), "PNG"),
            encode(picture(192, 128, seed=seed), "WEBP"),
        ]
        found = [check(body).fingerprint for body in versions]
        assert fingerprint.hamming(found[0], found).max() <= 8
        prints.append(found[0])
    grid = fingerprint.hamming(np.array(prints, np.uint64)[:, None], np.array(prints))
    assert grid[~np.eye(20, dtype=bool)].min() >= 12


def test_a_fingerprint_has_64_bits_and_half_are_set():
    grey = np.asarray(picture().convert("L"))
    found = fingerprint.fingerprint(grey)
    assert found.bit_count() == 32
    assert fingerprint.hamming(found, found ^ 0b1011) == 3
    assert fingerprint.hamming(0, 2**64 - 1) == 64


def test_brightness_does_not_change_a_fingerprint_and_a_flat_picture_has_none():
    grey = np.asarray(picture().convert("L")) // 2
    brighter = fingerprint.fingerprint(grey + 50)
    assert fingerprint.hamming(fingerprint.fingerprint(grey), brighter) <= 1
    assert fingerprint.fingerprint(np.full((40, 30), 77, np.uint8)) == 0
