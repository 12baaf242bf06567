"""Online balancing: each epoch keeps a new balanced sample of an unthinned dataset.

MetaCLIP's best B/32 row balances in the loader (paper, table 4): the head's samples
change from epoch to epoch. For an epoch, one text of each image is chosen by hash and
kept with probability 1 - Π(1 - p) over its matches, p = min(1, t / count) by the
dataset's own entry counts. What an epoch keeps is a pure function of the seed, the
epoch and the sidecars beside the shards, so the record of a position can be computed:
no image is read to be thrown away, and a restart needs only the step.
"""

import threading
from typing import Any

import numpy as np
import pyarrow.compute as pc
from absl import logging
from numpy.typing import NDArray

from metaclip_jax import files
from metaclip_jax.data import balance, kept, order, records, texts

COUNTS = "counts.parquet"  # of a dataset folder

_EPOCHS_HELD = 2  # at least, since a batch may straddle two epochs
_BITS_HELD = 1 << 20  # more epochs of a small dataset: a mixture's batch may have many


def read_counts(dataset: records.Dataset) -> dict[str, NDArray[np.int64]]:
    """Returns how many of the dataset's texts match each entry, by metadata code."""
    path = files.path(dataset.folder) / COUNTS
    table = files.read_parquet(path, ["metadata", "entry_id", "kept_count"])
    counts = {}
    with files.naming(path, "the counts of a dataset"):
        for code in sorted(pc.unique(table["metadata"]).to_pylist()):
            rows = table.filter(pc.equal(table["metadata"], code)).sort_by("entry_id")
            counts[code] = rows["kept_count"].to_numpy().astype(np.int64)
    return counts


class OnlineBalance:
    """An order.Source: an endless pass over what each epoch keeps.

    It pickles and threads may share it. Memory: a bit for each record of the dataset,
    for two epochs (more of a small one).
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
        shared: str = "",
    ) -> None:
        """Reads the dataset's counts; see `balance.thresholds` for t and tail_share.

        `choice` says how the text of an image is drawn, `blocks` how the kept records
        are shuffled. `shared` is a folder in which all processes of a run, also after a
        restart, share which records each epoch keeps.

        Raises:
          ValueError: the dataset was thinned already.
        """
        balanced = dataset.data_card.get("balanced")
        if balanced is not None:
            raise ValueError(
                f"{dataset.folder} is balanced already ({balanced}): thinning it again "
                "would starve the head. Set data.online_t and data.online_tail_share "
                "to 0, or curate with config.balance.rule=online"
            )
        self._dataset, self._seed = dataset, seed
        self._blocks = blocks
        counts = read_counts(dataset)
        chosen = balance.thresholds(counts, t=t, tail_share=tail_share)
        logging.info("online balancing: t = %s", chosen)
        self._rule = kept.Rule(
            dataset,
            keep=balance.keep_probabilities(counts, chosen),
            choice=choice or texts.Choice(),
            seed=seed,
            folder=shared,
        )
        self._ends: list[int] = []  # records of all epochs up to each
        self._held: dict[int, kept.Bits] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_held")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._held = {}
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
                bits = self._hold(epoch)
            numbers[here] = bits.records(index[here])
        return numbers

    def size(self, epoch: int) -> int:
        """Returns how many records an epoch keeps."""
        with self._lock:
            return self._total(epoch)

    def progress(self, position: int) -> float:
        """Returns how many epochs come before a position."""
        ends = self._ends_until(position)
        epoch = int(np.searchsorted(ends, position, side="right"))
        start = ends[epoch - 1] if epoch else 0
        return float(epoch + (position - start) / (ends[epoch] - start))

    def _ends_until(self, position: int) -> NDArray[np.int64]:
        """Returns where epochs end, up to the one that holds a position."""
        with self._lock:
            while not self._ends or self._ends[-1] <= position:
                total = self._total(len(self._ends))
                self._ends.append(total + (self._ends[-1] if self._ends else 0))
            return np.array(self._ends)

    def _total(self, epoch: int) -> int:
        """Returns how many records an epoch keeps, from another process if possible."""
        if epoch in self._held or not (total := self._rule.read_total(epoch)):
            return self._hold(epoch).total
        return total

    def _hold(self, epoch: int) -> kept.Bits:
        """Returns the bits of an epoch; they are computed or read when first needed."""
        if epoch not in self._held:
            most = max(_EPOCHS_HELD, _BITS_HELD // len(self._dataset))
            for old in sorted(self._held)[: 1 - most]:
                del self._held[old]
            self._held[epoch] = bits = self._rule.bits(epoch)
            if not bits.total:
                raise ValueError(
                    f"{self._dataset.folder}: epoch {epoch} keeps none of "
                    f"{len(self._dataset)} records; raise data.online_t"
                )
            logging.info(
                "epoch %d keeps %d of %d records",
                epoch,
                bits.total,
                len(self._dataset),
            )
            if self._rule.folder:
                thread = threading.Thread(
                    target=self._prepare, args=(epoch + 1,), daemon=True
                )
                thread.start()
        return self._held[epoch]

    def _prepare(self, epoch: int) -> None:
        """Computes the bits of an epoch before it begins, for all processes."""
        try:
            self._rule.bits(epoch)
            self._rule.forget(epoch - 2 - _EPOCHS_HELD)
        except Exception as error:  # raised again when the bits are needed
            logging.info("preparing epoch %d: %r", epoch, error)
