"""A train step on the CPU: ours against torch and transformers' CLIPModel, in one run.

    python -m benchmarks.train_step              # about two minutes, needs torch

Both train the same model (ViT-S/16 at 112 pixels with a text tower of the same size,
CLIP's vocabulary and context) in f32 on as many threads, on the same random batch:
forward, loss, backward, AdamW. A few steps of each alternate, the median counts. Then
it says what bounds ours: the forward passes of the towers beside the rest of the step,
the matrix products of all layers alone, forward and backward, without attention or
anything else, and the FLOP/s that the step reaches beside those of one large product.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import torch
import transformers
from absl import app, flags

from metaclip_jax import config as keys
from metaclip_jax import program, sharding, train_state
from metaclip_jax.models import clip

Step = Callable[[], float]

_BATCH = flags.DEFINE_integer("batch", 64, "pairs a step", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 2, "timed in a row", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "of such rows of each", lower_bound=1)
_WIDTH, _LAYERS, _HEADS, _SIZE, _PATCH = 384, 12, 6, 112, 16
_VOCABULARY, _CONTEXT, _EOS = 49_408, 77, 49_407


def make_batch() -> dict[str, np.ndarray]:
    """Returns random images and texts, each text with its end mark."""
    rng = np.random.default_rng(0)
    shape = (_BATCH.value, _SIZE, _SIZE, 3)
    tokens = rng.integers(1, 40_000, (_BATCH.value, _CONTEXT), dtype=np.int32)
    tokens[:, -1] = _EOS
    return {"image": rng.integers(0, 255, shape, dtype=np.uint8), "tokens": tokens}


def ours(batch: dict[str, np.ndarray]) -> tuple[Step, Step, int]:
    """Returns what makes a step, what only runs the towers, and the step's FLOPs."""
    config = keys.default()
    config.global_batch = _BATCH.value
    config.total_steps = 100_000
    config.image_size = _SIZE
    config.dtype = "float32"
    config.model.patch_size = _PATCH
    config.model.embed_dim = _WIDTH
    config.model.remat = "dots"  # memory is what CPUs are short of
    for tower in ("vision", "text"):
        config.model[f"{tower}_width"] = _WIDTH
        config.model[f"{tower}_layers"] = _LAYERS
        config.model[f"{tower}_heads"] = _HEADS
    asked = program.make(config, vocab_size=_VOCABULARY, eos_id=_EOS, pad_id=0)
    compiled = program.lower(asked, config).compile()
    state = train_state.create(
        architecture=asked.architecture,
        optimizer=asked.optimizer,
        mesh=asked.mesh,
        seed=0,
    )
    arrays = sharding.put_batch(asked.mesh, batch)

    @jax.jit
    def towers(params: clip.Params) -> jax.Array:
        image = clip.encode_image(asked.architecture, params, arrays["image"])
        text = clip.encode_text(asked.architecture, params, arrays["tokens"])
        return (image * text).sum()

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, arrays)
        return float(metrics["loss"])

    def forward() -> float:
        return float(towers(state.params))

    return step, forward, program.model_flops(asked, config)


def theirs(batch: dict[str, np.ndarray]) -> tuple[Step, Step]:
    """Returns what makes a step, and what only runs the towers."""
    tower = {
        "hidden_size": _WIDTH,
        "intermediate_size": 4 * _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "projection_dim": _WIDTH,
    }
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=tower | {"image_size": _SIZE, "patch_size": _PATCH},
            text_config=tower
            | {"vocab_size": _VOCABULARY, "eos_token_id": _EOS, "pad_token_id": 0},
            projection_dim=_WIDTH,
        )
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2
    )
    pixels = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float() / 255
    tokens = torch.from_numpy(batch["tokens"]).long()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        output = model(input_ids=tokens, pixel_values=pixels, return_loss=True)
        output.loss.backward()
        optimizer.step()
        return float(output.loss.detach())

    def forward() -> float:
        with torch.no_grad():
            output = model(input_ids=tokens, pixel_values=pixels)
        return float(output.logits_per_image.sum())

    return step, forward


def products() -> Step:
    """Returns what only runs the layers' matrix products by XLA, forward and backward.

    Of both towers, without attention, norms, activations, embeddings and the optimizer:
    no step by XLA can take less.
    """
    shapes = ((1, 3), (1, 1), (1, 4), (4, 1))  # in widths: qkv, out, fc1, fc2
    keys = jax.random.split(jax.random.key(0), len(shapes))
    kernels = [
        _WIDTH**-0.5 * jax.random.normal(key, (_LAYERS, a * _WIDTH, b * _WIDTH))
        for key, (a, b) in zip(keys, shapes, strict=True)
    ]
    patches = (_SIZE // _PATCH) ** 2 + 1
    towers = [
        jax.random.normal(jax.random.key(1), (_BATCH.value * positions, _WIDTH))
        for positions in (patches, _CONTEXT)
    ]

    def chain(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, kernels: list[jax.Array]) -> tuple[jax.Array, None]:
            qkv, out, fc1, fc2 = kernels
            return (x @ qkv)[:, :_WIDTH] @ out @ fc1 @ fc2, None

        return jax.numpy.square(jax.lax.scan(layer, x, kernels)[0]).mean()

    gradient = jax.jit(jax.grad(chain, argnums=(0, 1)))

    def step() -> float:
        jax.block_until_ready([gradient(kernels, x) for x in towers])
        return 0.0

    return step


def product_flops() -> float:
    """Returns FLOP/s of XLA's product of two 2,048 x 2,048 f32 matrices."""
    matrix = jax.numpy.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    return (
        2
        * 2048**3
        / statistics.median(
            timed(lambda: product(matrix).block_until_ready()) for _ in range(9)
        )
    )


def timed(function: Callable[[], object]) -> float:
    """Returns the seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(argv: Sequence[str]) -> None:
    """Prints both rates, the ratio and what bounds it."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    batch = make_batch()
    our_step, our_forward, flops = ours(batch)
    steps = (our_step, our_forward, products(), *theirs(batch))
    seconds: dict[Step, list[float]] = {step: [] for step in steps}
    for _ in range(_ROUNDS.value):
        for step, found in seconds.items():
            step()  # while the other's threads fall asleep
            found += [timed(step) for _ in range(_STEPS.value)]
    mine, forward, alone, other, other_forward = map(
        statistics.median, seconds.values()
    )
    peak = product_flops()
    print(
        f"train step: {_BATCH.value / mine:.1f} pairs/s, torch and transformers"
        f" {_BATCH.value / other:.1f}, {other / mine:.2f}x ({threads} threads, f32);"
        f" forward {forward:.2f} s against {other_forward:.2f}, the rest"
        f" {mine - forward:.2f} against {other - other_forward:.2f};"
        f" the layers' products alone take {alone:.2f} s, at which a step would be"
        f" {other / alone:.2f}x;"
        f" {flops / mine / 1e9:.0f} GFLOP/s of model FLOPs, {flops / mine / peak:.0%}"
        f" of XLA's {peak / 1e9:.0f} for a large matrix product"
    )


if __name__ == "__main__":
    app.run(main)
