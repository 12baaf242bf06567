"""Zero-shot tasks and prompts: class names, templates and labels in a JSON file.

    {"class_names": ["cat", ["car", "automobile"], ...],
     "templates": ["a photo of a {}.", ...],
     "labels": {"IMAGE_ID": 0, ...}}

A class may have several names; each is inserted into each template.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metaclip_jax import files
from metaclip_jax.evaluation.examples import UNLABELLED, Examples

SLOT = "{}"
DEFAULT_TEMPLATES = ("a photo of a {}.",)


def prompts(names: tuple[str, ...], templates: tuple[str, ...]) -> list[str]:
    """Returns the prompts of one class: all names for the first template, and so on."""
    return [template.replace(SLOT, name) for template in templates for name in names]


class Prompts(NamedTuple):
    """The class names and templates of a task, without labels.

    Attributes:
      class_names: one tuple of names per class; () = the data set's own names.
      templates: prompts with {} for the name.
      keys: the data set's names of each class, if they are not in class_names.
    """

    class_names: tuple[tuple[str, ...], ...] = ()
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    keys: tuple[tuple[str, ...], ...] = ()

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """The data set's names of each class; () = its own names are taken."""
        return self.keys or self.class_names


class Named(NamedTuple):
    """The names of K classes, and int64[n], the class of each label."""

    class_names: tuple[tuple[str, ...], ...]
    label_of: np.ndarray


def with_classes(
    examples: Examples, own: Sequence[str], labels: np.ndarray, asked: Prompts
) -> Examples:
    """Returns the examples with the classes and templates of the prompts.

    Args:
      examples: N images.
      own: the data set's names of its labels; see `match_classes`.
      labels: int64[N], below 0 = UNLABELLED; or bool[N, len(own)].
      asked: the prompts.

    Raises:
      ValueError: a label matches no class or several; the message names it.
    """
    named = match_classes(examples.source, own, asked)
    if labels.ndim == 2:
        ordered = np.zeros((len(labels), len(named.class_names)), bool)
        ordered[:, named.label_of] = labels
    else:
        ordered = np.where(labels < 0, UNLABELLED, named.label_of[labels])
    return examples._replace(
        class_names=named.class_names, templates=asked.templates, labels=ordered
    )


def match_classes(where: str, labels: Sequence[str], asked: Prompts) -> Named:
    """Finds the class of each of n labels, for example folder names, by its name.

    Case, spaces and punctuation are ignored. Labels are never matched by order, because
    folders and lists are sorted in different ways.

    Args:
        where: the source of the labels, for messages.
        labels: in their own order.
        asked: the prompts; classes without a label stay.

    Raises:
        ValueError: a label matches no class or several; the message names it.
    """
    if not asked.class_names:
        own = tuple((label.replace("_", " "),) for label in labels)
        return Named(own, np.arange(len(labels)))
    return Named(asked.class_names, _places(where, labels, asked.labels))


def _places(
    where: str, labels: Sequence[str], classes: Sequence[Sequence[str]]
) -> np.ndarray:
    """Returns int64[n], the class that has each label as one of its names.

    Equal lists match even if two classes have the same name.
    """
    own = [plain(label) for label in labels]
    if own == [plain(names[0]) for names in classes]:
        return np.arange(len(labels))
    found: dict[str, set[int]] = {}
    for place, names in enumerate(classes):
        for name in names:
            found.setdefault(plain(name), set()).add(place)
    lost = [
        f"{label!r} ({'no class' if key not in found else 'several classes'})"
        for label, key in zip(labels, own, strict=True)
        if len(found.get(key, ())) != 1
    ]
    places = [min(found.get(key, {-1})) for key in own]
    lost += [
        f"{labels[n]!r} (twice)"
        for n, place in enumerate(places)
        if place >= 0 and place in places[:n]
    ]
    if lost:
        raise ValueError(
            f"{where}: wanted each label to be one of the {len(classes)} class_names of"
            f" the prompts, such as {classes[0][0]!r}, got {', '.join(lost[:5])};"
            f" {len(lost)} of {len(labels)} do not match. Rename them, or give --data"
            " and --prompts, whose class_names may be an object from the label to its"
            " name or names"
        )
    return np.array(places, np.int64)


def plain(name: str) -> str:
    """Returns a name without case, spaces and punctuation, as names are compared."""
    return "".join(filter(str.isalnum, name.casefold())) or name


def known_labels(asked: Prompts) -> frozenset[str]:
    """Returns the `plain` labels that `match_classes` knows; none if it takes all."""
    return frozenset(plain(name) for names in asked.labels for name in names)


