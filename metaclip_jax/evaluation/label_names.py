"""What data sets call the paper's classes: names of folders, and TFDS's order.

A data set's own label is matched with its class by these names.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

# A class's names in the paper's prompts.
Names = tuple[str, ...]

_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_EUROSAT = (
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop"
    " Residential River SeaLake"
).split()
# TFDS's label -> the paper's class, where the names do not match.
_SWAPS = {"food101": (16, 17), "sun397": (206, 207)}
_CALTECH_FIRST = {0: 5, 1: 6, 2: 7, 3: 8, 4: 0, 37: 1, 38: 2, 57: 3, 66: 4}


def with_others(task_id: str, classes: Sequence[Names]) -> tuple[Names, ...]:
    """Returns the names of each class with those of the data set's own folders.

    Args:
      task_id: of the paper's tasks.
      classes: the names of its classes.
    """
    others: list[str] = []
    if task_id == "clevr_counts":  # numbers in words
        others = [_NUMBERS[int(names[0])] for names in classes]
    if task_id == "flowers102":  # folders 1 to 102, which do not sort as texts
        others = [str(n) for n in range(1, 103)]
    if task_id == "cub200":
        others = [f"{n:03d}.{names[0]}" for n, names in enumerate(classes, 1)]
    if task_id == "gtsrb":
        others = [f"{n:05d}" for n in range(43)]
    if task_id == "eurosat":
        others = _EUROSAT
    if task_id == "imagenet":  # WordNet's synsets, whose sorting is ImageNet's order
        others = sorted(_of_tfds("imagenet_resized_labels.txt"))
    if task_id == "caltech101":
        others = [""] * len(classes)
        labels = _of_tfds("caltech101_labels.txt")
        for label, place in zip(labels, tfds_order(task_id, classes), strict=True):
            others[place] = label
    if not others:
        return tuple(classes)
    pairs = zip(classes, others, strict=True)
    return tuple((*names, other) for names, other in pairs)


def tfds_order(task_id: str, classes: Sequence[Names]) -> list[int]:
    """Returns the paper's class of each of TFDS's labels; see `with_others`."""
    order = list(range(len(classes)))
    if task_id in _SWAPS:
        one, other = _SWAPS[task_id]
        order[one], order[other] = other, one
    if task_id == "oxford_pets":  # in the paper, cats (with a capital letter) are first
        order.sort(key=lambda k: classes[k][0].casefold())
    if task_id == "caltech101":  # in the paper, the background and both faces are first
        rest = iter(k for k in range(102) if k not in _CALTECH_FIRST.values())
        order = [
            _CALTECH_FIRST[k] if k in _CALTECH_FIRST else next(rest) for k in range(102)
        ]
    return order


def _of_tfds(file: str) -> list[str]:
    """Returns a list of labels that TFDS has, without importing it."""
    found = importlib.util.find_spec("tensorflow_datasets")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("wanted tensorflow_datasets, got none; install it")
    path = Path(found.origin).parent / "image_classification" / file
    return path.read_text().split()
