"""MetaCLIP 2's models, on pairs of the whole world (arXiv 2507.22062).

    python -m metaclip_jax.train --config=configs/metaclip2.py:vit_h14 \
        --config.dataset=DIR --config.tokenizer=FILE --workdir=DIR

29.4B pairs seen: 2.3 times the batch of MetaCLIP, so that English is seen as often as
there, with XLM-V's tokenizer. `configs/curate.py:worldwide` has the curation.

| variant | hardware | time | zero-shot ImageNet |
|---|---|---|---|
| vit_s16 | not given | not given | not given |
| vit_m16 | not given | not given | not given |
| vit_b32 | not given | not given | not given |
| vit_b16 | not given | not given | not given |
| vit_l14 | not given | not given | 78.8% |
| vit_h14 | 384 GPUs | not given | 81.3% |

ViT-H/14 also has Babel-ImageNet 50.2%, XM3600 51.5% (text to image) and 64.3% (image to
text). The released models below it were distilled from it; these recipes train on pairs
alone, with its batch, schedule and optimizer. The accuracy of L/14 is that of the
paper's own L/14 from pairs alone.
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
    """The paper's recipe for one size of model."""
    return keys.recipe(VARIANTS, variant)
