"""A train step on the CPU: ours against torch and transformers' CLIPModel, in one run.

    python -m benchmarks.train_step              # about six minutes, needs torch

Both train the same model (ViT-B/32, or the preset --towers) with CLIP's vocabulary and
context, in f32, with the same number of threads, on the same random batch: forward,
loss, backward, AdamW. torch runs in a separate process, so that neither reuses memory
of the other. A few steps of each alternate, and the median counts.

It also prints what bounds our step: the time of the forward pass and of the rest; the
time of the layers' matrix products alone, forward and backward; and model FLOP/s beside
those of one large matrix product, in XLA and in torch. The ratio of those two products
differs between CPUs, and the ratio of the steps follows it.
"""

import multiprocessing
import os
import statistics
from collections.abc import Callable, Sequence
from multiprocessing import connection

import jax
import numpy as np
from absl import flags

from benchmarks import steps
from metaclip_jax.cli import command
from metaclip_jax.models import clip, presets
from metaclip_jax.training import program, sharding, train_state

Step = Callable[[], object]

_LARGE = 2048  # rows and columns of a matrix
_WARM_STEPS = 2  # before each timed run, until the other library's threads sleep


def ours(
    towers: presets.Towers, batch: dict[str, np.ndarray]
) -> tuple[Step, Step, int]:
    """Returns a train step, a forward pass of both towers, and the step's FLOPs."""
    config = steps.config_of(
        towers, batch=len(batch["image"]), size=batch["image"].shape[1]
    )
    config.dtype = "float32"
    config.model.remat = "dots"  # saves memory
    asked = program.make(
        config, vocab_size=steps.VOCABULARY, eos_id=steps.EOS, pad_id=0
    )
    compiled = program.lower(asked, config).compile()
    state = train_state.create(
        architecture=asked.architecture,
        optimizer=asked.optimizer,
        mesh=asked.mesh,
        seed=0,
    )
    arrays = sharding.put_batch(asked.mesh, batch)

    @jax.jit
    def run_towers(params: clip.Params) -> jax.Array:
        image = clip.encode_image(asked.architecture, params, arrays["image"])
        text = clip.encode_text(asked.architecture, params, arrays["tokens"])
        return (image * text).sum()

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, arrays)
        return float(metrics["loss"])

    def forward() -> float:
        return float(run_towers(state.params))

    return step, forward, program.model_flops(asked, config)


def serve_theirs(
    calls: connection.Connection,
    towers: presets.Towers,
    batch: dict[str, np.ndarray],
    threads: int,
) -> None:
    """Receives names of measurements, and answers with torch's seconds."""
    import torch

    torch.set_num_threads(threads)
    model = steps.transformers_model(towers, size=batch["image"].shape[1])
    optimizer = steps.optimizer_of(model)
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

    matrix = torch.ones(_LARGE, _LARGE)
    measures = {"step": step, "forward": forward, "product": lambda: matrix @ matrix}
    while name := calls.recv():
        calls.send(steps.timed(measures[name]))


def products(towers: presets.Towers, *, batch: int, size: int) -> Step:
    """Returns a function that only runs both towers' matrix products in XLA.

    Forward and backward, without attention, norms, activations, embeddings and the
    optimizer: a lower bound on the time of a step in XLA.
    """
    patches = (size // towers.patch) ** 2 + 1
    key = jax.random.key(0)
    arguments = []
    for (width, layers, _), positions in (
        (towers.vision, patches),
        (towers.text, steps.CONTEXT),
    ):
        shapes = ((1, 3), (1, 1), (1, 4), (4, 1))  # in widths: qkv, out, fc1, fc2
        kernels = [
            width**-0.5 * jax.random.normal(key, (layers, a * width, b * width))
            for a, b in shapes
        ]
        arguments.append((kernels, jax.random.normal(key, (batch * positions, width))))

    def chain(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, kernels: list[jax.Array]) -> tuple[jax.Array, None]:
            qkv, out, fc1, fc2 = kernels
            return (x @ qkv)[:, : x.shape[1]] @ out @ fc1 @ fc2, None

        return jax.numpy.square(jax.lax.scan(layer, x, kernels)[0]).mean()

    gradient = jax.jit(jax.grad(chain, argnums=(0, 1)))

    def step() -> float:
        jax.block_until_ready([gradient(*tower) for tower in arguments])
        return 0.0

    return step


def large_product() -> Step:
    """Returns a function that multiplies two large f32 matrices in XLA."""
    matrix = jax.numpy.ones((_LARGE, _LARGE))
    product = jax.jit(lambda a: a @ a)
    return lambda: product(matrix).block_until_ready()


def main(argv: Sequence[str]) -> None:
    """Prints both rates, their ratio and what bounds ours."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    threads = len(os.sched_getaffinity(0))
    towers, count, size = presets.TOWERS[values.towers], values.batch, values.image_size
    batch = steps.make_batch(batch=count, size=size)
    our_step, our_forward, flops = ours(towers, batch)
    our_products = products(towers, batch=count, size=size)
    our_product = large_product()

    spawn = multiprocessing.get_context("spawn")
    calls, its_end = spawn.Pipe()
    other = spawn.Process(
        target=serve_theirs, args=(its_end, towers, batch, threads), daemon=True
    )
    other.start()
    its_end.close()

    def ask(name: str) -> float:
        calls.send(name)
        return calls.recv()

    measures: dict[str, Callable[[], float]] = {
        "step": lambda: steps.timed(our_step),
        "forward": lambda: steps.timed(our_forward),
        "products": lambda: steps.timed(our_products),
        "product": lambda: steps.timed(our_product),
        "their step": lambda: ask("step"),
        "their forward": lambda: ask("forward"),
        "their product": lambda: ask("product"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(values.rounds):
        for name, measure in measures.items():
            for _ in range(_WARM_STEPS):
                measure()
            seconds[name] += [measure() for _ in range(values.steps)]
    calls.send("")
    other.join()
    mine, forward, alone, product, theirs, their_forward, their_product = map(
        statistics.median, seconds.values()
    )
    peak, their_peak = 2 * _LARGE**3 / product, 2 * _LARGE**3 / their_product
    print(
        f"train step: {theirs / mine:.2f}x the pairs/s of torch and transformers,"
        f" {count / mine:.1f} against {count / theirs:.1f}: {values.towers} at {size}"
        f" pixels, batch {count}, f32, {threads} threads\n"
        f"train step: forward {forward:.2f} s against {their_forward:.2f}, the rest"
        f" {mine - forward:.2f} against {theirs - their_forward:.2f}\n"
        f"train step: {theirs / alone:.2f}x their pairs/s, if the layers' matrix"
        f" products ({alone:.2f} s) were the whole step\n"
        f"train step: {flops / mine / 1e9:.0f} GFLOP/s of model FLOPs,"
        f" {flops / mine / peak:.0%} of the {peak / 1e9:.0f} that XLA reaches in one"
        f" large matrix product; torch reaches {their_peak / 1e9:.0f}"
    )


if __name__ == "__main__":
    flags.DEFINE_enum("towers", "b32", list(presets.TOWERS), "Sizes of the model.")
    flags.DEFINE_integer("image_size", 224, "Pixels.", lower_bound=1)
    flags.DEFINE_integer("batch", 64, "Pairs per step.", lower_bound=2)
    flags.DEFINE_integer("steps", 2, "Timed steps in a row.", lower_bound=1)
    flags.DEFINE_integer("rounds", 2, "Such rows of each library.", lower_bound=1)
    command.run(main)
