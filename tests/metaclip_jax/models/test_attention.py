"""Attention by XLA and for cuDNN, which takes even numbers of positions alone.

No test here has a GPU: the fused form is run by XLA, and what cuDNN would run is
lowered as far as it goes without one.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from metaclip_jax import config as keys
from metaclip_jax.models import attention, clip, layers


@pytest.mark.parametrize("causal", [False, True])
def test_positions_added_at_the_end_change_neither_values_nor_gradients(causal):
    positions, added = 7, 1
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(4, 3, positions + added, 2, 4)).astype(np.float32)
    *inputs, weights = arrays

    def run(attend, kept):
        def loss(*arrays):
            mixed = attend(*arrays)
            assert mixed.shape == (3, kept, 2, 4)
            mixed = mixed[:, :positions]
            return (mixed * weights[:, :positions]).sum(), mixed

        graded = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (_, mixed), gradients = graded(*(array[:, :kept] for array in inputs))
        return mixed, *gradients

    fused = functools.partial(
        attention.fused, causal=causal, positions=positions, implementation="xla"
    )
    plain = functools.partial(attention.plain, causal=causal)
    longer, shorter = run(fused, positions + added), run(plain, positions)
    for got, want in zip(longer, shorter, strict=True):
        np.testing.assert_allclose(got[:, :positions], want, rtol=1e-5, atol=1e-5)
        assert not np.any(got[:, positions:])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("positions", [6, 7])
def test_blocks_with_fused_attention_give_what_other_blocks_give(
    positions, causal, monkeypatch
):
    run_by_xla = functools.partial(attention.fused, implementation="xla")
    monkeypatch.setattr(attention, "fused", run_by_xla)

    def blocks(name):
        shape = layers.BlockShape(
            width=16,
            heads=2,
            mlp_width=32,
            activation="gelu",
            causal=causal,
            attention=name,
            dtype="float32",
            epsilon=1e-5,
        )
        init = layers.image_init(width=16, mlp_width=32)
        made = layers.make_blocks(shape, init, layers=2, rngs=nnx.Rngs(0))
        return nnx.split(made)

    x = np.random.default_rng(0).normal(size=(3, positions, 16)).astype(np.float32)

    def run(name):
        graph, params = blocks(name)

        def loss(params, x):
            result = layers.run_blocks(nnx.merge(graph, params), x, remat="dots")
            return jnp.sin(result).sum(), result

        graded = jax.grad(loss, argnums=(0, 1), has_aux=True)
        gradients, result = jax.jit(graded)(params, x)
        return jax.tree.leaves((result, gradients))

    for got, want in zip(run("cudnn"), run("xla"), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "remat", "again"),
    [
        ("clip", "none", 0),
        ("siglip", "none", 0),
        ("clip", "dots", 0),
        ("clip", "full", 1),
    ],
)
def test_towers_and_gradients_lower_to_fused_attention(
    family, remat, again, monkeypatch
):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    config = keys.default()
    config.model.attention = "cudnn"
    config.model.family = family
    config.model.remat = remat
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
    # In the stack of each tower; what reads a tower out has one query an image. What
    # is fused counts as a product: only full rematerialisation makes it again.
    forward = ["fmhaSoftmax"] * 2 * (1 + again)
    assert sorted(calls) == forward + ["fmhaSoftmaxBackward"] * 2
