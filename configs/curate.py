"""Curation of MetaCLIP's datasets (arXiv 2309.16671, 2507.22062) and a small one.

    python -m data_prep.curate --config=configs/curate.py:400m \
        --config.source.paths='gs://BUCKET/segments/*/warc/*.warc.gz' \
        --config.metadata=DIR --workdir=gs://BUCKET/curation --output=gs://BUCKET/dataset

| variant | pool | matched pairs | t | kept pairs |
|---|---|---|---|---|
| 400m | 1: 15 snapshots, 2021 to 2023 | 1.6B | 20,000 | 400M |
| 1b | 2: all 90 snapshots up to April 2023 | 10.7B | 20,000 | 1B |
| 2p5b | 2: all 90 snapshots up to April 2023 | 10.7B | 170,000 | 2.5B |
| worldwide | all languages | not given | 170,000 for English | 5B |
| quickstart | the sample web | some ten thousand | 10 | |
| tables | image addresses and texts of your own | | 20,000 | |

docs/scale.md estimates the costs. Each file shard has about 20,000 pairs; for a smaller
pool give --config.partitions=N, of about matched texts / 20,000.
"""

from ml_collections import ConfigDict

from data_prep import config as keys

VARIANTS = {
    "400m": {"name": "metaclip_400m", "partitions": 20_000, "balance.t": 20_000},
    "1b": {"name": "metaclip_1b", "partitions": 50_000, "balance.t": 20_000},
    "2p5b": {"name": "metaclip_2p5b", "partitions": 125_000, "balance.t": 170_000},
    # The t of English; other languages get the t with the same tail share.
    "worldwide": {
        "name": "metaclip_worldwide",
        "partitions": 250_000,
        "matching.mode": "v2",
        "balance.rule": "v2",
        "balance.t": 170_000,
    },
    # CSV, TSV, Parquet or JSON lines. With --config.matching.mode=none all are kept.
    "tables": {"name": "pairs", "source.kind": "table"},
    "quickstart": {
        "name": "quickstart",
        "partitions": 4,
        "balance.t": 10,
        # With so small a t, random losses alone exceed a slack of 1.5.
        "balance.slack": 2.0,
        "download.user_agent": "metaclip-jax quick start",
        "images.max_side": 128,
    },
}


def get_config(variant: str = "400m") -> ConfigDict:
    """Returns the paper's recipe for one dataset, or the quick start's."""
    return keys.recipe(keys.curate(), VARIANTS, variant)
