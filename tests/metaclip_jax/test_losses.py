import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaclip_jax import losses, sharding

FORMS = ("gathered", "ring")
MESHES = ((1, 1, 1), (2, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2))


def mesh_of(data, fsdp, tensor):
    devices = jax.devices()[: data * fsdp * tensor]
    return sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices)


def embeddings(batch, width, seed=0):
    rng = np.random.default_rng(seed)
    pair = rng.standard_normal((2, batch, width))
    pair[1] += pair[0]
    return pair / np.linalg.norm(pair, axis=-1, keepdims=True)


def compute(form, mesh, image, text, scale, *, chunk=3):
    def loss(image, text, scale):
        return losses.softmax_loss(
            image,
            text,
            scale,
            mesh=mesh,
            batch_axes=sharding.BATCH_AXES,
            form=form,
            chunk=chunk,
        )

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    rows = sharding.batch_sharding(mesh)
    image, text = (jax.device_put(x.astype(np.float32), rows) for x in (image, text))
    return jax.device_get(step(image, text, jnp.float32(scale)))


def reference(image, text, scale):
    """Loss and gradients in f64, by the softmax's textbook derivative."""
    logits = scale * image @ text.T
    batch = len(image)

    def softmax(x, axis):
        e = np.exp(x - x.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)

    rows, columns = softmax(logits, 1), softmax(logits, 0)
    own = np.arange(batch)
    loss = -(np.log(rows[own, own]) + np.log(columns[own, own])).mean() / 2
    slope = (rows + columns - 2 * np.eye(batch)) / (2 * batch)
    gradients = (
        scale * slope @ text,
        scale * slope.T @ image,
        (slope * (image @ text.T)).sum(),
    )
    return loss, gradients


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", MESHES)
def test_loss_and_gradients_equal_float64(form, shape):
    image, text = embeddings(24 if shape[2] == 1 else 12, 16)
    (loss, _), gradients = compute(form, mesh_of(*shape), image, text, 10.0)
    want_loss, want_gradients = reference(image, text, 10.0)
    assert abs(loss - want_loss) <= 1e-5 * want_loss
    for got, want in zip(gradients, want_gradients, strict=True):
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("form", FORMS)
def test_loss_at_scale_zero_is_log_batch(form):
    image, text = embeddings(16, 8)
    (loss, accuracy), _ = compute(form, mesh_of(8, 1, 1), image, text, 0.0)
    assert loss == pytest.approx(np.log(16), rel=1e-6)
    assert accuracy == {"image_accuracy": 0, "text_accuracy": 0}  # ties are misses


@pytest.mark.parametrize("form", FORMS)
def test_accuracy_counts_pairs_that_beat_every_other(form):
    text = np.eye(8)
    image = text[[0, 1, 2, 3, 4, 5, 7, 6]] + 0.1 * np.eye(8)[0]
    logits = image @ text.T
    (_, accuracy), _ = compute(form, mesh_of(2, 2, 2), image, text, 5.0, chunk=1)
    own = np.arange(8)
    np.fill_diagonal(rivals := logits.copy(), -np.inf)
    assert accuracy["image_accuracy"] == (logits[own, own] > rivals.max(1)).mean()
    assert accuracy["text_accuracy"] == (logits[own, own] > rivals.max(0)).mean()
    assert accuracy["image_accuracy"] == 0.75


def test_a_chunk_that_does_not_divide_changes_nothing():
    image, text = embeddings(14, 8)
    mesh = mesh_of(2, 1, 1)
    losses_by_chunk = {
        float(compute("ring", mesh, image, text, 20.0, chunk=chunk)[0][0])
        for chunk in (1, 4, 7, 1000)
    }
    assert np.ptp(list(losses_by_chunk)) < 1e-6


def test_ring_holds_one_chunk_of_logits():
    batch, width, mesh = 1024, 16, mesh_of(2, 1, 1)
    rows = jax.ShapeDtypeStruct(
        (batch, width), jnp.float32, sharding=sharding.batch_sharding(mesh)
    )
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))

    def temporary_bytes(form):
        def loss(image, text, scale):
            return losses.softmax_loss(
                image,
                text,
                scale,
                mesh=mesh,
                batch_axes=sharding.BATCH_AXES,
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
        losses.softmax_loss(one, two, jnp.ones(()), mesh=mesh, batch_axes=axes)
    with pytest.raises(ValueError, match="loss must be one of .* got 'rnig'"):
        losses.softmax_loss(
            one, one, jnp.ones(()), mesh=mesh, batch_axes=axes, form="rnig"
        )
