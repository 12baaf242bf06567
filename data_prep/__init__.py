"""Curation: builds a dataset of images with their texts from web pages."""

import logging
import os
import re

# Arrow's default, mimalloc, keeps half as much again as the rows of a range take: it
# does not return the end of a buffer that shrinks, and memory of other threads late.
# Arrow reads this when it is imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")

# On import, Beam logs that BigQuery's client is missing, which nothing here uses, and
# each pipeline logs the size of its state cache between the progress bars.
logging.getLogger().addFilter(
    lambda record: not str(record.msg).startswith("apitools not found")
)
logging.getLogger("apache_beam.runners.worker.statecache").setLevel(logging.WARNING)


def _is_news(record: logging.LogRecord) -> bool:
    """Drops messages about a full disk or a bucket that refuses, with their tracebacks.

    The command ends with one line about it.
    """
    from metaclip_jax import files

    said = record.getMessage()
    refused = re.search(r"\bwanted gs://\S+, got ", said)  # a StorageError
    return not refused and not files.is_full_disk(said)


for name in ("common", "worker.sdk_worker", "portability.local_job_service"):
    logging.getLogger(f"apache_beam.runners.{name}").addFilter(_is_news)
