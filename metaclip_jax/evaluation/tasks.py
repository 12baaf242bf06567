"""The 26 tasks of the paper and DataComp's 38: what they are, and their images.

The tables are texts/clip26.tsv and texts/datacomp38.tsv, a row a task. The paper's
prompts are SLIP's and OpenAI's files (texts/NOTICE), checked by fingerprint; DataComp's
come with its data. Images are looked for in DATA_DIR/NAME, where NAME is the task's or
its repository's on the hub, in any layout that `open_folder` knows, or as TFDS
prepares them in DATA_DIR.
"""

import csv
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from absl import logging
from etils import epath

from metaclip_jax import files
from metaclip_jax.evaluation import label_names, labelled, parquet, prompts, webdataset
from metaclip_jax.evaluation.examples import Examples
from metaclip_jax.evaluation.retrieval import MEAN

JACCARD = "jaccard_score_10-12"  # WinoGAViL's
# A task's results, by the tables' name of its metric; the first is the main result.
METRICS: Mapping[str, tuple[str, ...]] = {
    "acc1": ("zero_shot/accuracy",),
    "mean_per_class": ("zero_shot/mean_per_class",),
    "mean_per_class_recall": ("zero_shot/mean_per_class",),
    "mean(acc1,acc5)": ("zero_shot/mean_of_top1_and_top5",),
    "roc_auc": ("zero_shot/roc_auc",),
    "F1-macro_all": ("zero_shot/macro_f1",),
    # First DataComp's definition, for comparison, then WILDS'.
    "acc_worst_region": (
        "zero_shot/worst_group",
        "zero_shot/worst_group_without_other",
    ),
    "acc_wg": ("zero_shot/worst_group",),
    "acc_top5_wg": ("zero_shot/worst_group_top5",),
    "mean_recall@1": (MEAN,),
    JACCARD: ("association/jaccard_10_12", "association/jaccard"),
}
SUITES = ("clip26", "datacomp38", "retrieval", "xm3600", "babel")
# In these suites, a task is a language: the suite's images with that language's texts.
BY_LANGUAGE = ("xm3600", "babel")


class Task(NamedTuple):
    """A row of a table.

    Attributes:
      suite: of SUITES.
      id: its name on the command line; in a suite BY_LANGUAGE the language's code,
        after "SUITE/".
      name: in the paper or DataComp.
      classes: the number of classes; 0 for retrieval.
      images: the size of the test set; 0 = copies differ.
      metric: a key of METRICS.
      repo: on the hub, "" = no repository has this test set.
      revision: to download.
      tfds: BUILDER:SPLIT, "" = TFDS does not have it.
      same: whether the test set is the paper's.
      licence: of the download, as its makers state it.
      note: for the reader of the results.
      prompts: the key in SLIP's files, for the paper's tasks; "" = prompts come with
        the images.
      fingerprints: of the class names and templates.
    """

    suite: str
    id: str
    name: str
    classes: int
    images: int
    metric: str
    licence: str
    fingerprints: tuple[str, str] = ("", "")
    repo: str = ""
    revision: str = ""
    note: str = ""
    tfds: str = ""
    same: bool = True
    prompts: str = ""

    @property
    def is_on_hub(self) -> bool:
        """Whether `download` gets its images; WinoGAViL's repository is a script."""
        return bool(self.repo) and self.metric != JACCARD

    @property
    def folder(self) -> str:
        """The repository's name, which is the folder of a download."""
        return self.repo.rpartition("/")[2]


@functools.cache
def table(suite: str) -> tuple[Task, ...]:
    """Returns the tasks of a suite, in the order of the paper or of DataComp.

    retrieval has DataComp's two retrieval tasks; xm3600 and babel have a task per
    language.
    """
    if suite == "retrieval":
        return tuple(t for t in table("datacomp38") if t.metric == "mean_recall@1")
    name = "languages" if suite in BY_LANGUAGE else suite
    rows = csv.DictReader(text(f"{name}.tsv").splitlines(), delimiter="\t")
    if suite in BY_LANGUAGE:
        return tuple(_of_language(suite, r) for r in rows if r["suite"] == suite)
    return tuple(_task(suite, row) for row in rows)


