"""Attention: by XLA, by cuDNN, and over positions that are kept in parts."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp


def whole(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool = False,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mixes [B, S, H, D] values into [B, T, H, D], by the queries and keys.

    A query sees the keys where `mask`, bool[B, 1, T, S], is true; None = all.
    """
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, implementation="xla"
    )


def even(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool = False,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> jax.Array:
    """Does what `whole` does with T and S made even, by cuDNN.

    Where gradients are wanted, JAX 0.10 refuses odd ones for cuDNN ("Unsupported
    sequence length"), and 77 tokens are odd. What is added is masked and left out.
    """
    batch, positions, others = len(query), query.shape[1], key.shape[1]

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    mixed = jax.nn.dot_product_attention(
        padded(query),
        padded(key),
        padded(value),
        is_causal=causal,
        query_seq_lengths=jnp.full(batch, positions, jnp.int32),
        key_value_seq_lengths=jnp.full(batch, others, jnp.int32),
        implementation=implementation,
    )
    return mixed[:, :positions]


def over_parts(
    query: jax.Array, keys: tuple[jax.Array, ...], values: tuple[jax.Array, ...]
) -> jax.Array:
    """Does what `whole` does, with the S positions of keys and values in parts."""
    scale = query.shape[-1] ** -0.5
    scores = [scale * _scores(query, key) for key in keys]
    # Softmax over all parts. Without the highest, powers overflow; it changes neither
    # results nor gradients.
    highest = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
    powers = [jnp.exp(s - jax.lax.stop_gradient(highest)) for s in scores]
    total = functools.reduce(jnp.add, [p.sum(-1, keepdims=True) for p in powers])
    mixed = [
        jnp.einsum("bhts,bshd->bthd", (p / total).astype(value.dtype), value)
        for p, value in zip(powers, values, strict=True)
    ]
    return functools.reduce(jnp.add, mixed)


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the products f32[B, H, T, S] of all queries and keys."""
    narrow = query.dtype == jnp.bfloat16
    return jnp.einsum(
        "bthd,bshd->bhts",
        query,
        key,
        # Or the gradient's products would be of f32 and bf16, which GPUs widen.
        precision=jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if narrow else None,
        preferred_element_type=jnp.float32,
    )


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {"xla": whole, "cudnn": even}
