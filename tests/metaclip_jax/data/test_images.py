"""Decoding: crops, DCT-scaled decoding, other formats, evaluation, broken input."""

import collections
import io
import random
from functools import partial

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_prep.images import screening as curation
from metaclip_jax.data import draws, images

WHOLE_AREA = images.Augmentation((1.0, 1.0))


def natural(height, width, *, seed=0):
    """A picture with the spectrum of photographs: amplitude falls with frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(
        np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    )
    falling = 1 / np.maximum(frequency, 1 / max(height, width)) ** 1.2
    noise = rng.normal(size=(2, 3, *falling.shape))
    waves = np.fft.irfft2((noise[0] + 1j * noise[1]) * falling, (height, width))
    planes = (waves - waves.mean()) / waves.std() * 45 + 128
    return np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def encoded(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def decode_eval(data, **preprocess):
    return images.decode_eval(data, images.Preprocess(**preprocess))


def psnr(one, other):
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def by_pillow(data, box, size):
    """The same crop from the fully decoded image with an anti-aliasing filter."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


@pytest.mark.parametrize(
    ("width", "height"), [(640, 480), (480, 640), (1024, 768), (2000, 1500)]
)
@pytest.mark.parametrize("size", [112, 224])
def test_scaled_decoding_stays_close_to_full_decoding(width, height, size):
    data = encoded(natural(height, width), "JPEG", quality=90)
    for key in range(3):
        found = images.decode_train(data, size=size, key=key)
        drawn = images.crop_box(width, height, key=key)
        pixels, scaled = images._decode_box(data, width, height, drawn, size)
        whole = round(height / pixels.shape[0])  # 1, 2, 4 or 8
        edges = np.array(scaled) * whole
        assert np.abs(edges - drawn).max() <= whole / 2
        box = tuple(np.minimum(edges, [width, height] * 2).tolist())
        assert psnr(found, by_pillow(data, box, size)) > 35


@pytest.mark.parametrize("side", [225, 300, 337, 450, 600, 890, 1200])
def test_reducing_an_image_does_not_alias(side):
    data = encoded(natural(side, side), "BMP")
    found = images.decode_train(
        data, size=224, key=0, augmentation=WHOLE_AREA, ratio=(1, 1)
    )
    assert psnr(found, by_pillow(data, (0, 0, side, side), 224)) > 40


def test_only_scales_that_leave_enough_pixels_are_used():
    data = encoded(natural(480, 640), "JPEG")
    for box in [(0, 0, 640, 480), (10, 10, 400, 300), (0, 0, 224, 224)]:
        pixels, scaled = images._decode_box(data, 640, 480, box, 224)
        left, top, right, bottom = scaled
        assert pixels.shape[0] in (60, 120, 240, 480)
        assert right - left >= 224
        assert bottom - top >= 224
    pixels, _ = images._decode_box(data, 640, 480, (0, 0, 640, 480), 60)
    assert pixels.shape == (60, 80, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_format_gives_rgb_in_the_right_order(kind):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:] = (250, 120, 5)
    for decode in (
        lambda data: images.decode_train(data, size=16, key=1),
        lambda data: decode_eval(data, size=16),
    ):
        found = decode(encoded(pixels, kind))
        assert found.shape == (16, 16, 3)
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - (250, 120, 5)).max() <= 4


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("I;16", "PNG"),
        ("RGBA", "WEBP"),
    ],
)
def test_other_colour_modes_become_rgb(mode, kind):
    buffer = io.BytesIO()
    source = Image.new("L", (30, 20), 200)
    if mode == "I;16":
        Image.fromarray(np.full((20, 30), 200 * 257, np.uint16)).save(buffer, kind)
    else:
        (source.convert("RGB") if mode == "CMYK" else source).convert(mode).save(
            buffer, kind
        )
    found = images.decode_train(buffer.getvalue(), size=8, key=0)
    assert found.shape == (8, 8, 3)
    if mode != "1":
        assert np.abs(found.astype(int) - 200).max() <= 8


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels_are_white_in_training_and_evaluation(kind):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, 16:] = (0, 0, 255, 255)
    data = encoded(pixels, kind, lossless=True)
    whole = partial(images.decode_train, key=3, augmentation=WHOLE_AREA, ratio=(1, 1))
    for decode in (whole, decode_eval):
        found = decode(data, size=32)
        assert (found[:, :14] == 255).all()
        assert (found[:, 18:] == (0, 0, 255)).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 200), (200, 3), (30, 20)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_small_images_are_enlarged(height, width, kind):
    data = encoded(np.full((height, width, 3), 90, np.uint8), kind)
    for found in (
        images.decode_train(data, size=48, key=5),
        decode_eval(data, size=48),
        decode_eval(data, size=48, squash=True),
    ):
        assert found.shape == (48, 48, 3)
        assert np.abs(found.astype(int) - 90).max() <= 3


