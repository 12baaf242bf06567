"""Finds fingerprints that differ in few bits, without comparing all with all.

A fingerprint is cut into bands. Only fingerprints that agree in a band are compared:
two that differ in d of 256 bits share one with a probability of 0.99 at d = 32 and 0.95
at d = 40, and copies of a picture are mostly nearer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.images.fingerprint import BYTES
from data_prep.matching.native import compiled

_BAND_BITS = 12
BANDS = BYTES * 8 // _BAND_BITS
BAND_VALUES = 1 << _BAND_BITS
# A larger bucket is split by further bands: within a bucket all are compared with all.
_MOST_IN_BUCKET = 4_096

_ONES = np.uint64(0x5555555555555555)
_TWOS = np.uint64(0x3333333333333333)
_FOURS = np.uint64(0x0F0F0F0F0F0F0F0F)
_SUM = np.uint64(0x0101010101010101)
_1, _2, _4, _56 = (np.uint64(n) for n in (1, 2, 4, 56))


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of n pictures: u64[n, 4] as words, u16[n, BANDS] as bands."""

    words: np.ndarray
    bands: np.ndarray

    @classmethod
    def of(cls, values: pa.Array | pa.ChunkedArray) -> "Fingerprints":
        """Reads an Arrow column of 32 bytes a row."""
        data = np.frombuffer(b"".join(values.to_pylist()), np.uint8).reshape(-1, BYTES)
        bits = np.unpackbits(data, axis=1)[:, : BANDS * _BAND_BITS]
        bits = bits.reshape(-1, BANDS, _BAND_BITS)
        bands = bits @ (1 << np.arange(_BAND_BITS, dtype=np.uint16))
        return cls(data.view(np.uint64), bands.astype(np.uint16))

    def __len__(self) -> int:
        return len(self.words)


def better_like(
    found: Fingerprints, rank: np.ndarray, *, band: int, most_bits: int
) -> np.ndarray:
    """Returns i64[n]: for each picture the best similar one of a better rank, or -1.

    Args:
      found: the fingerprints.
      rank: i64[n], smaller is better. Pictures of equal rank are not compared.
      band: only pictures that agree in this band are compared.
      most_bits: in which similar fingerprints differ.
    """
    buckets = found.bands[:, band].astype(np.int64)
    for further in range(1, BANDS):
        _, buckets, sizes = np.unique(buckets, return_inverse=True, return_counts=True)
        large = sizes[buckets] > _MOST_IN_BUCKET
        if not large.any():
            break
        split = found.bands[:, (band + further) % BANDS].astype(np.int64) + 1
        buckets = buckets * (BAND_VALUES + 1) + np.where(large, split, 0)
    order = np.lexsort((rank, buckets))
    starts = np.flatnonzero(np.diff(buckets[order], prepend=-1, append=-1))
    better = np.full(len(found), -1, np.int64)
    in_order = _first_near(found.words[order], rank[order], starts, most_bits)
    better[order] = np.where(in_order < 0, -1, order[in_order])
    return better


class Index:
    """Fingerprints of n pictures, among which near ones are looked up."""

    def __init__(self, found: Fingerprints) -> None:
        self._words = found.words
        self._orders = np.argsort(found.bands.T, axis=1, kind="stable")
        self._starts = np.stack(
            [
                np.searchsorted(found.bands[order, band], np.arange(BAND_VALUES + 1))
                for band, order in enumerate(self._orders)
            ]
        )

    def nearest(
        self, queries: Fingerprints, *, most_bits: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns i64[m] twice: the nearest picture of each query, -1 if none; bits.

        Of equally near ones it is the first. `most_bits` is the largest difference.
        """
        return _nearest(
            queries.words,
            queries.bands,
            self._words,
            self._orders,
            self._starts,
            most_bits,
        )


def ranks(ids: Sequence[str], digests: Sequence[str], sizes: np.ndarray) -> np.ndarray:
    """Returns i64[n], which of similar pictures to keep: 0 is the best.

    More pixels (`sizes`) are better, then the smallest id. Pictures of equal bytes
    (`digests`) have one rank, that of the smallest id among them.
    """
    lead: dict[str, str] = {}
    for image_id, digest in zip(ids, digests, strict=True):
        lead[digest] = min(lead.get(digest, image_id), image_id)
    leads = np.array([lead[digest] for digest in digests], object)
    order = np.lexsort((leads.astype(str), -np.asarray(sizes, np.int64)))
    new = leads[order][1:] != leads[order][:-1]
    rank = np.empty(len(order), np.int64)
    rank[order] = np.cumsum(np.append(0, new)) if len(order) else 0
    return rank


@compiled
def _bits_between(words: Any, i: Any, others: Any, j: Any) -> Any:
    total = np.uint64(0)
    for word in range(words.shape[1]):
        x = words[i, word] ^ others[j, word]
        x -= (x >> _1) & _ONES
        x = (x & _TWOS) + ((x >> _2) & _TWOS)
        x = (x + (x >> _4)) & _FOURS
        total += (x * _SUM) >> _56
    return total


@compiled
def _first_near(words: Any, rank: Any, starts: Any, most_bits: Any) -> Any:
    found = np.full(words.shape[0], -1, np.int64)
    for bucket in range(len(starts) - 1):
        start = starts[bucket]
        for i in range(start + 1, starts[bucket + 1]):
            for j in range(start, i):
                if rank[j] == rank[i]:
                    break
                if _bits_between(words, i, words, j) <= most_bits:
                    found[i] = j
                    break
    return found


@compiled
def _nearest(
    queries: Any, bands: Any, words: Any, orders: Any, starts: Any, most_bits: Any
) -> Any:
    found = np.full(queries.shape[0], -1, np.int64)
    bits = np.full(queries.shape[0], most_bits + 1, np.int64)
    for i in range(queries.shape[0]):
        for band in range(orders.shape[0]):
            value = bands[i, band]
            for place in range(starts[band, value], starts[band, value + 1]):
                j = orders[band, place]
                distance = np.int64(_bits_between(queries, i, words, j))
                if distance < bits[i] or distance == bits[i] and j < found[i]:
                    found[i], bits[i] = j, distance
    return found, bits
