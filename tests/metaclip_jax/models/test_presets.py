"""The released architectures have the parameters that were published for them."""

import pytest

from metaclip_jax.models import clip, presets

# (vision, text, total) in millions, as open_clip's profile and the configs give them.
PUBLISHED = {
    "vit_b32": (87.85, 63.43, 151.28),
    "vit_b16": (86.19, 63.43, 149.62),
    "vit_l14": (303.97, 123.65, 427.62),
    "vit_h14": (632.08, 354.03, 986.11),
    "vit_bigg14": (1844.91, 694.66, 2539.57),
    "vit_h14_altogether": (632.08, 354.03, 986.11),
    "vit_h14_worldwide": (632.08, 1226.71, 1858.78),
    "vit_h14_378_worldwide": (632.68, 1226.71, 1859.39),
    "vit_bigg14_worldwide": (1844.91, 1785.50, 3630.41),
    "vit_bigg14_378_worldwide": (None, 1785.50, 3631.20),
    "vit_s16_worldwide": (21.81, 367.70, 389.51),
    "vit_m16_worldwide": (38.59, 499.77, 538.35),
    "vit_b32_worldwide": (87.85, 499.77, 587.61),
    "vit_b16_worldwide": (86.19, 499.77, 585.96),
    "vit_l14_worldwide": (303.97, 778.16, 1082.12),
    "vit_s16_mt5_worldwide": (None, None, 139.28),
    "vit_m16_mt5_worldwide": (None, None, 204.72),
    "vit_b32_mt5_worldwide": (None, None, 253.98),
}
# To the parameter.
EXACT = {"vit_b32": 151_277_313, "vit_b16": 149_620_737, "vit_l14": 427_616_513}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    count = clip.parameter_count(presets.architecture(name))
    found = count["image"], count["text"], count["total"]
    for got, want in zip(found, PUBLISHED[name], strict=True):
        assert want is None or got / 1e6 == pytest.approx(want, abs=0.0051)
    if name in EXACT:
        assert count["total"] == EXACT[name]


def test_an_unknown_preset_names_those_that_there_are():
    with pytest.raises(ValueError, match="one of .*vit_b32.*got 'vit_b99'"):
        presets.architecture("vit_b99")
