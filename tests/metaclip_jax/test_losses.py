import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from metaclip_jax import losses, sharding

KINDS = ("softmax", "sigmoid")
FORMS = ("gathered", "ring")
MESHES = ((1, 1, 1), (2, 1, 1), (2, 2, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2))


def mesh_of(data, fsdp, tensor):
    devices = jax.devices()[: data * fsdp * tensor]
    return sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices)


def embeddings(batch, width, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    pair = rng.standard_normal((2, batch, width))
    pair[1] = noise * pair[1] + pair[0]
    pair /= np.linalg.norm(pair, axis=-1, keepdims=True)
    return np.float64(np.float32(pair))  # the very numbers that f32 starts from


@functools.cache
def program(kind, form, shape, chunk):
    def loss(image, text, scale, bias):
        return losses.contrastive_loss(
            image,
            text,
            scale,
            bias,
            mesh=mesh_of(*shape),
            batch_axes=sharding.BATCH_AXES,
            kind=kind,
            form=form,
            chunk=chunk,
        )

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


def compute(kind, form, shape, image, text, scale, bias=0.0, *, chunk=3):
    step = program(kind, form, shape, chunk)
    rows = sharding.batch_sharding(mesh_of(*shape))
    image, text = (jax.device_put(x.astype(np.float32), rows) for x in (image, text))
    return jax.device_get(step(image, text, jnp.float32(scale), jnp.float32(bias)))


def reference(kind, image, text, scale, bias=0.0):
    """Loss and gradients in f64, by the textbook derivatives."""
    logits = scale * image @ text.T + bias
    batch = len(image)
    if kind == "sigmoid":
        signs = 2 * np.eye(batch) - 1
        loss = np.logaddexp(0, -signs * logits).sum() / batch
        slope = -signs * np.exp(-np.logaddexp(0, signs * logits)) / batch
    else:

        def log_softmax(x, axis):
            return x - np.logaddexp.reduce(x, axis, keepdims=True)

        rows, columns = log_softmax(logits, 1), log_softmax(logits, 0)
        loss = -np.trace(rows + columns) / (2 * batch)
        slope = np.exp(rows) + np.exp(columns) - 2 * np.eye(batch)
        slope /= 2 * batch
    gradients = (
        scale * slope @ text,
        scale * slope.T @ image,
        (slope * (image @ text.T)).sum(),
        slope.sum(),
    )
    return loss, gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", MESHES)
def test_loss_and_gradients_equal_float64(kind, form, shape):
    image, text = embeddings(24 if shape[2] == 1 else 12, 16)
    (loss, _), gradients = compute(kind, form, shape, image, text, 10.0, -2.0)
    want_loss, want_gradients = reference(kind, image, text, 10.0, -2.0)
    assert abs(loss - want_loss) <= 1e-5 * want_loss
    for got, want in zip(gradients[:3], want_gradients[:3], strict=True):
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    # A softmax's is 0 but for rounding.
    assert abs(gradients[3] - want_gradients[3]) <= 1e-5 * max(want_gradients[3], 0.1)


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0.1, 12),
    bias=st.floats(-5, 2),
    noise=st.floats(0.7, 3),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_any_embeddings_scale_and_bias(kind, seed, scale, bias, noise):
    """Both forms on eight devices, away from saturation."""
    image, text = embeddings(16, 8, seed, noise)
    want_loss, want_gradients = reference(kind, image, text, scale, bias)
    for form in FORMS:
        (loss, _), got = compute(kind, form, (2, 4, 1), image, text, scale, bias)
        assert abs(loss - want_loss) <= 1e-5 * max(want_loss, 0.1)
        for mine, want in zip(got[:2], want_gradients[:2], strict=True):
            largest = max(np.abs(want).max(), 1e-3 * scale)
            assert np.abs(mine - want).max() <= 1e-5 * largest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_saturated_loss_is_no_worse_than_naive_f32(kind, form):
    """Each pair at cosine 1 and scale 100: the loss is next to nothing."""
    image, _ = embeddings(16, 8)
    bias = -50.0 if kind == "sigmoid" else 0.0
    want, want_gradients = reference(kind, image, image, 100.0, bias)
    single = np.float32(image)
    naive, naive_gradients = reference(
        kind, single, single, np.float32(100), np.float32(bias)
    )
    (loss, _), got = compute(kind, form, (8, 1, 1), image, image, 100.0, bias)
    assert abs(loss - want) <= 2 * abs(naive - want) + 1e-6 * max(want, 1)
    for mine, plain, exact in zip(
        got[:2], naive_gradients[:2], want_gradients[:2], strict=True
    ):
        assert np.abs(mine - exact).max() <= 2 * np.abs(plain - exact).max() + 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_loss_at_scale_zero_is_log_batch(form):
    image, text = embeddings(16, 8)
    (loss, accuracy), _ = compute("softmax", form, (8, 1, 1), image, text, 0.0)
    assert loss == pytest.approx(np.log(16), rel=1e-6)
    assert accuracy == {"image_accuracy": 0, "text_accuracy": 0}  # ties are misses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_accuracy_counts_pairs_that_beat_every_other(kind, form):
    text = np.eye(8)
    image = text[[0, 1, 2, 3, 4, 5, 7, 6]] + 0.1 * np.eye(8)[0]
    logits = image @ text.T
    (_, accuracy), _ = compute(kind, form, (2, 2, 2), image, text, 5.0, chunk=1)
    own = np.arange(8)
    np.fill_diagonal(rivals := logits.copy(), -np.inf)
    assert accuracy["image_accuracy"] == (logits[own, own] > rivals.max(1)).mean()
    assert accuracy["text_accuracy"] == (logits[own, own] > rivals.max(0)).mean()
    assert accuracy["image_accuracy"] == 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_that_does_not_divide_changes_nothing(kind):
    image, text = embeddings(14, 8)
    losses_by_chunk = {
        float(compute(kind, "ring", (2, 1, 1), image, text, 20.0, chunk=chunk)[0][0])
        for chunk in (1, 4, 7, 1000)
    }
    assert np.ptp(list(losses_by_chunk)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_ring_holds_one_chunk_of_logits(kind):
    batch, width, mesh = 1024, 16, mesh_of(2, 1, 1)
    rows = jax.ShapeDtypeStruct(
        (batch, width), jnp.float32, sharding=sharding.batch_sharding(mesh)
    )
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))

    def temporary_bytes(form):
        def loss(image, text, scale):
            return losses.contrastive_loss(
                image,
                text,
                scale,
                mesh=mesh,
                batch_axes=sharding.BATCH_AXES,
                kind=kind,
                form=form,
                chunk=64,
            )[0]

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(rows, rows, scale).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes("ring") * 4 < temporary_bytes("gathered")


def test_shapes_that_differ_and_unknown_forms_are_refused():
    mesh, axes = mesh_of(1, 1, 1), sharding.BATCH_AXES
    one, two = jnp.ones((4, 2)), jnp.ones((2, 2))
    with pytest.raises(ValueError, match=r"one shape, got \(4, 2\) and \(2, 2\)"):
        losses.contrastive_loss(one, two, jnp.ones(()), mesh=mesh, batch_axes=axes)
    for wrong in ({"form": "rnig"}, {"kind": "rnig"}):
        with pytest.raises(ValueError, match="loss.* must be one of .* got 'rnig'"):
            losses.contrastive_loss(
                one, one, jnp.ones(()), mesh=mesh, batch_axes=axes, **wrong
            )
