import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from metaclip_jax.models import clip, layers, text, vit

TINY = clip.Architecture(
    image_size=12,
    patch_size=4,
    vision_width=16,
    vision_layers=2,
    vision_heads=2,
    vision_mlp_width=64,
    text_width=8,
    text_layers=3,
    text_heads=2,
    text_mlp_width=32,
    context_length=6,
    vocab_size=50,
    embed_dim=8,
    eos_id=2,
    pad_id=0,
)


def change(**values):
    return clip.Architecture(**{**vars(TINY), **values})


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: clip.init(TINY, key))(jax.random.key(0))


@pytest.mark.parametrize("logit_bias", [False, True])
def test_the_shapes_of_parameters_are_those_of_new_ones(logit_bias):
    architecture = change(logit_bias=logit_bias)
    new = jax.eval_shape(lambda: clip.init(architecture, jax.random.key(0)))
    assert clip.param_shapes(architecture) == new


@pytest.mark.parametrize(
    ("patch", "width", "layers", "text_width", "embed", "millions"),
    [
        (32, 768, 12, 512, 512, (87.85, 63.43, 151.28)),
        (16, 768, 12, 512, 512, (86.19, 63.43, 149.62)),
        (14, 1024, 24, 768, 768, (303.97, 123.65, 427.62)),
    ],
)
def test_parameter_counts_equal_the_published_models(
    patch, width, layers, text_width, embed, millions
):
    count = clip.parameter_count(
        clip.Architecture(
            image_size=224,
            patch_size=patch,
            vision_width=width,
            vision_layers=layers,
            vision_heads=width // 64,
            vision_mlp_width=4 * width,
            text_width=text_width,
            text_layers=12,
            text_heads=text_width // 64,
            text_mlp_width=4 * text_width,
            context_length=77,
            vocab_size=49_408,
            embed_dim=embed,
            eos_id=49_407,
            pad_id=0,
        )
    )
    found = tuple(round(count[part] / 1e6, 2) for part in ("image", "text", "total"))
    assert found == millions


def test_padding_of_the_token_table_is_not_counted():
    assert text.stored_rows(901_629) == 901_632
    one, more = clip.parameter_count(TINY), clip.parameter_count(change(vocab_size=51))
    assert more["total"] - one["total"] == TINY.text_width


def test_initial_values_follow_the_reference(params):
    wide = clip.Architecture(
        **{**vars(TINY), "vision_width": 64, "text_width": 64, "vocab_size": 1000}
    )
    params = clip.init(wide, jax.random.key(1))
    image, words = params["image"], params["text"]
    assert float(params["log_logit_scale"]) == pytest.approx(math.log(1 / 0.07))
    for leaf, std in (
        (words["token_embedding"][:1000], 0.02),
        (words["position_embedding"], 0.01),
        (words["projection"], 64**-0.5),
        (words["blocks"]["attn"]["qkv"]["kernel"], 64**-0.5),
        (words["blocks"]["attn"]["out"]["kernel"], 64**-0.5 * 6**-0.5),
        (words["blocks"]["mlp"]["fc1"]["kernel"], 128**-0.5),
        (words["blocks"]["mlp"]["fc2"]["kernel"], 64**-0.5 * 6**-0.5),
        (image["position_embedding"], 64**-0.5),
        (image["projection"], 64**-0.5),
        (image["blocks"]["attn"]["qkv"]["kernel"], (2 / 256) ** 0.5),
        (image["blocks"]["mlp"]["fc1"]["kernel"], (1 / 64 / 3) ** 0.5),
        (image["blocks"]["mlp"]["fc1"]["bias"], (1 / 64 / 3) ** 0.5),
    ):
        assert float(leaf.std()) == pytest.approx(std, rel=0.1)
        assert abs(float(leaf.mean())) < 4 * std / math.sqrt(leaf.size)
    assert not words["token_embedding"][1000:].any()
    assert not image["blocks"]["attn"]["qkv"]["bias"].any()
    layer_by_layer = (
        image[name]["mlp"]["fc1"]["kernel"] for name in ("blocks", "last")
    )
    assert not np.array_equal(*(np.squeeze(kernel) for kernel in layer_by_layer))


