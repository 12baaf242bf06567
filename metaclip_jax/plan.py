"""Plans a recipe on a TPU slice without a TPU: memory, FLOPs and time of a step.

    python -m metaclip_jax.plan --config=configs/metaclip.py:vit_l14_400m \\
        --topology=v5p:4x4x8

Compiles the train step for that slice, with the command line's --config.KEY=VALUE. This
takes a minute or two on any Linux machine with libtpu (`pip install
"jax[tpu]"`). Exits with status 1 if the step does not fit into memory.
"""

import importlib.util
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from metaclip_jax import config as keys
from metaclip_jax.cli import command, config_flag
from metaclip_jax.models import presets
from metaclip_jax.training import flops, program, sharding

_GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TOO_MUCH = re.compile(
    r"\(?([\d.]+)([KMGT]?)\)? exceeds available[^\d]*([\d.]+)([KMGT]?)"
)


class Slice(NamedTuple):
    """A described TPU slice."""

    topology: str
    devices: list[jax.Device]
    chips: int  # a chip may be two devices
    device_bytes: int  # memory that a program may use


class Plan(NamedTuple):
    """The needs of one compiled train step. Memory is per device."""

    devices: int
    chips: int
    mesh: dict[str, int]
    argument_bytes: int  # the state and the device's share of the batch
    temporary_bytes: int  # exact if the step fits, else a lower bound
    peak_bytes: int | None  # the compiler's estimate; None = compilation failed
    needed_bytes: int  # a safe upper estimate
    limit_bytes: int
    model_flops: int  # of a step, over all devices
    peak_flops: float | None  # of a chip, per second
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the step fits into memory."""
        return self.needed_bytes <= self.limit_bytes


def describe_slice(topology: str, *, slices: int = 1) -> Slice:
    """Describes a slice by name ("v5e:4x4", "v5p:4x4x8"), or several connected ones.

    Raises:
        ValueError: libtpu is not installed, or does not know the slice.
    """
    # Keep libtpu from looking for a TPU and its users, and from logging about both.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-4")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # one device per chip, as on real v4
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except (RuntimeError, NotImplementedError) as error:
        if importlib.util.find_spec("libtpu") is None:
            raise ValueError(
                f"wanted libtpu, which compiles for {topology}, got no such package;"
                ' pip install "jax[tpu]", or in a checkout pip install -e ".[tpu]"'
            ) from error
        raise ValueError(
            f"wanted a TPU topology such as v5e:4x4 or v5p:4x4x8, got {topology!r}"
            f" ({error}); correct --topology"
        ) from error
    devices = list(described.devices)
    chips = slices
    for size in topology.rpartition(":")[2].split("x"):
        chips *= int(size)
    return Slice(topology, devices, chips, _device_bytes(devices[0]))


def make_plan(config: ConfigDict, where: Slice) -> Plan:
    """Compiles the config's train step for a slice.

    Args:
        config: the recipe.
        where: from `describe_slice`.

    Raises:
        ValueError: the recipe contradicts itself or does not fit the slice.
    """
    asked = program.make(config, **_token_ids(config), devices=where.devices)
    found = Plan(
        devices=len(where.devices),
        chips=where.chips,
        mesh=dict(asked.mesh.shape),
        argument_bytes=_argument_bytes(asked, config),
        temporary_bytes=0,
        peak_bytes=None,
        needed_bytes=0,
        limit_bytes=where.device_bytes,
        model_flops=program.model_flops(asked, config),
        peak_flops=flops.peak(where.devices[0]),
        compile_seconds=0.0,
    )
    start = time.monotonic()
    try:
        memory = program.lower(asked, config).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        too_much = _too_much(str(error))
        if too_much is None:
            raise
        wanted, arguments = too_much[0], found.argument_bytes
        # The compiler stops at the first sum that is too large.
        temporary = wanted if "temporaries" in str(error) else wanted - arguments
        return found._replace(
            temporary_bytes=temporary,
            needed_bytes=arguments + temporary,
            compile_seconds=time.monotonic() - start,
        )
    if memory is None:
        raise RuntimeError(
            "wanted the compiler's memory analysis, got none from this libtpu; install"
            " another version"
        )
    # The compiler's peak omits some temporaries, and the sum counts temporaries that
    # never exist at the same time. The larger of the two is a safe estimate.
    together = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return found._replace(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        needed_bytes=max(memory.peak_memory_in_bytes, together),
        compile_seconds=time.monotonic() - start,
    )


def report(config: ConfigDict, where: Slice, plan: Plan) -> str:
    """Formats a plan as lines of text."""
    kind = where.devices[0].device_kind
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        f"{where.topology}: {plan.chips} chips ({kind}), {plan.devices} devices;"
        f" mesh {mesh}",
        f"global batch     {config.global_batch:,} pairs,"
        f" {config.global_batch / plan.devices:g} per device,"
        f" microbatches {config.microbatches}, remat {config.model.remat}",
        f"compile time     {plan.compile_seconds:.0f} s",
    ]
    share = plan.needed_bytes / plan.limit_bytes
    if plan.fits:
        least = ""
        verdict = f"{_gib(plan.needed_bytes)} of {_gib(plan.limit_bytes)} ({share:.0%})"
    else:
        least = "at least "
        verdict = (
            f"DOES NOT FIT: {_gib(plan.needed_bytes)} of {_gib(plan.limit_bytes)}"
            f" ({share:.0%}), {_gib(plan.needed_bytes - plan.limit_bytes)} too much."
            " Try --config.model.remat=full, --config.microbatches,"
            " --config.mesh.fsdp, --config.loss_form=ring, or more chips"
        )
    peak = "unknown, because compilation failed"
    if plan.peak_bytes is not None:
        peak = f"{_gib(plan.peak_bytes)} by the compiler's estimate"
    lines += [
        f"device memory    {verdict}",
        f"  arguments      {_gib(plan.argument_bytes)}",
        f"  temporaries    {least}{_gib(plan.temporary_bytes)}",
        f"  peak           {peak}",
    ]
    lines.append(
        f"model FLOPs      {plan.model_flops / 1e12:,.1f} T per step,"
        f" {plan.model_flops / config.global_batch / 1e9:,.1f} G per pair"
    )
    if plan.peak_flops is not None:
        seconds = plan.model_flops / plan.peak_flops / plan.chips
        lines.append(
            f"compute floor    {seconds:.3g} s per step,"
            f" {seconds * config.total_steps / 3600:,.1f} h for {config.total_steps:,}"
            f" steps, if chips only compute model FLOPs at their peak of"
            f" {plan.peak_flops / 1e12:.0f} TFLOP/s"
        )
    return "\n".join(lines)


def _token_ids(config: ConfigDict) -> dict[str, Any]:
    """Returns the ids of the recipe's tokenizer, or of its vocabulary."""
    if config.tokenizer:
        return program.token_ids(program.load_tokenizer(config))
    if not config.vocabulary:
        raise ValueError(
            "wanted a tokenizer or a vocabulary, got a recipe without; give"
            f" --config.tokenizer=FILE, or --config.vocabulary as one of"
            f" {', '.join(presets.VOCABULARIES)}"
        )
    ids = presets.vocabulary(config.vocabulary)
    return {"vocab_size": ids.size, "eos_id": ids.eos_id, "pad_id": ids.pad_id}


