"""A train step on TPU slices by the compiler's estimate: ours against a plain one.

    python -m benchmarks.tpu_step                # half an hour, needs libtpu
    python -m benchmarks.tpu_step --only=b16_512_full,l14_v5p

Compiles whole steps ahead of time, without a TPU: our step, and `plain_step`, which
does the same work in the way of big_vision's trainer for SigLIP. Both have the same
towers, batch, dtypes and setting of rematerialisation, and f32 moments in AdamW. The
comparisons are the rows of LINES.

It prints each step's cycles, by the compiler's estimate, with every loop counted as
often as it runs; its memory per chip; and the MiB of its collectives' results. The
compiler estimates no cycles for collectives: "with collectives" adds their transfer at
the chip's link rate, as if nothing overlapped. A real TPU has to confirm all of this.

Compiled steps are remembered in --cache by what was compiled, so that a second run
compiles only what has changed.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from absl import app, flags
from ml_collections import ConfigDict

from benchmarks import plain_step
from configs import metaclip, siglip
from metaclip_jax import plan
from metaclip_jax.cli import command
from metaclip_jax.training import compiled, program

_ROOT = Path(__file__).resolve().parents[1]
_MIB = 2**20


class Line(NamedTuple):
    """One comparison."""

    model: str  # "siglip" or a variant of configs/metaclip.py
    topology: str
    batch: int
    remat: str
    target: float  # our cycles, as a share of the plain step's
    fsdp: int = 1
    form: str = "gathered"


LINES = {
    "b16_512_full": Line("siglip", "v5e:4x4", 512, "full", 0.90),
    "b16_512_dots": Line("siglip", "v5e:4x4", 512, "dots", 0.90),
    "b16_512_none": Line("siglip", "v5e:4x4", 512, "none", 0.90),
    "b16_4096_full": Line("siglip", "v5e:4x4", 4_096, "full", 0.75),
    "l14_v5e": Line("vit_l14_400m", "v5e:4x4", 512, "full", 0.95),
    "l14_v5p": Line("vit_l14_400m", "v5p:2x2x2", 2_048, "dots", 0.95),
    "b16_fsdp_ring": Line("siglip", "v5e:4x4", 512, "full", 0.95, 16, "ring"),
}


def config_of(line: Line) -> ConfigDict:
    """Returns our config of a line."""
    config = (
        siglip.get_config()
        if line.model == "siglip"
        else metaclip.get_config(line.model)
    )
    config.global_batch, config.loss_form = line.batch, line.form
    config.model.remat, config.mesh.fsdp = line.remat, line.fsdp
    return config


# Each description compiles a small program.
describe_slice = functools.cache(plan.describe_slice)


def lower_plain(
    config: ConfigDict,
    asked: program.Program,
    *,
    split_parameters: bool,
    clip_gradient: bool = True,
) -> jax.stages.Lowered:
    """Returns the plain step of a config of ours."""
    return plain_step.lower(
        asked.architecture,
        mesh=asked.mesh,
        split_parameters=split_parameters,
        global_batch=config.global_batch,
        loss=config.loss,
        optimizer=config.optimizer.to_dict(),
        total_steps=config.total_steps,
        clip_gradient=clip_gradient,
    )


def with_collectives(step: compiled.Compiled, chip: compiled.Chip) -> float:
    """Returns the cycles with those of the transfers, as if nothing overlapped."""
    seconds = compiled.step_seconds(step.cycles, step.collective_bytes, chip)
    return sum(seconds) * chip.hertz


def describe(name: str, step: compiled.Compiled, chip: compiled.Chip) -> str:
    """Returns the figures of one step."""
    return (
        f"  {name:6} {step.cycles / 1e6:8.1f} M cycles,"
        f" {with_collectives(step, chip) / 1e6:8.1f} M with collectives;"
        f" {step.needed_bytes / _MIB:7,.0f} MiB;"
        f" {sum(step.collective_bytes.values()) / _MIB:6,.0f} MiB of collectives"
    )


def compare(name: str, cache: str, *, clip_gradient: bool = True) -> list[str]:
    """Compiles both steps of a line, and returns what is printed about them."""
    line = LINES[name]
    where = describe_slice(line.topology)
    chip = compiled.chip(where.devices[0])
    assert chip is not None
    config = config_of(line)
    asked = program.make(config, **plan.token_ids(config), devices=where.devices)
    plain = lower_plain(
        config, asked, split_parameters=line.fsdp > 1, clip_gradient=clip_gradient
    )
    mine, theirs = (
        compiled.compile(lowered, topology=where.name, cache=cache)
        for lowered in (program.lower(asked, config), plain)
    )
    for step in (mine, theirs):
        if step.refusal:
            raise RuntimeError(f"{name} does not fit: {step.refusal}")
    total = with_collectives(theirs, chip) / with_collectives(mine, chip)
    return [
        describe("ours", mine, chip),
        describe("plain", theirs, chip),
        f"tpu step: {theirs.cycles / mine.cycles:.2f}x fewer cycles than a plain step"
        f" ({mine.cycles / theirs.cycles:.3f}, wanted at most {line.target:.2f});"
        f" {total:.2f} times with collectives;"
        f" {mine.needed_bytes / theirs.needed_bytes:.2f} of its memory: {name}",
    ]


def main(argv: Sequence[str]) -> None:
    """Prints three lines per comparison."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")
    if unknown := sorted(set(values.only) - set(LINES)):
        raise app.UsageError(
            f"--only: wanted lines among {', '.join(LINES)}, got"
            f" {', '.join(unknown)}; correct them"
        )
    for name in values.only or LINES:
        lines = compare(name, values.cache, clip_gradient=values.clip_gradient)
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    flags.DEFINE_list("only", [], "Lines to compile; empty = all.")
    flags.DEFINE_string(
        "cache", str(_ROOT / ".tpu_cache"), "Folder of compiled results; empty = none."
    )
    flags.DEFINE_bool("clip_gradient", True, "Whether the plain step clips it.")
    command.run(main)
