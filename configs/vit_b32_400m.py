"""ViT-B/32 on 400M pairs, as in the MetaCLIP paper (arXiv 2309.16671).

    python -m metaclip_jax.train --config=configs/vit_b32_400m.py \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

- data: pool 1 at t = 20,000, 12.8B pairs seen
- hardware: 64 V100
- time: 4 days
- zero-shot ImageNet: 65.5%
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys


def get_config() -> ConfigDict:
    """The paper's recipe. It also is the default of every key."""
    config = keys.default()
    config.vocabulary = "clip"
    config.model.patch_size = 32
    return config.lock()