def _task(suite: str, row: Mapping[str, str]) -> Task:
    task = Task(
        suite=suite,
        id=row["id"],
        name=row["name"],
        classes=int(row["classes"] or 0),
        images=int(row["images"] or 0),
        metric=row["metric"],
        licence=row["licence"],
        repo=row["repo"],
        revision=row["revision"],
        note=row["note"],
    )
    if suite != "clip26":
        return task
    return task._replace(
        fingerprints=(row["labels_sha"], row["templates_sha"]),
        tfds=row["tfds"],
        same=row["same"] == "yes",
        prompts=row["prompts"],
    )


def _of_language(suite: str, row: Mapping[str, str]) -> Task:
    texts = suite == "xm3600"
    return Task(
        suite=suite,
        id=row["language"],
        name=f"{'XM3600' if texts else 'Babel-ImageNet'} {row['language']}",
        classes=int(row["classes"]),
        images=int(row["images"]),
        metric="mean_recall@1" if texts else "acc1",
        licence="CC BY 4.0, images CC BY 2.0"
        if texts
        else "ImageNet's and BabelNet's, both non-commercial",
        fingerprints=(row["labels_sha"], row["templates_sha"]),
    )


def find(names: Sequence[str]) -> list[Task]:
    """Returns the tasks of suites and ids, without repeats.

    An id of both suites means the paper's task; "datacomp38/ID" is DataComp's.

    Raises:
      ValueError: there is no such task; the message lists the tasks.
    """
    known = {f"{t.suite}/{t.id}": t for suite in SUITES for t in table(suite)}
    short = [suite for suite in reversed(SUITES) if suite not in BY_LANGUAGE]
    known |= {task.id: task for suite in short for task in table(suite)}
    found: dict[tuple[str, str], Task] = {}
    for name in names:
        if name not in SUITES and name not in known:
            singles = ", ".join(task.id for task in table("clip26"))
            raise ValueError(
                f"wanted --tasks of {', '.join(SUITES)}, or single ones ({singles},"
                f" ...), got {name!r}"
            )
        for task in table(name) if name in SUITES else (known[name],):
            found.setdefault((task.suite, task.id), task)
    return list(found.values())


def paper_prompts(task: Task) -> prompts.Prompts:
    """Returns the class names and templates of a task of the paper.

    Raises:
      ValueError: a file does not have its fingerprint.
    """
    names = _class_names(task)
    templates = _json("slip_templates.json")[task.prompts]
    if task.id == "imagenet":  # OpenAI's 80 and not SLIP's 7
        templates = _json("openai_imagenet_templates.json")
    got = fingerprint(names), fingerprint(templates)
    if got != task.fingerprints:
        raise ValueError(
            f"{task.id}: wanted prompts of the fingerprints {task.fingerprints}, got"
            f" {got}; install the package again"
        )
    classes = _tuples(names)
    others = label_names.with_others(task.id, classes)
    return prompts.Prompts(classes, tuple(templates), others)


def _class_names(task: Task) -> list[Any]:
    names = _json("slip_labels.json")[task.prompts]
    if task.id == "kitti_distance":  # the paper uses OpenAI's order: near first
        names = [names[2], names[1], names[0], names[3]]
    return names


def _tuples(names: Sequence[Any]) -> tuple[tuple[str, ...], ...]:
    return tuple((name,) if isinstance(name, str) else tuple(name) for name in names)


def tfds_order(task: Task) -> list[int]:
    """Returns the paper's class of each of TFDS's labels."""
    return label_names.tfds_order(task.id, _tuples(_class_names(task)))


