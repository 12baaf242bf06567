"""ViT-L/14 on 400M pairs, as in the MetaCLIP paper (arXiv 2309.16671).

    python -m metaclip_jax.train --config=configs/vit_l14_400m.py \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

- data: pool 1 at t = 20,000, 12.8B pairs seen
- hardware: 128 V100
- time: one month
- zero-shot ImageNet: 76.2%
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys


def get_config() -> ConfigDict:
    """The paper's recipe: a larger model at a slightly lower learning rate."""
    config = keys.default()
    config.vocabulary = "clip"
    config.optimizer.peak_lr = 4e-4
    config.model.remat = "dots"
    config.model.patch_size = 14
    config.model.vision_width = 1_024
    config.model.vision_layers = 24
    config.model.vision_heads = 16
    config.model.text_width = 768
    config.model.text_heads = 12
    config.model.embed_dim = 768
    return config.lock()
