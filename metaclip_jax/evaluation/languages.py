"""XM3600 and Babel-ImageNet: the same images with texts of many languages.

The images are embedded once for all languages.
"""

import importlib.util
import json
import os
from collections.abc import Callable

import numpy as np
from etils import epath

from metaclip_jax import files
from metaclip_jax.evaluation import tasks
from metaclip_jax.evaluation.examples import Examples

CAPTIONS = "captions.jsonl"
# clip_benchmark's lists for Babel-ImageNet.
_CLASSES, _PROMPTS = "babel_imagenet.json", "nllb_dist13b_prompts.json"

OpenLanguage = Callable[[tasks.Task], Examples]


def open_suite(suite: str, data_dir: str) -> OpenLanguage | None:
    """Returns a function that opens tasks of xm3600 or babel; None without images.

    XM3600 needs DATA_DIR/xm3600/captions.jsonl and DATA_DIR/xm3600/images/KEY.jpg, as
    in its two archives. Babel-ImageNet needs ImageNet's images, and its lists in
    DATA_DIR/babel_imagenet or in an installed clip_benchmark.

    Raises:
      ValueError: a file is damaged, or does not have its fingerprint.
    """
    if suite == "xm3600":
        folder = files.path(data_dir) / suite
        return open_xm3600(folder) if (folder / CAPTIONS).exists() else None
    lists = _find_lists(data_dir)
    for task in tasks.find(["clip26/imagenet", "datacomp38/imagenet1k"]):
        folder = tasks.locate(task, data_dir)
        if folder is not None and lists is not None:
            (imagenet,) = tasks.find(["clip26/imagenet"])
            return _open_babel(tasks.open_task(imagenet, folder), lists)
    return None


def open_xm3600(folder: epath.Path) -> OpenLanguage:
    """Reads the captions, of which there are about two per image and language."""
    captions: list[dict] = []
    lines = (folder / CAPTIONS).read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            captions.append({"key": row["image/key"], **row})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder / CAPTIONS}:{number}: wanted an object with image/key and the"
                f" captions by language, got {line[:80]!r}; unpack captions.zip again"
            ) from error
    keys = [row["key"] for row in captions]
    there = {path.name for path in (folder / "images").glob("*.jpg")}
    lost = [key for key in keys if f"{key}.jpg" not in there]
    if lost:
        raise ValueError(
            f"{folder}: wanted images/KEY.jpg of the {len(keys)} images of {CAPTIONS},"
            f" {len(lost)} are missing, the first {lost[0]}; unpack images.tgz again"
        )
    paths = [os.fspath(folder / "images" / f"{key}.jpg") for key in keys]
    whole = Examples(
        source=os.fspath(folder),
        names=keys,
        read=lambda rows: [paths[row] for row in rows.tolist()],
    )

    def open_language(task: tasks.Task) -> Examples:
        of_image = [row.get(task.id, {}).get("caption", []) for row in captions]
        rows = np.flatnonzero([len(texts) for texts in of_image])
        if not len(rows):
            raise ValueError(f"{folder / CAPTIONS}: wanted captions in {task.id}")
        found = whole.part(rows).with_texts([of_image[row] for row in rows.tolist()])
        return found._replace(metrics=tasks.METRICS[task.metric])

    return open_language


def _open_babel(
    imagenet: Examples, lists: tuple[epath.Path, epath.Path]
) -> OpenLanguage:
    classes, templates = (files.read_json(path) for path in lists)

    def open_language(task: tasks.Task) -> Examples:
        language = task.id.upper()
        own, own_templates = classes.get(language), templates.get(language)
        got = tasks.fingerprint(own), tasks.fingerprint(own_templates)
        if got != task.fingerprints:
            raise ValueError(
                f"{lists[0].parent}: wanted lists of {language} of the fingerprints"
                f" {task.fingerprints}, got {got}; use those of clip_benchmark 1.6.2"
            )
        labels, names = own
        label_of = np.full(len(imagenet.class_names), -1, np.int64)
        label_of[labels] = np.arange(len(labels))
        rows = np.flatnonzero(label_of[imagenet.labels] >= 0)
        return imagenet.part(rows)._replace(
            class_names=tuple((name,) for name in names),
            templates=tuple(own_templates),
            labels=label_of[imagenet.labels[rows]],
            metrics=tasks.METRICS[task.metric],
        )

    return open_language


def _find_lists(data_dir: str) -> tuple[epath.Path, epath.Path] | None:
    """Returns Babel-ImageNet's files, without importing clip_benchmark and torch."""
    folders = [files.path(data_dir) / "babel_imagenet"]
    installed = importlib.util.find_spec("clip_benchmark")
    if installed is not None and installed.submodule_search_locations:
        (package, *_) = installed.submodule_search_locations
        folders.append(files.path(package) / "datasets")
    for folder in folders:
        if (folder / _CLASSES).exists() and (folder / _PROMPTS).exists():
            return folder / _CLASSES, folder / _PROMPTS
    return None
