"""Random choices of the sample web: hashes of (seed, key), no generator state."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

import xxhash

T = TypeVar("T")


def draw(seed: int, *key: str | int) -> float:
    """Returns a number in [0, 1), a function of the seed and the key."""
    return (_digest(seed, *key) >> 11) / 2**53


def pick(seed: int, options: Sequence[T], *key: str | int) -> T:
    """Returns one of `options`, chosen by the seed and the key."""
    return options[_digest(seed, *key) % len(options)]


def shuffled(seed: int, items: Iterable[T], *key: str | int) -> list[T]:
    """Returns the items in an order that depends on seed, key and each item's str."""
    return sorted(items, key=lambda item: (_digest(seed, *key, str(item)), str(item)))


def noise(seed: int, size: int, *key: str | int) -> bytes:
    """Returns `size` bytes that look random."""
    text = "\0".join(map(str, (seed, *key))).encode()
    return hashlib.shake_128(text).digest(size)


def _digest(seed: int, *key: str | int) -> int:
    return xxhash.xxh3_64_intdigest("\0".join(map(str, (seed, *key))).encode())
