"""Measures a model on any data: in training, by its workdir, by its name, alike."""

from typing import Any, NamedTuple

import numpy as np

from metaclip_jax import files
from metaclip_jax.data import records
from metaclip_jax.evaluation import classification, prompts, retrieval, zero_shot
from metaclip_jax.evaluation.encoder import Encoder
from metaclip_jax.evaluation.held_out import HeldOut, load_held_out
from metaclip_jax.evaluation.labelled import from_folder, from_held_out, from_tfds

# {"image_to_text": {"R@1": {"value", "low", "high", "chance"}, ...}, "zero_shot": ...}
Scores = dict[str, Any]


class Embeddings(NamedTuple):
    """Of all held-out images f32[N, E] and texts f32[M, E], unit norm."""

    image: np.ndarray
    text: np.ndarray


def evaluate(
    encoder: Encoder,
    data: str,
    *,
    split: str = "test",
    data_dir: str | None = None,
    prompts_path: str = "",
    class_cache: str = "",
    resamples: int,
) -> Scores:
    """Measures a model on whatever `data` is.

    Args:
      encoder: of the model.
      data: a dataset folder as curation writes it (retrieval, and classification where
        it holds a zero_shot.json), a folder class/image, or what TFDS knows: a
        prepared folder or a name.
      split: of a TFDS dataset.
      data_dir: where TFDS keeps datasets; None = its default.
      prompts_path: JSON as `prompts.load_prompts` reads it; "" = the default template
        and the data's own names.
      class_cache: folder that keeps class embeddings; "" = none.
      resamples: of the bootstrap.

    Returns:
      {"zero_shot": as `classification.measure` gives it}; for a curated dataset, what
      `scores` gives.
    """
    asked = prompts.load_prompts(prompts_path) if prompts_path else None
    root = files.path(data)
    if (root / records.DATA_CARD).exists():
        held_out = load_held_out(data)
        return scores(
            encoder,
            held_out,
            embed(encoder, held_out),
            asked=asked,
            class_cache=class_cache,
            resamples=resamples,
        )
    named = asked or prompts.Prompts(None, prompts.DEFAULT_TEMPLATES)
    if root.is_dir() and not (root / "features.json").exists():
        labelled = from_folder(data, named)
    else:
        labelled = from_tfds(data, split, named, data_dir=data_dir)
    task = prompts.make_task(labelled.class_names, named.templates)
    classes = zero_shot.encode_classes(encoder, task, folder=class_cache)
    cosines = classification.embed(encoder, labelled) @ classes.T
    found = classification.measure(cosines, labelled, resamples=resamples)
    return {"zero_shot": found}


def embed(encoder: Encoder, held_out: HeldOut) -> Embeddings:
    """Embeds all images and texts of a curated dataset.

    Raises:
      ValueError: an image cannot be decoded; names it.
    """
    folder, ids = held_out.dataset.folder, held_out.image_ids

    def read(rows: np.ndarray) -> list[bytes]:
        stored = records.read(held_out.dataset, held_out.positions[rows])
        return [records.decode(data).image for data in stored]

    return Embeddings(
        image=encoder.encode_images(
            read, names=lambda row: f"{folder}: the image {ids[row]}", total=len(ids)
        ),
        text=encoder.encode_texts(held_out.texts),
    )


def scores(
    encoder: Encoder,
    held_out: HeldOut,
    embeddings: Embeddings,
    *,
    asked: prompts.Prompts | None = None,
    class_cache: str = "",
    resamples: int,
) -> Scores:
    """Retrieval both ways and, where there is a task, zero-shot classification.

    Args:
      encoder: how the classes are embedded.
      held_out: what was embedded.
      embeddings: from `embed`.
      asked: other prompts than the task's own.
      class_cache: folder that keeps class embeddings; "" = none.
      resamples: of the bootstrap behind each interval.

    Returns:
      "image_to_text" and "text_to_image" as `retrieval.recall` gives them, "zero_shot"
      as `classification.measure` does.
    """
    result: Scores = dict(
        retrieval.recall(
            embeddings.image,
            embeddings.text,
            held_out.image_of_text,
            resamples=resamples,
        )
    )
    if held_out.task is None:
        return result
    labelled = from_held_out(held_out, asked)
    templates = asked.templates if asked else held_out.task.templates
    task = prompts.make_task(labelled.class_names, templates)
    classes = zero_shot.encode_classes(encoder, task, folder=class_cache)
    cosines = embeddings.image[held_out.labelled] @ classes.T
    found = classification.measure(cosines, labelled, resamples=resamples)
    return result | {"zero_shot": found}