def make_prompts(
    labels: Sequence[str | Sequence[str]], templates: Sequence[str]
) -> Prompts:
    """Returns checked prompts.

    Args:
        labels: the classes' names, or lists of names.
        templates: prompts with {} for the name.

    Raises:
        ValueError: there is no label or no template, one is empty, or a template has
            no {}.
    """
    if isinstance(labels, str) or isinstance(templates, str):
        raise ValueError("wanted lists of labels and of templates, got a single text")
    class_names = _class_names("labels", list(labels), at_least=1)
    return Prompts(class_names, check_templates("prompts", list(templates)))


def load_prompts(path: str) -> Prompts:
    """Reads prompts: {"templates": [...], "class_names": ...}; ignores other keys.

    class_names may be a list of names, which are matched with the data's labels
    (folders' or TFDS's names); an object from label to name or names; or missing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form; the message says where.
    """
    given = files.read_json(path)
    if not isinstance(given, dict) or "templates" not in given:
        raise ValueError(
            f"{path}: wanted an object with templates (and class_names), got"
            f" {_shown(given)}"
        )
    templates = check_templates(path, given["templates"])
    named = given.get("class_names")
    if named is None:
        return Prompts((), templates)
    keys = tuple((key,) for key in named) if isinstance(named, dict) else ()
    names = list(named.values()) if isinstance(named, dict) else named
    return Prompts(_class_names(f"{path}: class_names", names), templates, keys)


def load_task(path: str) -> tuple[Prompts, dict[str, int]]:
    """Reads and checks a task: its prompts, and its labels by image id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form; the message says where.
    """
    task = files.read_json(path)
    if not isinstance(task, dict):
        raise ValueError(
            f"{path}: wanted an object with class_names, templates and labels, got"
            f" {_shown(task)}"
        )
    missing = [key for key in ("class_names", "templates", "labels") if key not in task]
    if missing:
        raise ValueError(
            f"{path}: wanted the keys class_names, templates and labels, got"
            f" {sorted(task)}; add {', '.join(missing)}"
        )
    class_names = _class_names(f"{path}: class_names", task["class_names"])
    templates = check_templates(path, task["templates"])
    labels = _labels(path, task["labels"], classes=len(class_names))
    return Prompts(class_names, templates), labels


def _class_names(
    where: str, given: Any, *, at_least: int = 2
) -> tuple[tuple[str, ...], ...]:
    if not isinstance(given, list) or len(given) < at_least:
        raise ValueError(
            f"{where} must be a list of at least {at_least} classes, got"
            f" {_shown(given)}"
        )
    classes = []
    for label, names in enumerate(given):
        names = [names] if isinstance(names, str) else names
        names = list(names) if isinstance(names, tuple) else names
        if not _is_list_of_texts(names):
            raise ValueError(
                f"{where}[{label}] must be a name or a list of names,"
                f" none of them empty, got {_shown(given[label])}"
            )
        classes.append(tuple(names))
    return tuple(classes)


def check_templates(path: str, given: Any) -> tuple[str, ...]:
    """Returns templates after checking that they are a list of texts with {}.

    Args:
        path: of their file, for messages.
        given: any value.

    Raises:
        ValueError: there is none, one is empty, or one has no {}.
    """
    if not _is_list_of_texts(given):
        raise ValueError(
            f'{path}: templates must be a list of texts (["{SLOT}"] for the bare'
            f" names), got {_shown(given)}"
        )
    for position, template in enumerate(given):
        if SLOT not in template:
            raise ValueError(
                f"{path}: templates[{position}] must hold {SLOT} where the class name"
                f" goes, got {template!r}"
            )
    return tuple(given)


def _labels(path: str, given: Any, *, classes: int) -> dict[str, int]:
    if not isinstance(given, dict) or not given:
        raise ValueError(
            f"{path}: labels must map at least one image id to a class, got"
            f" {_shown(given)}"
        )
    for image_id, label in given.items():
        whole = isinstance(label, int) and not isinstance(label, bool)
        if not whole or not 0 <= label < classes:
            raise ValueError(
                f"{path}: the label of image {image_id} must be a class index from 0"
                f" to {classes - 1}, got {label!r}"
            )
    return given


def _is_list_of_texts(given: Any) -> bool:
    return (
        isinstance(given, list)
        and len(given) > 0
        and all(isinstance(text, str) and text.strip() for text in given)
    )


def _shown(value: Any) -> str:
    """Returns a value for a message, shortened to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
