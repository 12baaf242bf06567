"""Which device holds what: the mesh, and one table from parameter path to layout.

Mesh axes: `data` splits the batch and copies the parameters, `fsdp` splits the batch
and the parameters, `tensor` splits attention heads and MLP width. No other module names
a mesh's axes.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# The first pattern that matches the end of a leaf's path wins. Optimizer leaves end
# in their parameter's path, so one table serves both. Leaves inside `blocks` have a
# leading layer axis, which is never split.
PARAM_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"patch_embed/kernel", PartitionSpec(None, None, None, "fsdp")),
    (r"class_embedding|patch_bias", PartitionSpec()),
    (r"position_embedding", PartitionSpec(None, "fsdp")),
    (r"token_embedding", PartitionSpec("fsdp", "tensor")),
    (r"blocks/attn/qkv/kernel", PartitionSpec(None, "fsdp", None, "tensor", None)),
    (r"blocks/attn/qkv/bias", PartitionSpec(None, None, "tensor", None)),
    (r"blocks/attn/out/kernel", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"blocks/attn/out/bias", PartitionSpec()),
    (r"blocks/mlp/fc1/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/mlp/fc1/bias", PartitionSpec(None, "tensor")),
    (r"blocks/mlp/fc2/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"blocks/mlp/fc2/bias", PartitionSpec()),
    (r"(blocks/)?ln_\w+/(scale|bias)", PartitionSpec()),
    (r"projection", PartitionSpec("fsdp", None)),
    # Outside the stack: the last block, and SigLIP's head, which is almost one.
    (r"(last|head)/attn/qkv/kernel", PartitionSpec("fsdp", None, "tensor", None)),
    (r"(last|head)/attn/qkv/bias", PartitionSpec(None, "tensor", None)),
    (r"(last|head)/attn/out/kernel", PartitionSpec("tensor", None, "fsdp")),
    (r"(last|head)/mlp/fc1/kernel", PartitionSpec("fsdp", "tensor")),
    (r"(last|head)/mlp/fc1/bias", PartitionSpec("tensor")),
    (r"(last|head)/mlp/fc2/kernel", PartitionSpec("tensor", "fsdp")),
    (r"(last|head)/(attn/out|mlp/fc2)/bias", PartitionSpec()),
    (r"head/probe|projection_bias", PartitionSpec()),
    (r"log_logit_scale|logit_bias", PartitionSpec()),
    (r"step|count", PartitionSpec()),
)


def make_mesh(
    *,
    data: int,
    fsdp: int,
    tensor: int,
    slices: int = -1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Returns a mesh over all devices; data=-1 takes those that the others leave.

    TPU slices, which are linked by the data centre's slow network, split the `data`
    axis, so that only gradients cross it. `slices` is the expected number of slices,
    -1 = any. GPUs are one slice unless `slices` says how many hosts or NVLink domains
    they are in.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp < 1 or tensor < 1 or (data < 1 and data != -1):
        raise ValueError(
            "mesh sizes must be at least 1 (data may be -1: all that are left), "
            f"got data={data} fsdp={fsdp} tensor={tensor}"
        )
    if data == -1:
        data = max(count // (fsdp * tensor), 1)
    if data * fsdp * tensor != count:
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} needs "
            f"{data * fsdp * tensor} devices, but there are {count}; change mesh.*, "
            "or set cpu_devices to make virtual CPU devices"
        )
    slice_count = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == -1 and devices[0].platform != "tpu":
        slice_count = 1  # a GPU's slice_index is its host or NVLink domain
    if slices not in (-1, slice_count):
        raise ValueError(
            f"mesh.slices={slices} must be -1 or the devices' number of slices; set"
            f" it to {slice_count}"
        )
    if data % slice_count:
        raise ValueError(
            f"mesh data={data} must be a multiple of the {slice_count} slices, over "
            "which it is split; change mesh.*"
        )
    axis_types = (AxisType.Auto,) * len(AXES)
    # A mesh axis may take a part of an axis of the torus.
    if slice_count == 1:
        grid = mesh_utils.create_device_mesh(
            (data, fsdp, tensor), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            (data // slice_count, fsdp, tensor),
            (slice_count, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    return Mesh(grid, AXES, axis_types=axis_types)


def check_global_batch(global_batch: int, mesh: Mesh, *, microbatches: int = 1) -> None:
    """Refuses a batch that the devices cannot share equally, part by part."""
    if microbatches < 1:
        raise ValueError(f"microbatches must be at least 1, got {microbatches}")
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * microbatches
    if global_batch < 1 or global_batch % parts:
        times = f" x {microbatches} microbatches" if microbatches > 1 else ""
        nearest = max(round(global_batch / parts), 1) * parts
        raise ValueError(
            f"global_batch={global_batch} must be a multiple of {parts}, the mesh's "
            f"data x fsdp{times}; nearest: {nearest}"
        )


def path_name(path: Sequence[Any]) -> str:
    """Returns a leaf's path as `image/blocks/mlp/fc1/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def partition_spec(path: str) -> PartitionSpec:
    """Returns the layout of the leaf with this path; no rule is an error."""
    for pattern, spec in PARAM_RULES:
        if re.search(rf"(?:^|/)(?:{pattern})$", path):
            return spec
    raise ValueError(f"no sharding rule matches {path}; add one to PARAM_RULES")


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """Returns `tree` with each array or ShapeDtypeStruct replaced by its sharding."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _leaf_sharding(mesh, path_name(path), leaf.shape), tree
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def splits_layers(mesh: Mesh) -> bool:
    """Returns whether devices share the heads and the MLP of each layer."""
    return mesh.shape["tensor"] > 1


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis over `data`, then `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def collect_table(mesh: Mesh, table: jax.Array, *, lookups: int) -> jax.Array:
    """Collects a token table [V, D] over `fsdp` where that moves less than it saves.

    Where it stays split, each device looks up its rows for all tokens of its `fsdp`
    group, and the vectors are summed over the group. `lookups` is how many tokens all
    devices look up at a time.
    """
    if table.shape[0] > lookups // mesh.shape["data"]:
        return table
    return jax.lax.with_sharding_constraint(
        table, NamedSharding(mesh, PartitionSpec(None, "tensor"))
    )


@functools.cache
def layer_collector(mesh: Mesh) -> Callable[[Any], Any]:
    """Returns a function that collects a layer's leaves over `fsdp`.

    It maps the parameters of one block, without the axis of layers, to themselves. What
    `tensor` splits stays split.
    """

    def collect(path: Sequence[Any], leaf: jax.Array) -> jax.Array:
        name = path_name(path).removesuffix("/value")  # the leaf of an nnx.Param
        spec = partition_spec(f"last/{name}")
        kept = (None if axis == "fsdp" else axis for axis in spec)
        return jax.lax.with_sharding_constraint(
            leaf, NamedSharding(mesh, PartitionSpec(*kept))
        )

    if mesh.shape["fsdp"] == 1:
        return lambda layer: layer
    return functools.partial(jax.tree_util.tree_map_with_path, collect)


def process_rows(mesh: Mesh, global_batch: int) -> np.ndarray:
    """Returns int64[b], ascending: the rows that this process's devices hold.

    They need not be contiguous, as the mesh follows the links between devices.
    Processes that `tensor` spans hold the same rows, and each must supply them.
    """
    return _rows_of_parts(mesh, global_batch)[_held_parts(mesh)].ravel()


def process_run(
    mesh: Mesh, global_batch: int, *, process: int | None = None
) -> np.ndarray:
    """Returns int64[b], ascending: the rows of a batch that this process reads.

    They are a contiguous run wherever the devices are in the mesh, so that a process
    reads neighbouring records. (Two runs are possible where `tensor` spans parts of
    processes.) A row's place in the batch as read and in the mesh may therefore differ,
    and no loss depends on it. Where processes follow the mesh's order, as CPUs and GPUs
    do, each row keeps its place.

    Args:
      mesh: what the batch is split over.
      global_batch: rows, of all processes.
      process: None = this one.
    """
    holders = _holders(mesh)
    by_process = sorted(range(len(holders)), key=lambda part: (holders[part], part))
    place = np.argsort(by_process)  # of each part among them
    held = _held_parts(mesh, process)
    return _rows_of_parts(mesh, global_batch)[place[held]].ravel()


def owned_rows(mesh: Mesh, global_batch: int) -> np.ndarray:
    """Returns bool[b], which of its rows this process owns.

    Exactly one process owns each row of a batch, the first that holds it; statistics
    are counted over owned rows.
    """
    holders = _holders(mesh)
    held = _held_parts(mesh)
    owned = [holders[part][0] == jax.process_index() for part in held]
    return np.repeat(owned, global_batch // len(holders))


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns global arrays made of the `process_rows` [b, ...] of each process.

    All arrays of a batch have the same length.
    """
    sharding = batch_sharding(mesh)
    parts = len(_holders(mesh)) / len(_held_parts(mesh))
    return {
        name: jax.make_array_from_process_local_data(
            sharding, own, (round(len(own) * parts), *own.shape[1:])
        )
        for name, own in batch.items()
    }


