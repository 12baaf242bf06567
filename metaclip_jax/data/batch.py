"""Makes the batch of one host and step: read, decode, crop, choose texts, tokenise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from metaclip_jax.data import (
    balance,
    blocks,
    draws,
    images,
    mixture,
    options,
    order,
    records,
    texts,
    tokenizer,
    workers,
)

Batch = dict[str, np.ndarray]

_REPLACEMENT_ATTEMPTS = 16


class Replaced(NamedTuple):
    """An image that could not be used: another record of its dataset took its place."""

    row: int  # of the host batch
    image_id: str  # DATASET:NUMBER where the record cannot be parsed
    reason: str


class Made(NamedTuple):
    """A host batch, and what had to be replaced in it.

    It is a tuple with a dict of arrays, because Grain shares memory with its workers
    only for arrays in tuples and dicts.
    """

    batch: Batch
    replaced: tuple[Replaced, ...]


@dataclass(frozen=True, eq=False)
class MakeBatch:
    """Makes the host batch of a step. It travels to worker processes by pickle."""

    options: options.DataOptions
    datasets: tuple[records.Dataset, ...]
    sources: tuple[order.Source, ...]
    readers: tuple[blocks.BlockReader | None, ...]
    shares: tuple[float, ...]
    tokenize: tokenizer.Tokenizer
    rows: np.ndarray  # int64[b], of each global batch
    threads: workers.Threads

    def positions(self, step: int) -> np.ndarray:
        """Returns int64[b], the global positions of this host's rows.

        With blocks, the batch's rows are in the order of their records.
        """
        size = self.options.global_batch
        whole = step * size + np.arange(size)
        if any(self.readers):
            members, own = self._deal(whole)
            whole = blocks.neighbours(
                whole, members=members, own=own, sources=self.sources
            )
        return whole[self.rows]

    def __call__(self, step: int) -> Made:
        """Reads, decodes, crops and tokenises the host batch of a step."""
        positions = self.positions(step)
        places, stored = self._find(positions)
        size = self.options.image_size
        pixels = np.empty((len(positions), size, size, 3), np.uint8)
        rows = zip(
            positions.tolist(),
            places,
            draws.mix(self.options.seed, draws.CROP, positions).tolist(),
            stored,
            pixels,
            strict=True,
        )
        filled = self.threads.map(lambda row: self._fill_row(*row), list(rows))
        tokens, truncated = self.tokenize(
            self._texts(
                [record for record, _, _ in filled],
                epochs=np.array([place.epoch for place in places]),
            ),
            self.options.context_length,
        )
        return Made(
            batch={
                "image": pixels,
                "tokens": tokens,
                "position": positions,
                "dataset": np.array([place.dataset for place in places], np.int32),
                "record": np.array([number for _, number, _ in filled], np.int64),
                "image_id": np.array([record.image_id for record, _, _ in filled], "S"),
                "truncated": truncated,
            },
            replaced=tuple(
                Replaced(row, *loss)
                for row, (_, _, losses) in enumerate(filled)
                for loss in losses
            ),
        )

    def progress(self, steps: int) -> dict[str, float]:
        """Returns, after so many steps, `examples_seen/DATASET` and `epochs/DATASET`.

        Of all hosts together.
        """
        seen = mixture.examples_seen(
            steps * self.options.global_batch,
            shares=self.shares,
            seed=self.options.seed,
        )
        result = {}
        for name, source, count in zip(
            names(self.datasets), self.sources, seen, strict=True
        ):
            result[f"examples_seen/{name}"] = float(count)
            result[f"epochs/{name}"] = source.progress(int(count))
        return result

    def _deal(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return mixture.deal(positions, shares=self.shares, seed=self.options.seed)

    def _find(self, positions: np.ndarray) -> tuple[list["_Place"], list[bytes]]:
        """Returns the place and the record's bytes of each position."""
        members, own = self._deal(positions)
        places: list[_Place] = [_Place(0, 0, 0)] * len(positions)
        stored = [b""] * len(positions)
        for member in np.unique(members).tolist():
            here = np.flatnonzero(members == member)
            source, reader = self.sources[member], self.readers[member]
            epochs, index = source.index(own[here])
            numbers = source.records(epochs, index)
            data = (
                reader.read(numbers)
                if reader
                else records.read(
                    self.datasets[member],
                    numbers,
                    run=lambda work, shards: self.threads.map(work, shards, task=1),
                )
            )
            rows = zip(
                here.tolist(), epochs.tolist(), numbers.tolist(), data, strict=True
            )
            for row, epoch, number, one in rows:
                places[row] = _Place(member, epoch, number)
                stored[row] = one
        return places, stored

    def _texts(
        self, chosen: Sequence[records.Record], *, epochs: np.ndarray
    ) -> list[str]:
        """Returns the text of each record that is shown in its epoch."""
        choice, kinds = self.options.choice, None
        if choice.needs_sources:
            kinds = choice.kinds([s for r in chosen for s in r.text_sources])
        index = texts.shown(
            balance.image_keys(pa.array([r.image_id for r in chosen])),
            np.array([len(record.texts) for record in chosen]),
            epochs=epochs,
            seed=self.options.seed,
            kinds=kinds,
            synthetic_share=choice.synthetic_share,
        )
        return [r.texts[i] for r, i in zip(chosen, index.tolist(), strict=True)]

    def _fill_row(
        self,
        position: int,
        place: "_Place",
        crop_key: int,
        data: bytes,
        pixels: np.ndarray,
    ) -> tuple[records.Record, int, list[tuple[str, str]]]:
        """Decodes a record into uint8[size, size, 3], or the one that replaces it.

        Returns the record, its number, and (image id, reason) of each that was skipped.
        """
        seed = self.options.seed
        number = place.record
        dataset, source = self.datasets[place.dataset], self.sources[place.dataset]
        losses: list[tuple[str, str]] = []
        last: Exception | None = None
        for attempt in range(_REPLACEMENT_ATTEMPTS):
            name = f"{dataset.name}:{number}"  # until the record says its own
            try:
                record = _decode(data)
                name = record.image_id
                if not self._has_text(record):
                    raise images.UndecodableImage("no_text", record.image_id)
                images.decode_train(
                    record.image,
                    size=self.options.image_size,
                    key=crop_key,
                    augmentation=self.options.augmentation,
                    out=pixels,
                )
                return record, number, losses
            except images.UndecodableImage as error:
                losses.append((name, error.reason))
                last = error
            bits = draws.mix(seed, draws.REPLACEMENT, position, attempt)
            index = draws.below(source.size(place.epoch), bits).reshape(1)
            epochs = np.array([place.epoch])
            number = int(source.records(epochs, index)[0])
            data = records.read(dataset, [number])[0]
        cure = f"check {dataset.folder} by python -m data_prep.verify"
        if all(reason == "no_text" for _, reason in losses):
            cure = "give a text source that they have a weight above 0"
        raise ValueError(
            f"position {position}: {len(losses)} records in a row cannot be used, the "
            f"last {losses[-1][0]} ({last}); {cure}"
        )

    def _has_text(self, record: records.Record) -> bool:
        choice = self.options.choice
        if not choice.needs_sources:
            return bool(record.texts)
        return bool(choice.kinds(record.text_sources)[0].any())


class _Place(NamedTuple):
    """The record of a position: a number in a dataset, in one of its epochs."""

    dataset: int
    epoch: int
    record: int


def _decode(data: bytes) -> records.Record:
    """Parses a record; a damaged one is replaced and counted as a damaged image is."""
    try:
        return records.decode(data)
    except ValueError as error:
        raise images.UndecodableImage("damaged_record", str(error)) from error


def names(datasets: Sequence[records.Dataset]) -> list[str]:
    """Returns each dataset's name, with a number where several have the same."""
    plain = [dataset.name for dataset in datasets]
    return [
        f"{name}_{index}" if plain.count(name) > 1 else name
        for index, name in enumerate(plain)
    ]