def test_embeddings_are_f32_of_unit_norm_in_either_dtype(params):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 255, (3, 12, 12, 3)), jnp.uint8)
    tokens = jnp.asarray([[1, 5, 2, 0, 0, 0], [1, 6, 7, 2, 0, 0], [1, 2, 0, 0, 0, 0]])
    exact = None
    for architecture in (TINY, change(dtype="bfloat16")):
        image = jax.jit(lambda p, a=architecture: clip.encode_image(a, p, images))(
            params
        )
        words = jax.jit(lambda p, a=architecture: clip.encode_text(a, p, tokens))(
            params
        )
        for embedding in (image, words):
            assert embedding.shape == (3, 8)
            assert embedding.dtype == jnp.float32
            np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=1), 1, rtol=1e-6)
        if exact is not None:
            np.testing.assert_allclose(image, exact[0], atol=0.05)
            np.testing.assert_allclose(words, exact[1], atol=0.05)
        exact = (image, words)


def test_bytes_and_normalised_floats_are_the_same_image(params):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 12, 12, 3), dtype=np.uint8)
    floats = ((pixels / 255 - vit.IMAGE_MEAN) / vit.IMAGE_STD).astype(np.float32)
    np.testing.assert_allclose(
        clip.encode_image(TINY, params, jnp.asarray(pixels)),
        clip.encode_image(TINY, params, jnp.asarray(floats)),
        atol=1e-5,
    )


