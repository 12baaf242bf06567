"""What a recipe needs on a TPU slice, before one is rented: memory, FLOPs, time.

    python -m metaclip_jax.plan --config=configs/metaclip.py:vit_l14_400m \\
        --topology=v5p:4x4x8

Compiles the train step, with every override of the command line, for that slice. It
takes a minute or two on any Linux machine with libtpu (`pip install
"metaclip-jax[tpu]"`) and no TPU. Exits with 1 if the step does not fit.
"""

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
from metaclip_jax.training import feed, flops, program, sharding

_GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TOO_MUCH = re.compile(
    r"\(?([\d.]+)([KMGT]?)\)? exceeds available[^\d]*([\d.]+)([KMGT]?)"
)


class Slice(NamedTuple):
    """The devices of a TPU slice that is not there."""

    topology: str
    devices: list[jax.Device]
    chips: int  # a chip may be two devices
    device_bytes: int  # memory that a program may use


class Plan(NamedTuple):
    """What one compiled train step needs. Memory is that of one device."""

    devices: int
    chips: int
    mesh: dict[str, int]
    argument_bytes: int  # the state and its part of the batch
    temporary_bytes: int  # at least; exact where the step fits
    peak_bytes: int | None  # what the compiler reckons; None = it gave up
    needed_bytes: int  # to be safe
    limit_bytes: int
    model_flops: int  # of a step, over all devices
    peak_flops: float | None  # of a chip, a second
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the step can run at all."""
        return self.needed_bytes <= self.limit_bytes


def describe_slice(topology: str, *, slices: int = 1) -> Slice:
    """Returns a slice by name ("v5e:4x4", "v5p:4x4x8"), or several that work together.

    Raises:
        ValueError: libtpu is not installed, or knows no such slice.
    """
    # libtpu looks for a TPU and for other users of one, and says much about both.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-4")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # a device a chip, as its hosts have
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"want a TPU topology such as v5e:4x4 or v5p:4x4x8, got {topology!r}:"
            f' {error}. If libtpu is missing, pip install "metaclip-jax[tpu]"'
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
        ValueError: the recipe is at odds with itself or with the slice.
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
        # The compiler gives up at the first sum that is too large.
        temporary = wanted if "temporaries" in str(error) else wanted - arguments
        return found._replace(
            temporary_bytes=temporary,
            needed_bytes=arguments + temporary,
            compile_seconds=time.monotonic() - start,
        )
    if memory is None:
        raise RuntimeError("this libtpu does not tell how much memory a program needs")
    # The compiler's peak leaves out some temporaries, and its sum counts some twice
    # that are never there together: the larger one is safe.
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
    """The plan as lines to read."""
    kind = where.devices[0].device_kind
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        f"{where.topology}: {plan.chips} chips ({kind}), {plan.devices} devices;"
        f" mesh {mesh}",
        f"global batch     {config.global_batch:,} pairs,"
        f" {config.global_batch / plan.devices:g} a device,"
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
            f"DOES NOT FIT: {_gib(plan.needed_bytes)} wanted, {_gib(plan.limit_bytes)}"
            f" there ({share:.0%}), {_gib(plan.needed_bytes - plan.limit_bytes)} too"
            " much. Try --config.model.remat=full, --config.microbatches,"
            " --config.mesh.fsdp, --config.loss_form=ring, or more chips"
        )
    peak = "not known, as the compiler gave up"
    if plan.peak_bytes is not None:
        peak = f"{_gib(plan.peak_bytes)} as the compiler reckons"
    lines += [
        f"device memory    {verdict}",
        f"  arguments      {_gib(plan.argument_bytes)}",
        f"  temporaries    {least}{_gib(plan.temporary_bytes)}",
        f"  peak           {peak}",
    ]
    lines.append(
        f"model FLOPs      {plan.model_flops / 1e12:,.1f} T a step,"
        f" {plan.model_flops / config.global_batch / 1e9:,.1f} G a pair"
    )
    if plan.peak_flops is not None:
        seconds = plan.model_flops / plan.peak_flops / plan.chips
        lines.append(
            f"compute floor    {seconds:.3g} s a step,"
            f" {seconds * config.total_steps / 3600:,.1f} h for {config.total_steps:,}"
            f" steps, if a chip had nothing else to do at its peak of"
            f" {plan.peak_flops / 1e12:.0f} TFLOP/s"
        )
    return "\n".join(lines)


def _token_ids(config: ConfigDict) -> dict[str, Any]:
    """The tokenizer's, or those of the vocabulary that the recipe names."""
    if config.tokenizer:
        return feed.token_ids(feed.load_tokenizer(config))
    if not config.vocabulary:
        raise ValueError(
            "want a tokenizer or a vocabulary, got a recipe that names none: give"
            f" --config.tokenizer=FILE, or --config.vocabulary as one of"
            f" {', '.join(presets.VOCABULARIES)}"
        )
    ids = presets.vocabulary(config.vocabulary)
    return {"vocab_size": ids.size, "eos_id": ids.eos_id, "pad_id": ids.pad_id}


def _argument_bytes(asked: program.Program, config: ConfigDict) -> int:
    """What the state and a part of the batch take on each device, without padding."""
    held = 0
    for leaf in jax.tree.leaves(program.abstract_state(asked)):
        held += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    parts = math.prod(asked.mesh.shape[axis] for axis in sharding.BATCH_AXES)
    pair = 3 * config.image_size**2 + 4 * config.model.context_length
    return held + config.global_batch // parts * pair


def _device_bytes(device: jax.Device) -> int:
    """Asks the compiler for more than there is: its refusal says how much there is."""
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
    raise RuntimeError(f"{device} seems to hold 4 TiB")


def _too_much(message: str) -> tuple[int, int] | None:
    """The bytes that were wanted and those that there are; None = another error."""
    found = _TOO_MUCH.search(message)
    if found is None:
        return None
    wanted, wanted_unit, there, there_unit = found.groups()
    return (
        round(float(wanted) * _UNITS[wanted_unit]),
        round(float(there) * _UNITS[there_unit]),
    )


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"


def main(argv: Sequence[str]) -> None:
    """Prints the plan."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    keys.check(values.config)
    jax.config.update("jax_platforms", "cpu")  # the TPU is only compiled for
    where = describe_slice(values.topology, slices=values.slices)
    plan = make_plan(values.config, where)
    print(report(values.config, where, plan))
    if not plan.fits:
        sys.exit(1)


if __name__ == "__main__":
    config_flag.define(keys.RANGES)
    flags.DEFINE_string("topology", None, "Slice, as v5e:4x4 or v5p:4x4x8.")
    flags.DEFINE_integer("slices", 1, "How many such slices.", lower_bound=1)
    flags.mark_flags_as_required(["config", "topology"])
    command.run(main)
