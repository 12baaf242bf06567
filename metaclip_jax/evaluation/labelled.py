"""Labelled images for classification: a folder CLASS/IMAGE, or a TFDS dataset."""

import os
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging
from etils import epath

from metaclip_jax import files
from metaclip_jax.evaluation import prompts
from metaclip_jax.evaluation.examples import Examples

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

SUFFIXES = tuple(
    f".{kind}"
    for kind in (
        "avif bmp gif jfif jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
    ).split()
)
# TFDS's features for an image's class or classes.
_ONE, _SEVERAL = "label", "labels"
# Folders of operating systems, which are skipped like hidden ones.
_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}


def from_folder(folder: str, asked: prompts.Prompts) -> Examples:
    """Opens FOLDER/CLASS/.../IMAGE; a folder's name is its class.

    Hidden files are skipped (macOS writes ._x.png for x.png). Other files without an
    image's name are skipped and counted in a warning.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a class has no image, or is not one of the prompts' classes.
    """
    root = files.path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; correct the path")
    inside = sorted(p for p in root.iterdir() if not _is_hidden(p))
    tops = [p.name for p in inside if p.is_dir()]
    if tops and _SPLITS.issuperset(name.lower() for name in tops):
        raise ValueError(
            f"{folder}: wanted one folder per class, got the splits {tops}; give one"
            f" of them, like {root / tops[0]}"
        )
    known = prompts.known_labels(asked)
    left_out = [p for p in inside if p.name not in tops]
    paths: list[str] = []
    names: list[str] = []
    empty: list[epath.Path] = []
    for top in tops:
        count = len(paths)
        for path in _files(root / top):
            if path.name.lower().endswith(SUFFIXES):
                paths.append(os.fspath(path))
                names.append(_class_of(path.relative_to(root).parts[:-1], known))
            else:
                left_out.append(path)
        empty += [root / top] if len(paths) == count else []
    classes = sorted(set(names))
    if max(len(tops), len(classes)) < 2:
        raise ValueError(
            f"{folder}: wanted at least 2 folders, one per class, got {tops}"
        )
    if empty:
        raise ValueError(
            f"{empty[0]} holds no image ({', '.join(SUFFIXES)}); remove it, or add some"
        )
    if left_out:
        logging.warning(
            "%s: skipped %d files without the name of an image, for example %r",
            folder,
            len(left_out),
            os.fspath(left_out[0]),
        )
    examples = Examples(
        source=folder,
        names=[os.path.relpath(path, folder) for path in paths],
        read=lambda rows: [paths[row] for row in rows],
    )
    labels = np.searchsorted(classes, names)
    return prompts.with_classes(examples, classes, labels, asked)


def _class_of(folders: Sequence[str], known: Collection[str]) -> str:
    """Returns the name of an image's class: the first folder, or a/abbey if known."""
    for depth in range(1, len(folders) + 1):
        name = "/".join(folders[:depth])
        if prompts.plain(name) in known:
            return name
    return folders[0]


def folder_of_classes(folder: str, splits: Sequence[str]) -> str:
    """Returns the folder of the classes, which may lie deeper.

    It is the first of `splits` that is there, and an only folder is entered: archives
    often have a folder of their own.

    Args:
      folder: to look in.
      splits: names of splits, the best first.
    """
    root = files.path(folder)
    while True:
        inside = _folders(root)
        splits_here = [inside[name] for name in splits if name in inside]
        alone = list(inside.values()) if len(inside) == 1 else []
        deeper = splits_here or [path for path in alone if _folders(path)]
        if not deeper:
            return os.fspath(root)
        root = deeper[0]


def _folders(root: epath.Path) -> dict[str, epath.Path]:
    """Returns the folders in a folder, by their names in small letters."""
    inside = (p for p in root.iterdir() if not _is_hidden(p))
    return {p.name.lower(): p for p in inside if p.is_dir()}


