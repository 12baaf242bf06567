"""Attention: by XLA, by cuDNN, and over a sequence that is split into segments."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp


def plain(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    causal: bool = False,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Returns XLA's attention [B, T, H, D]; keys and values are [B, S, H, D].

    A query attends to the keys where `mask`, bool[B, 1, T, S], is true; None = all.
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
    """Computes `plain` with cuDNN; needs an even sequence length T = S.

    JAX refuses odd lengths for cuDNN's gradient ("Unsupported sequence length"), and
    77 tokens are odd. Positions from `positions` on are padding: no query attends to
    them, their gradients are zero, and their outputs are finite. None = no padding.
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


def over_segments(
    query: jax.Array, keys: tuple[jax.Array, ...], values: tuple[jax.Array, ...]
) -> jax.Array:
    """Computes `plain` with the S positions of keys and values split into segments."""
    scale = query.shape[-1] ** -0.5
    scores = [scale * _scores(query, key) for key in keys]
    # Softmax over all segments. Subtracting the maximum prevents overflow; it changes
    # neither results nor gradients.
    highest = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
    powers = [jnp.exp(s - jax.lax.stop_gradient(highest)) for s in scores]
    total = functools.reduce(jnp.add, [p.sum(-1, keepdims=True) for p in powers])
    mixed = [
        jnp.einsum("bhts,bshd->bthd", (p / total).astype(value.dtype), value)
        for p, value in zip(powers, values, strict=True)
    ]
    return functools.reduce(jnp.add, mixed)


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the dot products f32[B, H, T, S] of all queries and keys."""
    narrow = query.dtype == jnp.bfloat16
    return jnp.einsum(
        "bthd,bshd->bhts",
        query,
        key,
        # Otherwise the gradient's matmuls mix f32 and bf16, which GPUs run in f32.
        precision=jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if narrow else None,
        preferred_element_type=jnp.float32,
    )


IMPLEMENTATIONS = ("xla", "cudnn")
# How the names of the primitives of cuDNN's attention start.
CUDNN_PRIMITIVE = "dot_product_attention_fwd"