def test_patch_embedding_is_a_strided_convolution(params):
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 12, 3)))
    kernel = params["image"]["patch_embed"]["kernel"]
    want = jax.lax.conv_general_dilated(
        images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    embed = vit.PatchEmbed(patch=4, width=16, dtype="float32", rngs=nnx.Rngs(0))
    embed.kernel[...] = kernel
    np.testing.assert_allclose(embed(images), want.reshape(2, 9, 16), atol=1e-5)


def test_what_follows_the_first_end_mark_changes_nothing(params):
    tokens = jnp.asarray([[1, 5, 2, 0, 0, 0], [1, 5, 2, 9, 49, 2]])
    first, second = clip.encode_text(TINY, params, tokens)
    np.testing.assert_allclose(first, second, atol=1e-6)
    shorter = clip.encode_text(TINY, params, tokens[:1, :3])[0]
    np.testing.assert_allclose(first, shorter, atol=1e-6)


def test_the_read_out_position_is_the_first_end_mark_or_the_largest_id():
    tokens = jnp.asarray([[1, 9, 2, 4, 2], [1, 2, 7, 0, 0]])
    eos = text.end_position(tokens, pool="eos", eos_id=2)
    largest = text.end_position(tokens, pool="argmax", eos_id=2)
    assert eos.tolist() == [2, 1]
    assert largest.tolist() == [1, 2]


def test_a_block_equals_attention_and_mlp_by_hand(params):
    """One image through numpy, in f64, layer by layer."""
    pixels = np.random.default_rng(1).integers(0, 255, (1, 12, 12, 3), dtype=np.uint8)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["image"])

    def norm(x, ln):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * ln["scale"] + ln["bias"]

    x = (pixels[0] / 255 - vit.IMAGE_MEAN) / vit.IMAGE_STD
    x = x.reshape(3, 4, 3, 4, 3).swapaxes(1, 2).reshape(9, 48)
    x = x @ p["patch_embed"]["kernel"].reshape(48, 16)
    x = np.concatenate([p["class_embedding"][None], x]) + p["position_embedding"]
    x = norm(x, p["ln_pre"])
    for b in (jax.tree.map(lambda leaf: leaf[0], p["blocks"]), p["last"]):
        h = norm(x, b["ln_1"])
        qkv = np.einsum("td,dchk->cthk", h, b["attn"]["qkv"]["kernel"])
        q, k, v = qkv + b["attn"]["qkv"]["bias"][:, None]
        scores = np.exp(np.einsum("thk,shk->hts", q, k) / np.sqrt(8))
        scores /= scores.sum(-1, keepdims=True)
        h = np.einsum("hts,shk->thk", scores, v)
        out = b["attn"]["out"]
        x = x + np.einsum("thk,hkd->td", h, out["kernel"]) + out["bias"]
        h = norm(x, b["ln_2"]) @ b["mlp"]["fc1"]["kernel"] + b["mlp"]["fc1"]["bias"]
        h = h / (1 + np.exp(-1.702 * h))
        x = x + h @ b["mlp"]["fc2"]["kernel"] + b["mlp"]["fc2"]["bias"]
    want = norm(x[0], p["ln_post"]) @ p["projection"]
    got = clip.encode_image(TINY, params, jnp.asarray(pixels))[0]
    np.testing.assert_allclose(got, want / np.linalg.norm(want), atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("position", [0, -1, [4, 0, 2]])
def test_reading_a_block_equals_running_it_and_picking(causal, position):
    shape = layers.BlockShape(
        width=16,
        heads=2,
        mlp_width=32,
        activation="quick_gelu",
        causal=causal,
        attention="xla",
        dtype="float32",
        epsilon=1e-5,
    )
    init = layers.text_init(width=16, mlp_width=32, layers=1)
    graph, weights = nnx.split(layers.Block(shape, init, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(1), (3, 5, 16))
    wanted = jax.random.normal(jax.random.key(2), (3, 16))
    at = position if isinstance(position, int) else jnp.asarray(position)

    def run(weights, x):
        result = nnx.merge(graph, weights)(x)
        return jnp.vdot(wanted, result[jnp.arange(3), jnp.asarray(position)])

    def read(weights, x):
        return jnp.vdot(wanted, nnx.merge(graph, weights).read(x, at))

    for one, other in zip(
        *(
            jax.tree.leaves(jax.value_and_grad(f, argnums=(0, 1))(weights, x))
            for f in (run, read)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_an_activation_keeps_nothing_but_its_slope(name):
    activation = layers.ACTIVATIONS[name]
    x = jnp.linspace(-6, 6, 999)
    with jax.enable_x64():
        exact = np.linspace(-6, 6, 999)
        step = 1e-6
        ahead, behind = (activation(jnp.asarray(exact + d)) for d in (step, -step))
        slope = np.asarray(ahead - behind) / (2 * step)
    _, pull = jax.vjp(activation, x)
    np.testing.assert_allclose(pull(jnp.ones_like(x))[0], slope, atol=1e-5)
    assert [leaf.shape for leaf in jax.tree.leaves(pull)] == [x.shape]


@pytest.mark.parametrize(
    "way",
    [
        {"remat": "dots"},
        {"remat": "full"},
        {"unroll": True},
        {"layer_norm": "jax"},
        {"remat": "dots", "unroll": True},
    ],
    ids=str,
)
def test_how_a_gradient_is_computed_changes_nothing_of_it(way):
    images = jnp.ones((2, 12, 12, 3), jnp.uint8) * jnp.uint8(90)
    params = clip.init(change(vision_layers=4), jax.random.key(0))

    def gradient(**way):
        architecture = change(vision_layers=4, **way)
        step = jax.grad(lambda p: clip.encode_image(architecture, p, images)[0, 0])
        compiled = jax.jit(step).lower(params).compile()
        assert (" while(" in compiled.as_text()) is not way.get("unroll", False)
        return compiled(params)["image"]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        gradient(),
        gradient(**way),
    )


def test_wrong_shapes_are_refused(params):
    with pytest.raises(ValueError, match=r"\[B, 12, 12, 3\], got \(1, 8, 8, 3\)"):
        clip.encode_image(TINY, params, jnp.ones((1, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"at most 6\], got \(1, 7\)"):
        clip.encode_text(TINY, params, jnp.ones((1, 7), jnp.int32))
