"""The class token is a segment of its own where the patches fill TPU tiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.extend import core

from metaclip_jax.models import attention, clip, layers, stack
from metaclip_jax.training import sharding, train_step

SMALL = clip.Architecture(
    image_size=32,
    patch_size=2,  # 256 patches
    vision_width=16,
    vision_layers=3,
    vision_heads=2,
    vision_mlp_width=32,
    text_width=8,
    text_layers=2,
    text_heads=2,
    text_mlp_width=16,
    context_length=129,
    vocab_size=50,
    embed_dim=8,
    eos_id=2,
    pad_id=0,
)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
WEIGHTS = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)


def change(**values):
    return clip.Architecture(**{**vars(SMALL), **values})


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: clip.init(SMALL, key))(jax.random.key(0))


def chosen(count):
    """What patch dropout leaves of each image; None = all."""
    if count == SMALL.patches:
        return None
    return train_step.choose_patches(
        jax.random.key(0), 8, SMALL.patches, dropout=1 - count / SMALL.patches
    )


def graded(architecture, **options):
    """Returns params, images, patches -> embeddings and the gradient of their sum."""

    def loss(params, images, patches):
        embedding = clip.encode_image(architecture, params, images, patches, **options)
        return (embedding * WEIGHTS).sum(), embedding

    return jax.jit(jax.grad(loss, has_aux=True))


def assert_near(got, want):
    for one, other in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(np.abs(other).max(), 1))


def positions_in_stacks(width, function, *arguments):
    """How many positions of this width are computed together in loops over layers."""
    found = set()

    def visit(jaxpr, looping):
        for equation in jaxpr.eqns:
            loops = looping or equation.primitive.name == "scan"
            if looping:
                shapes = [variable.aval.shape for variable in equation.outvars]
                found.update(s[1] for s in shapes if s[::2] == (8, width))
            for inner in core.jaxprs_in_params(equation.params):
                visit(inner, loops)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr, False)
    return found


@pytest.mark.parametrize("remat", layers.REMAT_POLICIES)
@pytest.mark.parametrize("count", [256, 128])
def test_segments_give_the_values_and_gradients_of_the_whole(
    count, remat, params, monkeypatch
):
    segments = graded(change(remat=remat))(params, IMAGES, chosen(count))
    monkeypatch.setattr(layers, "TILE", 1_000)
    assert_near(segments, graded(SMALL)(params, IMAGES, chosen(count)))


def test_sharded_segments_equal_unsharded_ones(params):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    spread = jax.device_put(params, sharding.tree_shardings(mesh, params))
    images = sharding.put_batch(mesh, {"image": IMAGES})["image"]
    step = graded(change(remat="dots"), rows=stack.Rows(mesh, sharding.BATCH_AXES))
    assert_near(step(spread, images, None), graded(SMALL)(params, IMAGES, None))


@pytest.mark.parametrize(
    ("count", "positions"),
    [(256, {1, 256}), (128, {1, 128}), (129, {130}), (127, {128}), (1, {2})],
)
def test_the_class_token_is_a_segment_where_patches_fill_tiles(
    count, positions, params
):
    encode = functools.partial(clip.encode_image, SMALL, params, IMAGES)
    assert positions_in_stacks(16, encode, chosen(count)) == positions


def test_cudnn_and_causal_attention_take_all_positions_together(params, monkeypatch):
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    fused = change(attention="cudnn", dtype="bfloat16")
    encode = functools.partial(clip.encode_image, fused, params)
    assert positions_in_stacks(16, encode, IMAGES) == {258}  # made even
    tokens = np.ones((8, 129), np.int32)
    encode = functools.partial(clip.encode_text, SMALL, params)
    assert positions_in_stacks(8, encode, tokens) == {129}


@given(
    sizes=st.sampled_from([(8,), (1, 8), (8, 1), (3, 2, 4)]),
    queries=st.sampled_from([1, 5]),
    largest=st.sampled_from([1e-3, 1, 1e4]),
    seed=st.integers(0, 99),
)
@settings(max_examples=12)
def test_attention_over_segments_is_attention_over_their_positions(
    sizes, queries, largest, seed
):
    rng = np.random.default_rng(seed)
    query, key, value, weights = (
        rng.uniform(-1, 1, (2, positions, 3, 4)).astype(np.float32)
        for positions in (queries, sum(sizes), sum(sizes), queries)
    )
    query *= np.float32(largest)

    def over_segments(query, key, value):
        ends = np.cumsum(sizes)[:-1]
        keys, values = (tuple(jnp.split(x, ends, axis=1)) for x in (key, value))
        return attention.over_segments(query, keys, values)

    found, wanted = (
        jax.vjp(attend, query, key, value)
        for attend in (over_segments, attention.plain)
    )
    assert_near(found[0], wanted[0])
    assert_near(found[1](weights), wanted[1](weights))
