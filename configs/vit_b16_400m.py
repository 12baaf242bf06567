"""ViT-B/16 on 400M pairs, as in the MetaCLIP paper (arXiv 2309.16671).

    python -m metaclip_jax.train --config=configs/vit_b16_400m.py \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

The paper: 12.8B pairs seen on 64 V100, zero-shot ImageNet 70.8%.
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys


def get_config() -> ConfigDict:
    """The paper's recipe: B/32's, with four times as many patches."""
    config = keys.default()
    config.model.patch_size = 16
    return config.lock()
