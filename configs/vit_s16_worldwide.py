"""ViT-S/16 on the world's pairs, as in MetaCLIP 2 (arXiv 2507.22062).

    python -m metaclip_jax.train --config=configs/vit_s16_worldwide.py \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

- data: worldwide, 29.4B pairs seen
- hardware: not given in the paper
- time: not given in the paper
- zero-shot ImageNet: not given in the paper

The released model of this size was distilled from ViT-H/14; this recipe trains it on
pairs alone, with the batch, the schedule and the optimizer of ViT-H/14.
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
    config.model.activation = "gelu"
    config.model.patch_size = 16
    config.model.vision_width = 384
    config.model.vision_heads = 6
    config.model.text_width = 384
    config.model.text_heads = 6
    config.model.embed_dim = 384
    return config.lock()
