"""Curation of the quick start's sample web: a few thousand pictures, one machine.

python -m data_prep.curate --config=configs/curate_quickstart.py \
    --config.warc='crawl/*.warc.gz' --config.metadata=metadata \
    --workdir=curation --output=dataset
"""

from ml_collections import ConfigDict

from data_prep import config as config_lib


def get_config() -> ConfigDict:
    """The paper's recipe, scaled down to some ten thousand texts."""
    config = config_lib.curate()
    config.name = "quickstart"
    config.partitions = 4
    config.balance.t = 10
    config.balance.slack = 2.0  # at so small a t chance alone loses more than 1.5
    config.download.user_agent = "metaclip-jax quick start"
    config.images.max_side = 128
    return config
