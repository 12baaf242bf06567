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
from metaclip_jax.data import draws, order, records, texts

COUNTS = "counts.parquet"  # of a dataset folder
LEAD = "en"  # the metadata whose t is given, where there are several

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


class OnlineBalance:
    """An order.Source: an endless pass over what each epoch keeps.

    It pickles and threads may share it. Memory: a bit for each record of the dataset,
    for two epochs.
    """

    def __init__(
        self,
        dataset: records.Dataset,
        *,
        seed: int,
        t: int,
        tail_share: float,
        choice: texts.Choice | None = None,
        blocks: order.Blocks | None = None,
    ) -> None:
        """Reads the dataset's counts; see `keep_probabilities` for t and tail_share.

        `choice` says how the text that stands for an image is drawn, `blocks` how the
        kept records are shuffled.

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
        self._choice, self._blocks = choice or texts.Choice(), blocks
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

    def index(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (epoch, index into what it keeps) of positions, int64 each.

        Each epoch is a permutation of the records that it keeps.
        """
        ends = self._ends_until(int(positions.max(initial=0)))
        epochs = np.searchsorted(ends, positions, side="right")
        starts = np.concatenate([[0], ends])
        index = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            index[here] = order.shuffle(
                positions[here] - starts[epoch],
                n=int(starts[epoch + 1] - starts[epoch]),
                seed=self._seed,
                epoch=epoch,
                blocks=self._blocks,
            )
        return epochs.astype(np.int64), index

    def records(
        self, epochs: NDArray[np.int64], index: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Returns int64, the dataset's record of each index into its epoch."""
        numbers = np.empty_like(index)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            with self._lock:
                kept = self._hold(epoch)
            numbers[here] = kept.records(index[here])
        return numbers

    def order(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (epoch, record) of positions, int64 each."""
        epochs, index = self.index(positions)
        return epochs, self.records(epochs, index)

    def size(self, epoch: int) -> int:
        """Returns how many records an epoch keeps."""
        with self._lock:
            return self._hold(epoch).total

    def progress(self, position: int) -> float:
        """Returns how many epochs lie before a position."""
        ends = self._ends_until(position)
        epoch = int(np.searchsorted(ends, position, side="right"))
        start = ends[epoch - 1] if epoch else 0
        return float(epoch + (position - start) / (ends[epoch] - start))

    def epoch_records(self, epoch: int) -> NDArray[np.int64]:
        """Returns the records that an epoch keeps, ascending."""
        with self._lock:
            kept = self._hold(epoch)
        return kept.records(np.arange(kept.total))

    def _ends_until(self, position: int) -> NDArray[np.int64]:
        """Returns where epochs end, up to the one that holds a position."""
        with self._lock:
            while not self._ends or self._ends[-1] <= position:
                kept = self._hold(len(self._ends))
                self._ends.append(kept.total + (self._ends[-1] if self._ends else 0))
            return np.array(self._ends)

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
        image_keys = np.array([texts.image_key(i) for i in ids], np.uint64)
        text_lists = table["text_keys"].combine_chunks()
        text_offsets = text_lists.offsets.to_numpy().astype(np.int64)
        numbers = texts.draw(
            image_keys,
            np.diff(text_offsets),
            epochs=epoch,
            seed=self._seed,
            kinds=self._kinds(shard, table),
        )[0]
        some = numbers >= 0
        chosen = (text_offsets[:-1] + numbers)[some]
        keys = text_lists.flatten().to_numpy()[chosen]
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
        bits = draws.mix(
            self._seed, order.ACCEPT, epoch, np.repeat(keys, lengths), entry_ids
        )
        accepted = draws.uniform(bits) < probability
        running = np.concatenate([[0], np.cumsum(accepted)])
        mask = np.zeros(table.num_rows, bool)
        mask[some] = running[offsets[1:]] > running[offsets[:-1]]
        return mask

    def _kinds(self, shard: int, table: pa.Table) -> tuple[NDArray, NDArray] | None:
        """Weights and kinds of the shard's texts, where their source matters."""
        if not self._choice.needs_sources:
            return None
        if "text_sources" not in table.column_names:
            raise ValueError(
                f"{self._dataset.shards[shard]}: its sidecar does not say where texts "
                "come from (it was curated by an older version), so weights by text "
                "source cannot be used with online balancing; curate it again, or "
                "leave data.text_source_weights and data.synthetic_sources empty"
            )
        sources = table["text_sources"].combine_chunks().flatten().to_pylist()
        return self._choice.kinds(sources)


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
