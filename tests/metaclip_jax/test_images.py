"""Decoding: crops, DCT-scaled decoding, other formats, evaluation, broken input."""

import io
from functools import partial

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_prep.images import inspect as curation
from metaclip_jax.data import draws, images


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
    found = images.decode_train(data, size=224, key=0, scale=(1, 1), ratio=(1, 1))
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
        lambda data: images.decode_eval(data, size=16),
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
    whole = partial(images.decode_train, key=3, scale=(1, 1), ratio=(1, 1))
    for decode in (whole, images.decode_eval):
        found = decode(data, size=32)
        assert (found[:, :14] == 255).all()
        assert (found[:, 18:] == (0, 0, 255)).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 200), (200, 3), (30, 20)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_small_images_are_enlarged(height, width, kind):
    data = encoded(np.full((height, width, 3), 90, np.uint8), kind)
    for found in (
        images.decode_train(data, size=48, key=5),
        images.decode_eval(data, size=48),
        images.decode_eval(data, size=48, squash=True),
    ):
        assert found.shape == (48, 48, 3)
        assert np.abs(found.astype(int) - 90).max() <= 3


def test_enlarging_is_smooth():
    ramp = np.linspace(0, 255, 16).astype(np.uint8)
    data = encoded(np.tile(ramp[None, :, None], (16, 1, 3)), "PNG")
    found = images.decode_train(data, size=128, key=0, scale=(1, 1), ratio=(1, 1))
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
        found = images.decode_train(data, size=40, key=key, flip=True)
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
    plain = images.decode_train(data, size=40, key=1, flip=True)
    found = images.decode_train(data, size=40, key=1, flip=True, colour=0.3)
    wanted = images.change_colour(plain, key=1, most=0.3)
    np.testing.assert_array_equal(found, wanted)
    assert (found != plain).any()


@pytest.mark.parametrize(("width", "height"), [(64, 48), (101, 57), (57, 101)])
def test_evaluation_cuts_the_centre_of_the_resized_image(width, height):
    pixels = natural(height, width)
    found = images.decode_eval(encoded(pixels, "PNG"), size=32)
    short = min(width, height)
    resized = Image.fromarray(pixels).resize(
        (32 * width // short, 32 * height // short), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - 32) // 2, (resized.height - 32) // 2
    wanted = np.asarray(resized)[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(found, wanted)


def test_squashing_keeps_all_of_the_image():
    pixels = natural(30, 90)
    found = images.decode_eval(encoded(pixels, "PNG"), size=30, squash=True)
    wanted = Image.fromarray(pixels).resize((30, 30), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, np.asarray(wanted))


JPEG = encoded(natural(64, 64), "JPEG")
PNG = encoded(natural(64, 64), "PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_an_image"),
        (b"<html>404</html>", "not_an_image"),
        (b"\xff\xd8\xff\xe0 and no more", "not_an_image"),
        (JPEG[: len(JPEG) // 2], "broken_image"),
        (PNG[: len(PNG) // 2], "broken_image"),
        (PNG[:8] + b"\0" * 200, "not_an_image"),
        (encoded(natural(64, 64), "WEBP")[:300], "not_an_image"),
        (encoded(natural(64, 64), "GIF")[:900], "broken_image"),
    ],
)
def test_broken_input_has_a_reason(data, reason):
    with pytest.raises(images.UndecodableImage) as caught:
        images.decode_train(data, size=16, key=0)
    assert caught.value.reason == reason


def curated(data):
    """The status that curation gives, and whether it keeps the bytes as they are."""
    found = curation.inspect(
        data, min_side=8, max_side=512, max_aspect=10, max_pixels=1 << 20
    )
    return found.status, found.image == data


@pytest.mark.parametrize("progressive", [False, True])
def test_stray_bytes_between_markers_are_kept_by_curation_and_by_training(progressive):
    data = encoded(natural(300, 400), "JPEG", progressive=progressive)
    scan = data.index(b"\xff\xda")
    for stray in (
        data[:scan] + b"\0\1\2" + data[scan:],
        data[:-2] + b"\1\2\3\4" + data[-2:],
    ):
        assert curated(stray) == ("ok", True)
        for decode in (images.decode_eval, partial(images.decode_train, key=0)):
            assert psnr(decode(stray, size=64), decode(data, size=64)) > 30
        assert curated(stray[: len(stray) // 2])[0] == "truncated_image"
        with pytest.raises(images.UndecodableImage, match="broken_image"):
            images.decode_train(stray[: len(stray) // 2], size=64, key=0)


def test_what_curation_keeps_is_decoded_in_training():
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "WEBP"):
        data = encoded(natural(64, 64), kind)
        kept = 0
        for _ in range(300):
            body = bytearray(data)
            place, few = int(rng.integers(20, len(data))), int(rng.integers(1, 4))
            body[place : place + int(rng.integers(2))] = rng.bytes(few)
            if curated(bytes(body)) == ("ok", True):
                kept += 1
                images.decode_train(bytes(body), size=16, key=0)
        assert kept > 30


def test_an_image_of_too_many_pixels_is_not_decoded():
    buffer = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(buffer, "PNG")
    for decode in (
        images.decode_eval,
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
            lambda d: images.decode_eval(d, size=16),
        ):
            try:
                assert decode(bytes(bytes_)).shape == (16, 16, 3)
            except images.UndecodableImage as error:
                assert error.reason
