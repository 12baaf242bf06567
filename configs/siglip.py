"""SigLIP's towers and sigmoid loss (arXiv 2303.15343).

    python -m metaclip_jax.train --config=configs/siglip.py:vit_b16 \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

The paper trained on WebLI and reports 72.1% after two days. On a MetaCLIP dataset this
recipe, with that of metaclip.py:vit_b16_400m otherwise, asks what the loss changes.

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
    """The towers, the loss and beta2 of SigLIP."""
    return keys.recipe(VARIANTS, variant)
