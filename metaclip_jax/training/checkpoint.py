"""Saves and restores a run's checkpoints.

A checkpoint is WORKDIR/checkpoints/STEP: the state after STEP steps, and `meta`, a JSON
object that describes it (architecture, data, tokenizer, config, version). STEP is also
the position in the data. Orbax writes a checkpoint in the background under a temporary
name, so a killed run leaves only complete checkpoints. `meta` also has a checksum of
each array and of itself, so that bytes that changed on disk are an error.
"""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from metaclip_jax import files
from metaclip_jax.data import storage_errors
from metaclip_jax.data.images import Preprocess
from metaclip_jax.models import clip
from metaclip_jax.training import checksums, sharding

# Fields that may differ: they do not change what the parameters mean.
_FREE_ARCHITECTURE = ("dtype", *clip.EXECUTION_FIELDS)
_CHECKSUMS = "checksums"  # in meta; checkpoints of earlier versions have none
_META = "meta"  # the key of meta's own checksum


class DamagedError(ValueError):
    """A checkpoint that cannot be read, or differs from what was saved.

    `__cause__` is the reader's error; it is None if a checksum differs.
    """


def open_manager(
    workdir: str, *, keep_last: int, keep_every_steps: int = 0, keep_best: str = ""
) -> ocp.CheckpointManager:
    """Opens the workdir's checkpoints for writing and reading; close it when done.

    Args:
        workdir: local or gs://.
        keep_last: how many of the newest checkpoints to keep.
        keep_every_steps: also keep the checkpoints at multiples of this; 0 = none.
        keep_best: also keep the checkpoint with the highest score of this name, on ties
            the newest; "" = none.

    Raises:
        ValueError: keep_last is below 1.
    """
    if keep_last < 1:
        raise ValueError(
            f"checkpoint.keep_last must be at least 1, got {keep_last}: a run resumes"
            " from the newest checkpoint"
        )

    def score(scores: Mapping[str, float]) -> float:
        return scores[keep_best]

    kept: list[preservation.PreservationPolicy] = [preservation.LatestN(keep_last)]
    if keep_every_steps:
        kept.append(preservation.EveryNSteps(keep_every_steps))
    if keep_best:
        kept.append(
            preservation.BestN(
                get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
            )
        )
    return ocp.CheckpointManager(
        _folder(workdir),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=preservation.AnyPreservationPolicy(kept),
            best_fn=score if keep_best else None,
            enable_async_checkpointing=True,
            # A killed save leaves temporary folders.
            cleanup_tmp_directories=True,
        ),
        item_names=("state", "meta"),
    )


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: Any,
    *,
    meta: Mapping[str, Any],
    scores: Mapping[str, float] | None = None,
) -> None:
    """Starts to write a checkpoint; returns when the state's arrays may be reused.

    Args:
        manager: from `open_manager`.
        step: steps done, the checkpoint's name.
        state: a pytree of global arrays.
        meta: from `describe`; the checksums are added.
        scores: the state's evaluation scores, for keep_best; None = not evaluated.

    Raises:
        Exception: an earlier write in the background failed.
    """
    sums = {_META: _meta_checksum(meta), **checksums.of_tree(state)}
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({**meta, _CHECKSUMS: sums}),
        ),
        metrics=dict(scores) if scores else None,
    )


def describe(
    *,
    architecture: clip.Architecture,
    preprocess: Preprocess,
    inputs: Mapping[str, str],
    **facts: Any,
) -> dict[str, Any]:
    """Returns a checkpoint's `meta`: what `restore` compares, version, further facts.

    Args:
        architecture: the model.
        preprocess: the model's image preprocessing.
        inputs: fingerprints of the training inputs by name ("dataset", "tokenizer").
        **facts: any JSON values.
    """
    return {
        **facts,
        "architecture": dataclasses.asdict(architecture),
        "preprocess": preprocess._asdict(),
        "inputs": dict(inputs),
        "version": files.version(),
    }


