"""Checkpoints give back what was saved, on any mesh, and refuse what does not fit."""

import collections
import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from metaclip_jax.data.images import Preprocess
from metaclip_jax.models import clip
from metaclip_jax.training import checkpoint, checksums, sharding, train_state
from metaclip_jax.training.optimizer import make_optimizer

ARCHITECTURE = clip.Architecture(
    image_size=8,
    patch_size=4,
    vision_width=8,
    vision_layers=2,
    vision_heads=2,
    vision_mlp_width=16,
    text_width=8,
    text_layers=2,
    text_heads=2,
    text_mlp_width=16,
    context_length=6,
    vocab_size=32,
    embed_dim=8,
    eos_id=1,
    pad_id=0,
)
INPUTS = {"dataset": "d" * 64, "tokenizer": "e" * 64}
OPTIMIZER = make_optimizer(beta1=0.9, beta2=0.98, epsilon=1e-6, weight_decay=0.1)


def mesh_of(count):
    if len(jax.devices()) < count:
        pytest.skip(f"needs {count} devices, there are {len(jax.devices())}")
    return sharding.make_mesh(
        data=1, fsdp=count, tensor=1, devices=jax.devices()[:count]
    )


def new_state(mesh, seed=0):
    """A state with other numbers in each leaf (compiling the real one is slow)."""
    shapes = train_state.abstract(architecture=ARCHITECTURE, optimizer=OPTIMIZER)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf, where: jax.device_put(
            (100 * rng.normal(size=leaf.shape)).astype(leaf.dtype), where
        ),
        shapes,
        train_state.shardings(mesh, shapes),
    )


def target(mesh):
    shapes = train_state.abstract(architecture=ARCHITECTURE, optimizer=OPTIMIZER)
    return checkpoint.with_shardings(shapes, train_state.shardings(mesh, shapes))


def manager(workdir, *, keep_last=3, keep_every_steps=0):
    return checkpoint.open_manager(
        workdir, keep_last=keep_last, keep_every_steps=keep_every_steps
    )


def meta(**facts):
    return checkpoint.describe(
        architecture=ARCHITECTURE,
        preprocess=Preprocess(ARCHITECTURE.image_size),
        inputs=INPUTS,
        **facts,
    )


def save(workdir, state, steps=(5,), **options):
    with manager(workdir, **options) as open_manager:
        for step in steps:
            checkpoint.save(open_manager, step, state, meta=meta(skipped_steps=2))


def restore(workdir, mesh, *, step=5, architecture=ARCHITECTURE, inputs=INPUTS):
    with manager(workdir) as open_manager:
        return checkpoint.restore(
            workdir,
            open_manager,
            step,
            target=target(mesh),
            architecture=architecture,
            inputs=inputs,
        )


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b))
        assert a.dtype == b.dtype


@pytest.mark.parametrize("written_on", [1, 2])
@pytest.mark.parametrize("read_on", [1, 2])
def test_a_state_comes_back_bit_equal_on_any_mesh(tmp_path, written_on, read_on):
    state = new_state(mesh_of(written_on))
    save(str(tmp_path), state)
    mesh = mesh_of(read_on)
    restored, found = restore(str(tmp_path), mesh)
    assert_equal(restored, state)
    assert found["skipped_steps"] == 2
    layout = train_state.shardings(mesh, restored)
    for leaf, where in zip(
        jax.tree.leaves(restored), jax.tree.leaves(layout), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)


def test_params_come_back_without_the_optimizer(tmp_path):
    state = new_state(mesh_of(1), seed=3)
    save(str(tmp_path), state, steps=(5, 7))
    params, step = checkpoint.restore_params(
        str(tmp_path), architecture=ARCHITECTURE, mesh=mesh_of(1)
    )
    assert step == 7
    assert_equal(params, state.params)


def test_the_newest_checkpoints_and_the_multiples_are_kept(tmp_path):
    state = new_state(mesh_of(1))
    workdir = str(tmp_path)
    assert checkpoint.latest_step(workdir) is None
    save(workdir, state, steps=(2, 4, 5, 6, 8), keep_last=2, keep_every_steps=4)
    assert checkpoint.steps(workdir) == [4, 6, 8]
    assert checkpoint.latest_step(workdir) == 8


