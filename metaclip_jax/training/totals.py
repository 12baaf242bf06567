"""Counts what a run skipped, truncated or replaced, over all its processes.

A checkpoint carries the totals, so that a resumed run counts like an uninterrupted one.
"""

import collections
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from metaclip_jax import files
from metaclip_jax.data import pipeline

_MOST_IDS = 1_000  # a checkpoint carries them


@dataclass
class Totals:
    """Counts of steps, texts and images; JSON by `as_json` and `from_json`.

    Attributes:
        skipped_steps: steps whose loss, gradient or parameters were not finite.
        skipped_in_a_row: such steps at the end of the run so far.
        truncated_texts: texts that were longer than the context.
        replaced: images that could not be used and were replaced, by reason.
        replaced_ids: how often each of the first thousand different images was
            replaced: {reason: {image id: times}}.
    """

    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    truncated_texts: int = 0
    replaced: Counter[str] = field(default_factory=collections.Counter)
    replaced_ids: dict[str, Counter[str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Returns the totals as a JSON object."""
        ids = {reason: dict(found) for reason, found in self.replaced_ids.items()}
        # dataclasses.asdict would make counters of pairs.
        return {**vars(self), "replaced": dict(self.replaced), "replaced_ids": ids}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Totals":
        """Returns totals from a JSON object."""
        ids = {why: Counter(found) for why, found in value["replaced_ids"].items()}
        read = {"replaced": Counter(value["replaced"]), "replaced_ids": ids}
        return cls(**{**value, **read})

    def add_step(self, *, skipped: bool) -> None:
        """Counts a step."""
        self.skipped_steps += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def add_losses(self, losses: pipeline.Losses) -> None:
        """Counts what was lost in a batch."""
        self.truncated_texts += losses.truncated_texts
        for image in losses.replaced:
            self.replaced[image.reason] += 1
            self._add_id(image.reason, image.image_id, 1)

    def add(self, other: "Totals") -> None:
        """Adds the losses of the data that another process counted."""
        self.truncated_texts += other.truncated_texts
        self.replaced.update(other.replaced)
        for reason, found in other.replaced_ids.items():
            for image_id, times in found.items():
                self._add_id(reason, image_id, times)

    def numbers(self) -> Iterator[tuple[str, float]]:
        """Yields the (name, number) pairs of a row of metrics."""
        yield "skipped_steps", float(self.skipped_steps)
        yield "truncated_texts", float(self.truncated_texts)
        yield "replaced_images", float(self.replaced.total())
        for reason, count in self.replaced.items():
            yield f"replaced_images/{reason}", float(count)

    def write_replaced(self, workdir: str) -> None:
        """Writes WORKDIR/metrics/replaced_images.json: {reason: {image id: times}}.

        Nothing is written while no image was replaced.
        """
        if self.replaced_ids:
            path = files.path(workdir) / "metrics" / "replaced_images.json"
            files.write_json(path, self.replaced_ids)

    def _add_id(self, reason: str, image_id: str, times: int) -> None:
        ids = sum(map(len, self.replaced_ids.values()))
        if ids < _MOST_IDS or image_id in self.replaced_ids.get(reason, ()):
            self.replaced_ids.setdefault(reason, Counter())[image_id] += times
