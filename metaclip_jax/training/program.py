"""Builds a config's train step for any devices, real or described, without arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from metaclip_jax import config as keys
from metaclip_jax.data import tokenizer
from metaclip_jax.models import clip, presets
from metaclip_jax.training import (
    checkpoint,
    flops,
    losses,
    sharding,
    train_state,
)
from metaclip_jax.training.optimizer import Schedule, make_optimizer, make_schedule
from metaclip_jax.training.train_step import kept_patches, make_train_step


def load_tokenizer(config: ConfigDict) -> tokenizer.Tokenizer:
    """Returns the config's tokenizer, as its family of models uses it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a tokenizer, or not that of config.vocabulary.
    """
    loaded = tokenizer.load(config.tokenizer, family=config.model.family)
    presets.check_vocabulary(
        config.vocabulary, size=loaded.vocab_size, tokenizer=config.tokenizer
    )
    return loaded


def token_ids(loaded: tokenizer.Tokenizer) -> dict[str, Any]:
    """Returns what the architecture of a model takes from its tokenizer."""
    return {
        "vocab_size": loaded.vocab_size,
        "eos_id": loaded.eos_id,
        "pad_id": loaded.pad_id,
    }


class Program(NamedTuple):
    """A checked, uncompiled train step and its mesh."""

    architecture: clip.Architecture
    optimizer: optax.GradientTransformation
    schedule: Schedule
    mesh: Mesh


def make(
    config: ConfigDict,
    *,
    vocab_size: int,
    eos_id: int,
    pad_id: int,
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Returns the program of a config and a tokenizer's ids; devices None = all.

    Raises:
        ValueError: options contradict each other or do not fit the devices.
    """
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_global_batch(
        config.global_batch, mesh, microbatches=config.microbatches
    )
    losses.check(kind=config.loss, form=config.loss_form, chunk=config.loss_chunk)
    check_attention(
        config.model.attention,
        dtype=config.dtype,
        platform=mesh.devices.flat[0].platform,
    )
    return Program(
        architecture=keys.architecture(
            config, vocab_size=vocab_size, eos_id=eos_id, pad_id=pad_id
        ),
        optimizer=make_optimizer(
            beta1=config.optimizer.beta1,
            beta2=config.optimizer.beta2,
            epsilon=config.optimizer.epsilon,
            weight_decay=config.optimizer.weight_decay,
            first_moment_dtype=config.optimizer.first_moment_dtype,
        ),
        schedule=make_schedule(
            peak_lr=config.optimizer.peak_lr,
            warmup_steps=config.optimizer.warmup_steps,
            total_steps=config.total_steps,
        ),
        mesh=mesh,
    )


def check_attention(attention: str, *, dtype: str, platform: str) -> None:
    """Checks that cuDNN's attention can run, if it is chosen.

    Raises:
        ValueError: the devices are not GPUs, or the dtype is not bfloat16.
    """
    if attention == "cudnn" and (platform != "gpu" or dtype != "bfloat16"):
        raise ValueError(
            "model.attention='cudnn' needs NVIDIA GPUs and dtype='bfloat16', got"
            f" {platform} and {dtype!r}; --config.model.attention=xla runs everywhere"
        )


def abstract_state(program: Program) -> train_state.TrainState:
    """Returns the state's shapes, dtypes and shardings."""
    shapes = train_state.abstract(
        architecture=program.architecture, optimizer=program.optimizer
    )
    return checkpoint.with_shardings(
        shapes, train_state.shardings(program.mesh, shapes)
    )


def lower(program: Program, config: ConfigDict) -> jax.stages.Lowered:
    """Returns the step (state, batch) -> (state, metrics), lowered but not compiled."""
    state = abstract_state(program)
    step = make_train_step(
        architecture=program.architecture,
        mesh=program.mesh,
        state=state,
        optimizer=program.optimizer,
        schedule=program.schedule,
        loss=config.loss,
        loss_form=config.loss_form,
        loss_chunk=config.loss_chunk,
        microbatches=config.microbatches,
        patch_dropout=config.patch_dropout,
        seed=config.seed,
    )
    rows = sharding.batch_sharding(program.mesh)
    size, length = config.image_size, config.model.context_length
    batch = {
        "image": jax.ShapeDtypeStruct(
            (config.global_batch, size, size, 3), np.uint8, sharding=rows
        ),
        "tokens": jax.ShapeDtypeStruct(
            (config.global_batch, length), np.int32, sharding=rows
        ),
    }
    return step.lower(state, batch)


def model_flops(program: Program, config: ConfigDict) -> int:
    """Returns the model FLOPs of a step, without rematerialisation."""
    architecture = program.architecture
    return flops.of_step(
        architecture,
        global_batch=config.global_batch,
        patches=kept_patches(architecture.patches, dropout=config.patch_dropout),
    )
