"""ViT-B/32 on 2.5B pairs, as in the MetaCLIP paper (arXiv 2309.16671).

    python -m metaclip_jax.train --config=configs/vit_b32_2p5b.py \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

- data: pool 2 at t = 170,000, 12.8B pairs seen
- hardware: 64 V100
- time: 4 days
- zero-shot ImageNet: 67.6%
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys


def get_config() -> ConfigDict:
    """The recipe of 400M pairs: more pairs, each seen less often."""
    config = keys.default()
    config.vocabulary = "clip"
    return config.lock()
