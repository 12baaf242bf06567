"""ViT-B/16 with SigLIP's towers and sigmoid loss (arXiv 2303.15343).

    python -m metaclip_jax.train --config=configs/siglip_b16.py \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

The paper trains on WebLI; on 32 TPUv4 it reports 72.1% zero-shot ImageNet after two
days and 73.4% after five. On a MetaCLIP dataset it asks what the loss changes.
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys


def get_config() -> ConfigDict:
    """The recipe of vit_b16_400m with SigLIP's towers, loss and beta2."""
    config = keys.default()
    config.loss = "sigmoid"
    config.loss_form = "ring"
    config.optimizer.beta2 = 0.95
    config.model.family = "siglip"
    config.model.text_pool = "last"
    config.model.activation = "gelu_tanh"
    config.model.patch_size = 16
    config.model.text_width = 768
    config.model.text_heads = 12
    config.model.context_length = 64
    config.model.embed_dim = 768
    return config.lock()
