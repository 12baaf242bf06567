"""Curation: from web pages to a dataset of images with their texts."""

import logging

# Beam says as it is imported that BigQuery's client is missing, which nothing here
# asks for, and between progress bars how large a cache each pipeline has.
logging.getLogger().addFilter(
    lambda record: not str(record.msg).startswith("apitools not found")
)
logging.getLogger("apache_beam.runners.worker.statecache").setLevel(logging.WARNING)