def test_enlarging_is_smooth():
    ramp = np.linspace(0, 255, 16).astype(np.uint8)
    data = encoded(np.tile(ramp[None, :, None], (16, 1, 3)), "PNG")
    found = images.decode_train(
        data, size=128, key=0, augmentation=WHOLE_AREA, ratio=(1, 1)
    )
    steps = np.diff(found[64, 8:-8, 0].astype(int))
    assert steps.min() >= 0
    assert steps.max() <= 4  # nearest neighbours would jump by 17


def test_a_crop_lies_in_the_image_with_area_and_ratio_as_asked():
    areas, ratios = [], []
    for key in range(500):
        left, top, right, bottom = images.crop_box(640, 480, key=key)
        assert 0 <= left < right <= 640
        assert 0 <= top < bottom <= 480
        areas.append((right - left) * (bottom - top) / (640 * 480))
        ratios.append((right - left) / (bottom - top))
    assert 0.89 < min(areas) < 0.91 < 0.97 < max(areas) <= 1.01
    assert 0.75 - 0.01 < min(ratios)
    assert max(ratios) < 4 / 3 + 0.01


def test_a_crop_depends_on_its_key_alone():
    boxes = [images.crop_box(640, 480, key=key) for key in range(50)]
    assert boxes == [images.crop_box(640, 480, key=key) for key in range(50)]
    assert len(set(boxes)) > 20  # most of the others are the whole image


@pytest.mark.parametrize(("width", "height"), [(1000, 100), (100, 1000), (1, 1)])
def test_an_image_no_crop_fits_in_is_cut_in_its_centre(width, height):
    left, top, right, bottom = images.crop_box(width, height, key=0)
    assert (left + right, top + bottom) == pytest.approx((width, height), abs=1)
    assert min(right - left, bottom - top) == min(width, height)
    assert 0.7 < (right - left) / (bottom - top) < 1.4


def test_half_of_the_images_are_mirrored():
    data = encoded(natural(40, 40), "PNG")
    mirrored = 0
    for key in range(200):
        plain = images.decode_train(data, size=40, key=key)
        found = images.decode_train(
            data, size=40, key=key, augmentation=images.Augmentation(flip=True)
        )
        mirrored += not (found == plain).all()
        assert (found == plain).all() or (found == plain[:, ::-1]).all()
    assert 70 < mirrored < 130  # four sigma


def test_colours_change_by_factors_about_the_grey():
    pixels = natural(60, 80)
    plain = images.change_colour(pixels, key=3, most=0.0)
    np.testing.assert_array_equal(plain, pixels)
    luma = np.array([0.299, 0.587, 0.114])
    mean_grey = pixels.mean(axis=(0, 1)) @ luma
    factors = []
    for key in range(200):
        draw = draws.stream(int(draws.mix(key, images._COLOUR)))
        brightness, contrast, saturation = (0.6 + 0.8 * next(draw) for _ in range(3))
        factors.append((brightness, contrast, saturation))
        grey = (pixels @ luma)[..., None]
        wanted = grey + saturation * (pixels - grey)
        wanted = brightness * (mean_grey + contrast * (wanted - mean_grey))
        found = images.change_colour(pixels, key=key, most=0.4)
        assert np.abs(found - np.clip(wanted, 0, 255)).max() < 1
    assert np.abs(np.mean(factors, axis=0) - 1).max() < 4 * 0.8 / np.sqrt(12 * 200)


def test_colour_and_crop_have_draws_of_their_own():
    data = encoded(natural(40, 40), "PNG")
    mirrored = images.Augmentation(flip=True)
    plain = images.decode_train(data, size=40, key=1, augmentation=mirrored)
    changed = images.Augmentation(flip=True, colour=0.3)
    found = images.decode_train(data, size=40, key=1, augmentation=changed)
    wanted = images.change_colour(plain, key=1, most=0.3)
    np.testing.assert_array_equal(found, wanted)
    assert (found != plain).any()