def _argument_bytes(asked: program.Program, config: ConfigDict) -> int:
    """Returns the unpadded size of a device's shards of the state and the batch."""
    total = 0
    for leaf in jax.tree.leaves(program.abstract_state(asked)):
        total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    batch_shards = math.prod(asked.mesh.shape[axis] for axis in sharding.BATCH_AXES)
    pair = 3 * config.image_size**2 + 4 * config.model.context_length
    return total + config.global_batch // batch_shards * pair


def _device_bytes(device: jax.Device) -> int:
    """Returns a device's memory, from the compiler's refusal of a program of 4 TiB."""
    huge = jax.ShapeDtypeStruct(
        (2**30, 1024), jnp.bfloat16, sharding=SingleDeviceSharding(device)
    )
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        found = _too_much(str(error))
        if found:
            return found[1]
        raise
    raise RuntimeError(f"wanted a refusal of 4 TiB of memory, got none from {device}")


def _too_much(message: str) -> tuple[int, int] | None:
    """Returns the needed and the available bytes; None if it is another error."""
    found = _TOO_MUCH.search(message)
    if found is None:
        return None
    needed, needed_unit, limit, limit_unit = found.groups()
    return (
        round(float(needed) * _UNITS[needed_unit]),
        round(float(limit) * _UNITS[limit_unit]),
    )


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"


def main(argv: Sequence[str]) -> None:
    """Prints the plan."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    keys.check(values.config)
    jax.config.update("jax_platforms", "cpu")  # a TPU is not needed
    where = describe_slice(values.topology, slices=values.slices)
    plan = make_plan(values.config, where)
    print(report(values.config, where, plan))
    if not plan.fits:
        sys.exit(1)


if __name__ == "__main__":
    config_flag.define(keys.RANGES)
    flags.DEFINE_string("topology", None, "Slice, for example v5e:4x4 or v5p:4x4x8.")
    flags.DEFINE_integer("slices", 1, "Number of such slices.", lower_bound=1)
    flags.mark_flags_as_required(["config", "topology"])
    command.run(main)
