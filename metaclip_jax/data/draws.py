"""Random draws as hashes of (seed, purpose, ...), without a generator's state.

The same keys give the same draw on every host and worker, after a restart and in any
order, and draws for one purpose do not change those for another.
"""

from collections.abc import Iterator

import numpy as np

# A draw's purpose, the key after the seed. All are listed here, so that no two purposes
# share a key; images.py and order.py add further keys to their own.
ORDER, TEXT, CROP, REPLACEMENT, ACCEPT, SYNTHETIC, MIXTURE = range(7)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6  # of the Feistel network; 4 pass the tests, 6 cost little more


def mix(*keys: int | np.ndarray) -> np.ndarray:
    """Hashes keys to uint64; keys are integers or integer arrays that broadcast.

    Negative integers count modulo 2**64. The order of the keys matters.
    """
    state: np.ndarray = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = _finalise((state ^ _to_uint64(key)) * _GOLDEN + _GOLDEN)
    return np.asarray(state)


def stream(key: int) -> Iterator[float]:
    """Yields draws in [0, 1) for a 64-bit key, faster than `mix` for a few numbers.

    They are splitmix64's numbers for the seed `key`.
    """
    mask, state = 2**64 - 1, key
    while True:
        state = (state + 0x9E3779B97F4A7C15) & mask
        bits = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
        yield ((bits ^ (bits >> 31)) >> 11) / 2.0**53


def uniform(bits: np.ndarray) -> np.ndarray:
    """Converts uint64 to float64 in [0, 1), by 53 bits: 64 could round to 1.0."""
    return (bits >> np.uint64(11)).astype(np.float64) / 2.0**53


def below(n: int | np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Converts uint64 to int64 in [0, n), for n up to 2**53."""
    return np.minimum((uniform(bits) * n).astype(np.int64), np.asarray(n) - 1)


def permute(index: np.ndarray, *, n: int, key: np.ndarray) -> np.ndarray:
    """Returns int64, the image of each index under its key's permutation of range(n).

    `index` is int64 in [0, n) and `key` uint64 of the same shape; each value of the key
    gives another permutation. Memory does not grow with n: a Feistel network permutes
    the smallest 4**k >= n, and results outside range(n) are permuted again until they
    are inside (cycle walking).
    """
    if n < 1:
        raise ValueError(f"a permutation needs at least 1 element, got n={n}")
    half_bits = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    result = _feistel(index.astype(np.uint64), key, half_bits)
    while (outside := result >= np.uint64(n)).any():
        result[outside] = _feistel(result[outside], key[outside], half_bits)
    return result.astype(np.int64)


def _feistel(values: np.ndarray, key: np.ndarray, half_bits: int) -> np.ndarray:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (mix(key, number, right) & mask)
    return (left << shift) | right


def _finalise(bits: np.ndarray) -> np.ndarray:
    """Applies splitmix64's finaliser: each input bit affects each output bit."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _to_uint64(key: int | np.ndarray) -> np.ndarray:
    if isinstance(key, np.ndarray):
        return key.astype(np.uint64)
    return np.asarray(int(key) % 2**64, np.uint64)