@pytest.mark.parametrize(("width", "height"), [(64, 48), (101, 57), (57, 101)])
def test_evaluation_cuts_the_centre_of_the_resized_image(width, height):
    pixels = natural(height, width)
    found = decode_eval(encoded(pixels, "PNG"), size=32)
    short = min(width, height)
    resized = Image.fromarray(pixels).resize(
        (32 * width // short, 32 * height // short), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - 32) // 2, (resized.height - 32) // 2
    wanted = np.asarray(resized)[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(found, wanted)


def test_squashing_keeps_all_of_the_image():
    pixels = natural(30, 90)
    found = decode_eval(encoded(pixels, "PNG"), size=30, squash=True)
    wanted = Image.fromarray(pixels).resize((30, 30), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, np.asarray(wanted))


JPEG = encoded(natural(64, 64), "JPEG")
PNG = encoded(natural(64, 64), "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_an_image"),
        (b"<html>404</html>", "not_an_image"),
        (b"\xff\xd8\xff\xe0 and no more", "truncated_image"),
        (JPEG[: len(JPEG) // 2], "truncated_image"),
        (PNG[: len(PNG) // 2], "truncated_image"),
        (PNG[:8] + b"\0" * 200, "truncated_image"),
        (encoded(natural(64, 64), "WEBP")[:300], "truncated_image"),
        (encoded(natural(64, 64), "GIF")[:900], "truncated_image"),
        (encoded(natural(64, 64), "AVIF")[:300], "truncated_image"),
        (JPEG.replace(b"\xff\xdb", b"\xff\xfe"), "damaged_image"),  # no tables
        (PNG[:5_000] + bytes(99) + PNG[5_099:], "damaged_image"),
    ],
)
def test_broken_input_has_a_reason(data, reason):
    for decode in (partial(images.decode_train, key=0), decode_eval):
        with pytest.raises(images.UndecodableImage) as caught:
            decode(data, size=16)
        assert caught.value.reason == reason


@pytest.mark.parametrize("progressive", [False, True])
def test_stray_bytes_between_markers_do_not_cost_the_image(progressive):
    data = encoded(natural(64, 64), "JPEG", progressive=progressive)
    scan = data.index(b"\xff\xda")
    for stray in (
        data[:scan] + b"\0\1\2" + data[scan:],
        data[:-2] + b"\1\2\3\4" + data[-2:],
        data + b"appended",
        data[:-2],
    ):
        for decode in (decode_eval, images.decode_train):
            whole = {} if decode is decode_eval else WHOLE
            found = decode(stray, size=64, **whole)
            np.testing.assert_array_equal(found, decode(data, size=64, **whole))
        with pytest.raises(images.UndecodableImage, match="truncated_image"):
            images.decode_train(stray[: len(stray) // 2], size=64, key=0)


WHOLE = {"key": 0, "augmentation": WHOLE_AREA, "ratio": (1.0, 1.0)}


def originals():
    """Small files of each format and coding: (whether RGB is kept as it is, bytes)."""
    square = Image.fromarray(natural(40, 40))
    clear = square.copy()
    clear.putalpha(Image.fromarray(natural(40, 40)[..., 0]))
    tag = Image.Exif()
    tag[0x0112] = 6
    sixteen = Image.fromarray(natural(40, 40)[..., 0].astype(np.uint16) * 250)
    for image, kind, options in (
        (square, "JPEG", {}),
        (square, "JPEG", {"progressive": True}),
        (square, "JPEG", {"restart_marker_blocks": 2, "comment": b"text"}),
        (square, "JPEG", {"exif": tag, "subsampling": "4:4:4"}),
        (square.convert("L"), "JPEG", {"progressive": True}),
        (square.convert("CMYK"), "JPEG", {}),
        (square, "PNG", {"exif": tag}),
        (square.quantize(16), "PNG", {"transparency": 2}),
        (sixteen, "PNG", {}),
        (clear, "PNG", {}),
        (square, "WEBP", {}),
        (square, "WEBP", {"lossless": True}),
        (clear, "WEBP", {"exif": tag}),
        (square, "WEBP", {"save_all": True, "append_images": [square.rotate(90)]}),
        (square.quantize(32), "GIF", {"comment": b"text"}),
        (square, "BMP", {}),
        (square, "AVIF", {"exif": tag}),
        (clear, "AVIF", {"save_all": True, "append_images": [clear.rotate(90)]}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield buffer.getvalue()


ODD = (
    b"\0\0",
    b"\xff\xff",
    b"\xff\xd9",
    b"\xff\xda",
    b"\xff\xd8",
    b"\x7f\xff",
    b"\0\2",
)


def mutated(data, rng):
    """Some bytes changed, taken out, put in, repeated or cut off; most in the head."""
    body = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        start = rng.randrange(rng.choice((len(body), min(len(body), 200))) or 1)
        few = rng.choice((1, 2, 4, 40))
        how = rng.randrange(7)
        if how == 0:
            body[start : start + 1] = rng.randbytes(1)
        elif how == 1:
            del body[start : start + few]
        elif how == 2:
            body[start:start] = rng.randbytes(few)
        elif how == 3:
            body[start:start] = b"\xff" * few
        elif how == 4:
            body[start:start] = body[start // 2 : start // 2 + few]
        elif how == 5:
            del body[start:]
        else:
            body[start : start + 2] = rng.choice(ODD)
    return bytes(body)


def check_mutations(count, seed):
    """Whatever is kept is the same picture in training as in Pillow; nothing raises."""
    rng = random.Random(seed)
    files, statuses = list(originals()), collections.Counter()
    for number in range(count):
        data = mutated(files[number % len(files)], rng)
        found = curation.screen(
            data, min_side=8, max_side=512, max_aspect=10, max_pixels=1 << 20
        )
        statuses[found.status] += 1
        for decode in (decode_eval, partial(images.decode_train, key=0)):
            try:
                assert decode(data, size=16).shape == (16, 16, 3)
            except images.UndecodableImage as error:
                assert error.reason.isidentifier()
        if found.status == "ok":
            with Image.open(io.BytesIO(found.image)) as image:
                assert image.size == (found.width, found.height)
                shown = np.asarray(image.convert("RGB"))
            height, width = shown.shape[:2]
            if width == height:
                trained = images.decode_train(found.image, size=width, **WHOLE)
                np.testing.assert_array_equal(trained, shown)
            if images.jpeg.is_jpeg(found.image):
                simplejpeg.decode_jpeg(found.image, strict=True)  # without a warning
    assert statuses["ok"] > count / 5
    assert statuses["truncated_image"] > count / 20
    assert statuses["damaged_image"] > count / 20


def test_mutated_files_are_kept_alike_or_dropped():
    check_mutations(900, seed=0)


@pytest.mark.slow
def test_many_mutated_files_are_kept_alike_or_dropped():
    check_mutations(30_000, seed=1)


def test_an_image_of_too_many_pixels_is_not_decoded():
    buffer = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(buffer, "PNG")
    for decode in (
        decode_eval,
        lambda d, size: images.decode_train(d, size=size, key=0),
    ):
        with pytest.raises(images.UndecodableImage, match="too_many_pixels"):
            decode(buffer.getvalue(), size=16)


def test_garbage_in_a_jpeg_never_ends_in_another_error():
    data = simplejpeg.encode_jpeg(natural(64, 64))
    rng = np.random.default_rng(0)
    for _ in range(300):
        bytes_ = bytearray(data)
        for place in rng.integers(0, len(data), 4):
            bytes_[place] = rng.integers(256)
        for decode in (
            lambda d: images.decode_train(d, size=16, key=0),
            lambda d: decode_eval(d, size=16),
        ):
            try:
                assert decode(bytes(bytes_)).shape == (16, 16, 3)
            except images.UndecodableImage as error:
                assert error.reason


@pytest.mark.parametrize("margin", range(8))
def test_half_of_an_odd_margin_is_rounded_down_or_to_even(margin):
    """torchvision's centre crop starts at int(round(margin / 2)), of Python's round."""
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16 + margin, 3), np.uint8)
    image = Image.fromarray(pixels)
    for even, left in ((False, margin // 2), (True, int(round(margin / 2)))):
        found = images.fit_eval(image, images.Preprocess(16, even_margins=even))
        np.testing.assert_array_equal(found, pixels[:, left : left + 16])
