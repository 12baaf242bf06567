"""What becomes of downloaded bytes: kept, re-encoded, or dropped with a reason."""

import hashlib
import io
import itertools
import re
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms

from data_prep.images import fingerprint, screening
from tests import colour_profiles, real_images

LIMITS = {"min_side": 16, "max_side": 128, "max_aspect": 3.0, "max_pixels": 10**6}
SECRET = b"52.5200N 13.4050E"


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
    found = screening.screen(body, **(LIMITS | limits))
    if found.status == "ok":
        with Image.open(io.BytesIO(found.image)) as image:
            assert image.size == (found.width, found.height)
            assert image.format in ("JPEG", "WEBP")
        assert found.sha256 == hashlib.sha256(found.image).hexdigest()
    else:
        assert found == screening.Screened(found.status)
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
        encode(picture(), "AVIF", quality=95),
        encode(picture(), "AVIF", save_all=True, append_images=[picture(seed=1)]),
        # What cameras with two lenses write: two JPEGs in one file.
        encode(picture(), "MPO", save_all=True, append_images=[picture(seed=1)]),
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


@pytest.mark.parametrize("side", [129, 140, 180, 200, 208, 224, 304, 512, 1104])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_scaled_image_is_near_to_what_lanczos_makes_of_it(image_format, side):
    """At each scale of decoding, and at both ways to scale the rest."""
    noise = np.random.default_rng(side).integers(0, 255, (12, 24), dtype=np.uint8)
    whole = Image.fromarray(noise).resize((side, side // 2), Image.Resampling.BICUBIC)
    options = {"quality": 98} if image_format == "JPEG" else {}
    found = check(
        encode(whole.convert("RGB"), image_format, **options), max_pixels=10**7
    )
    size = (128, round(side // 2 * 128 / side))
    assert (found.width, found.height) == size
    wanted = np.asarray(whole.resize(size, Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(pixels(found.image)[:, :, 1] - wanted).mean() < 2.5


def test_threads_decode_no_more_pixels_at_a_time_than_allowed():
    bound = screening._Pixels(100)
    inside, most, lock = 0, 0, threading.Lock()

    def decode(count):
        nonlocal inside, most
        with bound.taken(count):
            with lock:
                inside += min(count, 100)
                most = max(most, inside)
            time.sleep(0.001)
            with lock:
                inside -= min(count, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [30, 40, 1000, 60, 100, 10, 50, 99] * 4))
    assert most <= 100


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


def test_sixteen_bit_grey_keeps_its_range():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    found = pixels(check(encode(Image.fromarray(ramp), "PNG")).image)
    assert np.abs(found[:, :, 0] - (ramp >> 8)).mean() < 3


def test_only_the_first_frame_of_an_animation_counts():
    frames = [picture(seed=seed).quantize(256) for seed in range(3)]
    animated = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert check(animated).image == check(encode(frames[0], "GIF")).image


# A red picture of 64 x 48, as libjxl codes it; and its container's first box.
JPEG_XL = bytes.fromhex(
    "ff0acb4024080001005c004b188b1500d488411be31e400498b446e35df1dc66860a"
)
JPEG_XL_BOX = bytes.fromhex("0000000c4a584c200d0a870a")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (JPEG_XL, "jpeg_xl"),
        (JPEG_XL_BOX + JPEG_XL, "jpeg_xl"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"),
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
        ("AVIF", {}),
    ],
)
def test_truncated_images_are_found_wherever_they_end(image_format, options):
    body = encode(picture(), image_format, **options)
    # The pixels are whole without the last bytes (checksums, end mark).
    last = len(body) - {"PNG": 40, "JPEG": 3}.get(image_format, 2)
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
    for image_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"):
        body = encode(picture(32, 32), image_format)
        for _ in range(60):
            broken = bytearray(body)
            start = random.integers(0, len(body) - 4)
            broken[start : start + 4] = random.bytes(4)
            check(bytes(broken))


def exif(orientation=1):
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = SECRET.decode()
    return tags


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP"])
def test_of_an_image_that_stays_only_its_picture_stays(image_format):
    plain = encode(picture(), image_format)
    marked = encode(picture(), image_format, exif=exif(), comment=SECRET, xmp=SECRET)
    assert check(marked).image == check(marked + SECRET).image == plain


@pytest.mark.parametrize("side", [96, 400])
@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "PNG", "AVIF"])
def test_profiles_go_and_only_those_that_change_colours_are_applied(image_format, side):
    without = check(encode(picture(side, 96), image_format), max_aspect=5).image
    for profile, changes in (
        (colour_profiles.rgb("Display P3"), True),
        (colour_profiles.rgb("sRGB", "c2"), False),  # as social networks have it
        (colour_profiles.grey(1.0), False),  # of other channels
        (b"not a profile", False),
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), False),
    ):
        body = encode(picture(side, 96), image_format, icc_profile=profile, exif=exif())
        found = check(body, max_aspect=5).image
        assert SECRET not in found
        assert "icc_profile" not in Image.open(io.BytesIO(found)).info
        assert (found != without) == changes