def restore(
    workdir: str,
    manager: ocp.CheckpointManager,
    step: int,
    *,
    target: Any,
    architecture: clip.Architecture,
    inputs: Mapping[str, str],
) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint with the shardings of `target`, which may be of another mesh.

    Args:
        workdir: the run's folder.
        manager: from `open_manager`.
        step: which checkpoint.
        target: the state as ShapeDtypeStructs with shardings.
        architecture: must equal the checkpoint's.
        inputs: fingerprints by name; must equal the checkpoint's.

    Returns:
        The state and the checkpoint's meta.

    Raises:
        ValueError: the checkpoint is of another architecture, dataset or tokenizer.
            This is checked before any array is read.
        DamagedError: the checkpoint is damaged.
    """
    meta = read_meta(workdir, step)
    name = f"{workdir}/checkpoints/{step}"
    _check_architecture(name, meta, architecture)
    check_inputs(name, want=inputs, got=meta["inputs"])
    with _reading(workdir, step):
        restored = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        )
        _compare(meta, checksums.of_tree(restored.state))
    return restored.state, meta


@contextlib.contextmanager
def _reading(workdir: str, step: int) -> Iterator[None]:
    """Turns any exception into a DamagedError that names the checkpoint.

    A refusal by Cloud Storage stays a StorageError: the checkpoint may be sound, and
    must not be removed.
    """
    try:
        yield
    except storage_errors.StorageError:
        raise
    except Exception as error:  # Orbax and tensorstore raise many types
        if not files.is_local(workdir) and (refused := storage_errors.refusal(error)):
            raise storage_errors.StorageError(
                f"wanted {workdir}/checkpoints/{step}, got {refused} from Cloud"
                f" Storage: {str(error)[:300]}; the checkpoint may be sound: see that"
                " this account may read it, and run the same command again"
            ) from error
        others = [other for other in steps(workdir) if other != step]
        lines = str(error).splitlines() or [""]
        raise DamagedError(
            f"wanted the checkpoint {workdir}/checkpoints/{step} as it was saved, got"
            f" {type(error).__name__}: {lines[0][:300]}. If its files are damaged,"
            " resume training from the previous checkpoint with"
            " --config.checkpoint.fallback=True, or give other commands another step;"
            f" other steps: {others or 'none'}"
        ) from (None if isinstance(error, _ChecksumError) else error)


class _ChecksumError(Exception):
    """Names the arrays that differ."""


def _compare(meta: Mapping[str, Any], got: Mapping[str, int]) -> None:
    want = meta.get(_CHECKSUMS, got)
    different = [path for path in got if want.get(path) != got[path]]
    if different:
        raise _ChecksumError(
            f"other bytes in {len(different)} of {len(got)}: {', '.join(different[:3])}"
        )


def _meta_checksum(meta: Mapping[str, Any]) -> int:
    facts = {key: value for key, value in meta.items() if key != _CHECKSUMS}
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def steps(workdir: str) -> list[int]:
    """Returns the steps of the workdir's complete checkpoints, ascending."""
    folder = _folder(workdir)
    if not folder.exists():
        return []
    try:
        return sorted(ocp.utils.checkpoint_steps(folder))
    except FileNotFoundError:
        # On gs://, a folder disappears with its last object. Orbax may be removing
        # one in the background: the step in which a run was killed.
        if folder.exists():
            raise
        return []


def latest_step(workdir: str) -> int | None:
    """Returns the step of the newest complete checkpoint, None if there is none."""
    return max(steps(workdir), default=None)


def find_step(workdir: str, step: int | None) -> int:
    """Returns `step`, or the newest checkpoint's step if `step` is None.

    Raises:
        FileNotFoundError: there is no such checkpoint; the message lists the steps.
    """
    existing = steps(workdir)
    if not existing or (step is not None and step not in existing):
        raise FileNotFoundError(
            f"wanted a checkpoint {'' if step is None else f'of step {step} '}in"
            f" {workdir}, found {existing or 'none'}; train first or choose another"
            " step"
        )
    return existing[-1] if step is None else step


def read_meta(workdir: str, step: int) -> dict[str, Any]:
    """Reads a checkpoint's `meta`, as `describe` returned it, with its checksums.

    Raises:
        DamagedError: the checkpoint is damaged.
    """
    with (
        _reading(workdir, step),
        ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader,
    ):
        meta = reader.restore(_folder(workdir) / str(step) / "meta")
        _compare(meta, {_META: _meta_checksum(meta)})
    return meta


