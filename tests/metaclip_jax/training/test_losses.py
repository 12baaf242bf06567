import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from metaclip_jax.training import losses, sharding

KINDS = ("softmax", "sigmoid")
FORMS = ("gathered", "ring")
LEAVES = ("image", "text", "scale", "bias")
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
    """Loss, gradients and their sizes in f64, by the textbook derivatives.

    The size of an embedding's gradient is its largest element. A scalar's is a sum over
    all logits that may cancel, down to 0 for the bias of a softmax: where it does, a
    tenth of the terms without their signs is its size.
    """
    cosines = image @ text.T
    logits = scale * cosines + bias
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
    gradients = (scale * slope @ text, scale * slope.T @ image)
    sizes = [np.abs(gradient).max() for gradient in gradients]
    for terms in (slope * cosines, slope):
        gradients += (terms.sum(),)
        sizes.append(max(np.abs(terms.sum()), np.abs(terms).sum() / 10))
    return loss, gradients, sizes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", MESHES, ids=str)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(1, 12, width=32),
    bias=st.floats(-5, 2, width=32),
    noise=st.floats(0.7, 3),
)
@hypothesis.settings(max_examples=40)
def test_loss_and_all_gradients_equal_float64(
    kind, form, shape, seed, scale, bias, noise
):
    """To 1e-5 of each one's size, away from saturation."""
    image, text = embeddings(16, 8, seed, noise)
    want_loss, want, sizes = reference(kind, image, text, scale, bias)
    (loss, _), got = compute(kind, form, shape, image, text, scale, bias)
    assert abs(loss - want_loss) <= 1e-5 * want_loss
    for name, mine, exact, size in zip(LEAVES, got, want, sizes, strict=True):
        assert np.abs(mine - exact).max() <= 1e-5 * size, name


def naive(kind):
    """The losses as one writes them for one device, by jax.nn's functions."""

    def loss(image, text, scale, bias):
        logits = scale * jnp.matmul(image, text.T, precision="highest") + bias
        if kind == "sigmoid":
            signs = 2 * jnp.eye(len(image)) - 1
            return -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / len(image)
        own = [jnp.diagonal(jax.nn.log_softmax(logits, axis)) for axis in (0, 1)]
        return -jnp.mean(own[0] + own[1]) / 2

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_saturated_loss_is_no_worse_than_naive_f32(kind, form):
    """Each pair at cosine 1 and scale 100: the loss is next to nothing.

    Single roundings are luck, so the worst of 20 batches counts; for the sigmoid loss
    they are those of the logits, which are the same for all.
    """
    bias = -50.0 if kind == "sigmoid" else 0.0
    plain, errors = naive(kind), []
    for seed in range(20):
        image, _ = embeddings(16, 8, seed)
        exact_loss, exact, _ = reference(kind, image, image, 100.0, bias)
        (loss, _), got = compute(kind, form, (8, 1, 1), image, image, 100.0, bias)
        single = image.astype(np.float32)
        naive_loss, naive_got = jax.device_get(
            plain(single, single, jnp.float32(100), jnp.float32(bias))
        )
        errors.append(
            [
                [np.abs(one - want).max() for one in (mine, theirs)]
                for mine, theirs, want in zip(
                    (loss, *got),
                    (naive_loss, *naive_got),
                    (exact_loss, *exact),
                    strict=True,
                )
            ]
        )
    worst = np.max(errors, axis=0)
    for name, (mine, theirs) in zip(("loss", *LEAVES), worst, strict=True):
        assert mine <= 1.05 * theirs, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_one_pair_has_no_rival(kind, form):
    image, text = embeddings(1, 8)
    want_loss, want, _ = reference(kind, image, text, 10.0, -2.0)
    (loss, _), got = compute(kind, form, (1, 1, 1), image, text, 10.0, -2.0)
    assert loss == pytest.approx(want_loss, rel=1e-5)
    for mine, exact in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=1e-5)


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
    """Compiled, not run, for eight devices at an embedding width of 512."""
    mesh = mesh_of(8, 1, 1)

    def temporary_bytes(form, batch):
        rows = jax.ShapeDtypeStruct(
            (batch, 512), jnp.float32, sharding=sharding.batch_sharding(mesh)
        )
        one = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
        step = program(kind, form, (8, 1, 1), 1024)
        compiled = step.lower(rows, rows, one, one).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    ring = temporary_bytes("ring", 32_768)
    assert 8 * ring < temporary_bytes("gathered", 32_768)
    # And it grows with the rows of a device, not with their square.
    assert temporary_bytes("ring", 4 * 32_768) < 4.04 * ring


def test_shapes_that_differ_and_unknown_forms_are_refused():
    mesh, axes = mesh_of(1, 1, 1), sharding.BATCH_AXES
    one, two = jnp.ones((4, 2)), jnp.ones((2, 2))
    with pytest.raises(ValueError, match=r"one shape, got \(4, 2\) and \(2, 2\)"):
        losses.contrastive_loss(one, two, jnp.ones(()), mesh=mesh, batch_axes=axes)
    for wrong in ({"form": "rnig"}, {"kind": "rnig"}, {"chunk": 0}):
        with pytest.raises(ValueError, match="loss.* must be .* got ('rnig'|0)"):
            losses.contrastive_loss(
                one, one, jnp.ones(()), mesh=mesh, batch_axes=axes, **wrong
            )
