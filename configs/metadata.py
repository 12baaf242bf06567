"""Metadata: the papers' entries (arXiv 2309.16671, table 1; 2507.22062).

    python -m data_prep.build_metadata --config=configs/metadata.py:en \
        --wordnet=/usr/share/wordnet \
        --wikipedia='enwiki-*-pages-articles-multistream*.xml*.bz2' \
        --pageviews='pageviews-*.gz' --output=DIR

`en` has MetaCLIP's 500,000 English entries. `worldwide` has those of MetaCLIP 2, for
all languages of docs/languages.md: shares of each language's words and titles, since
few words of a small Wikipedia occur 100 times. `quickstart` has thresholds for a corpus
a hundred thousand times smaller.
"""

from ml_collections import ConfigDict

from data_prep import config as keys

VARIANTS = {
    "en": {},
    "worldwide": {
        "languages": keys.every_language(),
        "unigram_min_count": 1,
        "unigram_share": 0.1,
        "bigram_score": "worldwide",
        "bigram_min_score": 0.0,
        "bigram_min_count": 5,
        "bigrams_per_unigram": 0.4,
        "title_min_views": 1,
        "title_share": 0.76,
    },
    "quickstart": {"unigram_min_count": 3, "bigram_min_count": 3},
}


def get_config(variant: str = "en") -> ConfigDict:
    """Returns a paper's sources and thresholds, or the quick start's."""
    return keys.recipe(keys.metadata(), VARIANTS, variant)
