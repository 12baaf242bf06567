"""Metadata of the quick start's sample web: some ten thousand words of English.

python -m data_prep.build_metadata --config=configs/metadata_quickstart.py \
    --config.warc='crawl/*.warc.gz' --config.pageviews=site/pageviews.txt \
    --output=metadata
"""

from ml_collections import ConfigDict

from data_prep import config as config_lib


def get_config() -> ConfigDict:
    """The paper's sources; thresholds for a text a hundred thousand times smaller."""
    config = config_lib.metadata()
    config.languages = ("en",)
    config.unigram_min_count = 3
    config.bigram_min_count = 3
    return config
