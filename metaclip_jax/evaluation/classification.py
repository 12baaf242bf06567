"""A model's zero-shot answers on labelled images, and how good they are."""

from typing import Any

import numpy as np
import tqdm

from metaclip_jax.evaluation import scores, statistics
from metaclip_jax.evaluation.encoder import Encoder
from metaclip_jax.evaluation.labelled import Labelled


def embed(encoder: Encoder, data: Labelled) -> np.ndarray:
    """Embeds all images, f32[N, E], unit norm.

    Raises:
      ValueError: an image cannot be decoded; names it.
    """
    with tqdm.tqdm(total=len(data.names), unit="image", disable=None) as bar:

        def read(places: np.ndarray) -> list[Any]:
            bar.update(len(places))
            return data.read(places)

        return encoder.encode_images(
            read, names=lambda place: data.names[place], total=len(data.names)
        )


def measure(
    cosines: np.ndarray, data: Labelled, *, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """The numbers of the field on the answers.

    Args:
      cosines: f32[N, K] of the images with the classes.
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
    if not (positive.sum(axis=1) == 1).all():
        place = int(np.argmax(positive.sum(axis=1) != 1))
        raise ValueError(f"want one class for each image, not so {data.names[place]}")
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