def test_the_best_checkpoint_is_kept_also_by_a_later_start(tmp_path):
    state, workdir, name = new_state(mesh_of(1)), str(tmp_path), "evaluation/a/R@1"
    scores = {2: 0.1, 4: 0.5, 6: None, 8: 0.3, 10: 0.2, 12: 0.4}
    for steps in ((2, 4, 6), (8, 10, 12)):
        with checkpoint.open_manager(workdir, keep_last=1, keep_best=name) as some:
            for step in steps:
                found = scores[step] and {name: scores[step], "other": 1.0}
                checkpoint.save(some, step, state, meta=meta(), scores=found)
    assert checkpoint.steps(workdir) == [4, 12]
    restored, _ = restore(workdir, mesh_of(1), step=4)
    assert_equal(restored, state)


def test_what_a_killed_save_left_is_no_checkpoint_and_is_replaced(tmp_path):
    state = new_state(mesh_of(1))
    workdir = str(tmp_path)
    save(workdir, state, steps=(5,))
    left = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    assert checkpoint.latest_step(workdir) == 5
    save(workdir, state, steps=(6,))
    assert checkpoint.latest_step(workdir) == 6
    assert not left.exists()


def test_a_folder_that_vanishes_while_it_is_listed_has_no_steps(tmp_path, monkeypatch):
    """As on gs://, when Orbax removes the only step, which a run was killed in."""
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    removed = [shutil.rmtree, lambda folder: None]

    def vanish(folder):
        removed.pop(0)(folder)
        raise FileNotFoundError(folder)

    monkeypatch.setattr(ocp.utils, "checkpoint_steps", vanish)
    assert checkpoint.steps(str(tmp_path)) == []
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(FileNotFoundError):  # the steps that are there are unknown
        checkpoint.steps(str(tmp_path))


def test_another_architecture_is_refused_naming_what_differs(tmp_path):
    save(str(tmp_path), new_state(mesh_of(1)))
    other = dataclasses.replace(ARCHITECTURE, text_layers=3, vocab_size=64)
    message = "text_layers: wanted 3, found 2; vocab_size: wanted 64, found 32"
    with pytest.raises(ValueError, match=message):
        restore(str(tmp_path), mesh_of(1), architecture=other)
    with pytest.raises(ValueError, match=message):
        checkpoint.restore_params(str(tmp_path), architecture=other, mesh=mesh_of(1))


def test_how_the_model_is_computed_may_change(tmp_path):
    state = new_state(mesh_of(1))
    save(str(tmp_path), state)
    other = dataclasses.replace(ARCHITECTURE, dtype="bfloat16", remat="full")
    restored, _ = restore(str(tmp_path), mesh_of(1), architecture=other)
    assert_equal(restored, state)


def test_another_tokenizer_or_dataset_is_refused(tmp_path):
    save(str(tmp_path), new_state(mesh_of(1)))
    with pytest.raises(ValueError, match="another tokenizer: .* wanted ffff.* eeee"):
        restore(str(tmp_path), mesh_of(1), inputs=INPUTS | {"tokenizer": "f" * 64})


def test_a_step_that_is_not_there_is_refused_naming_those_that_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="found none; train first"):
        checkpoint.restore_params(
            str(tmp_path), architecture=ARCHITECTURE, mesh=mesh_of(1)
        )
    save(str(tmp_path), new_state(mesh_of(1)), steps=(5, 7))
    with pytest.raises(FileNotFoundError, match=r"of step 6 .* found \[5, 7\]"):
        checkpoint.restore_params(
            str(tmp_path), architecture=ARCHITECTURE, mesh=mesh_of(1), step=6
        )


def test_the_state_may_be_changed_right_after_a_save(tmp_path):
    change = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)
    state = new_state(mesh_of(1))
    want = jax.tree.map(lambda leaf: np.array(leaf), state)
    with manager(str(tmp_path)) as open_manager:
        checkpoint.save(open_manager, 5, state, meta=meta())
        jax.block_until_ready(change(state))
    restored, _ = restore(str(tmp_path), mesh_of(1))
    assert_equal(restored, want)


def test_keeping_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_last must be at least 1, got 0"):
        manager(str(tmp_path), keep_last=0)


