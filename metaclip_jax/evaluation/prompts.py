"""Zero-shot tasks: class names, prompt templates and labels, read from one JSON file.

    {"class_names": ["cat", ["car", "automobile"], ...],
     "templates": ["a photo of a {}.", ...],
     "labels": {"IMAGE_ID": 0, ...}}

A class may have several names; each is put into each template.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metaclip_jax import files

SLOT = "{}"
DEFAULT_TEMPLATES = ("a photo of a {}.",)


@dataclasses.dataclass(frozen=True)
class Task:
    """A zero-shot classification task."""

    # One tuple of names per class; its position is the class's label.
    class_names: tuple[tuple[str, ...], ...]
    # Texts with a slot for the name.
    templates: tuple[str, ...]
    # Image id to label.
    labels: Mapping[str, int]


def prompts(names: tuple[str, ...], templates: tuple[str, ...]) -> list[str]:
    """Every name of one class in every template, templates outermost."""
    return [template.replace(SLOT, name) for template in templates for name in names]


class Prompts(NamedTuple):
    """How a task's classes are named and asked for; its labels come with its images.

    class_names: one tuple of names per class, in the order of the labels; by the
    label's own name where the file says so; None where the images' names are taken.
    """

    class_names: tuple[tuple[str, ...], ...] | dict[str, tuple[str, ...]] | None
    templates: tuple[str, ...]


def make_task(labels: Sequence[str | Sequence[str]], templates: Sequence[str]) -> Task:
    """A task without labelled images, from names (or lists of names) and templates.

    Raises:
        ValueError: there is no label or no template, one is empty, or a template has
            no {}.
    """
    if isinstance(labels, str) or isinstance(templates, str):
        raise ValueError("want lists of labels and of templates, got a single text")
    class_names = _names_of_classes("labels", list(labels), at_least=1)
    return Task(class_names, _templates("prompts", list(templates)), labels={})


def load_prompts(path: str) -> Prompts:
    """Reads prompts: {"templates": [...], "class_names": ...}; further keys are left.

    class_names may be a list in the order of the labels, an object from label (a
    folder's name, or what TFDS calls it) to name or names, or missing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else; names where.
    """
    given = files.read_json(path)
    if not isinstance(given, dict) or "templates" not in given:
        raise ValueError(
            f"{path}: want an object with templates (and class_names), got"
            f" {_shown(given)}"
        )
    templates = _templates(path, given["templates"])
    named = given.get("class_names")
    if named is None:
        return Prompts(None, templates)
    if isinstance(named, dict):
        names = _class_names(path, list(named.values()))
        return Prompts(dict(zip(named, names, strict=True)), templates)
    return Prompts(_class_names(path, named), templates)


def load_task(path: str) -> Task:
    """Reads and checks a task.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a task; the message names the file, what was wanted, what
            came and where.
    """
    task = files.read_json(path)
    if not isinstance(task, dict):
        raise ValueError(
            f"{path}: want an object with class_names, templates and labels, got"
            f" {_shown(task)}"
        )
    missing = [key for key in ("class_names", "templates", "labels") if key not in task]
    if missing:
        raise ValueError(
            f"{path}: want the keys class_names, templates and labels, got"
            f" {sorted(task)}; add {', '.join(missing)}"
        )
    return Task(
        class_names=_class_names(path, task["class_names"]),
        templates=_templates(path, task["templates"]),
        labels=_labels(path, task["labels"], classes=len(task["class_names"])),
    )


def _class_names(path: str, given: Any) -> tuple[tuple[str, ...], ...]:
    return _names_of_classes(f"{path}: class_names", given, at_least=2)


def _names_of_classes(
    where: str, given: Any, *, at_least: int
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


def _templates(path: str, given: Any) -> tuple[str, ...]:
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
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
