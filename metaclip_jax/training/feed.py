"""From a config to batches on the devices."""

import collections
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from metaclip_jax.data import images, order, pipeline, texts, tokenizer, workers
from metaclip_jax.models import presets
from metaclip_jax.training import sharding


class OnDevice(NamedTuple):
    """A global batch (perhaps still transferring) and the facts that the loop logs."""

    arrays: dict[str, jax.Array]  # image, tokens
    image_ids: np.ndarray  # bytes[b], of this process
    tally: collections.Counter[str]  # what this process had to mend to make it
    progress: dict[str, float]  # how far the datasets are seen after it


def load_tokenizer(config: ConfigDict) -> tokenizer.Tokenizer:
    """The config's tokenizer, as its family of models uses it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no tokenizer, or not that of config.vocabulary.
    """
    loaded = tokenizer.load(config.tokenizer, family=config.model.family)
    presets.check_vocabulary(
        config.vocabulary, size=loaded.vocab_size, tokenizer=config.tokenizer
    )
    return loaded


def token_ids(loaded: tokenizer.Tokenizer) -> dict[str, Any]:
    """What the architecture of a model takes from its tokenizer."""
    return {
        "vocab_size": loaded.vocab_size,
        "eos_id": loaded.eos_id,
        "pad_id": loaded.pad_id,
    }


def start_pool(config: ConfigDict) -> workers.Pool:
    """What will make batches; its processes start now, and this may be before JAX."""
    return workers.Pool(
        worker_count=config.data.worker_count, prefetch=config.data.prefetch
    )


def open_batches(
    config: ConfigDict,
    workdir: str,
    pool: workers.Pool,
    tokenize: tokenizer.Tokenizer,
    *,
    start_step: int,
    mesh: Mesh | None = None,
) -> pipeline.Batches:
    """This process's batches from `start_step` on; their whole state is the step.

    Of each global batch it makes the run that its devices in the mesh are given; with
    no mesh, all. `tokenize` is from `load_tokenizer`; the pool, from `start_pool`, is
    closed with them.
    """
    data, rows, told = config.data, None, None
    if mesh is not None:
        rows = sharding.process_run(mesh, config.global_batch)
        told = sharding.told_rows(mesh, config.global_batch)
    return pipeline.batches(
        config.dataset,
        weights=data.mixture,
        tokenize=tokenize,
        global_batch=config.global_batch,
        image_size=config.image_size,
        context_length=config.model.context_length,
        seed=config.seed,
        start_step=start_step,
        total_steps=config.total_steps,
        rows=rows,
        told=told,
        order_blocks=order.check_blocks(
            data.order, records=data.block_records, window=data.window_blocks
        ),
        augmentation=images.Augmentation(
            scale=tuple(data.crop_scale), flip=data.flip, colour=data.colour
        ),
        choice=texts.Choice(
            weights=data.text_source_weights,
            synthetic_sources=data.synthetic_sources,
            synthetic_share=data.synthetic_share,
        ),
        online_t=data.online_t,
        online_tail_share=data.online_tail_share,
        online_folder=workdir and f"{workdir}/online",
        max_replaced_share=data.max_replaced_share,
        read_threads=data.read_threads,
        pool=pool,
    )


def feed_devices(
    mesh: Mesh, batches: pipeline.Batches, *, ahead: int
) -> Iterator[OnDevice]:
    """Yields batches on the devices; the copies of the next `ahead` are under way."""
    waiting: collections.deque[OnDevice] = collections.deque()
    for batch in batches:
        arrays = sharding.put_batch(
            mesh, {"image": batch["image"], "tokens": batch["tokens"]}
        )
        waiting.append(
            OnDevice(arrays, batch["image_id"], batches.tally, batches.progress)
        )
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