def test_checksums_are_the_same_on_every_mesh_and_for_numpy():
    tree = {
        "f32": np.random.default_rng(0).normal(size=(4, 6, 2)).astype(np.float32),
        "bf16": jnp.arange(12, dtype=jnp.bfloat16).reshape(4, 3),
        "step": np.int32(7),
        "none": np.zeros((0, 3), np.float32),
    }
    want = checksums.of_tree(tree)
    assert want.keys() == tree.keys() and want["none"] == 0
    mesh = mesh_of(2)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    for leaf, where in (("f32", split), ("bf16", split), ("step", None)):
        placed = jax.device_put(tree[leaf], where)
        assert int(checksums._on_devices(placed)) == want[leaf]
        assert checksums.of_tree({leaf: placed}) == {leaf: want[leaf]}


@hypothesis.given(st.integers(0, 8 * 4 * 24 - 1))
@hypothesis.settings(max_examples=50)
def test_one_flipped_bit_changes_a_checksum(bit):
    array = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    before = checksums.of_tree([array])
    array.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
    assert checksums.of_tree([array]) != before


def damage_each_file(tmp_path):
    """A byte flipped, cut in half, or the file gone: the state, or a clear error."""
    mesh = mesh_of(1)
    state = new_state(mesh)
    workdir = tmp_path / "whole"
    save(str(workdir), state)
    files = sorted(p for p in (workdir / "checkpoints" / "5").rglob("*") if p.is_file())
    assert len(files) > 10
    found = collections.Counter()
    rng = np.random.default_rng(0)
    for file, change in itertools.product(files, ("flip", "cut", "gone")):
        damaged = tmp_path / "damaged"
        shutil.copytree(workdir, damaged)
        victim = damaged / file.relative_to(workdir)
        data = bytearray(file.read_bytes())
        if change == "gone":
            victim.unlink()
        elif data:
            at = int(rng.integers(len(data)))
            data[at] ^= 1 << int(rng.integers(8))
            victim.write_bytes(data if change == "flip" else data[: len(data) // 2])
        try:
            restored, facts = restore(str(damaged), mesh)
        except checkpoint.DamagedError as error:
            assert f"{damaged}/checkpoints/5" in str(error)
            assert "--config.checkpoint.fallback=True" in str(error)
            found["named"] += 1
        else:
            assert_equal(restored, state)
            assert facts["skipped_steps"] == 2
            found["whole"] += 1
        shutil.rmtree(damaged)
    assert found["named"] > 10 and found["whole"] > 10, found


def test_any_damaged_file_of_a_checkpoint_is_found_or_harms_nothing(tmp_path):
    """In a process of its own: Orbax leaves what it never awaits after an error."""
    code = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1]); import test_checkpoint;"
        " test_checkpoint.damage_each_file(pathlib.Path(sys.argv[2]));"
        " print('all files', flush=True); import os; os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout.endswith("all files\n"), done.stderr[-2_000:]


def test_other_parameters_than_were_saved_are_refused(tmp_path):
    """As if bytes had changed in a way that the storage does not notice."""
    state = new_state(mesh_of(1))
    other = jax.tree.map(lambda leaf: leaf + 1, state)
    save(str(tmp_path / "a"), state)
    save(str(tmp_path / "b"), other)
    meta_of = "checkpoints/5/meta/metadata"
    shutil.copy(tmp_path / "a" / meta_of, tmp_path / "b" / meta_of)
    with pytest.raises(checkpoint.DamagedError, match=r"other bytes in \d+ of \d+: "):
        restore(str(tmp_path / "b"), mesh_of(1))
    for mesh in (None, mesh_of(1)):
        with pytest.raises(checkpoint.DamagedError, match="other bytes in .* params/"):
            checkpoint.restore_params(
                str(tmp_path / "b"), architecture=ARCHITECTURE, mesh=mesh
            )
    # A checkpoint of an earlier version has no checksums.
    with manager(str(tmp_path / "c")) as open_manager:
        open_manager.save(
            5,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta())
            ),
        )
    restored, _ = checkpoint.restore_params(
        str(tmp_path / "c"), architecture=ARCHITECTURE, mesh=mesh_of(1)
    )
    assert_equal(restored, state.params)
