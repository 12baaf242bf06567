"""The checkpoints of a run, from which it goes on.

A checkpoint is WORKDIR/checkpoints/STEP: the state after STEP steps, and `meta`, a JSON
object that says what the state is (architecture, data, tokenizer, config, version).
STEP is also the position in the data. Orbax writes it in the background under a
temporary name, so a killed run leaves whole checkpoints only. `meta` also has a
checksum of each array and of itself: bytes that changed on the disk are an error.
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
from metaclip_jax.data.images import Preprocess
from metaclip_jax.models import clip
from metaclip_jax.training import checksums, sharding

# How the model is computed, not what its parameters mean.
_FREE_ARCHITECTURE = ("dtype", *clip.EXECUTION_FIELDS)
_CHECKSUMS = "checksums"  # in meta; checkpoints of earlier versions have none
_OF_META = "meta"


class DamagedError(ValueError):
    """A checkpoint that cannot be read, or does not hold what was saved.

    It has a `__cause__` where reading failed, and none where a checksum differs.
    """


def open_manager(
    workdir: str, *, keep_last: int, keep_every_steps: int = 0, keep_best: str = ""
) -> ocp.CheckpointManager:
    """Opens the workdir's checkpoints for writing and reading; close it when done.

    Args:
        workdir: local or gs://.
        keep_last: how many of the newest checkpoints stay.
        keep_every_steps: checkpoints at multiples of this stay too; 0 = none.
        keep_best: the checkpoint with the highest score of this name stays too, the
            newest of several; "" = none.

    Raises:
        ValueError: keep_last is below 1.
    """
    if keep_last < 1:
        raise ValueError(
            f"checkpoint.keep_last must be at least 1, got {keep_last}: the newest"
            " checkpoint is what a run goes on from"
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
            # What a killed save left.
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
    """Starts to write a checkpoint; returns once the state's arrays may be reused.

    Args:
        manager: from `open_manager`.
        step: steps done, the checkpoint's name.
        state: a pytree of global arrays.
        meta: a JSON object as `describe` makes it; its checksums are added.
        scores: what this state was found to reach, for keep_best; None = unknown.

    Raises:
        Exception: an earlier write in the background failed.
    """
    found = {_OF_META: _meta_checksum(meta), **checksums.of_tree(state)}
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({**meta, _CHECKSUMS: found}),
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
    """A checkpoint's `meta`: what `restore` compares, the version, and further facts.

    Args:
        architecture: the model.
        preprocess: how the model sees images.
        inputs: name to fingerprint of what is trained on ("dataset", "tokenizer").
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
    """Reads a checkpoint onto the devices of `target`, whatever mesh wrote it.

    Args:
        workdir: named in errors.
        manager: from `open_manager`.
        step: which one.
        target: the state as ShapeDtypeStructs with shardings.
        architecture: must be the checkpoint's.
        inputs: name to fingerprint; must be the checkpoint's.

    Returns:
        The state and the checkpoint's meta.

    Raises:
        ValueError: the checkpoint is of another architecture, dataset or tokenizer;
            found before any array is read.
        DamagedError: it is damaged.
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
    """Turns what a damaged checkpoint raises into one error that names it."""
    try:
        yield
    except Exception as error:  # Orbax and tensorstore raise all sorts of things
        others = [other for other in steps(workdir) if other != step]
        lines = str(error).splitlines() or [""]
        raise DamagedError(
            f"want the checkpoint {workdir}/checkpoints/{step} as it was saved, got"
            f" {type(error).__name__}: {lines[0][:300]}. If its files are damaged,"
            " training goes on from the checkpoint before with"
            " --config.checkpoint.fallback=True, and other commands take another step;"
            f" there are {others or 'no others'}"
        ) from (None if isinstance(error, _ChecksumError) else error)


class _ChecksumError(Exception):
    """Says which arrays differ."""


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
    """The steps of the workdir's whole checkpoints, ascending."""
    folder = _folder(workdir)
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []


def latest_step(workdir: str) -> int | None:
    """The step of the newest whole checkpoint, None if there is none."""
    return max(steps(workdir), default=None)


def find_step(workdir: str, step: int | None) -> int:
    """`step`, or the newest checkpoint's where that is None.

    Raises:
        FileNotFoundError: there is no such checkpoint; names those that there are.
    """
    there = steps(workdir)
    if not there or (step is not None and step not in there):
        raise FileNotFoundError(
            f"want a checkpoint {'' if step is None else f'of step {step} '}in"
            f" {workdir}, found {there or 'none'}; train first or choose another step"
        )
    return there[-1] if step is None else step


def read_meta(workdir: str, step: int) -> dict[str, Any]:
    """What `describe` said about a checkpoint.

    Raises:
        DamagedError: it is damaged.
    """
    with (
        _reading(workdir, step),
        ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader,
    ):
        meta = reader.restore(_folder(workdir) / str(step) / "meta")
        _compare(meta, {_OF_META: _meta_checksum(meta)})
    return meta


def architecture_of(meta: Mapping[str, Any]) -> clip.Architecture:
    """The model of a checkpoint; fields that are newer than it at their default."""
    return clip.Architecture(**meta["architecture"])


def preprocess_of(meta: Mapping[str, Any]) -> Preprocess:
    """How the model of a checkpoint sees images; older ones cut out the centre."""
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

    Of several processes, all must call it.

    Args:
        workdir: of the run.
        architecture: must be the checkpoint's.
        mesh: where the parameters go; None = into NumPy arrays of each process.
        step: which checkpoint; None = the newest.
        inputs: name to fingerprint of what must be the checkpoint's too, for example
            the tokenizer.

    Returns:
        The parameters and their step.

    Raises:
        FileNotFoundError: there is no such checkpoint; names those that there are.
        ValueError: the checkpoint is of another architecture or of other inputs.
        DamagedError: it is damaged.
    """
    step = find_step(workdir, step)
    folder = _folder(workdir) / str(step)
    meta = read_meta(workdir, step)
    _check_architecture(str(folder), meta, architecture)
    check_inputs(str(folder), want=inputs or {}, got=meta["inputs"])
    shapes = jax.eval_shape(lambda: clip.init(architecture, jax.random.key(0)))
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
                partial_restore=True,  # the optimizer stays on disk
            ),
        )
        _compare(meta, checksums.of_tree(restored))
    return restored["params"], step


def with_shardings(tree: Any, layout: Any) -> Any:
    """Arrays or ShapeDtypeStructs as ShapeDtypeStructs with the layout's shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        tree,
        layout,
    )


def check_inputs(name: str, *, want: Mapping[str, str], got: Mapping[str, str]) -> None:
    """Refuses a checkpoint or a finished run that was trained on something else.

    Raises:
        ValueError: a fingerprint differs; names which.
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
            + ". Choose another --workdir, or give back what it was trained with"
        )


def differences(*, want: clip.Architecture, got: clip.Architecture) -> list[str]:
    """Says by which fields two models differ in what their parameters mean."""
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
            " Choose another --workdir, or the config (and tokenizer) it was trained"
            " with"
        )


def _folder(workdir: str) -> Any:
    folder = files.path(workdir) / "checkpoints"
    # Orbax wants absolute paths.
    return folder.resolve() if files.is_local(workdir) else folder