def fingerprint(texts: Any) -> str:
    """Returns the first 16 hex digits of the sha256 of a list as compact JSON."""
    written = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def locate(task: Task, data_dir: str) -> str | None:
    """Returns the folder of a task's images, None if there is none.

    In TFDS's layout, it is the folder of the newest prepared version. Folders without
    the texts of one of DataComp's tasks are passed over, with a warning: the paper's
    task of the same name may use them.
    """
    root = files.path(data_dir)
    builder = task.tfds.partition(":")[0]
    names = (task.id, task.id.replace("/", "_"), task.folder, builder)
    for name in dict.fromkeys(names):
        # TFDS's configs are folders in a builder's folder.
        is_parent = builder.startswith(f"{name}/") and (root / builder).is_dir()
        if not name or is_parent or not (root / name).is_dir():
            continue
        if not (task.prompts or _has_texts(task, root / name)):
            logging.warning(
                "%s is not used for %s/%s: it has no texts as %s has",
                root / name,
                task.suite,
                task.id,
                task.repo,
            )
            continue
        versions = [p.parent for p in (root / name).glob("*/features.json")]
        if not versions:
            return os.fspath(root / name)
        newest = max(versions, key=lambda p: [*map(int, re.findall(r"\d+", p.name))])
        return os.fspath(newest)
    return None


def _has_texts(task: Task, folder: epath.Path) -> bool:
    """Whether a folder is in a layout that has a task's texts beside its images."""
    return webdataset.is_folder(folder) or (
        task.classes == 0 and parquet.is_folder(folder)
    )


def _splits(task: Task) -> tuple[str, ...]:
    """Returns the names of a folder of the task's images beside those for training."""
    validation = ("val", "valid", "validation")
    is_validation = task.tfds.endswith(":validation") or task.id == "kinetics700"
    if is_validation and task.id != "food101":  # TFDS calls its test set so
        return (*validation, "test", "testing")
    return ("test", "testing", *validation)


def open_task(task: Task, folder: str) -> Examples:
    """Opens the images of a task, with its prompts.

    Args:
      task: of a table.
      folder: from `locate`.

    Raises:
      ValueError: the folder's layout is unknown, or its number of classes is wrong.
    """
    asked = paper_prompts(task) if task.prompts else None
    column = 0 if task.metric in ("acc_worst_region", "acc_wg", "acc_top5_wg") else None
    if webdataset.is_folder(folder):
        examples = webdataset.open_folder(folder, asked=asked, group_column=column)
    elif asked is None:
        if not _has_texts(task, files.path(folder)):
            raise ValueError(
                f"{folder}: wanted the hub's WebDataset layout, which has DataComp's"
                " class names and templates, or for retrieval Parquet with texts"
            )
        examples = parquet.open_folder(folder)
    elif (files.path(folder) / "features.json").exists():
        split = task.tfds.partition(":")[2] or "test"
        order = tfds_order(task) if task.tfds else ()
        examples = labelled.from_tfds(folder, split, asked, order=order)
    elif parquet.is_folder(folder):
        examples = parquet.open_folder(folder, asked=asked)
    elif os.path.basename(folder) == task.folder:
        raise ValueError(
            f"{folder}: wanted the tar files of {task.repo}, got none; download them"
            " with --download"
        )
    else:
        where = labelled.folder_of_classes(folder, _splits(task))
        examples = labelled.from_folder(where, asked)
    if len(examples.class_names) != task.classes:
        raise ValueError(
            f"{folder}: wanted the {task.classes} classes of {task.id}, got"
            f" {len(examples.class_names)}"
        )
    return examples._replace(metrics=METRICS[task.metric])


def paper_row(model: str) -> dict[str, float]:
    """Returns the results of a model in the paper's tables 4 and 5 by task id.

    Raises:
      ValueError: the paper has no such row.
    """
    table = csv.DictReader(text("paper.tsv").splitlines(), delimiter="\t")
    rows = {row.pop("model"): row for row in table}
    if model not in rows:
        raise ValueError(f"wanted --paper one of {', '.join(rows)}, got {model!r}")
    return {task: float(value) / 100 for task, value in rows[model].items()}


@functools.cache
def _json(name: str) -> Any:
    return json.loads(text(name))


def text(name: str) -> str:
    """Returns a file of the folder texts."""
    return (
        resources.files("metaclip_jax.evaluation").joinpath("texts", name).read_text()
    )
