"""Checksums of a state's arrays, equal on every mesh and for NumPy arrays.

A checksum is the sum modulo 2**32 of the elements' bits, as uint32, each times an odd
weight that depends on its position. The order of the sum does not matter, so devices
may share it. Changing a single element always changes the checksum, because odd weights
are invertible modulo 2**32; about one in 2**32 of other changes is missed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metaclip_jax.training import sharding

# Makes the weights of neighbours differ in many bits; odd, so that weights stay odd.
_FACTOR = 2_654_435_761
_BITS = {1: "uint8", 2: "uint16", 4: "uint32"}


def of_tree(tree: Any) -> dict[str, int]:
    """Returns each leaf's checksum by its path. All processes must call it together.

    Args:
      tree: a pytree of arrays of JAX or NumPy, whose elements have 1, 2 or 4 bytes.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    # One at a time: each is a collective, and with many in flight, several processes
    # with CPU devices deadlock.
    return {
        sharding.path_name(path): int(
            _on_host(leaf) if _is_on_host(leaf) else _on_devices(leaf)
        )
        for path, leaf in leaves
    }


def _is_on_host(leaf: Any) -> bool:
    """Whether NumPy can read the array without a copy from a device."""
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
