"""What an epoch of online balancing keeps: a bit for each record of the dataset.

Whether a record is kept is a pure function of the seed, the epoch, the sidecar beside
its file shard and the keep probabilities, so every process computes the same bits. Each
needs the bits of the whole dataset, so processes may share a folder: what one has
computed the others read, also on other hosts and after a restart.
"""

import hashlib
import os
import socket
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from metaclip_jax import files, patterns
from metaclip_jax.data import balance, draws, mixture, records, texts

_STRIDE = 32  # bytes between counts
_GROUPS = 256  # files of bits an epoch, at most
_RULE = 2  # raise it whenever the same values would give other bits


class Bits:
    """The kept records of one epoch: a bit a record, and counts up to each 256 bits."""

    def __init__(self, sizes: NDArray[np.int64], packed: list[NDArray]) -> None:
        """`sizes` int64[shards], and each shard's bits, packed into whole bytes."""
        self._record = np.cumsum([0, *sizes])  # where each shard begins
        self._bit = 8 * np.cumsum([0, *map(len, packed)])
        spare = np.zeros(-int(self._bit[-1] // 8) % _STRIDE, np.uint8)
        self._bytes = np.concatenate([*packed, spare]).reshape(-1, _STRIDE)
        ones = np.bitwise_count(self._bytes).sum(axis=1, dtype=np.int64)
        self._before = np.concatenate([[0], np.cumsum(ones)])

    @property
    def total(self) -> int:
        """How many records the epoch keeps."""
        return int(self._before[-1])

    def records(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the dataset's record for each index into the kept ones."""
        row = np.searchsorted(self._before, index, side="right") - 1
        running = np.cumsum(np.unpackbits(self._bytes[row], axis=1), 1, np.int16)
        inside = (running > (index - self._before[row])[:, None]).argmax(axis=1)
        bits = row * 8 * _STRIDE + inside
        shard = np.searchsorted(self._bit, bits, side="right") - 1
        return self._record[shard] + bits - self._bit[shard]


class Rule:
    """Decides what each epoch keeps of a dataset. It pickles, threads may share it.

    Attributes:
      dataset: whose sidecars are read.
      folder: where processes share bits, local or gs://; "" = nowhere. Several runs may
        use it: a fingerprint of all that decides the bits is in the names.
    """

    def __init__(
        self,
        dataset: records.Dataset,
        *,
        keep: Mapping[str, NDArray[np.float64]],
        choice: texts.Choice,
        seed: int,
        folder: str = "",
    ) -> None:
        """`keep` holds f64[entries], the keep probabilities, by metadata code."""
        self.dataset = dataset
        self._choice, self._seed = choice, seed
        self._codes = {code: number for number, code in enumerate(sorted(keep))}
        vectors = [keep[code] for code in sorted(keep)]
        self._starts = np.cumsum([0, *map(len, vectors)])
        self._keep = np.concatenate(vectors)
        self.folder = folder and f"{folder}/{self._fingerprint()}"

    def _fingerprint(self) -> str:
        facts = [
            _RULE,
            self._seed,
            sorted(self._codes),
            self._choice.text_source_weights,
        ]
        facts += [self._choice.synthetic_sources, self._starts.tolist()]
        facts += [mixture.fingerprint([self.dataset.folder], [1.0])]
        digest = hashlib.sha256(repr(facts).encode())
        digest.update(self._keep.tobytes())
        return digest.hexdigest()[:16]

    def read_total(self, epoch: int) -> int:
        """Returns how many records an epoch keeps; 0 if no process has shared it."""
        path = self.folder and files.path(f"{self.folder}/{epoch:06}/total")
        return int(path.read_text()) if path and path.exists() else 0

    def bits(self, epoch: int) -> Bits:
        """Returns the bits of an epoch, computed here or read from the folder."""
        shards = np.arange(len(self.dataset.shards))
        groups = np.array_split(shards, min(_GROUPS, len(shards)))
        packed: list[NDArray] = [np.empty(0, np.uint8)] * len(shards)
        # Each process has its own order, so that they begin with different groups.
        who = hashlib.sha256(f"{socket.gethostname()} {os.getpid()}".encode()).digest()
        key = np.full(len(groups), int.from_bytes(who[:8]), np.uint64)
        own = draws.permute(np.arange(len(groups)), n=len(groups), key=key)
        for number in own.tolist():
            group_bits = self._group(groups[number], f"{epoch:06}/{number:03}", epoch)
            for shard, bits in zip(groups[number].tolist(), group_bits, strict=True):
                packed[shard] = bits
        result = Bits(np.array(self.dataset.shard_lengths), packed)
        if self.folder:
            files.write_bytes(
                f"{self.folder}/{epoch:06}/total", str(result.total).encode()
            )
        return result

    def forget(self, epoch: int) -> None:
        """Removes the shared bits of an epoch; its total stays."""
        if self.folder:
            for name in patterns.find(f"{self.folder}/{epoch:06}/[0-9]*"):
                files.path(name).unlink(missing_ok=True)

    def _group(
        self, shards: NDArray[np.int64], name: str, epoch: int
    ) -> list[NDArray[np.uint8]]:
        """Reads the packed bits of some shards from the folder, or computes them."""
        sizes = [-(-self.dataset.shard_lengths[shard] // 8) for shard in shards]
        path = self.folder and files.path(f"{self.folder}/{name}")
        if path and path.exists():
            data = np.frombuffer(path.read_bytes(), np.uint8)
            if data.size == sum(sizes):
                return np.split(data, np.cumsum(sizes)[:-1])
        packed = [np.packbits(self.mask(shard, epoch)) for shard in shards.tolist()]
        if path:
            files.write_bytes(path, np.concatenate(packed).tobytes())
        return packed

    def mask(self, shard: int, epoch: int) -> NDArray[np.bool_]:
        """Returns bool[records of the shard], which of them the epoch keeps."""
        table = records.read_entries(self.dataset, shard)
        if not table.num_rows:
            return np.zeros(0, bool)
        text_lists = table["text_keys"].combine_chunks()
        text_offsets = text_lists.offsets.to_numpy().astype(np.int64)
        numbers = texts.draw(
            balance.image_keys(table["image_id"].combine_chunks()),
            np.diff(text_offsets),
            epochs=epoch,
            seed=self._seed,
            kinds=self._kinds(shard, table),
        )[0]
        some = numbers >= 0
        chosen = (text_offsets[:-1] + numbers)[some]
        lists = table["entry_ids"].combine_chunks().flatten()
        offsets = lists.offsets.to_numpy()
        lengths = np.diff(offsets)[chosen]
        ends = np.cumsum(lengths)
        text_of = np.repeat(np.arange(chosen.size), lengths)  # of each match
        place = np.arange(text_of.size) + (offsets[chosen] - ends + lengths)[text_of]
        entry_ids = lists.values.to_numpy()[place]
        starts = self._starts_of(table["metadata"].combine_chunks().flatten())
        offsets = np.concatenate([[0], ends])
        accepted = balance.accepted_draws(
            int(draws.mix(self._seed, draws.ACCEPT, epoch)),
            text_lists.values.to_numpy()[chosen],
            offsets,
            entry_ids,
            balance.match_probabilities(
                self._keep, entry_ids + starts[chosen][text_of]
            ),
        )
        mask = np.zeros(table.num_rows, bool)
        mask[some] = balance.kept_texts(offsets, accepted)
        return mask

    def _starts_of(self, codes: pa.Array) -> NDArray[np.int64]:
        """Returns int64[texts], where each text's metadata begins in all entries."""
        encoded = codes.dictionary_encode()
        starts = [self._starts[self._codes[c]] for c in encoded.dictionary.to_pylist()]
        return np.array(starts, np.int64)[encoded.indices.to_numpy()]

    def _kinds(self, shard: int, table: pa.Table) -> tuple[NDArray, NDArray] | None:
        """Returns weights and kinds of the shard's texts, if their sources matter."""
        if not self._choice.needs_sources:
            return None
        if "text_sources" not in table.column_names:
            raise ValueError(
                f"{self.dataset.shards[shard]}: its sidecar does not say where texts "
                "come from (it was curated by an older version), so weights by text "
                "source cannot be used with online balancing; curate it again, or "
                "leave data.text_source_weights and data.synthetic_sources empty"
            )
        sources = table["text_sources"].combine_chunks().flatten().dictionary_encode()
        weights, synthetic = self._choice.kinds(sources.dictionary.to_pylist())
        number = sources.indices.to_numpy()
        return weights[number], synthetic[number]
