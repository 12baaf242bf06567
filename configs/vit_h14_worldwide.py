"""ViT-H/14 on the world's pairs, as in MetaCLIP 2 (arXiv 2507.22062).

    python -m metaclip_jax.train --config=configs/vit_h14_worldwide.py \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

- data: worldwide, 29.4B pairs seen
- hardware: 384 GPUs
- time: not given in the paper
- zero-shot ImageNet: 81.3%

Babel-ImageNet 50.2%, XM3600 51.5% (text to image) and 64.3% (image to text).
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys


def get_config() -> ConfigDict:
    """The recipe of 400M pairs, with 2.3 times the batch and XLM-V's tokenizer."""
    config = keys.default()
    config.vocabulary = "xlm_v"
    config.global_batch = 75_264
    config.total_steps = 391_136
    config.optimizer.peak_lr = 4e-4
    config.optimizer.beta2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.model.remat = "dots"
    config.model.patch_size = 14
    config.model.vision_width = 1_280
    config.model.vision_layers = 32
    config.model.vision_heads = 16
    config.model.text_width = 1_024
    config.model.text_layers = 24
    config.model.text_heads = 16
    config.model.embed_dim = 1_024
    return config.lock()