@functools.lru_cache(maxsize=8)  # called with each batch
def _holders(mesh: Mesh) -> tuple[tuple[int, ...], ...]:
    """Returns which processes hold each part of a batch, ascending."""
    parts = mesh.devices.reshape(-1, mesh.shape["tensor"])
    return tuple(tuple(sorted({d.process_index for d in part})) for part in parts)


def _held_parts(mesh: Mesh, process: int | None = None) -> list[int]:
    """Returns the parts of a batch that a process holds, ascending; None = this one."""
    process = jax.process_index() if process is None else process
    return [part for part, by in enumerate(_holders(mesh)) if process in by]


def _rows_of_parts(mesh: Mesh, global_batch: int) -> np.ndarray:
    """Returns int64[parts, rows of a part], of a batch that the mesh can share."""
    return np.arange(global_batch).reshape(len(_holders(mesh)), -1)


def _leaf_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the rule's layout, after checking that it divides the leaf's shape."""
    spec = partition_spec(path)
    if len(spec) > len(shape):
        raise ValueError(f"the sharding rule {spec} of {path} does not fit {shape}")
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            raise ValueError(
                f"{path} {shape}: {size} does not divide by mesh.{axis}="
                f"{mesh.shape[axis]}; choose a mesh.{axis} that divides it"
            )
    return NamedSharding(mesh, spec)
