"""MetaCLIP's AdamW: which leaves decay, and the learning rate schedule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# By the last name of a leaf's path. Not by rank: a stack of biases has two axes.
# Matrices and tables decay, vectors and scalars do not, as in the paper's code.
DECAYED = frozenset({"kernel", "projection", "token_embedding", "position_embedding"})
NOT_DECAYED = frozenset(
    {
        "bias",
        "scale",
        "class_embedding",
        "log_logit_scale",
        "logit_bias",
        "patch_bias",
        "probe",
        "projection_bias",
    }
)

Schedule = Callable[[jax.Array], jax.Array]


def make_optimizer(
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    first_moment_dtype: str = "float32",
) -> optax.GradientTransformation:
    """Returns AdamW without its learning rate, by which the train step multiplies.

    So the rate follows the training step even after steps whose update was skipped,
    which optax's own count does not include.
    """
    return optax.chain(
        optax.scale_by_adam(
            b1=beta1, b2=beta2, eps=epsilon, mu_dtype=jnp.dtype(first_moment_dtype)
        ),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
    )


def make_schedule(*, peak_lr: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Returns step -> learning rate f32[]: linear warm-up, then cosine to zero.

    Step s of the warm-up has peak_lr * (s + 1) / warmup_steps; the first step is 0.

    Raises:
        ValueError: not 0 <= warmup_steps < total_steps.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be at least 0 and less than "
            f"total_steps={total_steps}; try {total_steps // 10}"
        )

    def schedule(step: jax.Array) -> jax.Array:
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
        warmup = (step + 1) / max(warmup_steps, 1)
        return peak_lr * jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def decay_mask(params: Any) -> Any:
    """Returns the tree of `params` with True at each leaf that decays."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _decays(jax.tree_util.keystr(path, simple=True, separator="/")),
        params,
    )


def _decays(path: str) -> bool:
    name = path.rpartition("/")[2]
    if name not in DECAYED | NOT_DECAYED:
        raise ValueError(
            f"no weight decay rule for {path}; add {name!r} to DECAYED or NOT_DECAYED"
        )
    return name in DECAYED
