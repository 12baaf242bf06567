"""One optimizer step: both towers, the loss, AdamW and the step's metrics."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metaclip_jax.models import clip, stack
from metaclip_jax.training import losses, sharding
from metaclip_jax.training.optimizer import Schedule
from metaclip_jax.training.train_state import TrainState, shardings

MAX_LOG_LOGIT_SCALE = math.log(100)
# More than Adam's direction has per parameter (17 for beta1=0.9, beta2=0.98), and than
# a weight decay.
LARGEST_DIRECTION = 1_000.0
# Rows of a device that a layer computes at a time, if architecture.chunk is -1.
TPU_CHUNK = 32

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    *,
    architecture: clip.Architecture,
    mesh: Mesh,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    loss: str,
    loss_form: str,
    loss_chunk: int,
    microbatches: int,
    patch_dropout: float,
    seed: int,
) -> jax.stages.Wrapped:
    """Returns the jitted step (state, batch) -> (state, metrics).

    `state` gives the shardings and may be abstract. A batch has "image"
    uint8[B, H, W, 3] and "tokens" int32[B, T], sharded over the mesh; the state that is
    passed to the step is donated. Metrics are f32[]: loss, image_accuracy,
    text_accuracy, logit_scale (and logit_bias), gradient_norm, parameter_norm,
    learning_rate, skipped.

    `encode_in_microbatches` explains microbatches, `choose_patches` patch_dropout.

    If the loss or the gradient is not finite, or the new parameters might not be
    (`largest_norm`), parameters and optimizer state do not change, `skipped` is 1, and
    only `step`, which counts batches, advances.
    """

    def loss_of(params: clip.Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        image, text = encode_in_microbatches(
            functools.partial(_encode, architecture, mesh, params),
            batch,
            microbatches=microbatches,
            mesh=mesh,
        )
        return losses.contrastive_loss(
            image,
            text,
            **head_scalars(params),
            mesh=mesh,
            batch_axes=sharding.BATCH_AXES,
            kind=loss,
            form=loss_form,
            chunk=loss_chunk,
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if patch_dropout:
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            shape = (len(batch["image"]), architecture.patches)
            patches = choose_patches(key, *shape, dropout=patch_dropout)
            rows = stack.Rows(mesh, sharding.BATCH_AXES)
            batch = dict(batch, patches=rows.constrain(patches))
        (value, accuracies), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, batch
        )
        gradient_norm = optax.tree.norm(gradients)
        learning_rate = schedule(state.step)

        direction, opt = optimizer.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(
            lambda p, d: p - learning_rate * d, state.params, direction
        )
        if loss == "softmax":  # SigLIP's scale is not clamped; it ends above 100
            params |= {"log_logit_scale": clamp(params["log_logit_scale"])}
        reach = largest_norm(state.params, learning_rate)
        finite = jnp.isfinite(jnp.stack([value, gradient_norm, reach])).all()
        params = choose(finite, params, state.params)
        opt = choose(finite, opt, state.opt_state)
        metrics = {
            "loss": value,
            **accuracies,
            **head_scalars(state.params),
            "gradient_norm": gradient_norm,
            "parameter_norm": optax.tree.norm(params),
            "learning_rate": learning_rate,
            "skipped": 1 - finite.astype(jnp.float32),
        }
        return TrainState(state.step + 1, params, opt), metrics

    layout = shardings(mesh, state)
    return jax.jit(
        step,
        in_shardings=(layout, sharding.batch_sharding(mesh)),
        out_shardings=(layout, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def _encode(
    architecture: clip.Architecture, mesh: Mesh, params: clip.Params, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Returns f32[B, E] of images and texts; gathers parameters, not the batch."""
    chunk = architecture.chunk
    if chunk == -1:
        chunk = TPU_CHUNK if mesh.devices.flat[0].platform == "tpu" else 0
    # Only the loop has chunks, and a chunk's device has to hold whole layers.
    if architecture.unroll or sharding.splits_layers(mesh):
        chunk = 0
    rows = stack.Rows(mesh, sharding.BATCH_AXES, chunk, sharding.layer_collector(mesh))
    tokens = batch["tokens"]
    table = sharding.collect_table(
        mesh, params["text"]["token_embedding"], lookups=tokens.size
    )
    params = params | {"text": params["text"] | {"token_embedding": table}}
    return (
        clip.encode_image(
            architecture, params, batch["image"], batch.get("patches"), rows=rows
        ),
        clip.encode_text(architecture, params, tokens, rows=rows),
    )


