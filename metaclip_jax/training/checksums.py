"""Checksums of a state's arrays: the same on every mesh, and for NumPy's arrays.

A checksum is the sum of the array's bits, as numbers of 32 bits, each times an odd
weight of its own, modulo 2**32. The order of the sum does not matter, so it may be
spread over devices. A change of a single number always changes the checksum, as odd
weights have an inverse; of other changes one in 2**32 stays unseen.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metaclip_jax.training import sharding

_FACTOR = 2_654_435_761  # odd, so that the weights of neighbours differ in most bits
_BITS = {1: "uint8", 2: "uint16", 4: "uint32"}


def of_tree(tree: Any) -> dict[str, int]:
    """Returns each leaf's checksum by its path. All processes must call it together.

    Args:
      tree: a pytree of arrays of JAX or NumPy, whose elements have 1, 2 or 4 bytes.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    # One after the other. Each is a program whose devices wait for each other: with
    # many of them under way, several processes of CPU devices end up waiting for ever.
    return {
        sharding.path_name(path): int(
            _on_host(leaf) if _is_here(leaf) else _on_devices(leaf)
        )
        for path, leaf in leaves
    }


def _is_here(leaf: Any) -> bool:
    """Whether NumPy reads the array without a copy from a device."""
    if not isinstance(leaf, jax.Array):
        return True
    cpu = next(iter(leaf.devices())).platform == "cpu"
    return cpu and leaf.is_fully_addressable


def _on_host(leaf: Any) -> np.uint32:
    array = np.ascontiguousarray(leaf).ravel()
    bits = array.view(_BITS[array.dtype.itemsize]).astype(np.uint32)
    weights = 2 * np.arange(bits.size, dtype=np.uint32) + np.uint32(1)
    return np.sum(bits * weights * np.uint32(_FACTOR), dtype=np.uint32)


@jax.jit
def _on_devices(leaf: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(leaf, _BITS[leaf.dtype.itemsize])
    number = jnp.zeros(leaf.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(leaf.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        number += along * jnp.uint32(stride % 2**32)
        stride *= leaf.shape[axis]
    weighted = bits.astype(jnp.uint32) * (2 * number + 1) * jnp.uint32(_FACTOR)
    return jnp.sum(weighted, dtype=jnp.uint32)