def test_an_image_of_many_bytes_is_coded_anew():
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    for body in (
        encode(Image.fromarray(noise), "JPEG", quality=100, subsampling="4:4:4"),
        encode(Image.fromarray(noise), "WEBP", lossless=True),
    ):
        found = check(body).image
        assert len(found) < 2 * 100 * 100 + 4096 < len(body)
        # Noise in half as many colours.
        assert np.abs(pixels(found) - noise).mean() < 60


def scan_by_scan(count):
    """A flat grey JPEG whose coefficients 1 to `count` have a scan each."""
    flat = encode(Image.new("L", (64, 64), 200), "JPEG", progressive=True)
    tables = [m.start() for m in re.finditer(b"\xff\xc4", flat)]
    head, scan = flat[: tables[1]], bytearray(flat[tables[1] : tables[2]])
    place = scan.index(b"\xff\xda") + 7  # spectral selection, approximation
    scans = b""
    for coefficient in range(1, count + 1):
        scan[place : place + 3] = bytes([coefficient, coefficient, 0])
        scans += scan
    return head + scans + b"\xff\xd9"


def test_an_image_of_many_scans_is_coded_anew_and_of_too_many_is_dropped():
    assert check(scan_by_scan(19)).image == scan_by_scan(19)
    for scans in (20, 63):
        found = check(scan_by_scan(scans)).image
        assert found.count(b"\xff\xda") == 1
        assert np.abs(pixels(found) - 200).max() <= 1
    assert check(scan_by_scan(64)).status == "too_many_scans"


def test_stray_bytes_do_not_cost_the_image():
    for options in ({}, {"progressive": True}):
        body = encode(picture(), "JPEG", **options)
        scan = body.index(b"\xff\xda")
        for stray in (body[:scan] + b"\0\1\2" + body[scan:], body + b"trailing"):
            assert check(stray).image == body
        # Inside a scan nobody sees where its data ends but a decoder, which warns.
        found = check(body[:-2] + b"\1\2\3\4" + body[-2:])
        assert found.status == "ok"
        assert np.abs(pixels(found.image) - pixels(body)).mean() < 3
        simplejpeg.decode_jpeg(found.image, strict=True)


def bits_that_differ(a, b):
    """Of two fingerprints, 256 for one without features."""
    if not a or not b:
        return 256
    return (int.from_bytes(a) ^ int.from_bytes(b)).bit_count()


def photo(seed):
    """A crop of a real photograph."""
    return Image.open(io.BytesIO(real_images.photos(seed + 1).images[seed]))


def test_fingerprints_survive_scaling_and_compression_and_tell_pictures_apart():
    prints = []
    for seed in range(20):
        image = photo(seed).resize((96, 64))
        if np.asarray(image).std() < 40:  # mostly sky
            continue
        versions = [
            encode(image, "JPEG", quality=95),
            encode(image, "JPEG", quality=40),
            encode(image, "PNG"),
            encode(image.resize((192, 128)), "WEBP"),
        ]
        found = [check(body).fingerprint for body in versions]
        assert max(bits_that_differ(found[0], one) for one in found) <= 24
        prints.append(found[0])
    assert len(prints) >= 10
    for one, other in itertools.combinations(prints, 2):
        assert bits_that_differ(one, other) >= 60


def test_a_fingerprint_has_256_bits_and_half_are_set():
    found = fingerprint.fingerprint(np.asarray(photo(0).convert("L")))
    assert len(found) == 32
    assert 120 <= int.from_bytes(found).bit_count() <= 136


def test_brightness_does_not_change_a_fingerprint_and_a_flat_picture_has_none():
    grey = np.asarray(photo(0).convert("L")) // 2
    brighter = fingerprint.fingerprint(grey + 50)
    assert bits_that_differ(fingerprint.fingerprint(grey), brighter) <= 2
    assert fingerprint.fingerprint(np.full((40, 30), 77, np.uint8)) == b""
