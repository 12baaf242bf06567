"""Files of every kind have the same picture in curation, training and evaluation."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.images import screening
from metaclip_jax.data import colour, images
from tests import colour_profiles

SIDE = 96
LIMITS = {"min_side": 8, "max_side": 512, "max_aspect": 4, "max_pixels": 10**6}


def patches():
    """Six flat colours, which no decoder blurs, 48 px high and 32 wide."""
    colours = [
        [(200, 60, 40), (60, 180, 70), (40, 70, 190)],
        [(230, 210, 60), (128, 128, 128), (250, 250, 250)],
    ]
    return np.array(colours, np.uint8).repeat(48, 0).repeat(32, 1)


def at_centres(pixels):
    """int[2, 3, 3]: the colours of the patches."""
    height, width = pixels.shape[:2]
    rows, columns = [height // 4, 3 * height // 4], [width // 6, width // 2]
    return pixels[np.ix_(rows, [*columns, 5 * width // 6])].astype(int)


def encode(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def seen(data):
    """The colours of the patches as each part of the project sees them."""
    screened = screening.screen(data, **LIMITS)
    assert screened.status == "ok"
    whole = {
        "size": SIDE,
        "augmentation": images.Augmentation((1.0, 1.0)),
        "ratio": (1.0, 1.0),
    }
    return {
        "curation": at_centres(np.asarray(Image.open(io.BytesIO(screened.image)))),
        "evaluation": at_centres(images.decode_eval(data, images.Preprocess(SIDE))),
        "training": at_centres(images.decode_train(data, key=3, **whole)),
        "training on records": at_centres(
            images.decode_train(screened.image, key=3, **whole)
        ),
    }


def check(data, wanted, *, within):
    for part, found in seen(data).items():
        assert np.abs(found - wanted).max() <= within, (part, found, wanted)


GOOD = {"quality": 95, "subsampling": "4:4:4"}
KINDS = {
    "JPEG": GOOD,
    "progressive JPEG": GOOD | {"progressive": True},
    "PNG": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 98, "subsampling": "4:4:4"},
}


def file_of(kind, image, **options):
    return encode(image, kind.split()[-1], **KINDS[kind], **options)


@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB (1998)"])
@pytest.mark.parametrize("kind", KINDS)
def test_wide_gamuts_become_srgb(kind, name):
    profile = colour_profiles.rgb(name)
    wanted = colour_profiles.to_srgb(name, at_centres(patches()))
    assert np.abs(wanted - at_centres(patches())).max() > 10
    data = file_of(kind, Image.fromarray(patches()), icc_profile=profile)
    check(data, wanted, within=6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 5])
def test_turned_pictures_of_wide_gamut_are_turned_and_converted(kind, orientation):
    back = {3: 2, 6: 1, 8: 3}  # quarter turns that EXIF undoes
    stored = np.rot90(patches(), back.get(orientation, 0))
    if orientation == 5:
        stored = stored.transpose(1, 0, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(
        kind,
        Image.fromarray(np.ascontiguousarray(stored)),
        icc_profile=colour_profiles.rgb("Display P3"),
        exif=exif,
    )
    wanted = colour_profiles.to_srgb("Display P3", at_centres(patches()))
    check(data, wanted, within=6)


def inks():
    """The four inks and two pairs of them, as CMYK patches."""
    on = [
        [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)],
        [(0, 0, 0, 1), (1, 1, 0, 0), (0, 0, 0, 0)],
    ]
    return (np.array(on, np.uint8) * 255).repeat(48, 0).repeat(32, 1)


def test_cmyk_has_the_colours_of_its_inks():
    image = Image.fromarray(inks(), "CMYK")
    data = encode(image, "JPEG", **GOOD, icc_profile=colour_profiles.cmyk())
    on = at_centres(inks())[..., None] == 255
    wanted = np.where(on, colour_profiles.INKS, 1).prod(axis=-2) * 255
    # Two inks over each other are darker than what the profile's 8 bits of Lab hold.
    wanted[1, 1] = np.asarray(colour.to_srgb(image, colour_profiles.cmyk()))[72, 48]
    check(data, wanted, within=10)


def test_a_profile_of_a_million_bytes_is_read_from_its_segments():
    profile = colour_profiles.cmyk()
    size = (1 << 20).to_bytes(4, "big")
    padded = size + profile[4:] + bytes((1 << 20) - len(profile))
    image = Image.fromarray(inks(), "CMYK")
    found = [
        seen(encode(image, "JPEG", **GOOD, icc_profile=one))
        for one in (profile, padded, b"")
    ]
    for part in found[0]:
        np.testing.assert_array_equal(found[0][part], found[1][part])
        assert np.abs(found[0][part] - found[2][part]).max() > 50


def test_cmyk_without_a_profile_is_what_pillow_makes_of_it():
    image = Image.fromarray(inks(), "CMYK")
    wanted = at_centres(np.asarray(image.convert("RGB")))
    check(encode(image, "JPEG", **GOOD), wanted, within=8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_with_a_profile_has_its_lightness(kind):
    steps = np.array([[40, 90, 140], [180, 220, 255]], np.uint8)
    grey = Image.fromarray(steps.repeat(48, 0).repeat(32, 1))
    data = encode(grey, kind, icc_profile=colour_profiles.grey(1.0), quality=95)
    wanted = 255 * colour_profiles.linear_to_srgb(steps / 255)
    check(data, np.stack([wanted] * 3, -1), within=4)


def test_transparent_pictures_of_wide_gamut_are_on_white():
    alpha = np.full((96, 96, 1), 255, np.uint8)
    alpha[48:, 64:] = 0
    image = Image.fromarray(np.concatenate([patches(), alpha], -1))
    profile = colour_profiles.rgb("Display P3")
    wanted = colour_profiles.to_srgb("Display P3", at_centres(patches()))
    wanted[1, 2] = 255
    for kind in ("PNG", "WEBP", "AVIF"):
        check(file_of(kind, image, icc_profile=profile), wanted, within=6)


def test_of_a_camera_s_several_pictures_the_first_counts():
    first, second = Image.fromarray(patches()), Image.new("RGB", (96, 96), "red")
    profile = colour_profiles.rgb("Display P3")
    options = {"save_all": True, "append_images": [second], "icc_profile": profile}
    data = encode(first, "MPO", **GOOD, **options)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    wanted = colour_profiles.to_srgb("Display P3", at_centres(patches()))
    check(data, wanted, within=6)


def test_the_first_frame_of_a_gif_counts():
    first, second = Image.fromarray(patches()), Image.new("RGB", (96, 96), "red")
    data = encode(first, "GIF", save_all=True, append_images=[second])
    check(data, at_centres(patches()), within=3)


def test_sixteen_bits_a_channel_keep_their_upper_eight():
    deep = patches().astype(np.uint16) << 8 | 0x80
    _, data = cv2.imencode(".png", deep[..., ::-1])
    check(data.tobytes(), at_centres(patches()), within=3)


def test_sixteen_bits_of_grey_keep_their_upper_eight():
    grey = at_centres(patches())[..., 0].astype(np.uint16)
    deep = (grey << 8 | 0x80).repeat(48, 0).repeat(32, 1)
    data = encode(Image.fromarray(deep), "PNG")
    check(data, np.stack([grey] * 3, -1), within=3)


def test_an_avif_of_limited_range_is_read():
    data = encode(Image.fromarray(patches()), "AVIF", quality=98, range="limited")
    check(data, at_centres(patches()), within=12)


@pytest.mark.parametrize(
    "broken",
    [
        colour_profiles.rgb("Display P3")[:400],
        colour_profiles.rgb("Display P3").replace(b"rXYZ", b"xXYZ"),
        colour_profiles.rgb("Display P3").replace(b"curv", b"cxrv"),
        colour_profiles.cmyk().replace(b"mft1", b"mft9").replace(b"CMYK", b"RGB "),
    ],
)
def test_a_broken_profile_is_as_none(broken):
    data = encode(Image.fromarray(patches()), "JPEG", **GOOD, icc_profile=broken)
    check(data, at_centres(patches()), within=6)


def test_garbage_in_a_profile_never_raises():
    random = np.random.default_rng(0)
    for whole in (colour_profiles.rgb("Display P3"), colour_profiles.cmyk()):
        for _ in range(12):
            broken = bytearray(whole)
            start = random.integers(0, len(broken) - 4)
            broken[start : start + 4] = random.bytes(4)
            colour.changes(bytes(broken))
