import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metaclip_jax.models import clip
from metaclip_jax.train import take_step
from metaclip_jax.training import optimizer, sharding, train_state, train_step

ARCHITECTURE = clip.Architecture(
    image_size=8,
    patch_size=4,
    vision_width=16,
    vision_layers=2,
    vision_heads=4,
    vision_mlp_width=64,
    text_width=16,
    text_layers=2,
    text_heads=4,
    text_mlp_width=64,
    context_length=5,
    vocab_size=60,
    embed_dim=8,
    eos_id=1,
    pad_id=0,
)
ADAMW = optimizer.make_optimizer(beta1=0.9, beta2=0.98, epsilon=1e-6, weight_decay=0.2)
SCHEDULE = optimizer.make_schedule(peak_lr=1e-3, warmup_steps=2, total_steps=20)


def architecture_of(loss):
    return dataclasses.replace(ARCHITECTURE, logit_bias=loss == "sigmoid")


def program(shape, form="gathered", microbatches=1, patch_dropout=0.0, loss="softmax"):
    """The mesh and the compiled step; compiling is what these tests cost."""
    return _program(shape, form, microbatches, patch_dropout, loss)


@functools.cache  # which takes a default and the same value given for two things
def _program(shape, form, microbatches, patch_dropout, loss):
    mesh = sharding.make_mesh(
        data=shape[0],
        fsdp=shape[1],
        tensor=shape[2],
        devices=jax.devices()[: math.prod(shape)],
    )
    architecture = architecture_of(loss)
    step = train_step.make_train_step(
        architecture=architecture,
        mesh=mesh,
        state=train_state.abstract(architecture=architecture, optimizer=ADAMW),
        optimizer=ADAMW,
        schedule=SCHEDULE,
        loss=loss,
        loss_form=form,
        loss_chunk=1_024,
        microbatches=microbatches,
        patch_dropout=patch_dropout,
        seed=0,
    )
    return mesh, step


@functools.cache
def created(loss):
    """The state before the first step, on the host."""
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    architecture = architecture_of(loss)
    return jax.device_get(
        train_state.create(
            architecture=architecture, optimizer=ADAMW, mesh=mesh, seed=0
        )
    )


@pytest.fixture(scope="module")
def initial():
    return created("softmax")


def put(state, mesh):
    return jax.device_put(state, train_state.shardings(mesh, state))


def batch_of(mesh, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 60, (16, 5), dtype=np.int32)
    tokens[:, -1] = 1
    images = rng.integers(0, 255, (16, 8, 8, 3), dtype=np.uint8)
    return sharding.put_batch(mesh, {"image": images, "tokens": tokens})


def train(initial, shape, form="gathered"):
    mesh, step = program(shape, form)
    state, rows = put(initial, mesh), []
    for number in range(20):
        state, metrics = step(state, batch_of(mesh, number))
        rows.append(jax.device_get(metrics))
    assert int(state.step) == 20
    return rows


@pytest.fixture(scope="module")
def on_one_device(initial):
    return train(initial, (1, 1, 1))


@pytest.mark.parametrize(
    ("shape", "form"),
    [((8, 1, 1), "gathered"), ((2, 4, 1), "gathered"), ((2, 2, 2), "ring")],
)
def test_every_mesh_trains_alike(shape, form, initial, on_one_device):
    for got, want in zip(train(initial, shape, form), on_one_device, strict=True):
        for name in ("loss", "gradient_norm", "parameter_norm", "logit_scale"):
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "form", "loss"),
    [
        ((1, 1, 1), "gathered", "softmax"),
        ((2, 2, 2), "ring", "sigmoid"),
        pytest.param((1, 1, 1), "gathered", "sigmoid", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), "ring", "softmax", marks=pytest.mark.slow),
    ],
)
def test_microbatches_have_the_gradient_of_the_whole_batch(shape, form, loss):
    """Read from AdamW's first moment after one step: a tenth of the gradient."""
    moments = []
    for microbatches in (1, 4):
        mesh, step = program(shape, form, microbatches, 0.0, loss)
        state, _ = step(put(created(loss), mesh), batch_of(mesh, 0))
        moments.append(jax.device_get(state.opt_state[0].mu))
    for got, want in zip(*map(jax.tree.leaves, moments[::-1]), strict=True):
        scale = np.abs(want).max()
        assert np.abs(got - want).max() <= 1e-5 * scale