def architecture_of(meta: Mapping[str, Any]) -> clip.Architecture:
    """Returns a checkpoint's architecture; fields that it lacks have their default."""
    return clip.Architecture(**meta["architecture"])


def preprocess_of(meta: Mapping[str, Any]) -> Preprocess:
    """Returns a checkpoint's image preprocessing; a centre crop if it has none."""
    size = meta["architecture"]["image_size"]
    return Preprocess(**meta.get("preprocess", {"size": size}))


def restore_params(
    workdir: str,
    *,
    architecture: clip.Architecture,
    mesh: Mesh | None,
    step: int | None = None,
    inputs: Mapping[str, str] | None = None,
) -> tuple[clip.Params, int]:
    """Reads only the parameters, onto any mesh, for evaluation and export.

    All processes must call it together.

    Args:
        workdir: of the run.
        architecture: must equal the checkpoint's.
        mesh: shards the parameters; None = NumPy arrays in each process.
        step: which checkpoint; None = the newest.
        inputs: fingerprints by name that must equal the checkpoint's, for example the
            tokenizer's.

    Returns:
        The parameters and their step.

    Raises:
        FileNotFoundError: there is no such checkpoint; the message lists the steps.
        ValueError: the checkpoint is of another architecture or of other inputs.
        DamagedError: the checkpoint is damaged.
    """
    step = find_step(workdir, step)
    folder = _folder(workdir) / str(step)
    meta = read_meta(workdir, step)
    _check_architecture(str(folder), meta, architecture)
    check_inputs(str(folder), want=inputs or {}, got=meta["inputs"])
    shapes = clip.param_shapes(architecture)
    target = {"params": shapes}
    restore_args: Any = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target
    )
    if mesh is not None:
        layout = sharding.tree_shardings(mesh, shapes)
        target = {"params": with_shardings(shapes, layout)}
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    with (
        _reading(workdir, step),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader,
    ):
        restored = reader.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(
                item=target,
                restore_args=restore_args,
                partial_restore=True,  # without the optimizer's state
            ),
        )
        _compare(meta, checksums.of_tree(restored))
    return restored["params"], step


def with_shardings(tree: Any, layout: Any) -> Any:
    """Returns the ShapeDtypeStructs of a tree with the shardings of `layout`."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        tree,
        layout,
    )


def check_inputs(name: str, *, want: Mapping[str, str], got: Mapping[str, str]) -> None:
    """Checks that a checkpoint or finished run was trained with the wanted inputs.

    Raises:
        ValueError: a fingerprint differs; the message names it.
    """
    different = [key for key in want if key not in got or want[key] != got[key]]
    if different:
        raise ValueError(
            f"{name} was trained with another {' and '.join(different)}: "
            + "; ".join(
                f"{key} fingerprint wanted {want[key][:12]}, found"
                f" {got[key][:12] if key in got else 'none'}"
                for key in different
            )
            + ". Choose another --workdir, or the inputs that it was trained with"
        )


def differences(*, want: clip.Architecture, got: clip.Architecture) -> list[str]:
    """Lists the fields by which two models differ, without the execution fields."""
    mine, theirs = dataclasses.asdict(want), dataclasses.asdict(got)
    return [
        f"{key}: wanted {mine[key]!r}, found {theirs[key]!r}"
        for key in sorted(mine)
        if mine[key] != theirs[key] and key not in _FREE_ARCHITECTURE
    ]


def _check_architecture(
    name: str, meta: Mapping[str, Any], architecture: clip.Architecture
) -> None:
    different = differences(want=architecture, got=architecture_of(meta))
    if different:
        raise ValueError(
            f"{name} holds a model of another architecture: {'; '.join(different)}."
            " Choose another --workdir, or the config and tokenizer that it was trained"
            " with"
        )


def _folder(workdir: str) -> Any:
    folder = files.path(workdir) / "checkpoints"
    # Orbax requires absolute paths.
    return folder.resolve() if files.is_local(workdir) else folder
