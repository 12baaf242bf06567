"""ViT-H/14 as MetaCLIP 1.2 (Altogether) trains it.

    python -m metaclip_jax.train --config=configs/vit_h14_altogether.py \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

Published: batch 131,072 on 256 H100, zero-shot ImageNet 82.0%. 51.2B pairs are nominal;
its authors stopped after 35B. It balances in the loader and takes 15% of its texts from
a captioner: here the texts are those of the dataset.
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys


def get_config() -> ConfigDict:
    """A larger batch, exact GELU, and AdamW with a shorter memory."""
    config = keys.default()
    config.global_batch = 131_072
    config.total_steps = 390_625
    config.optimizer.peak_lr = 4e-4
    config.optimizer.beta2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.model.activation = "gelu"
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