def test_microbatches_need_the_memory_of_one(initial):
    """The temporary memory of the compiled gradient, at a batch of 512."""
    mesh, _ = program((1, 1, 1))

    def temporary(parts):
        def loss(params, batch):
            image, text = train_step.encode_in_microbatches(
                lambda rows: (
                    clip.encode_image(ARCHITECTURE, params, rows["image"]),
                    clip.encode_text(ARCHITECTURE, params, rows["tokens"]),
                ),
                batch,
                microbatches=parts,
                mesh=mesh,
            )
            return jnp.sum(image * text)

        batch = {
            "image": jax.ShapeDtypeStruct((512, 8, 8, 3), np.uint8),
            "tokens": jax.ShapeDtypeStruct((512, 5), np.int32),
        }
        compiled = jax.jit(jax.grad(loss)).lower(initial.params, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(16) < temporary(1) / 5


def test_every_mesh_leaves_out_the_same_patches(initial):
    found = []
    for shape, form, microbatches in (
        ((1, 1, 1), "gathered", 1),
        ((2, 4, 1), "ring", 2),
    ):
        mesh, step = program(shape, form, microbatches, 0.5)
        state = put(initial, mesh)
        for number in range(3):
            state, metrics = step(state, batch_of(mesh, number))
            found.append(float(metrics["loss"]))
    np.testing.assert_allclose(found[:3], found[3:], rtol=1e-5)


def test_patches_are_left_out_evenly_and_anew_each_step():
    chosen = np.stack(
        [
            train_step.choose_patches(jax.random.key(step), 200, 10, dropout=0.7)
            for step in range(10)
        ]
    )
    assert chosen.shape == (10, 200, 3)
    assert (np.diff(chosen, axis=-1) > 0).all()
    share = np.bincount(chosen.ravel(), minlength=10) / 2000
    assert np.abs(share - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / 2000)
    assert len(np.unique(chosen.reshape(-1, 3), axis=0)) == 120  # all there are
    assert not (chosen[0] == chosen[1]).all()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_tower_sees_the_patches_that_it_is_given(family):
    changes = {"text_pool": "last", "embed_dim": 16} if family == "siglip" else {}
    architecture = dataclasses.replace(ARCHITECTURE, family=family, **changes)
    params = clip.init(architecture, jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    images = jnp.asarray(images)

    def encode(images, patches=None):
        return clip.encode_image(architecture, params, images, patches)

    everything = jnp.tile(jnp.arange(4), (3, 1))
    np.testing.assert_allclose(encode(images, everything), encode(images), atol=1e-6)
    # Of each image the last patch, bottom right, is left out.
    changed = images.at[:, 4:, 4:].set(0)
    some = encode(images, everything[:, :3])
    np.testing.assert_array_equal(encode(changed, everything[:, :3]), some)
    assert np.abs(some - encode(images)).max() > 1e-3


def test_each_device_holds_what_is_copied_and_its_part_of_the_rest():
    """Exactly, of parameters and optimizer state; with the whole XLM-V vocabulary."""
    architecture = dataclasses.replace(ARCHITECTURE, vocab_size=901_629)
    mesh = sharding.make_mesh(data=2, fsdp=4, tensor=1)
    state = train_state.create(
        architecture=architecture, optimizer=ADAMW, mesh=mesh, seed=0
    )
    assert state.params["text"]["token_embedding"].shape == (901_632, 16)
    copied = split = 0
    for leaf in jax.tree.leaves(state):
        if leaf.sharding.is_fully_replicated:
            copied += leaf.nbytes
        else:
            split += leaf.nbytes
    for device in jax.devices():
        held = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(state)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert held == copied + split / 4
    assert copied < split / 1000


def lowered(architecture, mesh):
    """The text of a step's program before it is compiled."""
    state = train_state.abstract(architecture=architecture, optimizer=ADAMW)
    step = train_step.make_train_step(
        architecture=architecture,
        mesh=mesh,
        state=state,
        optimizer=ADAMW,
        schedule=SCHEDULE,
        loss="softmax",
        loss_form="gathered",
        loss_chunk=1_024,
        microbatches=1,
        patch_dropout=0.0,
        seed=0,
    )
    return step.lower(state, batch_of(mesh, 0)).as_text()


def test_compiling_does_not_grow_with_depth():
    """The program of ten layers is no longer than that of two."""
    lengths = []
    for layers in (2, 10):
        architecture = dataclasses.replace(
            ARCHITECTURE, vision_layers=layers, text_layers=layers
        )
        mesh, _ = program((1, 1, 1))
        lengths.append(len(lowered(architecture, mesh).splitlines()))
    assert lengths[0] == lengths[1]


def test_layers_that_are_compiled_by_themselves_have_no_chunks():
    """So that the batch stays split in each of them."""
    mesh, _ = program((8, 1, 1))
    texts = []
    for chunk in (0, 1):
        architecture = dataclasses.replace(ARCHITECTURE, unroll=True, chunk=chunk)
        texts.append(lowered(architecture, mesh))
    assert texts[0] == texts[1]


def test_metrics_tell_the_step(on_one_device):
    first = on_one_device[0]
    assert set(first) == {
        "loss",
        "image_accuracy",
        "text_accuracy",
        "logit_scale",
        "gradient_norm",
        "parameter_norm",
        "learning_rate",
        "skipped",
    }
    assert first["logit_scale"] == pytest.approx(1 / 0.07)
    assert [row["learning_rate"] for row in on_one_device[:3]] == pytest.approx(
        [5e-4, 1e-3, 1e-3]
    )
    assert first["skipped"] == 0


def test_a_state_is_born_split_and_its_values_do_not_depend_on_the_mesh(initial):
    state = train_state.create(
        architecture=ARCHITECTURE, optimizer=ADAMW, mesh=program((2, 2, 2))[0], seed=0
    )
    for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        for block, stacked in (("blocks", (1,)), ("last", ())):
            kernel = tree["image"][block]["mlp"]["fc1"]["kernel"]
            assert kernel.shape == (*stacked, 16, 64)
            assert kernel.addressable_shards[0].data.shape == (*stacked, 8, 32)
    jax.tree.map(np.testing.assert_array_equal, state, initial)


def test_the_loss_falls_on_a_batch_seen_again(initial):
    mesh, step = program((1, 1, 1))
    state, history = put(initial, mesh), []
    for _ in range(15):
        state, metrics = step(state, batch_of(mesh, 0))
        history.append(float(metrics["loss"]))
    assert history[-1] < 0.7 * history[0]


def test_a_gradient_that_is_not_finite_changes_only_the_step_count(initial):
    mesh, step = program((1, 1, 1))
    broken = jax.tree.map(np.copy, initial)
    broken.params["image"]["projection"][0, 0] = np.nan
    before = jax.tree.map(np.copy, broken)  # the step may write where it reads
    after, metrics = step(put(broken, mesh), batch_of(mesh, 1))
    assert metrics["skipped"] == 1
    assert not np.isfinite(metrics["loss"])
    assert int(after.step) == int(before.step) + 1
    jax.tree.map(
        np.testing.assert_array_equal,
        (after.params, after.opt_state),
        (before.params, before.opt_state),
    )


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_new_parameters_norm_is_known_to_be_finite_before_the_update(scale):
    params = {"kernel": scale * np.ones((30, 40), np.float32)}
    gradient = {"kernel": np.float32(np.linspace(-1, 1, 1_200)).reshape(30, 40)}
    direction, _ = ADAMW.update(gradient, ADAMW.init(params), params)
    for rate in (0.0, 1e-3, 1.0, 1e6):
        after = params["kernel"] - rate * np.asarray(direction["kernel"], np.float64)
        bound = train_step.largest_norm(params, jnp.float32(rate))
        assert (after**2).sum() <= 1.001 * bound < np.inf
    for rate in (1e20, 1e38, np.inf, np.nan):
        assert not np.isfinite(train_step.largest_norm(params, jnp.float32(rate)))


def test_a_step_takes_the_memory_of_the_state_it_is_given(initial):
    mesh, step = program((2, 4, 1))
    before = put(initial, mesh)
    after, _ = step(before, batch_of(mesh, 0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_a_batch_that_is_not_on_the_devices_is_refused(initial):
    """Training moves batches itself, ahead of the step."""
    mesh, step = program((2, 4, 1))
    state, batch = put(initial, mesh), batch_of(mesh, 0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        take_step(step, 1, state, jax.device_get(batch))
    state, _ = take_step(step, 1, state, batch)
    assert int(state.step) == 1


def test_the_scale_stays_between_1_and_100():
    clamp = train_step.clamp
    for value, kept in ((-1.0, 1.0), (2.0, math.exp(2)), (9.0, 100.0)):
        assert math.exp(clamp(jnp.float32(value))) == pytest.approx(kept, rel=1e-5)


def test_an_abstract_state_has_the_shapes_of_a_real_one(initial):
    abstract = train_state.abstract(architecture=ARCHITECTURE, optimizer=ADAMW)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype), initial
    )
