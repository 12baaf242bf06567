"""Image preprocessing in the config files of transformers and open_clip.

Every field is applied or refused by name: with other preprocessing than in training, a
model is less accurate, and nothing shows it.
"""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from metaclip_jax.data.images import Preprocess
from metaclip_jax.models import clip, siglip, vit

# The defaults of transformers' classes for fields that a file lacks. A null in the file
# overrides the default; for a boolean, null means false.
_COMMON: dict[str, Any] = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": False,
    "default_to_square": False,
    "use_square_size": False,
}
_CLASSES: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _COMMON
    | {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "image_mean": vit.IMAGE_MEAN.tolist(),
        "image_std": vit.IMAGE_STD.tolist(),
    },
    "SiglipImageProcessor": _COMMON
    | {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "crop_size": None,
        "image_mean": siglip.IMAGE_MEAN.tolist(),
        "image_std": siglip.IMAGE_STD.tolist(),
    },
}
# The only values that are supported.
_FIXED = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": False,
    "use_square_size": False,
}
# These fields change no pixel of an RGB image. For other images, transformers fails
# without do_convert_rgb.
_WITHOUT_EFFECT = {
    "do_convert_rgb",
    "data_format",
    "input_data_format",
    "processor_class",
    "image_processor_type",
    "feature_extractor_type",
    "transformers_version",
    "_valid_processor_keys",
    "_name_or_path",
    "device",
    "disable_grouping",
    "image_seq_length",
    "pad_size",
    "return_tensors",
}
_OPEN_CLIP_FIELDS = {"size", "mode", "mean", "std", "interpolation", "resize_mode"}
# Our own field, which both libraries ignore: how the centre crop rounds half of an odd
# margin, for a model that was made with the other library. Keys: even_margins.
_CROP = "crop_rounding"
_ROUNDINGS = {False: "down", True: "even"}
_OPEN_CLIP_FILTERS = {"bilinear": 2, "bicubic": 3}


def read_huggingface(
    written: Mapping[str, Any], architecture: clip.Architecture, *, file: str
) -> Preprocess:
    """Returns the preprocessing that a preprocessor_config.json describes.

    Args:
      written: the file's object, or "image_processor" of a processor_config.json.
      architecture: of the model.
      file: for messages.

    Raises:
      ValueError: a field has a value that we do not support; the message names it.
    """
    values = _class_defaults(written, architecture, file)
    even = _even_margins(file, written, default=False)
    written = {key: value for key, value in written.items() if key != _CROP}
    given = {key for key, value in written.items() if value is not None}
    unknown = sorted(given - set(values) - _WITHOUT_EFFECT)
    if unknown:
        _refuse(file, unknown[0], "no such field", written[unknown[0]])
    values = {**values, **written}
    for field in (*_FIXED, "do_center_crop", "default_to_square"):
        value = False if values[field] is None else values[field]
        if not isinstance(value, bool) or value != _FIXED.get(field, value):
            _refuse(file, field, _FIXED.get(field, "true or false"), values[field])
    factor = values["rescale_factor"]
    if not _is_number(factor) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        _refuse(file, "rescale_factor", 1 / 255, factor)
    mean, std = statistics(architecture)
    _check_channels(file, "image_mean", mean, values["image_mean"])
    _check_channels(file, "image_std", std, values["image_std"])
    resample = values["resample"]
    if type(resample) is not int or resample not in set(Image.Resampling):
        filters = {kind.value: kind.name.lower() for kind in Image.Resampling}
        _refuse(file, "resample", f"one of {filters}", resample)
    shape = _shape(values, architecture.image_size, file)
    return shape._replace(
        resample=resample, even_margins=even and bool(values["do_center_crop"])
    )


def _even_margins(file: str, written: Mapping[str, Any], *, default: bool) -> bool:
    value = written[_CROP] if _CROP in written else _ROUNDINGS[default]
    if value not in _ROUNDINGS.values():
        _refuse(file, _CROP, " or ".join(_ROUNDINGS.values()), value)
    return bool(value == _ROUNDINGS[True])


def _class_defaults(
    given: Mapping[str, Any], architecture: clip.Architecture, file: str
) -> dict[str, Any]:
    """Returns the defaults of the file's image processor class."""
    for field in ("image_processor_type", "feature_extractor_type"):
        if given.get(field) is not None:
            name = str(given[field]).replace("FeatureExtractor", "ImageProcessor")
            name = name.removesuffix("Fast").removesuffix("Pil")
            if name not in _CLASSES:
                _refuse(file, field, " or ".join(_CLASSES), given[field])
            return _CLASSES[name]
    own = "Siglip" if architecture.family == "siglip" else "CLIP"
    return _CLASSES[f"{own}ImageProcessor"]


