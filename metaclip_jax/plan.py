"""Plans a recipe on a TPU slice without a TPU: memory, FLOPs and time of a step.

    python -m metaclip_jax.plan --config=configs/metaclip.py:vit_l14_400m \\
        --topology=v5p:4x4x8

Compiles the train step for that slice, with the command line's --config.KEY=VALUE. This
takes a minute or two on any Linux machine with libtpu (`pip install
"jax[tpu]"`). Exits with status 1 if the step does not fit into memory.

With --find=batch it also compiles twice and half the batch, and so on, and reports the
largest that fits; with --find=mesh the mesh that fits and splits parameters the least.
--cache=DIR remembers what was compiled.

The cycles and the time made of them are the compiler's own estimate: no TPU has
confirmed them.
"""

import importlib.util
import math
import os
import sys
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
from metaclip_jax.training import compiled, flops, program, sharding

_GIB = 2**30


class Slice(NamedTuple):
    """A described TPU slice."""

    topology: str
    slices: int
    devices: list[jax.Device]
    chips: int  # a chip may be two devices
    device_bytes: int  # memory that a program may use

    @property
    def name(self) -> str:
        """The topology, and how many of them if not one: "2 x v5e:4x4"."""
        return self.topology if self.slices == 1 else f"{self.slices} x {self.topology}"


class Plan(NamedTuple):
    """The needs of one compiled train step on a slice.

    Attributes:
      where: the slice.
      mesh: the sizes of its axes.
      model_flops: of a step, over all devices.
      step: the compiled step. If it does not fit, its argument_bytes and needed_bytes
        are of unpadded arrays, and its temporary_bytes are a lower bound.
    """

    where: Slice
    mesh: dict[str, int]
    model_flops: int
    step: compiled.Compiled

    @property
    def fits(self) -> bool:
        """Whether the step fits into memory."""
        return self.step.needed_bytes <= self.where.device_bytes

    @property
    def peak_flops(self) -> float | None:
        """The peak FLOP/s of a chip, if known."""
        return flops.peak(self.where.devices[0])

    @property
    def floor_seconds(self) -> float | None:
        """A step's time if chips only compute model FLOPs at their peak, if known."""
        if self.peak_flops is None:
            return None
        return self.model_flops / self.peak_flops / self.where.chips


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
    return Slice(topology, slices, devices, chips, _device_bytes(devices[0]))


def make_plan(config: ConfigDict, where: Slice, *, cache: str) -> Plan:
    """Compiles the config's train step for a slice.

    Args:
        config: the recipe.
        where: from `describe_slice`.
        cache: folder of results of earlier compilations; "" = none.

    Raises:
        ValueError: the recipe contradicts itself or does not fit the slice.
    """
    asked = program.make(config, **token_ids(config), devices=where.devices)
    model_flops = program.model_flops(asked, config)
    done = compiled.compile(
        program.lower(asked, config), topology=where.name, cache=cache
    )
    if done.refusal:
        refused = compiled.too_much(done.refusal)
        assert refused is not None
        arguments, wanted = _argument_bytes(asked, config), refused[0]
        # The compiler stops at the first sum that is too large.
        temporary = wanted if "temporaries" in done.refusal else wanted - arguments
        done = done._replace(
            argument_bytes=arguments,
            temporary_bytes=temporary,
            needed_bytes=arguments + temporary,
        )
    return Plan(where, dict(asked.mesh.shape), model_flops, done)


def find_batch(
    config: ConfigDict, where: Slice, *, cache: str
) -> tuple[ConfigDict, Plan]:
    """Returns the recipe with the largest batch that fits, and its plan.

    Batches are the recipe's, doubled or halved. Prints a line per try. If none fits,
    the last one is returned.
    """
    tried = _copy(config)
    plan = _try_batch(tried, where, cache)
    fits, best = plan.fits, (tried, plan)
    while plan.fits == fits:
        tried = _copy(tried)
        tried.global_batch = tried.global_batch * 2 if fits else tried.global_batch // 2
        try:
            plan = _try_batch(tried, where, cache)
        except ValueError:  # the devices cannot share so small a batch
            break
        if plan.fits or not fits:
            best = (tried, plan)
    return best


def _try_batch(config: ConfigDict, where: Slice, cache: str) -> Plan:
    plan = make_plan(config, where, cache=cache)
    print(f"batch {config.global_batch:,}: {_verdict(plan)}", flush=True)
    return plan


