"""Attention: by XLA, by cuDNN, and over positions that are kept in parts."""

import functools
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


def fused(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool = False,
    positions: int | None = None,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> jax.Array:
    """Does what `whole` does by cuDNN, which wants an even number of positions T = S.

    Where gradients are wanted, JAX refuses odd ones for cuDNN ("Unsupported sequence
    length"), and 77 tokens are odd. None attends to the keys from `positions` on, and
    their gradients are zero; None = there are none. Queries there get finite values.
    """
    batch, count = query.shape[:2]
    queries = keys = None
    if positions is not None and positions < count and not causal:
        queries = jnp.full(batch, count, jnp.int32)
        keys = jnp.full(batch, positions, jnp.int32)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=causal,
        query_seq_lengths=queries,
        key_value_seq_lengths=keys,
        implementation=implementation,
    )


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


IMPLEMENTATIONS = ("xla", "cudnn")
# The primitive of cuDNN's attention, but for what its name ends in.
FUSED = "dot_product_attention_fwd"
