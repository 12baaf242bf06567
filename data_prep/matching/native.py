"""Types, compilation and bit operations of the matching kernel.

The functions here are compiled into those of `token_trie`, and numba's cache on disk
does not see changes here: after an edit, remove the __pycache__ beside this file.
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
    """How texts are cut into atoms; read-only arrays."""

    byte_classes: NDArray[np.uint8]  # [256]
    classes: NDArray[np.uint8]  # [0x110000], or [0] if byte_classes suffice
    literal: bool  # v1 and v2: each space counts, and their rule for edges holds
    seed: np.uint64


class Tables(NamedTuple):
    """The tables of the kernel; read-only arrays, so they can be mapped."""

    slots: NDArray[np.uint64]  # [a power of two]
    entry_states: NDArray[np.uint64]  # [entries] hash if one short atom, else 0
    entry_bytes: NDArray[np.uint8]  # the entries in canonical form, joined
    entry_offsets: NDArray[np.int64]  # [entries + 1] into entry_bytes
    same_as: NDArray[np.int32]  # [entries or 0] next entry of the same form, or -1
    rules: Rules


class Atoms(NamedTuple):
    """Buffers for atoms, filled from the front."""

    start: NDArray[np.int64]  # byte position in the data
    length: NDArray[np.int32]  # bytes
    state: NDArray[np.uint64]  # hash of the bytes
    flags: NDArray[np.uint8]
    text: NDArray[np.int32]  # index of the text in its block


class Hits(NamedTuple):
    """Candidate matches: runs of atoms that may be an entry."""

    first: NDArray[np.int32]  # first atom, in the block
    last: NDArray[np.int32]
    entry: NDArray[np.int32]


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a function to run without the GIL; cached on disk if possible."""
    return _compiled(function)


def borrowing(function: Callable[..., Any]) -> Any:
    """Compiles a function that makes no arrays, for compiled functions to call.

    References to its array arguments are not counted, and it becomes a part of its
    callers. Counting is atomic: for short functions of many arrays it takes several
    times as long as the functions do, and passing the arrays half as long.
    """
    return _compiled(function, _nrt=False, forceinline=True)


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    try:
        return numba.njit(function, nogil=True, cache=True, **options)
    except RuntimeError:  # numba found no writable folder
        return numba.njit(function, nogil=True, **options)


@intrinsic
def _eight_bytes(typing_context: Any, array: Any, at: Any) -> Any:
    """Returns the eight bytes from `at` as a little-endian number."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, values[0])
        pointer = builder.gep(view.data, [values[1]])
        pointer = builder.bitcast(pointer, ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return numba.types.uint64(array, numba.types.int64), generate


@intrinsic
def _low_zeros(typing_context: Any, word: Any) -> Any:
    """Returns the number of trailing zero bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 0))

    return numba.types.int64(numba.types.uint64), generate


# Callers omit the first parameter, the compiler's context.
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
    """Returns how many of the first of eight bytes are ASCII letters."""
    lower = (word | _CASE_BITS) & _LOW_BITS
    others = ~((lower + _TO_A) & ~(lower + _BEHIND_Z)) | word
    others &= _HIGH_BITS
    return low_zeros(others) >> 3
