"""A plain JAX train step, as big_vision's trainer for SigLIP has it, in Flax Linen.

The towers are Linen's own layers in a scan with rematerialisation, the loss is over a
matrix of all logits, and parameters are copied or split over all devices. Sizes, data,
loss and optimizer are those of our step. Each step has a guard of its own: this one
clips the gradient to a norm of 1, as big_vision's recipes do, and ours skips an update
that is not finite; ours reports accuracies, this one the norm of the update. In
big_vision's favour, its text tower computes in bf16, which is published in f32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metaclip_jax.models import clip

_POLICIES = jax.checkpoint_policies
# None: without rematerialisation.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": _POLICIES.dots_with_no_batch_dims_saveable,
    "full": _POLICIES.nothing_saveable,
}
Constrain = Callable[[jax.Array], jax.Array]


def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's activation, differentiated by JAX."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu_tanh": jax.nn.gelu}


class Mlp(linen.Module):
    """Two dense layers; a dtype of None is f32."""

    width: int
    dtype: str | None
    activation: str

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D]."""
        channels = x.shape[-1]
        x = linen.Dense(self.width, dtype=self.dtype)(x)
        x = ACTIVATIONS[self.activation](x)
        return linen.Dense(channels, dtype=self.dtype)(x)


class Block(linen.Module):
    """A pre-norm block in the form that `linen.scan` needs."""

    heads: int
    mlp_width: int
    dtype: str
    activation: str
    epsilon: float
    constrain: Constrain

    @linen.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, None]:
        """Maps [B, T, D] to [B, T, D]."""
        x = self.constrain(x)
        y = linen.LayerNorm(self.epsilon)(x)
        y = linen.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(
            y, y, mask=mask
        )
        x = x + self.constrain(y)
        y = linen.LayerNorm(self.epsilon)(x)
        y = Mlp(self.mlp_width, self.dtype, self.activation)(y)
        return self.constrain(x + self.constrain(y)), None


class Head(linen.Module):
    """SigLIP's pooling by a learned query, in f32."""

    heads: int
    mlp_width: int
    activation: str
    epsilon: float

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, N, D] to [B, D]."""
        init = linen.initializers.xavier_uniform()
        probe = self.param("probe", init, (1, 1, x.shape[-1]))
        probe = jnp.tile(probe, (len(x), 1, 1))
        x = linen.MultiHeadDotProductAttention(self.heads)(probe, x)
        y = linen.LayerNorm(self.epsilon)(x)
        return (x + Mlp(self.mlp_width, None, self.activation)(y))[:, 0]


class Towers(linen.Module):
    """Both towers of an architecture of ours."""

    sizes: clip.Architecture
    constrain: Constrain

    @linen.compact
    def __call__(
        self, images: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Maps f32[B, H, W, 3] and int32[B, T] to two f32[B, E] of unit norm."""
        return self._image(images), self._text(tokens)

    def _image(self, images: jax.Array) -> jax.Array:
        sizes = self.sizes
        width, siglip = sizes.vision_width, sizes.family == "siglip"
        patch = (sizes.patch_size,) * 2
        x = linen.Conv(
            width, patch, patch, "VALID", use_bias=siglip, dtype=sizes.dtype
        )(images.astype(sizes.dtype))
        x = x.reshape(len(x), -1, width)
        normal = linen.initializers.normal(width**-0.5)
        if not siglip:
            token = self.param("class", normal, (1, 1, width)).astype(x.dtype)
            x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        table = self.param("image_positions", normal, (1, *x.shape[1:]))
        x = x + table.astype(x.dtype)
        if not siglip:
            x = self._norm(x).astype(sizes.dtype)
        x = self._blocks(
            x, None, sizes.vision_layers, sizes.vision_heads, sizes.vision_mlp_width
        )
        x = self._norm(x)
        if siglip:
            head = Head(
                sizes.vision_heads,
                sizes.vision_mlp_width,
                sizes.activation,
                clip.layer_norm_epsilon(sizes),
            )
            return unit_norm(head(x))
        return unit_norm(linen.Dense(sizes.embed_dim, use_bias=False)(x[:, 0]))

    def _text(self, tokens: jax.Array) -> jax.Array:
        sizes = self.sizes
        width, siglip = sizes.text_width, sizes.family == "siglip"
        normal = linen.initializers.normal(width**-0.5)
        x = linen.Embed(sizes.vocab_size, width)(tokens)
        x = x + self.param("text_positions", normal, (1, *x.shape[1:]))
        mask = None if siglip else linen.make_causal_mask(tokens)
        x = self._blocks(
            x.astype(sizes.dtype),
            mask,
            sizes.text_layers,
            sizes.text_heads,
            sizes.text_mlp_width,
        )
        x = self._norm(x)
        if siglip:
            x = x[:, -1]
        else:
            end = jnp.argmax(tokens == sizes.eos_id, axis=1)
            x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return unit_norm(linen.Dense(sizes.embed_dim, use_bias=siglip)(x))

    def _norm(self, x: jax.Array) -> jax.Array:
        return linen.LayerNorm(clip.layer_norm_epsilon(self.sizes))(x)

    def _blocks(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        layers: int,
        heads: int,
        mlp_width: int,
    ) -> jax.Array:
        block: Any = Block
        if policy := REMAT[self.sizes.remat]:
            block = linen.remat(Block, prevent_cse=False, policy=policy)
        stack = linen.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=linen.broadcast,
            length=layers,
        )(
            heads,
            mlp_width,
            self.sizes.dtype,
            self.sizes.activation,
            clip.layer_norm_epsilon(self.sizes),
            self.constrain,
        )
        return stack(x, mask)[0]


