"""Checks the downloads of a run for too many failures, and reopens them to retry."""

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
    """Returns the number of images by download status."""
    return {
        row["value"]: row["count"] for row in sums.read_sum(folder, PART).to_pylist()
    }


def check(folder: str, max_failed_share: float) -> None:
    """Raises RuntimeError if more than that share of the downloads failed."""
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
    """Reopens the images stage and the dataset, if failed downloads may succeed now.

    A run that is killed meanwhile continues with or without --retry_failed: shards are
    removed before any download changes, and parts of downloads change atomically.

    Args:
      folder: of the images stage.
      output: of the dataset, whose shards are removed.
      name: of the dataset.
      partitions: number of shards.
      inputs: what decides both, for `files.finished`.

    Raises ValueError if one of the folders belongs to another run.
    """
    if files.finished(folder, inputs) is not None:
        found = read(folder)
        if not failures.any_to_retry(found):
            logging.info("no download failed for a reason that may be temporary")
            return
        logging.info("%s; retrying them", failures.describe(found))
    files.reopen(output, inputs)
    for i in range(partitions):
        shard = records.shard_name(name, i, partitions)
        sink.remove_shard(os.path.join(output, shard))
    files.reopen(folder, inputs)
