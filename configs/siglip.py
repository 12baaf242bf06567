"""SigLIP's towers and sigmoid loss (arXiv 2303.15343).

    python -m metaclip_jax.train --config=configs/siglip.py:vit_b16 \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

The paper trained on WebLI and reports 72.1% after two days. The other settings are
those of metaclip.py:vit_b16_400m, so that a comparison on one MetaCLIP dataset shows
the effect of the towers and the loss.

| variant | hardware | time | zero-shot ImageNet |
|---|---|---|---|
| vit_b16 | 32 TPUv4 | 5 days | 73.4% |
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys

VARIANTS = {
    "vit_b16": {
        "preset": "siglip_b16",
        "loss_form": "ring",
        "optimizer.beta2": 0.95,
    },
}


def get_config(variant: str = "vit_b16") -> ConfigDict:
    """Returns the recipe with SigLIP's towers, loss and beta2."""
    return keys.recipe(VARIANTS, variant)
