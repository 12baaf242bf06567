"""MetaCLIP's models, as in the paper (arXiv 2309.16671).

    python -m metaclip_jax.train --config=configs/metaclip.py:vit_b32_400m \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

All see 12.8B pairs at a global batch of 32,768, whatever the size of the dataset, with
OpenAI's recipe, which the defaults are. The data: pool 1 at t = 20,000 (400m), pool 2
at t = 20,000 (1b) and at t = 170,000 (2p5b); configs/curate.py has their curation.

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

# Larger than B: a lower learning rate, and the activations do not fit as they are.
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
    """The paper's recipe for one size of model and of data."""
    return keys.recipe(VARIANTS, variant)
