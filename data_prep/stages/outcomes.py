"""What became of all downloads of a run: judged, and taken back to be tried again."""

import os
from collections.abc import Mapping
from typing import Any

from absl import logging

from data_prep.images import failures
from data_prep.sinks import array_record as sink
from data_prep.stages import sums
from metaclip_jax import files
from metaclip_jax.data import records

PART = "outcomes.parquet"  # images by status of their download


def read(folder: str) -> dict[str, int]:
    """Returns how many images came to each status of the download."""
    return {
        row["value"]: row["count"] for row in sums.read_sum(folder, PART).to_pylist()
    }


def check(folder: str, max_failed_share: float) -> None:
    """Raises RuntimeError where more than that share of the downloads failed."""
    found = read(folder)
    if failures.too_many(found, max_failed_share):
        raise RuntimeError(
            f"wanted at most {max_failed_share:.0%} of the images to fail "
            f"(config.download.max_failed_share), but {failures.describe(found)}. The "
            "same command fetches again what may succeed now; a larger share goes on "
            "without these images"
        )
    if failures.share(found) > max_failed_share:  # of too few images to be an error
        logging.warning("%s", failures.describe(found))


def reopen(
    folder: str, output: str, *, name: str, partitions: int, inputs: Mapping[str, Any]
) -> None:
    """Takes back what was made of the downloads, if some of them may succeed now.

    A run that ends in the midst of it goes on with or without --retry_failed: shards
    are removed before any download changes, and parts of downloads change whole.

    Args:
      folder: of the images stage.
      output: of the dataset, whose shards are removed.
      name: of the dataset.
      partitions: number of shards.
      inputs: what both were made from, for `files.finished`.

    Raises ValueError where one of the folders is another run's.
    """
    if files.finished(folder, inputs) is not None:
        found = read(folder)
        if not failures.any_to_retry(found):
            logging.info("no download failed in a way that may be better now")
            return
        logging.info("%s; trying them again", failures.describe(found))
    files.reopen(output, inputs)
    for i in range(partitions):
        shard = records.shard_name(name, i, partitions)
        sink.remove_shard(os.path.join(output, shard))
    files.reopen(folder, inputs)
