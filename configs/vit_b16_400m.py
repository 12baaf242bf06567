"""ViT-B/16 on 400M pairs, as in the MetaCLIP paper (arXiv 2309.16671).

    python -m metaclip_jax.train --config=configs/vit_b16_400m.py \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

- data: pool 1 at t = 20,000, 12.8B pairs seen
- hardware: 64 V100
- time: not given in the paper
- zero-shot ImageNet: 70.8%
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys


def get_config() -> ConfigDict:
    """The paper's recipe: B/32's, with four times as many patches."""
    config = keys.default()
    config.vocabulary = "clip"
    config.model.patch_size = 16
    return config.lock()
