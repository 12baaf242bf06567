"""ViT-L/14 on 400M pairs, as in the MetaCLIP paper (arXiv 2309.16671).

    python -m metaclip_jax.train --config=configs/vit_l14_400m.py \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

The paper: 12.8B pairs seen, 128 V100 for one month, zero-shot ImageNet 76.2%.
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys


def get_config() -> ConfigDict:
    """The paper's recipe: a larger model at a slightly lower learning rate."""
    config = keys.default()
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