def _shape(values: Mapping[str, Any], size: int, file: str) -> Preprocess:
    """Returns the resize and crop that give an image of `size` x `size` pixels."""
    height, width = _sides(
        values["size"], file, "size", bool(values["default_to_square"])
    )
    if not values["do_center_crop"]:
        if height is None:
            _refuse(file, "do_center_crop", "true, with size.shortest_edge", False)
        if (height, width) != (size, size):
            _refuse(file, "size", f"{size} x {size}, as the model", values["size"])
        return Preprocess(size, squash=True)
    if _sides(values["crop_size"], file, "crop_size", True) != (size, size):
        _refuse(
            file, "crop_size", f"{size} x {size}, as the model", values["crop_size"]
        )
    if width < size or height not in (None, width):
        _refuse(file, "size", f"{size} pixels or more, or a square", values["size"])
    shortest = 0 if width == size else width
    return Preprocess(size, squash=height is not None, shortest=shortest)


def _sides(value: Any, file: str, field: str, square: bool) -> tuple[int | None, int]:
    """Returns (height, width), or (None, shortest side) if the aspect ratio is kept."""
    if type(value) is int:
        value = [value, value] if square else {"shortest_edge": value}
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    known = ({"height", "width"}, {"shortest_edge"})
    if not isinstance(value, dict) or set(value) not in known:
        _refuse(file, field, "height and width, or shortest_edge", value)
    if any(type(side) is not int or side < 1 for side in value.values()):
        _refuse(file, field, "whole pixels, at least 1", value)
    if "shortest_edge" in value:
        return None, value["shortest_edge"]
    return value["height"], value["width"]


def write_huggingface(
    preprocess: Preprocess, architecture: clip.Architecture
) -> dict[str, Any]:
    """Returns transformers' preprocessor_config.json."""
    resized = preprocess.shortest or preprocess.size
    crop = {"height": preprocess.size, "width": preprocess.size}
    both = {"height": resized, "width": resized}
    mean, std = statistics(architecture)
    rounding = {_CROP: _ROUNDINGS[True]} if preprocess.even_margins else {}
    return rounding | {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": both if preprocess.squash else {"shortest_edge": resized},
        "resample": preprocess.resample,
        "do_center_crop": not preprocess.squash or both != crop,
        "crop_size": crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": True,
    }


def read_open_clip(
    written: Mapping[str, Any], architecture: clip.Architecture, *, file: str
) -> Preprocess:
    """Returns the preprocessing that open_clip's `preprocess_cfg` describes.

    Raises:
      ValueError: a field has a value that we do not support; the message names it.
    """
    values = {key: value for key, value in written.items() if value is not None}
    values.pop("fill_color", None)  # used by resize_mode "longest" only
    even = _even_margins(file, values, default=True)
    values.pop(_CROP, None)
    unknown = sorted(set(values) - _OPEN_CLIP_FIELDS)
    if unknown:
        _refuse(file, unknown[0], "no such field", values[unknown[0]])
    size = architecture.image_size
    if values.get("size", size) not in (size, [size, size]):
        _refuse(file, "size", f"{size}, as the model's image_size", values["size"])
    for field, known in (
        ("mode", ("RGB",)),
        ("resize_mode", ("shortest", "squash")),
        ("interpolation", tuple(_OPEN_CLIP_FILTERS)),
    ):
        if field in values and values[field] not in known:
            _refuse(file, field, " or ".join(known), values[field])
    for field, channels in zip(("mean", "std"), statistics(architecture), strict=True):
        _check_channels(file, field, channels, values.get(field, channels))
    squash = values.get("resize_mode") == "squash"
    return Preprocess(
        size,
        squash=squash,
        even_margins=even and not squash,
        resample=_OPEN_CLIP_FILTERS[values.get("interpolation", "bicubic")],
    )


def write_open_clip(
    preprocess: Preprocess, architecture: clip.Architecture
) -> dict[str, Any]:
    """Returns the `preprocess_cfg` of an open_clip_config.json.

    Raises:
      ValueError: open_clip does not support this preprocessing.
    """
    names = {number: name for name, number in _OPEN_CLIP_FILTERS.items()}
    if preprocess.shortest or preprocess.resample not in names:
        raise ValueError(
            "open_clip's preprocessing must resize to the model's image size with a"
            f" bicubic or bilinear filter, got {preprocess}; use Hugging Face's format"
        )
    mean, std = statistics(architecture)
    down = not preprocess.squash and not preprocess.even_margins
    return ({_CROP: _ROUNDINGS[False]} if down else {}) | {
        "mean": mean,
        "std": std,
        "interpolation": names[preprocess.resample],
        "resize_mode": "squash" if preprocess.squash else "shortest",
    }


def statistics(architecture: clip.Architecture) -> list[list[float]]:
    """Returns the channels' means and standard deviations, rounded as published."""
    known = clip.image_statistics(architecture)
    return [[round(float(value), 8) for value in values] for values in known]


def _check_channels(file: str, field: str, wanted: list[float], got: Any) -> None:
    """Refuses other statistics than the family's, by which the device normalises."""
    three = got if isinstance(got, list) else [got] * 3
    right = len(three) == 3 and all(_is_number(value) for value in three)
    if not right or not np.allclose(three, wanted, rtol=0, atol=1e-6):
        _refuse(file, field, wanted, got)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(file: str, field: str, wanted: Any, got: Any) -> NoReturn:
    raise ValueError(
        f"{file}: wanted {field} {wanted!r}, got {got!r}; other preprocessing is not"
        " supported"
    )
