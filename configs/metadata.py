"""Metadata: the paper's 500,000 English entries (arXiv 2309.16671, table 1).

    python -m data_prep.build_metadata --config=configs/metadata.py:en \
        --warc='pages/*.warc.gz' --pageviews=pageviews.txt --output=DIR

`quickstart` has thresholds for a corpus a hundred thousand times smaller.
"""

from ml_collections import ConfigDict

from data_prep import config as keys

VARIANTS = {
    "en": {},
    "quickstart": {"unigram_min_count": 3, "bigram_min_count": 3},
}


def get_config(variant: str = "en") -> ConfigDict:
    """Returns the paper's sources and thresholds, or the quick start's."""
    return keys.recipe(keys.metadata(), VARIANTS, variant)
