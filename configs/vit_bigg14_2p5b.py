"""ViT-bigG/14 on 2.5B pairs, as in the MetaCLIP paper (arXiv 2309.16671).

    python -m metaclip_jax.train --config=configs/vit_bigg14_2p5b.py \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

- data: pool 2 at t = 170,000, 12.8B pairs seen
- hardware: 256 A100
- time: two months
- zero-shot ImageNet: 82.1%
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys


def get_config() -> ConfigDict:
    """The recipe of 400M pairs: more pairs, each seen less often."""
    config = keys.default()
    config.vocabulary = "clip"
    config.optimizer.peak_lr = 4e-4
    config.model.remat = "dots"
    config.model.patch_size = 14
    config.model.vision_width = 1_664
    config.model.vision_layers = 48
    config.model.vision_heads = 16
    config.model.vision_mlp_width = 8_192
    config.model.text_width = 1_280
    config.model.text_layers = 32
    config.model.text_heads = 20
    config.model.embed_dim = 1_280
    return config.lock()
