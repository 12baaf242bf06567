"""How the compiler partitions a split batch and split parameters."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from metaclip_jax.models import clip
from metaclip_jax.training import optimizer, sharding, train_state, train_step

CLIP = clip.Architecture(
    image_size=8,
    patch_size=2,
    vision_width=32,
    vision_layers=2,
    vision_heads=4,
    vision_mlp_width=128,
    text_width=32,
    text_layers=2,
    text_heads=4,
    text_mlp_width=128,
    context_length=5,
    vocab_size=60,
    embed_dim=32,
    eos_id=1,
    pad_id=0,
)
SIGLIP = dataclasses.replace(CLIP, family="siglip", text_pool="last", logit_bias=True)
ADAMW = optimizer.make_optimizer(beta1=0.9, beta2=0.98, epsilon=1e-6, weight_decay=0.2)
ROWS = 37  # of a device and microbatch; no parameter has a size that divides by it
COLLECTIVE = re.compile(
    r" = (.*?) (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)"
    r"(?:-start)?\("
)


def compile_step(shape, architecture=CLIP, *, microbatches=1, dropout=0.0):
    """The train step, with ROWS rows of each microbatch on each batch split."""
    mesh = sharding.make_mesh(**dict(zip(sharding.AXES, shape, strict=True)))
    siglip = architecture.family == "siglip"
    state = train_state.abstract(architecture=architecture, optimizer=ADAMW)
    step = train_step.make_train_step(
        architecture=architecture,
        mesh=mesh,
        state=state,
        optimizer=ADAMW,
        schedule=optimizer.make_schedule(peak_lr=1e-3, warmup_steps=2, total_steps=9),
        loss="sigmoid" if siglip else "softmax",
        loss_form="gathered",
        loss_chunk=1_024,
        microbatches=microbatches,
        patch_dropout=dropout,
        seed=0,
    )
    batch = ROWS * microbatches * shape[0] * shape[1]
    arrays = {
        "image": jax.ShapeDtypeStruct((batch, 8, 8, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((batch, 5), np.int32),
    }
    return step.lower(state, arrays).compile()


def moved_activations(compiled):
    """Shapes that collectives make with more rows than a device has; not [B, E]."""
    shapes = [
        tuple(map(int, sizes.split(",")))
        for result in COLLECTIVE.findall(compiled.as_text())
        for sizes in re.findall(r"\[([\d,]+)\]", result)
    ]
    assert any(math.prod(shape) >= 32 * 32 for shape in shapes)  # parameters move
    return {
        shape
        for shape in shapes
        if len(shape) > 2 and any(n > ROWS and n % ROWS == 0 for n in shape)
    }


@pytest.fixture(scope="module")
def copied():
    """Bytes for activations and the like where each device has all parameters."""
    return compile_step((8, 1, 1)).memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_parameters_come_to_the_batch_and_not_the_batch_to_them(shape, copied):
    compiled = compile_step(shape)
    assert not moved_activations(compiled)
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * copied


def test_so_they_do_in_microbatches_that_see_some_of_the_patches():
    compiled = compile_step((2, 4, 1), SIGLIP, microbatches=2, dropout=0.5)
    assert not moved_activations(compiled)


def test_a_table_larger_than_the_texts_stays_split():
    """Each device looks up its rows for the texts of all that share the table."""
    vocabulary = dataclasses.replace(CLIP, vocab_size=100_000)
    compiled = compile_step((1, 8, 1), vocabulary)
    assert moved_activations(compiled) == {
        (8 * ROWS, 5, 1),  # tokens
        (8 * ROWS, 5, 32),  # what stands for them
    }
    assert not re.search(r"\[100096,32\]", compiled.as_text())
