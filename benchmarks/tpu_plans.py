"""Writes docs/tpu_plans.md: what each recipe needs on a TPU slice, and its time.

    python -m benchmarks.tpu_plans        # or `make plans`; an hour, needs libtpu

Compiles each row of PLANS ahead of time, as `metaclip_jax.plan` does, and the lines of
benchmarks.tpu_step. Compiled steps are remembered in .tpu_cache, so that a second run
compiles only what has changed.
"""

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict

from benchmarks import tpu_step
from metaclip_jax import plan
from metaclip_jax.cli import command, ranges
from metaclip_jax.models import presets
from metaclip_jax.training import compiled, flops

_ROOT = Path(__file__).resolve().parents[1]


class Row(NamedTuple):
    """A recipe on a slice, with the values that fit it to the slice."""

    recipe: str  # FILE:VARIANT in configs/
    topology: str
    values: Mapping[str, Any] = {}


DOTS, FULL = {"model.remat": "dots"}, {"model.remat": "full"}
FSDP = {"mesh.fsdp": 8}
PLANS = (
    Row("metaclip:vit_b32_400m", "v5p:4x4x4"),
    Row("metaclip:vit_b32_400m", "v5e:16x16"),
    Row("metaclip:vit_b16_400m", "v5p:4x4x8", DOTS),
    Row("metaclip:vit_b16_400m", "v5e:16x16", FULL),
    Row("metaclip:vit_l14_400m", "v5p:4x4x8"),
    Row("metaclip:vit_h14_2p5b", "v5p:4x8x8"),
    Row("metaclip:vit_bigg14_2p5b", "v5p:8x8x8", FULL | FSDP),
    Row("metaclip2:vit_s16", "v5p:4x4x4", DOTS),
    Row("metaclip2:vit_m16", "v5p:4x4x4", DOTS),
    Row("metaclip2:vit_b32", "v5p:4x4x4", DOTS),
    Row("metaclip2:vit_b16", "v5p:4x8x8", DOTS),
    Row("metaclip2:vit_l14", "v5p:8x8x8", DOTS | FSDP),
    Row("metaclip2:vit_h14", "v5p:8x8x8", FSDP),
    Row("altogether:vit_h14", "v5p:8x8x8", FULL),
    Row("siglip:vit_b16", "v5p:4x4x4", DOTS),
)


class Stage(NamedTuple):
    """A part of a published training."""

    preset: str
    image_size: int
    tokens: int
    pairs: float


# What others publish, the chip and the stages. FLOPs are those of our towers at these
# sizes: neither OpenVision's second pass over texts nor its decoder is in them.
PUBLISHED = (
    (
        "OpenVision L/14, 83 h on v4-512 (256 chips)",
        "TPU v4",
        83 * 256,
        (Stage("vit_l14", 84, 77, 12.8e9), Stage("vit_l14", 224, 77, 1.02e9)),
    ),
    (
        "CLIPA B/16, 444 A100-hours",
        "NVIDIA A100",
        444,
        (Stage("vit_b16", 112, 16, 2.56e9), Stage("vit_b16", 224, 16, 0.131e9)),
    ),
)

HEAD = """# Recipes on TPU slices

Written by `make plans` with jax {jax} and libtpu {libtpu}: steps are compiled ahead of
time, and nothing here was run on a TPU. Memory and cycles are the compiler's estimates;
a real TPU has to confirm them. The floor is the time in which chips at their peak
compute the model's FLOPs alone. The estimated time is the cycles at the chip's clock.
The compiler estimates no cycles for collectives: their transfers are added at half of
the chip's published link rate, as if nothing overlapped. Loading data, checkpoints and
evaluations are not in it.

Plan other slices with `python -m metaclip_jax.plan`; `--find=batch` and `--find=mesh`
search for what fits.
"""
COLUMNS = (
    "recipe",
    "values",
    "slice",
    "chips",
    "batch",
    "memory a chip",
    "PFLOP a step",
    "floor",
    "cycles",
    "estimated",
    "with collectives",
    "hours",
    "pairs/s",
)
STEPS = """
## Beside a plain step

Printed by `python -m benchmarks.tpu_step`, whose docstring says what is compared: our
step, and a plain JAX step in the way of big_vision's trainer.

```text
"""
BESIDE = """
```

## Beside published trainings, on paper

The chip-hours of the floor of our towers at the same image sizes, tokens and pairs, and
the share of the peak that the published time is.

| training | chip-hours | our floor | share |
|---|---|---|---|
"""


def config_of(row: Row) -> ConfigDict:
    """Returns the recipe of a row with its values."""
    file, _, variant = row.recipe.partition(":")
    config = importlib.import_module(f"configs.{file}").get_config(variant)
    ranges.update(config, dict(row.values))
    return config


def line(row: Row, config: ConfigDict, made: plan.Plan) -> str:
    """Returns a row of the table."""
    where, step = made.where, made.step
    chip = compiled.chip(where.devices[0])
    assert chip is not None and made.floor_seconds is not None
    cells = [
        row.recipe.replace(":", ".py:"),
        ", ".join(f"{key}={value}" for key, value in row.values.items()),
        where.name,
        f"{where.chips}",
        f"{config.global_batch:,}",
        f"{step.needed_bytes / 2**30:.1f} of {where.device_bytes / 2**30:.1f} GiB",
        f"{made.model_flops / 1e15:,.1f}",
        f"{made.floor_seconds:.3f} s",
    ]
    if not made.fits:
        return f"| {' | '.join([*cells, 'does not fit', '', '', '', ''])} |"
    seconds, moved = compiled.step_seconds(step.cycles, step.collective_bytes, chip)
    cells += [
        f"{step.cycles / 1e6:,.0f} M",
        f"{seconds:.3f} s",
        f"{seconds + moved:.3f} s",
        f"{(seconds + moved) * config.total_steps / 3600:,.0f}",
        f"{config.global_batch / (seconds + moved):,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def beside() -> list[str]:
    """Returns the rows of the second table."""
    rows = []
    for name, chip, hours, stages in PUBLISHED:
        total = 0.0
        for stage in stages:
            sizes = dataclasses.replace(
                presets.architecture(stage.preset),
                image_size=stage.image_size,
                context_length=stage.tokens,
            )
            of_pair = flops.of_step(sizes, global_batch=1, patches=sizes.patches)
            total += of_pair * stage.pairs
        floor = total / flops.PEAKS[chip] / 3600
        rows.append(f"| {name} | {hours:,} | {floor:,.0f} | {floor / hours:.0%} |")
    return rows


def main(argv: Sequence[str]) -> None:
    """Compiles what is not in the cache, and writes the page."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    page = [HEAD.format(**versions)]
    page += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in PLANS:
        config, where = config_of(row), tpu_step.describe_slice(row.topology)
        made = plan.make_plan(config, where, cache=values.cache)
        page.append(line(row, config, made))
        print(page[-1], flush=True)
    page.append(STEPS.rstrip())
    for name in tpu_step.LINES:
        page += tpu_step.compare(name, values.cache)
        print("\n".join(page[-3:]), flush=True)
    page += [BESIDE.strip("\n"), *beside()]
    Path(values.output).write_text("\n".join(page) + "\n")
    print(f"wrote {values.output}")


if __name__ == "__main__":
    flags.DEFINE_string("cache", str(_ROOT / ".tpu_cache"), "Folder; empty = none.")
    flags.DEFINE_string("output", str(_ROOT / "docs/tpu_plans.md"), "Page to write.")
    command.run(main)
