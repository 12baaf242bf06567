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
    if causal:
        mask = jnp.tri(query.shape[1], key.shape[1], dtype=bool)
    return _attend(query, (key,), (value,), mask)


def by_jax(
    query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool = False
) -> jax.Array:
    """Computes `plain` with JAX's function and its gradient, to compare with."""
    return jax.nn.dot_product_attention(
        query, key, value, is_causal=causal, implementation="xla"
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
    return _attend(query, keys, values, None)


Arrays = tuple[jax.Array, ...]
_Residuals = tuple[jax.Array, Arrays, Arrays, Arrays]  # and the weights [B, H, T, S]


@jax.custom_vjp
def _attend(
    query: jax.Array, keys: Arrays, values: Arrays, mask: jax.Array | None
) -> jax.Array:
    return _forward(query, keys, values, mask)[0]


def _forward(
    query: jax.Array, keys: Arrays, values: Arrays, mask: jax.Array | None
) -> tuple[jax.Array, _Residuals]:
    """Stores the weights in the dtype of the inputs, in which they are multiplied.

    `mask`, which broadcasts to bool[B, H, T, S], is for a single segment.
    Scores and sums are f32. In f32, the weights are those of jax.nn.softmax. (By the
    TPU compiler's estimate, SigLIP B/16's step takes 102.2 M cycles, and 109.8 with
    JAX's attention: `tpu_step`, b16_512_full.)
    """
    scale = query.shape[-1] ** -0.5
    scores = [scale * _scores(query, key) for key in keys]
    if mask is not None:
        scores = [jnp.where(mask, scores[0], jnp.finfo(jnp.float32).min)]
    # Softmax over all segments. Subtracting the maximum prevents overflow.
    highest = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
    powers = [jnp.exp(s - highest).astype(query.dtype) for s in scores]
    total = functools.reduce(jnp.add, [_row_sum(p) for p in powers])
    weights = tuple((p / total).astype(query.dtype) for p in powers)
    mixed = [
        jnp.einsum("bhts,bshd->bthd", w, value)
        for w, value in zip(weights, values, strict=True)
    ]
    return functools.reduce(jnp.add, mixed), (query, keys, values, weights)


def _backward(
    residuals: _Residuals, gradient: jax.Array
) -> tuple[jax.Array, Arrays, Arrays, None]:
    """Returns the gradients of query, keys and values."""
    query, keys, values, weights = residuals
    scale = query.shape[-1] ** -0.5
    by_weight = [  # [B, H, T, S], in the dtype of the weights
        jnp.einsum("bthd,bshd->bhts", gradient, value) for value in values
    ]
    mean = functools.reduce(
        jnp.add,
        [
            _row_sum(_wide(w) * _wide(g))
            for w, g in zip(weights, by_weight, strict=True)
        ],
    )
    by_score = [
        (scale * _wide(w) * (_wide(g) - mean)).astype(query.dtype)
        for w, g in zip(weights, by_weight, strict=True)
    ]
    by_query = [
        jnp.einsum("bhts,bshd->bthd", s, key)
        for s, key in zip(by_score, keys, strict=True)
    ]
    return (
        functools.reduce(jnp.add, by_query),
        tuple(jnp.einsum("bhts,bthd->bshd", s, query) for s in by_score),
        tuple(jnp.einsum("bhts,bthd->bshd", w, gradient) for w in weights),
        None,
    )


_attend.defvjp(_forward, _backward)


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the dot products f32[B, H, T, S] of all queries and keys."""
    return jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _row_sum(x: jax.Array) -> jax.Array:
    """Sums the last axis in f32, and keeps it."""
    return jnp.sum(x, axis=-1, keepdims=True, dtype=jnp.float32)


IMPLEMENTATIONS = ("xla", "jax", "cudnn")
# How the names of the primitives of cuDNN's attention start.
CUDNN_PRIMITIVE = "dot_product_attention_fwd"
