"""Online balancing: each epoch keeps another fair part of an unthinned dataset.

MetaCLIP's best B/32 row balances in the loader (paper, table 4): the head's samples
change from epoch to epoch. For an epoch, one text of each image is chosen by hash and
kept with probability 1 - Π(1 - p) over its matches, p = min(1, t / count) by the
dataset's own entry counts. What an epoch keeps is a pure function of the seed, the
epoch and the sidecars beside the shards, so that a position in the endless order still
says everything: no image is read to be thrown away, and a restart needs only the step.
"""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from absl import logging
from numpy.typing import NDArray

from metaclip_jax import files
from metaclip_jax.data import draws, records

COUNTS = "counts.parquet"  # of a dataset folder
LEAD = "en"  # the metadata whose t is given, where there are several

# What a draw is for: the key after the seed. Others are in pipeline.py.
TEXT, ORDER, ACCEPT = 1, 0, 4
_EPOCHS_HELD = 2  # a batch may straddle two


def keep_probabilities(
    counts: Mapping[str, NDArray[np.int64]], *, t: int, tail_share: float
) -> dict[str, NDArray[np.float64]]:
    """Returns f64[entries] for each metadata: min(1, t / count).

    Args:
      counts: int64[entries] for each metadata code.
      t: of the leading metadata (English, or the first); the others get the t at which
        their tail holds the same share of matches. 0: all get it from `tail_share`.
      tail_share: the tail's part of all matches, used where t = 0.
    """
    lead = LEAD if LEAD in counts else min(counts)
    share = tail_share
    if t > 0:
        below = counts[lead][counts[lead] < t].sum()
        share = float(below / max(counts[lead].sum(), 1))
    result = {}
    for code, vector in counts.items():
        own = t if t > 0 and code == lead else _threshold(vector, share)
        logging.info("online balancing: t = %d for metadata %s", own, code)
        result[code] = own / np.maximum(vector, own)
    return result


def _threshold(counts: NDArray[np.int64], share: float) -> int:
    """The sorted count whose cumulative share of matches is nearest, at least 1."""
    ascending = np.sort(counts)
    total = ascending.sum()
    if not total:
        return 1
    return max(
        1, int(ascending[np.argmin(np.abs(np.cumsum(ascending) / total - share))])
    )


def read_counts(dataset: records.Dataset) -> dict[str, NDArray[np.int64]]:
    """Returns how many of the dataset's texts match each entry, by metadata code."""
    path = files.path(dataset.folder) / COUNTS
    with path.open("rb") as file:
        table = pq.read_table(file, columns=["metadata", "entry_id", "kept_count"])
    counts = {}
    for code in sorted(pc.unique(table["metadata"]).to_pylist()):
        rows = table.filter(pc.equal(table["metadata"], code)).sort_by("entry_id")
        counts[code] = rows["kept_count"].to_numpy().astype(np.int64)
    return counts


def chosen_texts(
    image_keys: NDArray[np.uint64],
    text_counts: NDArray[np.int64],
    *,
    epochs: NDArray[np.int64] | int,
    seed: int,
) -> NDArray[np.int64]:
    """Returns int64[n], which text of each image stands for it in its epoch.

    All are equally likely. The draw goes by image, not by where a record stands.
    """
    return draws.below(text_counts, draws.mix(seed, TEXT, epochs, image_keys))


