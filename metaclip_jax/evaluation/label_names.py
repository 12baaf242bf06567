"""What data sets call the paper's classes: names of folders, and TFDS's order.

A data set's own label is matched with its class by these names.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# A class's names in the paper's prompts.
Names = tuple[str, ...]

_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_EUROSAT = (
    "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop"
    " Residential River SeaLake"
).split()
_FER2013 = "angry disgust fear happy neutral sad surprise".split()
# VISSL's folders: less than 8 m to the closest vehicle, less than 20 m, more, none.
_KITTI = "below_8 below_20 above_20 no_vehicle".split()
_PCAM = "no_tumor tumor".split()  # VISSL's
# ISO 3166-1, with XK for Kosovo.
_COUNTRIES = """
AD AE AF AG AI AL AM AO AQ AR AT AU AW AX AZ BA BB BD BE BF BG BH BJ BM BN BO BQ BR BS
BT BW BY BZ CA CD CF CH CI CK CL CM CN CO CR CU CV CW CY CZ DE DK DM DO DZ EC EE EG ES
ET FI FJ FK FO FR GA GB GD GE GF GG GH GI GL GM GP GR GS GT GU GY HK HN HR HT HU ID IE
IL IM IN IQ IR IS IT JE JM JO JP KE KG KH KN KP KR KW KY KZ LA LB LC LI LK LR LT LU LV
LY MA MC MD ME MF MG MK ML MM MN MO MQ MR MT MU MV MW MX MY MZ NA NC NG NI NL NO NP NZ
OM PA PE PF PG PH PK PL PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK
SL SM SN SO SS SV SX SY SZ TG TH TJ TL TM TN TO TR TT TW TZ UA UG US UY UZ VA VE VG VI
VN VU WS XK YE ZA ZM ZW
""".split()
# TFDS's label -> the paper's class, where the names do not match.
_SWAPS = {"food101": (16, 17), "sun397": (206, 207)}
_CALTECH_FIRST = {0: 5, 1: 6, 2: 7, 3: 8, 4: 0, 37: 1, 38: 2, 57: 3, 66: 4}


def with_others(task_id: str, classes: Sequence[Names]) -> tuple[Names, ...]:
    """Returns the names of each class with those of the data set's own folders.

    Args:
      task_id: of the paper's tasks.
      classes: the names of its classes.
    """
    others = _others(task_id, classes)
    if not others:
        return tuple(classes)
    pairs = zip(classes, others, strict=True)
    return tuple((*names, *more) for names, more in pairs)


def _others(task_id: str, classes: Sequence[Names]) -> list[Names]:
    first = [names[0] for names in classes]
    match task_id:
        case "caltech101":
            labels = _of_tfds("caltech101_labels.txt")
            order = tfds_order(task_id, classes)
            return [(labels[label],) for label in np.argsort(order)]
        case "clevr_counts":  # numbers in words, and VISSL's
            return [(_NUMBERS[int(count)], f"count_{count}") for count in first]
        case "country211":
            return [(code,) for code in _COUNTRIES]
        case "cub200":
            return [(f"{n:03d}.{name}",) for n, name in enumerate(first, 1)]
        case "eurosat":
            return [(name,) for name in _EUROSAT]
        case "fer2013":
            return [(name,) for name in _FER2013]
        case "flowers102":  # folders 1 to 102, which do not sort as texts
            return [(str(n),) for n in range(1, 103)]
        case "gtsrb":
            return [(f"{n:05d}", str(n)) for n in range(43)]
        case "imagenet":  # WordNet's synsets, whose sorting is ImageNet's order
            synsets = sorted(_of_tfds("imagenet_resized_labels.txt"))
            return [(synset,) for synset in synsets]
        case "kitti_distance":
            return [(name,) for name in _KITTI]
        case "pcam":
            return [(name,) for name in _PCAM]
        case "stanford_cars":  # VISSL's
            return [(f"{n:03d}_{name}",) for n, name in enumerate(first)]
        case "sun397":  # folders in folders of a letter
            return [(f"{name[0]}/{name}",) for name in first]
    return []


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
