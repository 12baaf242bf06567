"""SigLIP's towers; tests/parity compares them with transformers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaclip_jax.data.clean_up import canonical
from metaclip_jax.models import clip
from metaclip_jax.training import optimizer, sharding

SMALL = clip.Architecture(
    family="siglip",
    logit_bias=True,
    image_size=32,
    patch_size=8,
    vision_width=32,
    vision_layers=2,
    vision_heads=4,
    vision_mlp_width=64,
    text_width=32,
    text_layers=2,
    text_heads=4,
    text_mlp_width=64,
    context_length=8,
    vocab_size=130,
    embed_dim=32,
    eos_id=1,
    pad_id=1,
    activation="gelu_tanh",
    text_pool="last",
)


def test_sharded_embeddings_equal_unsharded_ones():
    params = clip.init(SMALL, jax.random.key(0))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    tokens = rng.integers(0, 130, (8, 8)).astype(np.int32)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    spread = jax.device_put(params, sharding.tree_shardings(mesh, params))
    batch = sharding.put_batch(mesh, {"image": pixels, "tokens": tokens})
    for encode, name, rows in (
        (clip.encode_image, "image", pixels),
        (clip.encode_text, "tokens", tokens),
    ):
        encode = jax.jit(functools.partial(encode, SMALL))
        np.testing.assert_allclose(
            encode(spread, batch[name]), encode(params, rows), atol=1e-5
        )


def test_the_scale_and_bias_start_where_siglip_starts():
    params = clip.init(SMALL, jax.random.key(0))
    assert math.exp(params["log_logit_scale"]) == pytest.approx(10)
    assert params["logit_bias"] == -10
    assert (
        clip.parameter_count(SMALL)["total"]
        == sum(leaf.size for leaf in jax.tree.leaves(params)) - (256 - 130) * 32
    )


def test_kernels_and_tables_decay_and_vectors_do_not():
    params = clip.init(SMALL, jax.random.key(0))
    decayed = {
        sharding.path_name(path)
        for path, yes in jax.tree_util.tree_leaves_with_path(
            optimizer.decay_mask(params)
        )
        if yes
    }
    assert "image/head/attn/qkv/kernel" in decayed
    assert not {p for p in decayed if p.endswith(("bias", "probe", "scale"))}


def test_the_text_is_read_at_its_last_position_and_sees_both_ways():
    params = clip.init(SMALL, jax.random.key(0))
    tokens = jnp.arange(16, dtype=jnp.int32).reshape(2, 8) + 2
    encode = jax.jit(functools.partial(clip.encode_text, SMALL, params))
    changed = encode(tokens.at[:, 0].set(99))
    assert not np.allclose(changed, encode(tokens), atol=1e-4)
    with pytest.raises(ValueError, match=r"padded to \[B, 8\]"):
        encode(tokens[:, :5])


def test_what_does_not_go_together_is_refused():
    values = SMALL.__dict__
    for change, message in (
        ({"text_pool": "eos"}, "if and only if family"),
        ({"family": "clip"}, "if and only if family"),
        ({"embed_dim": 16}, "must equal vision_width=32"),
    ):
        with pytest.raises(ValueError, match=message):
            clip.Architecture(**values | change)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("A Cat, on (the) mat!", "a cat on the mat"),
        ("  it's\n a\tdog ", "its a dog"),
        ("naïve “café”", "naïve “café”"),
        ("#$%", ""),
    ],
)
def test_canonical_texts_have_no_case_and_no_punctuation(raw, cleaned):
    assert canonical(raw) == cleaned