def unit_norm(x: jax.Array) -> jax.Array:
    """Divides each row by its norm."""
    return x / (jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-8)


def loss_of(
    image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array, kind: str
) -> jax.Array:
    """Returns the sigmoid or softmax loss of two f32[B, E]."""
    logits = jnp.dot(image, text.T) * scale + bias
    if kind == "sigmoid":
        sign = 2 * jnp.eye(len(logits)) - jnp.ones_like(logits)
        return jnp.mean(-jnp.sum(jax.nn.log_sigmoid(sign * logits), axis=-1))
    labels = jnp.arange(len(logits))
    both = [
        optax.softmax_cross_entropy_with_integer_labels(x, labels)
        for x in (logits, logits.T)
    ]
    return jnp.mean(sum(both)) / 2


def norm(tree: Any) -> jax.Array:
    """Returns the norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))


def lower(
    sizes: clip.Architecture,
    *,
    mesh: Mesh,
    split_parameters: bool,
    global_batch: int,
    loss: str,
    optimizer: dict[str, float],
    total_steps: int,
    clip_gradient: bool = True,
) -> jax.stages.Lowered:
    """Returns the lowered step.

    Args:
        sizes: of the towers, their dtype and rematerialisation.
        mesh: all its axes split the batch.
        split_parameters: over all devices, each along its longest axis that divides;
            else each device has a copy.
        global_batch: pairs a step.
        loss: "sigmoid" or "softmax".
        optimizer: peak_lr, warmup_steps, beta1, beta2, epsilon and weight_decay.
        total_steps: of the schedule.
        clip_gradient: as big_vision does; else without its norm of the update.
    """
    copied = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    model = Towers(sizes, lambda x: jax.lax.with_sharding_constraint(x, rows))
    size, length = sizes.image_size, sizes.context_length
    batch = {
        "image": jax.ShapeDtypeStruct(
            (global_batch, size, size, 3), np.uint8, sharding=rows
        ),
        "tokens": jax.ShapeDtypeStruct((global_batch, length), np.int32, sharding=rows),
    }
    change = optax.chain(
        optax.clip_by_global_norm(1.0) if clip_gradient else optax.identity(),
        optax.scale_by_adam(
            optimizer["beta1"], optimizer["beta2"], optimizer["epsilon"]
        ),
        optax.add_decayed_weights(optimizer["weight_decay"], mask=is_kernel),
        optax.scale_by_learning_rate(
            optax.warmup_cosine_decay_schedule(
                0.0, optimizer["peak_lr"], int(optimizer["warmup_steps"]), total_steps
            )
        ),
    )

    def init(key: jax.Array) -> Any:
        pair = jnp.zeros((1, size, size, 3)), jnp.zeros((1, length), jnp.int32)
        params = Towers(sizes, lambda x: x).init(key, *pair)["params"]
        params = params | {"scale": jnp.zeros(()), "bias": jnp.zeros(())}
        return {"params": params, "opt": change.init(params)}

    def step(state: Any, batch: dict[str, jax.Array]) -> tuple[Any, Any]:
        mean, std = (value.tolist() for value in clip.image_statistics(sizes))
        images = batch["image"].astype(jnp.float32) / 255
        images = (images - jnp.array(mean)) / jnp.array(std)

        def objective(params: Any) -> jax.Array:
            towers = {k: v for k, v in params.items() if k not in ("scale", "bias")}
            image, text = model.apply({"params": towers}, images, batch["tokens"])
            scale = jnp.exp(params["scale"])
            return loss_of(image, text, scale, params["bias"], loss)

        value, gradients = jax.value_and_grad(objective)(state["params"])
        updates, opt = change.update(gradients, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = {"loss": value, "gradient": norm(gradients), "params": norm(params)}
        if clip_gradient:
            metrics["update"] = norm(updates)
        return {"params": params, "opt": opt}, metrics

    state = jax.eval_shape(init, jax.random.key(0))
    layout = jax.tree.map(
        lambda leaf: _layout(leaf.shape, mesh=mesh) if split_parameters else copied,
        state,
    )
    state = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        state,
        layout,
    )
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, copied))
    return jitted.lower(state, batch)


def is_kernel(params: Any) -> Any:
    """Returns which leaves decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "embedding"), params
    )


def _layout(shape: tuple[int, ...], *, mesh: Mesh) -> NamedSharding:
    """Splits the longest axis that divides by the number of devices."""
    fits = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
    spec: list[Any] = [None] * len(shape)
    if fits and np.prod(shape) >= 2**20:
        spec[max(fits, key=lambda axis: shape[axis])] = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(*spec))
