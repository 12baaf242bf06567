"""Attention by XLA and for cuDNN, which takes even numbers of positions alone.

No test here has a GPU: the even form is run by XLA, and what cuDNN would run is lowered
as far as it goes without one.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from metaclip_jax import config as keys
from metaclip_jax.models import attention, clip


@pytest.mark.parametrize(
    ("positions", "others", "causal"),
    [(7, 7, True), (7, 7, False), (6, 6, True), (1, 9, False), (1, 8, False)],
)
def test_the_even_form_gives_the_same_values_and_gradients(positions, others, causal):
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.normal(size=(3, n, 2, 4)).astype(np.float32)
        for n in (positions, others, others)
    )
    weights = rng.normal(size=query.shape).astype(np.float32)

    def run(attend):
        def loss(*arrays):
            mixed = attend(*arrays, causal=causal)
            return (mixed * weights).sum(), mixed

        graded = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (_, mixed), gradients = graded(query, key, value)
        return mixed, *gradients

    even = functools.partial(attention.even, implementation="xla")
    for got, want in zip(run(even), run(attention.whole), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_towers_and_gradients_lower_to_fused_attention(family, monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    config = keys.default()
    config.model.attention = "cudnn"
    config.model.family = family
    config.image_size = 224 + 32 * (family == "siglip")  # 50 positions, or 64
    if family == "siglip":
        config.model.text_pool = "last"
        config.model.embed_dim = config.model.vision_width
    architecture = keys.architecture(config, vocab_size=500, eos_id=1, pad_id=0)
    shape = jax.ShapeDtypeStruct
    size, length = config.image_size, config.model.context_length
    assert length % 2

    def loss(params, images, tokens):
        image = clip.encode_image(architecture, params, images)
        return (image * clip.encode_text(architecture, params, tokens)).sum()

    traced = jax.jit(jax.grad(loss)).trace(
        jax.eval_shape(lambda: clip.init(architecture, jax.random.key(0))),
        shape((8, size, size, 3), jnp.uint8),
        shape((8, length), jnp.int32),
    )
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"@__cudnn\$(\w+)", lowered)
    # In the stack of each tower; what reads a tower out has one query an image.
    assert sorted(calls) == ["fmhaSoftmax"] * 2 + ["fmhaSoftmaxBackward"] * 2
