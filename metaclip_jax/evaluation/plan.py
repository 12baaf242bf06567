"""Says which images of tasks are there, which are missing, and how long it takes."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from metaclip_jax.evaluation import downloads, suite, tasks
from metaclip_jax.evaluation.encoder import Encoder
from metaclip_jax.evaluation.examples import Examples

# FLOPs of ViT-B/32 for an image and a text of 16 tokens, and FLOP/s: a reference.
_IMAGE, _TEXT, _SPEED = 8.2e9, 1.2e9, 100e9


class Estimate(NamedTuple):
    """The seconds to embed numbers of images and texts, and with what."""

    seconds: Callable[[int, int], float]
    using: str


REFERENCE = Estimate(
    lambda images, texts: (images * _IMAGE + texts * _TEXT) / _SPEED,
    "with ViT-B/32 at 100 GFLOP/s, about what a CPU core does; give --model to measure"
    " it here",
)


def measured(encoder: Encoder) -> Estimate:
    """Times a batch of images and one of texts, without decoding images."""
    size, batch = encoder.preprocess.size, encoder.batch
    pixels = np.zeros((batch, size, size, 3), np.uint8)
    texts = ["a photo of a large brown dog, a type of pet."] * batch
    each = []
    for embed in (
        lambda: encoder.encode_pixels(pixels),
        lambda: encoder.encode_texts(texts),
    ):
        embed()  # compiles
        start = time.monotonic()
        embed()
        each.append((time.monotonic() - start) / batch)
    return Estimate(
        lambda images, texts: images * each[0] + texts * each[1],
        "with this model on this machine, decoding not included",
    )


def describe(found: Sequence[suite.Found], estimate: Estimate = REFERENCE) -> str:
    """Lists the tasks with images, the missing ones and how to get them, and the time.

    Args:
      found: from `suite.open_tasks`.
      estimate: of the time.
    """
    there: list[str] = []
    missing: dict[str, tuple[str, int]] = {}
    texts = 0
    for task, examples, why in found:
        if examples is None:
            name = suite.missing_name(task)
            missing[name] = f"  missing  {name:<34} {why}", downloads.image_count(task)
            continue
        texts += _prompt_count(examples)
        there.append(
            f"  there    {f'{task.suite}/{task.id}':<34} {_count(task, examples)}"
            f" images in {examples.source}"
        )
    images = sum(len(one.names) for one in suite.image_sets(e for _, e, _ in found))
    lines = [*there, *(line for line, _ in missing.values())]
    lines.append(
        f"{len(there)} of {len(found)} tasks: {images:,} images and {texts:,} texts to"
        " embed"
    )
    if there:
        lines[-1] += f", {_duration(estimate.seconds(images, texts))}"
    if lost := sum(count for _, count in missing.values()):
        longer = _duration(estimate.seconds(lost, 0))
        lines.append(f"{lost:,} images are missing, {longer} more")
    return "\n".join([*lines, f"times are {estimate.using}"])


def _prompt_count(examples: Examples) -> int:
    """Returns the number of texts to embed for these examples."""
    names = sum(len(names) for names in examples.class_names)
    return names * len(examples.templates) + len(examples.texts)


def _count(task: tasks.Task, examples: Examples) -> str:
    count = examples.size
    if task.images in (0, count):
        return f"{count:,}"
    return f"{count:,} (the task has {task.images:,})"


def _duration(seconds: float) -> str:
    """Returns, for example, "about 5 s", "about 3 min 20 s" or "about 2 h 5 min"."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"about {whole} s"
    minutes, left = divmod(whole, 60)
    if minutes < 60:
        return f"about {minutes} min {left} s"
    return f"about {minutes // 60} h {minutes % 60} min"
