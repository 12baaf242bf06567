"""The options of batches: plain values that a command reads from its config once."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from metaclip_jax.data import images, mixture, order, texts

# Keys of config.data without a field: the first three set up the processes that make
# batches and how many are made ahead, and from_config reads the other two.
ELSEWHERE = ("worker_count", "prefetch", "device_prefetch", "mixture", "order")


@dataclass(frozen=True)
class DataOptions:
    """What batches hold and how they are read; equal on all hosts.

    A field that is named like a key of config.data has its value; the key's comment in
    metaclip_jax/config.py says what it means. A new key is a row there and a field here
    or in the group that uses it (`Augmentation`, `Choice`, `Blocks`).

    Attributes:
      folders: dataset folders, local or gs://.
      global_batch: pairs a step, over all processes.
      total_steps: where the batches end.
      image_size: pixels, height and width.
      context_length: tokens.
      seed: of the order, the texts and the crops.
      weights: of each folder; its share of the examples up to a factor.
      blocks: shuffle block by block; None = the global order.
      augmentation: how images are cropped, mirrored and coloured.
      choice: how the text of an image is drawn.
      online_t, online_tail_share: balance an unthinned dataset anew in each epoch, each
        dataset by its own counts, see `online.OnlineBalance`; both 0 = no.
      shared_folder: where the processes of a run share what each epoch of online
        balancing keeps; "" = nowhere.
      read_threads: threads that read and decode, in each process that makes batches.
      max_replaced_share: a larger share of images that cannot be decoded ends the run.
    """

    folders: tuple[str, ...]
    global_batch: int
    total_steps: int
    image_size: int
    context_length: int
    seed: int = 0
    weights: tuple[float, ...] = (1.0,)
    blocks: order.Blocks | None = None
    augmentation: images.Augmentation = images.Augmentation()
    choice: texts.Choice = texts.Choice()
    online_t: int = 0
    online_tail_share: float = 0.0
    shared_folder: str = ""
    read_threads: int = 2
    max_replaced_share: float = 0.05

    @classmethod
    def from_config(
        cls, config: ConfigDict, *, shared_folder: str = ""
    ) -> "DataOptions":
        """Returns the options of a training config.

        Raises:
          ValueError: values do not fit together, or there is a key without an option.
        """
        data = config.data
        groups = (cls, order.Blocks, images.Augmentation, texts.Choice)
        read = {field.name for group in groups for field in dataclasses.fields(group)}
        if unread := set(data) - read - {*ELSEWHERE}:
            raise ValueError(
                f"config.data: wanted keys that an option reads, got {sorted(unread)};"
                " give DataOptions or one of its groups a field of that name"
            )
        folders, weights = mixture.members(config.dataset, data.mixture)
        return cls(
            folders=folders,
            weights=weights,
            global_batch=config.global_batch,
            total_steps=config.total_steps,
            image_size=config.image_size,
            context_length=config.model.context_length,
            seed=config.seed,
            blocks=order.Blocks(**_values(order.Blocks, data))
            if data.order == "blocks"
            else None,
            augmentation=images.Augmentation(**_values(images.Augmentation, data)),
            choice=texts.Choice(**_values(texts.Choice, data)),
            shared_folder=shared_folder,
            **_values(cls, data),
        )

    def __post_init__(self) -> None:
        if self.global_batch < 1:
            raise ValueError(
                f"global_batch: wanted at least 1, got {self.global_batch}"
            )
        if self.read_threads < 1:
            raise ValueError(
                f"data.read_threads: wanted at least 1, got {self.read_threads}"
            )
        if self.online_t < 0 or not 0 <= self.online_tail_share <= 1:
            raise ValueError(
                "data.online_t and data.online_tail_share: wanted at least 0, and"
                f" within 0 to 1, got {self.online_t} and {self.online_tail_share}"
            )

    @property
    def balanced_online(self) -> bool:
        """Whether each epoch keeps a part of the records only."""
        return bool(self.online_t or self.online_tail_share)


def _values(group: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of config.data that are fields of a group of options."""
    return {
        field.name: data[field.name]
        for field in dataclasses.fields(group)
        if field.name in data
    }
