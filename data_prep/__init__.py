"""Curation: from web pages to a dataset of images with their texts."""

import logging

# Beam says as it is imported that BigQuery's client is missing, which nothing here
# asks for, and between progress bars how large a cache each pipeline has.
logging.getLogger().addFilter(
    lambda record: not str(record.msg).startswith("apitools not found")
)
logging.getLogger("apache_beam.runners.worker.statecache").setLevel(logging.WARNING)


def _is_news(record: logging.LogRecord) -> bool:
    """A full disk is not: the command ends with one line about it."""
    from metaclip_jax import files

    return not files.is_full_disk(record.getMessage())


for name in ("common", "worker.sdk_worker", "portability.local_job_service"):
    logging.getLogger(f"apache_beam.runners.{name}").addFilter(_is_news)