class OnlineBalance:
    """The order of an endless pass over what each epoch keeps. Pickles, is thread-safe.

    Memory: a bit for each record of the dataset, for two epochs.
    """

    def __init__(
        self, dataset: records.Dataset, *, seed: int, t: int, tail_share: float
    ) -> None:
        """Reads the dataset's counts; see `keep_probabilities` for t and tail_share.

        Raises:
          ValueError: the dataset was thinned already, or t and tail_share do not say
            how to balance it.
        """
        balanced = dataset.data_card.get("balanced")
        if balanced is not None:
            raise ValueError(
                f"{dataset.folder} is balanced already ({balanced}): thinning it again "
                "would starve the head. Set data.online_t and data.online_tail_share "
                "to 0, or curate with config.balance.rule=online"
            )
        if t < 0 or not 0 <= tail_share <= 1:
            raise ValueError(
                f"data.online_t must be at least 1 and data.online_tail_share within 0 "
                f"to 1, got {t} and {tail_share}"
            )
        self._dataset, self._seed = dataset, seed
        self._keep = keep_probabilities(
            read_counts(dataset), t=t, tail_share=tail_share
        )
        self._ends: list[int] = []  # records of all epochs up to each
        self._kept: dict[int, _Kept] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._kept = {}
        self._lock = threading.Lock()

    def order(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (epoch, record) of global positions, int64 each.

        Each epoch is a permutation of the records that it keeps.
        """
        with self._lock:
            while not self._ends or self._ends[-1] <= positions.max(initial=0):
                kept = self._hold(len(self._ends))
                self._ends.append(kept.total + (self._ends[-1] if self._ends else 0))
            ends = np.array(self._ends)
            epochs = np.searchsorted(ends, positions, side="right")
            held = {epoch: self._hold(epoch) for epoch in np.unique(epochs).tolist()}
        numbers = np.empty_like(positions)
        starts = np.concatenate([[0], ends])
        for epoch, kept in held.items():
            here = np.flatnonzero(epochs == epoch)
            index = positions[here] - starts[epoch]
            key = np.broadcast_to(
                draws.mix(self._seed, ORDER, epoch), index.shape
            ).copy()
            numbers[here] = kept.records(draws.permute(index, n=kept.total, key=key))
        return epochs.astype(np.int64), numbers

    def epoch_records(self, epoch: int) -> NDArray[np.int64]:
        """Returns the records that an epoch keeps, ascending."""
        with self._lock:
            kept = self._hold(epoch)
        return kept.records(np.arange(kept.total))

    def _hold(self, epoch: int) -> "_Kept":
        """What the epoch keeps, computed when it is first asked for."""
        if epoch not in self._kept:
            for old in sorted(self._kept)[: 1 - _EPOCHS_HELD]:
                del self._kept[old]
            self._kept[epoch] = _Kept(
                [
                    self._shard_mask(shard, epoch)
                    for shard in range(len(self._dataset.shards))
                ]
            )
            if not self._kept[epoch].total:
                raise ValueError(
                    f"{self._dataset.folder}: epoch {epoch} keeps none of "
                    f"{len(self._dataset)} records; raise data.online_t"
                )
            logging.info(
                "epoch %d keeps %d of %d records",
                epoch,
                self._kept[epoch].total,
                len(self._dataset),
            )
        return self._kept[epoch]

    def _shard_mask(self, shard: int, epoch: int) -> NDArray[np.bool_]:
        """Returns bool[records of the shard], what the epoch keeps of it."""
        table = records.read_entries(self._dataset, shard)
        if not table.num_rows:
            return np.zeros(0, bool)
        ids = table["image_id"].to_pylist()
        image_keys = np.array([int(i[:16], 16) for i in ids], np.uint64)
        texts = table["text_keys"].combine_chunks()
        text_offsets = texts.offsets.to_numpy().astype(np.int64)
        counts = np.diff(text_offsets)
        chosen = text_offsets[:-1] + chosen_texts(
            image_keys, np.maximum(counts, 1), epochs=epoch, seed=self._seed
        )
        chosen = chosen[counts > 0]
        keys = texts.flatten().to_numpy()[chosen]
        codes = table["metadata"].combine_chunks().flatten().take(pa.array(chosen))
        lists = table["entry_ids"].combine_chunks().flatten().take(pa.array(chosen))
        offsets = lists.offsets.to_numpy().astype(np.int64)
        lengths = np.diff(offsets)
        entry_ids = lists.flatten().to_numpy()
        probability = np.empty(entry_ids.size)
        for code in pc.unique(codes).to_pylist():
            own = np.repeat(
                pc.equal(codes, code).to_numpy(zero_copy_only=False), lengths
            )
            probability[own] = self._keep[code][entry_ids[own]]
        bits = draws.mix(self._seed, ACCEPT, epoch, np.repeat(keys, lengths), entry_ids)
        accepted = draws.uniform(bits) < probability
        running = np.concatenate([[0], np.cumsum(accepted)])
        mask = np.zeros(table.num_rows, bool)
        mask[counts > 0] = running[offsets[1:]] > running[offsets[:-1]]
        return mask


class _Kept:
    """The kept records of one epoch: a bit a record, and counts up to each shard."""

    def __init__(self, masks: list[NDArray[np.bool_]]) -> None:
        self._bits = [np.packbits(mask) for mask in masks]
        self._sizes = [mask.size for mask in masks]
        self._first = np.concatenate([[0], np.cumsum(self._sizes)])  # record of a shard
        self._before = np.concatenate([[0], np.cumsum([m.sum() for m in masks])])

    @property
    def total(self) -> int:
        """How many records the epoch keeps."""
        return int(self._before[-1])

    def records(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the dataset's record for each index into the kept ones."""
        shard_of = np.searchsorted(self._before, index, side="right") - 1
        numbers = np.empty(index.shape, np.int64)
        for shard in np.unique(shard_of).tolist():
            here = np.flatnonzero(shard_of == shard)
            mask = np.unpackbits(self._bits[shard], count=self._sizes[shard])
            inside = np.flatnonzero(mask)[index[here] - self._before[shard]]
            numbers[here] = self._first[shard] + inside
        return numbers
