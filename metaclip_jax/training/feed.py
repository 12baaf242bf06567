"""Batches onto the devices, ahead of the steps."""

import collections
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from metaclip_jax.data import pipeline
from metaclip_jax.training import sharding


class OnDevice(NamedTuple):
    """A global batch (perhaps still transferring) and the facts that the loop logs."""

    arrays: dict[str, jax.Array]  # image, tokens
    image_ids: np.ndarray  # bytes[b], of this process
    losses: pipeline.Losses  # of the rows that this process owns


def feed_devices(
    mesh: Mesh, batches: pipeline.Batches, *, ahead: int
) -> Iterator[OnDevice]:
    """Yields batches on the devices; the copies of the next `ahead` are under way."""
    waiting: collections.deque[OnDevice] = collections.deque()
    for batch in batches:
        arrays = sharding.put_batch(
            mesh, {"image": batch["image"], "tokens": batch["tokens"]}
        )
        waiting.append(OnDevice(arrays, batch["image_id"], batches.losses))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
