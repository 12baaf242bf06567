"""A loaded model's zero-shot answers on labelled images, and how good they are."""

from typing import Any

import numpy as np
import tqdm

from metaclip_jax import files, inference
from metaclip_jax.data import records
from metaclip_jax.evaluation import prompts, retrieval, scores, statistics
from metaclip_jax.evaluation.held_out import HeldOut, load_held_out
from metaclip_jax.evaluation.labelled import (
    Labelled,
    from_folder,
    from_held_out,
    from_tfds,
)


def evaluate(
    model: inference.Model,
    data: str,
    *,
    split: str = "test",
    data_dir: str | None = None,
    prompts_path: str = "",
    resamples: int,
) -> dict[str, Any]:
    """Measures a model on whatever `data` is.

    Args:
      model: what is measured.
      data: a dataset folder as curation writes it (retrieval, and classification where
        it holds a zero_shot.json), a folder class/image, or what TFDS knows: a
        prepared folder or a name.
      split: of a TFDS dataset.
      data_dir: where TFDS keeps datasets; None = its default.
      prompts_path: JSON as `prompts.load_prompts` reads it; "" = the default template
        and the data's own names.
      resamples: of the bootstrap.

    Returns:
      {"zero_shot": as `measure` gives it}, for a curated dataset also
      {"image_to_text": ..., "text_to_image": ...} as `retrieval.recall` gives them.
    """
    asked = prompts.load_prompts(prompts_path) if prompts_path else None
    templates = asked.templates if asked else inference.DEFAULT_TEMPLATES
    names = asked or prompts.Prompts(None, templates)
    root = files.path(data)
    result: dict[str, Any] = {}
    if (root / records.DATA_CARD).exists():
        held_out = load_held_out(data)
        result |= _retrieval(model, held_out, resamples=resamples)
        if held_out.task is None:
            return result
        labelled = from_held_out(held_out, asked)
        templates = asked.templates if asked else held_out.task.templates
    elif root.is_dir() and not _is_tfds(root):
        labelled = from_folder(data, names)
    else:
        labelled = from_tfds(data, split, names, data_dir=data_dir)
    cosines = answer(model, labelled, templates=templates)
    return result | {"zero_shot": measure(cosines, labelled, resamples=resamples)}


def _is_tfds(root: Any) -> bool:
    return (root / "features.json").exists()


def _retrieval(
    model: inference.Model, held_out: HeldOut, *, resamples: int
) -> dict[str, Any]:
    embedded = []
    for start in range(0, len(held_out.positions), model.batch):
        positions = held_out.positions[start : start + model.batch]
        read = [records.decode(d) for d in records.read(held_out.dataset, positions)]
        embedded.append(model.embed_images([record.image for record in read]))
    return dict(
        retrieval.recall(
            np.concatenate(embedded),
            model.embed_texts(held_out.texts),
            held_out.image_of_text,
            resamples=resamples,
        )
    )


def answer(
    model: inference.Model, data: Labelled, *, templates: tuple[str, ...]
) -> np.ndarray:
    """The cosines f32[N, K] of all images with all classes; a batch at a time.

    Raises:
      ValueError: an image cannot be decoded; names it.
    """
    classes = model.embed_classes(data.class_names, templates=templates)
    cosines = np.empty((len(data.names), len(classes)), np.float32)
    with tqdm.tqdm(total=len(cosines), unit="image", disable=None) as bar:
        for start in range(0, len(cosines), model.batch):
            places = np.arange(start, min(start + model.batch, len(cosines)))
            try:
                embedded = model.embed_images(data.read(places))
            except ValueError as error:
                first = data.names[places[0]]
                raise ValueError(f"among the images from {first} on: {error}") from None
            cosines[places] = embedded @ classes.T
            bar.update(len(places))
    return cosines


def measure(
    cosines: np.ndarray, data: Labelled, *, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """The numbers of the field on the answers.

    Args:
      cosines: from `answer`.
      data: what was answered for.
      resamples: of the bootstrap behind each accuracy's interval.
      seed: of the bootstrap.

    Returns:
      For images of one class: "accuracy", "mean_per_class" and, with more than 5
      classes, "top5", each {"value", "low", "high", "chance"}; with 2 classes also
      "roc_auc". For images of several classes: "mean_average_precision" and
      "mean_average_precision_11_point". Also "classes" and "images".
    """
    positive = data.positive
    found: dict[str, Any] = {"images": len(cosines), "classes": cosines.shape[1]}
    if not data.exclusive:
        for name, points in (("", 0), ("_11_point", 11)):
            value = scores.mean_average_precision(cosines, positive, points=points)
            found[f"mean_average_precision{name}"] = {"value": value}
        return found
    labels = positive.argmax(axis=1)
    rank = scores.ranks(cosines, labels)
    for name, k in (("accuracy", 1), ("top5", 5)):
        if k < cosines.shape[1]:
            interval = statistics.share(
                rank < k, name=f"zero_shot/{name}", resamples=resamples, seed=seed
            )
            found[name] = _cell(interval, chance=k / cosines.shape[1])
    per_class = statistics.mean_share_per_class(
        rank < 1,
        labels,
        name="zero_shot/mean_per_class",
        resamples=resamples,
        seed=seed,
    )
    found["mean_per_class"] = _cell(per_class, chance=1 / cosines.shape[1])
    if cosines.shape[1] == 2:
        difference = cosines[:, 1] - cosines[:, 0]
        found["roc_auc"] = {"value": scores.roc_auc(difference, labels == 1)}
    return found


def _cell(interval: statistics.Interval, *, chance: float) -> dict[str, float]:
    return {
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "chance": chance,
    }
