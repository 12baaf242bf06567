"""MetaCLIP's models, as in the paper (arXiv 2309.16671).

    python -m metaclip_jax.train --config=configs/metaclip.py:vit_b32_400m \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

All see 12.8B pairs with a global batch of 32,768, for every size of dataset, and use
OpenAI's recipe, which is the default. The data: pool 1 with t = 20,000 (400m), pool 2
with t = 20,000 (1b) and with t = 170,000 (2p5b); configs/curate.py curates them.

| variant | hardware | time | zero-shot ImageNet |
|---|---|---|---|
| vit_b32_400m | 64 V100 | 4 days | 65.5% |
| vit_b16_400m | 64 V100 | not given | 70.8% |
| vit_l14_400m | 128 V100 | one month | 76.2% |
| vit_b32_1b | 64 V100 | 4 days | 67.3% |
| vit_b16_1b | 64 V100 | not given | 72.4% |
| vit_l14_1b | 128 V100 | not given | 79.0% |
| vit_b32_2p5b | 64 V100 | 4 days | 67.6% |
| vit_b16_2p5b | 64 V100 | not given | 72.1% |
| vit_l14_2p5b | 128 V100 | one month | 79.2% |
| vit_h14_2p5b | 256 A100 | one week | 80.5% |
| vit_bigg14_2p5b | 256 A100 | two months | 82.1% |
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys

# Models larger than B: a lower learning rate, and remat, without which the activations
# do not fit into memory.
LARGE = {"optimizer.peak_lr": 4e-4, "model.remat": "dots"}

VARIANTS = {
    "vit_b32_400m": {"preset": "vit_b32"},
    "vit_b16_400m": {"preset": "vit_b16"},
    "vit_l14_400m": {"preset": "vit_l14", **LARGE},
    "vit_b32_1b": {"preset": "vit_b32"},
    "vit_b16_1b": {"preset": "vit_b16"},
    "vit_l14_1b": {"preset": "vit_l14", **LARGE},
    "vit_b32_2p5b": {"preset": "vit_b32"},
    "vit_b16_2p5b": {"preset": "vit_b16"},
    "vit_l14_2p5b": {"preset": "vit_l14", **LARGE},
    "vit_h14_2p5b": {"preset": "vit_h14", **LARGE},
    "vit_bigg14_2p5b": {"preset": "vit_bigg14", **LARGE},
}


def get_config(variant: str = "vit_b32_400m") -> ConfigDict:
    """Returns the paper's recipe for one size of model and one of data."""
    return keys.recipe(VARIANTS, variant)
