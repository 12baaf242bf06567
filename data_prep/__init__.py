"""Curation: builds a dataset of images with their texts from web pages."""

import logging
import os
import re

# With Arrow's default, mimalloc, sorting a range of rows takes half as much memory
# again: it does not free the end of a buffer that shrinks, and frees memory of other
# threads late. Arrow reads this when it is imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")

# On import, Beam logs that BigQuery's client is missing, which nothing here uses; each
# pipeline logs the size of its state cache, in the middle of the progress bars.
logging.getLogger().addFilter(
    lambda record: not str(record.msg).startswith("apitools not found")
)
logging.getLogger("apache_beam.runners.worker.statecache").setLevel(logging.WARNING)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message is about neither a full disk nor a bucket that refuses.

    The command ends with one line about those, so their tracebacks are not logged.
    """
    from metaclip_jax import files

    message = record.getMessage()
    is_refusal = re.search(r"\bwanted gs://\S+, got ", message)  # a StorageError
    return not is_refusal and not files.is_full_disk(message)


for name in ("common", "worker.sdk_worker", "portability.local_job_service"):
    logging.getLogger(f"apache_beam.runners.{name}").addFilter(_is_news)