def find_mesh(
    config: ConfigDict, where: Slice, *, cache: str
) -> tuple[ConfigDict, Plan]:
    """Returns the recipe with the cheapest mesh that fits, and its plan.

    Splitting parameters costs communication, and `tensor` more of it than `fsdp`: so
    `fsdp` grows first, and then `tensor`. Prints a line per try. If none fits, the last
    one is returned.
    """
    count = len(where.devices) // where.slices
    sizes = [2**n for n in range(count.bit_length()) if count % 2**n == 0]
    meshes = [(fsdp, 1) for fsdp in sizes]
    meshes += [(sizes[-1] // tensor, tensor) for tensor in sizes[1:4]]
    for fsdp, tensor in meshes:
        tried = _copy(config)
        tried.mesh.update({"data": -1, "fsdp": fsdp, "tensor": tensor})
        plan = make_plan(tried, where, cache=cache)
        print(f"mesh fsdp {fsdp} x tensor {tensor}: {_verdict(plan)}", flush=True)
        if plan.fits:
            break
    return tried, plan


def report(config: ConfigDict, plan: Plan) -> str:
    """Formats a plan as lines of text."""
    where, step = plan.where, plan.step
    devices, device = len(where.devices), where.devices[0]
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        f"{where.topology}: {where.chips} chips ({device.device_kind}), {devices}"
        f" devices; mesh {mesh}",
        f"global batch     {config.global_batch:,} pairs,"
        f" {config.global_batch / devices:g} per device,"
        f" microbatches {config.microbatches}, remat {config.model.remat}",
        f"compile time     {step.seconds:.0f} s",
    ]
    share = step.needed_bytes / where.device_bytes
    if plan.fits:
        least = ""
        verdict = (
            f"{_gib(step.needed_bytes)} of {_gib(where.device_bytes)} ({share:.0%})"
        )
    else:
        least = "at least "
        verdict = (
            f"DOES NOT FIT: {_gib(step.needed_bytes)} of {_gib(where.device_bytes)}"
            f" ({share:.0%}), {_gib(step.needed_bytes - where.device_bytes)} too much."
            " Try --config.model.remat=full, --config.microbatches,"
            " --config.mesh.fsdp, --config.loss_form=ring, or more chips"
        )
    peak = "unknown, because compilation failed"
    if not step.refusal:
        peak = f"{_gib(step.peak_bytes)} by the compiler's estimate"
    lines += [
        f"device memory    {verdict}",
        f"  arguments      {_gib(step.argument_bytes)}",
        f"  temporaries    {least}{_gib(step.temporary_bytes)}",
        f"  peak           {peak}",
    ]
    lines.append(
        f"model FLOPs      {plan.model_flops / 1e12:,.1f} T per step,"
        f" {plan.model_flops / config.global_batch / 1e9:,.1f} G per pair"
    )
    if plan.peak_flops is not None and plan.floor_seconds is not None:
        seconds = plan.floor_seconds
        lines.append(
            f"compute floor    {seconds:.3g} s per step,"
            f" {seconds * config.total_steps / 3600:,.1f} h for {config.total_steps:,}"
            f" steps, if chips only compute model FLOPs at their peak of"
            f" {plan.peak_flops / 1e12:.0f} TFLOP/s"
        )
    chip = compiled.chip(device)
    if step.cycles and chip is not None:
        seconds, moved = compiled.step_seconds(step.cycles, step.collective_bytes, chip)
        total = (seconds + moved) * config.total_steps / 3600
        lines.append(
            f"estimated time   {seconds:.3g} s per step: {step.cycles / 1e6:,.0f} M"
            f" cycles by the compiler's estimate, at {chip.hertz / 1e9:g} GHz; and"
            f" {moved:.3g} s of collectives, if nothing overlaps; {total:,.1f} h for"
            f" {config.total_steps:,} steps. No TPU has confirmed this"
        )
    return "\n".join(lines)


def token_ids(config: ConfigDict) -> dict[str, Any]:
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
        found = compiled.too_much(str(error))
        if found:
            return found[1]
        raise
    raise RuntimeError(f"wanted a refusal of 4 TiB of memory, got none from {device}")


def _verdict(plan: Plan) -> str:
    """Says whether a plan fits, on one line."""
    share = f"{_gib(plan.step.needed_bytes)} of {_gib(plan.where.device_bytes)}"
    return f"fits, {share}" if plan.fits else f"does not fit, {share}"


def _copy(config: ConfigDict) -> ConfigDict:
    return config.copy_and_resolve_references()


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"


def main(argv: Sequence[str]) -> None:
    """Prints the plan."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    keys.check(values.config)
    jax.config.update("jax_platforms", "cpu")  # a TPU is not needed
    where = describe_slice(values.topology, slices=values.slices)
    if values.find:
        find = {"batch": find_batch, "mesh": find_mesh}[values.find]
        config, plan = find(values.config, where, cache=values.cache)
    else:
        config = values.config
        plan = make_plan(config, where, cache=values.cache)
    print(report(config, plan))
    if not plan.fits:
        sys.exit(1)


if __name__ == "__main__":
    config_flag.define(keys.RANGES)
    flags.DEFINE_string("topology", None, "Slice, for example v5e:4x4 or v5p:4x4x8.")
    flags.DEFINE_integer("slices", 1, "Number of such slices.", lower_bound=1)
    flags.DEFINE_enum(
        "find", "", ["", "batch", "mesh"], "What to search; empty = none."
    )
    flags.DEFINE_string("cache", "", "Folder that remembers what was compiled.")
    flags.mark_flags_as_required(["config", "topology"])
    command.run(main)