def head_scalars(params: clip.Params) -> Metrics:
    """Returns logit_scale f32[] and, if the model has one, logit_bias f32[]."""
    scalars = {"logit_scale": jnp.exp(params["log_logit_scale"])}
    if "logit_bias" in params:
        scalars["logit_bias"] = params["logit_bias"]
    return scalars


def largest_norm(params: clip.Params, learning_rate: jax.Array) -> jax.Array:
    """Bounds the squared norm f32[] of the parameters after a step; inf if too large.

    With a learning rate that is too high, the parameters overflow before anything else.
    This is known before Adam's update is computed, so that the update, the choice
    whether to apply it and the parameters' norm are one pass over the state.
    """
    norm = optax.tree.norm(params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    change = LARGEST_DIRECTION * (math.sqrt(size) + norm)
    return jnp.square(norm + learning_rate * change)


def choose(condition: jax.Array, one: Any, other: Any) -> Any:
    """Returns the pytree `one` if `condition`, bool[], is true, else `other`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def encode_in_microbatches(
    encode: Callable[[Batch], tuple[jax.Array, jax.Array]],
    batch: Batch,
    *,
    microbatches: int,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Returns f32[B, E] of images and texts, encoded one microbatch at a time.

    Only the embeddings of a microbatch are stored; the backward pass encodes it again.
    The loss sees the whole batch, so gradients are those of the unsplit batch, with the
    activation memory of one microbatch (GradCache, arXiv 2101.06983).

    `encode` maps the rows of a batch to their embeddings. Microbatch k of n has rows k,
    k + n, k + 2n and so on, so that each is sharded over all devices, as the batch is.
    B / devices must be divisible by `microbatches`.
    """
    if microbatches == 1:
        return encode(batch)
    spread = NamedSharding(mesh, PartitionSpec(None, sharding.BATCH_AXES))

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)  # [n, B / n, ...]
        return jax.lax.with_sharding_constraint(x, spread)

    def join(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(-1, x.shape[-1])

    # The checkpoint stores no activations.
    encoded = jax.lax.map(jax.checkpoint(encode), jax.tree.map(split, dict(batch)))
    return join(encoded[0]), join(encoded[1])


def kept_patches(patches: int, *, dropout: float) -> int:
    """Returns the number of patches of an image that a train step encodes."""
    return max(round(patches * (1 - dropout)), 1)


def choose_patches(
    key: jax.Array, batch: int, patches: int, *, dropout: float
) -> jax.Array:
    """Returns int32[batch, kept_patches], the kept patches of each image, ascending.

    Dropping half of them makes the image tower about twice as fast and costs a little
    accuracy (FLIP, arXiv 2212.00794). The choice depends only on the key and the row.
    """
    draws = jax.random.uniform(key, (batch, patches))
    # Not top_k, which XLA does not partition over devices.
    chosen = jnp.argsort(draws, axis=1, descending=True)
    return jnp.sort(chosen[:, : kept_patches(patches, dropout=dropout)], axis=1)


def clamp(log_logit_scale: jax.Array) -> jax.Array:
    """Clamps logit_scale = exp(...) to [1, 100], as the paper does after each step."""
    return jnp.clip(log_logit_scale, 0, MAX_LOG_LOGIT_SCALE)