def _is_hidden(path: epath.Path) -> bool:
    return path.name.startswith(".") or path.name in _SYSTEMS


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """Yields all files below a folder, sorted, without hidden ones.

    Raises:
      ValueError: a link leads to a folder around it, whose images would come again.
    """
    for path in sorted(folder.iterdir()):
        if _is_hidden(path):
            continue
        # Do not call is_dir for images, which would be slow on gs://.
        if not path.name.lower().endswith(SUFFIXES) and path.is_dir():
            target, inside = (f"{os.path.realpath(p)}/" for p in (path, folder))
            if os.path.islink(path) and inside.startswith(target):
                raise ValueError(
                    f"{path} links to {target}, around it; remove the link"
                )
            yield from _files(path)
        else:
            yield path


def _builder(name: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    """Returns TFDS's builder of a prepared dataset.

    Raises:
      FileNotFoundError: there is neither such a folder nor such a prepared dataset.
    """
    import tensorflow_datasets as tfds  # a slow import that few folders need

    path = files.path(name)
    if path.is_dir():
        return tfds.builder_from_directory(name)
    if path.exists():
        raise FileNotFoundError(
            f"wanted a folder or a TFDS dataset, got the file {name}; give its folder"
        )
    if data_dir and not files.path(data_dir).is_dir():
        raise FileNotFoundError(
            f"there is no folder --data_dir={data_dir}; correct the path"
        )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            f"wanted a folder or a TFDS dataset, got {name}, which is neither;"
            " correct it"
        ) from error
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"there is no folder {name}, and TFDS's dataset of this name is not"
            f" prepared in {builder.data_path}. Prepare it where TensorFlow is"
            f" installed, by `tfds build {name} --file_format=array_record`, or give"
            " its folder by --data_dir"
        )
    return builder


def from_tfds(
    name: str,
    split: str,
    asked: prompts.Prompts,
    *,
    data_dir: str | None = None,
    order: Sequence[int] = (),
) -> Examples:
    """Opens a TFDS dataset with the features `image` and `label` (or `labels`).

    Args:
      name: of a registered dataset ("cifar10"), or a folder that TFDS prepared.
      split: for example "test".
      asked: the prompts; their default is TFDS's class names.
      data_dir: TFDS's folder of datasets; None = its default.
      order: the class of each of TFDS's labels, if their names do not match; () = match
        by name.

    Raises:
      FileNotFoundError: there is no such folder or prepared dataset.
      ValueError: a feature is missing or of another kind, the split has no labels, or
        a label is not one of the prompts' classes.
    """
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir)
    features = builder.info.features
    key = next((k for k in (_ONE, _SEVERAL) if k in features), None)
    if "image" not in features or key is None:
        raise ValueError(
            f"{name}: wanted the features image and label (or labels), got"
            f" {sorted(features)}"
        )
    feature = features[key] if key == _ONE else features[key].feature
    if not isinstance(feature, tfds.features.ClassLabel):
        raise ValueError(f"{name}: wanted {key} to be of classes, got {feature}")
    try:
        _ = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{name}: wanted --split one of {', '.join(builder.info.splits)}, got"
            f" {split!r}"
        ) from error
    skip = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split=split, decoders=skip)
    count = len(source)
    positive = np.zeros((count, feature.num_classes), bool)
    for place in range(count):
        labels = np.atleast_1d(source[place][key]).astype(np.int64)
        wrong = labels[(labels < 0) | (labels >= feature.num_classes)]
        if wrong.size:
            raise ValueError(
                f"{name}: wanted {key} from 0 to {feature.num_classes - 1}, got"
                f" {wrong[0]} for example {place} of the split {split!r}. TFDS writes"
                " -1 for hidden labels: this split has no labels, so give another"
                " --split"
            )
        positive[place, labels] = True
    if not positive.any():
        raise ValueError(
            f"{name}: wanted {key} in the split {split!r}, got none in its {count}"
            " examples: this split has no labels, so give another --split"
        )
    if len(order):
        if len(order) != feature.num_classes:
            raise ValueError(
                f"{name}: wanted {len(order)} classes, got {feature.num_classes};"
                " prepare the task's own dataset"
            )
        keys = tuple((feature.names[k],) for k in np.argsort(order))
        asked = asked._replace(keys=keys)
    examples = Examples(
        source=name,
        names=[f"{name}/{split}/{place}" for place in range(count)],
        read=lambda rows: [source[int(row)]["image"] for row in rows],
    )
    labels = positive.argmax(axis=1) if key == _ONE else positive
    return prompts.with_classes(examples, list(feature.names), labels, asked)
