"""MetaCLIP 2's models, trained on worldwide pairs (arXiv 2507.22062).

    python -m metaclip_jax.train --config=configs/metaclip2.py:vit_h14 \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

They see 29.4B pairs with XLM-V's tokenizer. The batch is 2.3 times MetaCLIP's, so that
English pairs are seen equally often. `configs/curate.py:worldwide` curates the data.

| variant | hardware | time | zero-shot ImageNet |
|---|---|---|---|
| vit_s16 | not given | not given | not given |
| vit_m16 | not given | not given | not given |
| vit_b32 | not given | not given | not given |
| vit_b16 | not given | not given | not given |
| vit_l14 | not given | not given | 78.8% |
| vit_h14 | 384 GPUs | not given | 81.3% |

ViT-H/14 also reaches 50.2% on Babel-ImageNet, and on XM3600 51.5% (text to image) and
64.3% (image to text). The smaller released models were distilled from it; these recipes
train them on pairs only, with its batch, schedule and optimizer. The accuracy of L/14
is of the paper's L/14 that was trained on pairs only.
"""

from ml_collections import ConfigDict

from metaclip_jax import config as keys

COMMON = {
    "global_batch": 75_264,
    "total_steps": 391_136,
    "optimizer.peak_lr": 4e-4,
    "optimizer.beta2": 0.95,
    "optimizer.weight_decay": 0.1,
}

VARIANTS = {
    "vit_s16": {"preset": "vit_s16_worldwide", **COMMON},
    "vit_m16": {"preset": "vit_m16_worldwide", **COMMON},
    "vit_b32": {"preset": "vit_b32_worldwide", **COMMON},
    "vit_b16": {"preset": "vit_b16_worldwide", **COMMON},
    "vit_l14": {"preset": "vit_l14_worldwide", **COMMON},
    "vit_h14": {"preset": "vit_h14_worldwide", **COMMON, "model.remat": "dots"},
}


def get_config(variant: str = "vit_h14") -> ConfigDict:
    """Returns the paper's recipe for one size of model."""
    return keys.recipe(VARIANTS, variant)
