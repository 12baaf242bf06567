"""Labelled images to classify: a folder class/image, or a TFDS data source."""

import os

import numpy as np
import tensorflow_datasets as tfds

from metaclip_jax import files
from metaclip_jax.evaluation import prompts
from metaclip_jax.evaluation.examples import Examples

_SUFFIXES = tuple(
    f".{kind}" for kind in "avif bmp gif jpeg jpg png ppm tif tiff webp".split()
)
# What TFDS calls the classes of an image: one, or a list.
_ONE, _SEVERAL = "label", "labels"


def from_folder(folder: str, asked: prompts.Prompts) -> Examples:
    """Images as FOLDER/CLASS/IMAGE; a folder's name says its class.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a class has no image, or is none of the prompts' classes.
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
    named = prompts.match_classes(folder, classes, asked)
    return Examples(
        source=folder,
        names=[os.path.relpath(path, folder) for path in paths],
        read=lambda rows: [paths[row] for row in rows],
        class_names=named.class_names,
        templates=asked.templates,
        labels=named.label_of[np.array(labels)],
    )


def from_tfds(
    name: str, split: str, asked: prompts.Prompts, *, data_dir: str | None = None
) -> Examples:
    """A TFDS data source with `image` and `label` (or `labels`) features.

    Args:
      name: of a registered dataset ("cifar10"), or a folder that TFDS prepared.
      split: for example "test".
      asked: how the classes are named; by default as TFDS names them.
      data_dir: where TFDS keeps datasets; None = its default.

    Raises:
      ValueError: a feature is missing or of another kind, the split has no labels, or
        a label is none of the prompts' classes.
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
    named = prompts.match_classes(name, list(feature.names), asked)
    ordered = np.zeros((count, len(named.class_names)), bool)
    ordered[:, named.label_of] = positive
    return Examples(
        source=name,
        names=[f"{name}/{split}/{place}" for place in range(count)],
        read=lambda rows: [source[int(row)]["image"] for row in rows],
        class_names=named.class_names,
        templates=asked.templates,
        labels=ordered.argmax(axis=1) if key == _ONE else ordered,
    )
