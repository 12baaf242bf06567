"""Labelled images to classify: a folder class/image, a TFDS data source, a dataset.

All give the same thing: images that are read when they are asked for, the classes' own
names, and each image's classes.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from metaclip_jax import files
from metaclip_jax.data import records
from metaclip_jax.evaluation import prompts
from metaclip_jax.evaluation.held_out import HeldOut

_SUFFIXES = tuple(
    f".{kind}" for kind in "avif bmp gif jpeg jpg png ppm tif tiff webp".split()
)
# What TFDS calls the classes of an image: one, or a list.
_ONE, _SEVERAL = "label", "labels"


class Labelled(NamedTuple):
    """N images with classes among K.

    names: N names for messages and answers. read: places int[n] to n images as
    `Encoder.encode_images` takes them. class_names: K tuples of names.
    positive: bool[N, K]; `exclusive` says that each image has exactly one class.
    """

    names: Sequence[str]
    read: Callable[[np.ndarray], list[Any]]
    class_names: tuple[tuple[str, ...], ...]
    positive: np.ndarray
    exclusive: bool


def from_folder(folder: str, asked: prompts.Prompts) -> Labelled:
    """Images as FOLDER/CLASS/IMAGE; labels are the sorted folder names' places.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a class has no image, or the prompts name other classes.
    """
    root = files.path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    classes = sorted(p.name for p in root.iterdir() if p.is_dir())
    classes = [name for name in classes if not name.startswith(".")]
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            os.fspath(p)
            for p in (root / name).iterdir()
            if p.name.lower().endswith(_SUFFIXES)
        )
        if not found:
            raise ValueError(
                f"{root / name} holds no image ({', '.join(_SUFFIXES)}); remove it, or"
                " add some"
            )
        paths += found
        labels += [label] * len(found)
    if len(classes) < 2:
        raise ValueError(
            f"{folder}: want at least 2 folders, one per class, got {classes}"
        )
    return Labelled(
        names=[os.path.relpath(path, folder) for path in paths],
        read=lambda places: [paths[place] for place in places],
        class_names=_named(folder, classes, asked),
        positive=_one_hot(np.array(labels), len(classes)),
        exclusive=True,
    )


def from_tfds(
    name: str, split: str, asked: prompts.Prompts, *, data_dir: str | None = None
) -> Labelled:
    """A TFDS data source with `image` and `label` (or `labels`) features.

    Args:
      name: of a registered dataset ("cifar10"), or a folder that TFDS prepared.
      split: for example "test".
      asked: how the classes are named; by default as TFDS names them.
      data_dir: where TFDS keeps datasets; None = its default.

    Raises:
      ValueError: a feature is missing or of another kind, the split has no labels, or
        the prompts name other classes.
    """
    if files.path(name).is_dir():
        builder = tfds.builder_from_directory(name)
    else:
        builder = tfds.builder(name, data_dir=data_dir)
    features = builder.info.features
    key = next((k for k in (_ONE, _SEVERAL) if k in features), None)
    if "image" not in features or key is None:
        raise ValueError(
            f"{name}: want the features image and label (or labels), got"
            f" {sorted(features)}"
        )
    feature = features[key] if key == _ONE else features[key].feature
    if not isinstance(feature, tfds.features.ClassLabel):
        raise ValueError(f"{name}: want {key} to be of classes, got {feature}")
    skip = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split=split, decoders=skip)
    count = len(source)
    positive = np.zeros((count, feature.num_classes), bool)
    for place in range(count):
        labels = np.atleast_1d(source[place][key]).astype(np.int64)
        wrong = labels[(labels < 0) | (labels >= feature.num_classes)]
        if wrong.size:
            raise ValueError(
                f"{name}: want {key} from 0 to {feature.num_classes - 1}, got"
                f" {wrong[0]} for example {place} of the split {split!r}. TFDS writes"
                " -1 where labels are hidden: this split has no labels, give --split"
                " one that has"
            )
        positive[place, labels] = True
    if not positive.any():
        raise ValueError(
            f"{name}: want {key} in the split {split!r}, got none in its {count}"
            " examples: this split has no labels, give --split one that has"
        )
    return Labelled(
        names=[f"{name}/{split}/{place}" for place in range(count)],
        read=lambda places: [source[int(place)]["image"] for place in places],
        class_names=_named(name, list(feature.names), asked),
        positive=positive,
        exclusive=key == _ONE,
    )


def from_held_out(held_out: HeldOut, asked: prompts.Prompts | None = None) -> Labelled:
    """The images of a curated dataset that its zero_shot.json labels.

    Raises:
      ValueError: it has no zero_shot.json.
    """
    task, dataset = held_out.task, held_out.dataset
    if task is None:
        raise ValueError(
            f"{dataset.folder}: want a zero_shot.json that says which classes the"
            " images have"
        )
    class_names = task.class_names
    if asked is not None and asked.class_names is not None:
        first = [names[0] for names in task.class_names]
        class_names = _named(dataset.folder, first, asked)

    def read(places: np.ndarray) -> list[Any]:
        positions = held_out.positions[held_out.labelled[places]]
        return [records.decode(d).image for d in records.read(dataset, positions)]

    return Labelled(
        names=[held_out.image_ids[row] for row in held_out.labelled],
        read=read,
        class_names=class_names,
        positive=_one_hot(held_out.labels, len(class_names)),
        exclusive=True,
    )


def _named(
    where: str, labels: list[str], asked: prompts.Prompts
) -> tuple[tuple[str, ...], ...]:
    """The classes' names in the order of the labels."""
    if asked.class_names is None:
        return tuple((label.replace("_", " "),) for label in labels)
    if isinstance(asked.class_names, dict):
        missing = [label for label in labels if label not in asked.class_names]
        if missing:
            raise ValueError(
                f"{where}: the prompts' class_names lack {missing[:5]}"
                f" ({len(missing)} of {len(labels)} classes)"
            )
        return tuple(asked.class_names[label] for label in labels)
    if len(asked.class_names) != len(labels):
        raise ValueError(
            f"{where}: want class_names of {len(labels)} classes ({labels[:5]}, ...),"
            f" got {len(asked.class_names)}"
        )
    return asked.class_names


def _one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return labels[:, None] == np.arange(classes)[None, :]
