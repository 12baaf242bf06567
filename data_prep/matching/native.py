"""What the kernel is written with: its types, how it is compiled, bit tricks.

The functions here are compiled into those of `token_trie`, and numba's cache on disk
does not notice when they change: after an edit here, remove __pycache__ next to it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

FIRST_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SECOND_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)

_29, _32 = np.uint64(29), np.uint64(32)
_EVERY = 0x0101010101010101  # times a byte: that byte eight times
_HIGH_BITS = np.uint64(0x80 * _EVERY)
_LOW_BITS = np.uint64(0x7F * _EVERY)
_CASE_BITS = np.uint64(0x20 * _EVERY)
_TO_A = np.uint64((0x80 - ord("a")) * _EVERY)
_BEHIND_Z = np.uint64((0x80 - ord("z") - 1) * _EVERY)


class Rules(NamedTuple):
    """How texts are cut; read-only arrays."""

    byte_classes: NDArray[np.uint8]  # [256]
    classes: NDArray[np.uint8]  # [0x110000], or [0] where the bytes say all
    literal: bool  # spaces count one by one, and the edge rule of v1 and v2 holds
    seed: np.uint64


class Tables(NamedTuple):
    """All that the kernel needs; plain read-only arrays, so they can be mapped."""

    slots: NDArray[np.uint64]  # [a power of two]
    entry_states: NDArray[np.uint64]  # [entries] hash if one short atom, else 0
    entry_bytes: NDArray[np.uint8]  # the entries in canonical form, joined
    entry_offsets: NDArray[np.int64]  # [entries + 1] into entry_bytes
    same_as: NDArray[np.int32]  # [entries or 0] next entry of the same form, or -1
    rules: Rules


class Atoms(NamedTuple):
    """Room for atoms, filled from the front."""

    start: NDArray[np.int64]  # byte position in the data
    length: NDArray[np.int32]  # bytes
    state: NDArray[np.uint64]  # hash of the bytes
    flags: NDArray[np.uint8]
    text: NDArray[np.int32]  # index of the text in its block


class Hits(NamedTuple):
    """Runs of atoms that may be an entry."""

    first: NDArray[np.int32]  # atoms of the block
    last: NDArray[np.int32]
    entry: NDArray[np.int32]


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles to run without the GIL; cached on disk where a cache can be kept."""
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # numba found no folder that it may write to
        return numba.njit(function, nogil=True)


@intrinsic
def _eight_bytes(typing_context: Any, array: Any, at: Any) -> Any:
    """Returns eight bytes from `at` on as one number, the first one lowest."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, values[0])
        pointer = builder.gep(view.data, [values[1]])
        pointer = builder.bitcast(pointer, ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return numba.types.uint64(array, numba.types.int64), generate


@intrinsic
def _low_zeros(typing_context: Any, word: Any) -> Any:
    """Returns how many of the lowest bits are zero."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 0))

    return numba.types.int64(numba.types.uint64), generate


# Their Python signatures have the compiler's context, which callers leave out.
eight_bytes: Any = _eight_bytes
low_zeros: Any = _low_zeros


@compiled
def mixed(state: Any) -> Any:
    """A bijection of 64 bits."""
    state = state * FIRST_MULTIPLIER
    state = (state ^ (state >> _32)) * _SECOND_MULTIPLIER
    return state ^ (state >> _29)


@compiled
def joined(node: Any, spaces: Any, atom: Any) -> Any:
    """Returns the hash of a child node from its parent's and the next atom's."""
    state = (node + spaces) * _SECOND_MULTIPLIER
    return mixed(state ^ (state >> _32) ^ atom)


@compiled
def letters_ahead(word: Any) -> Any:
    """Returns how many of eight bytes are ASCII letters before another byte comes."""
    lower = (word | _CASE_BITS) & _LOW_BITS
    others = ~((lower + _TO_A) & ~(lower + _BEHIND_Z)) | word
    others &= _HIGH_BITS
    return low_zeros(others) >> 3
