"""Compares loss curves with and without the faster layers, and of different seeds.

    python -m benchmarks.loss_curves --dataset=quickstart_run/dataset \\
        --tokenizer=quickstart_run/tokenizer.json --workdir=loss_curves

It trains the quick start's model in f32 (300 steps), and with a ViT-S/16 for pictures
in bf16 (2,000 steps of 32 pictures): with the forms that docs/training.md lists, with
them switched off, and with another seed. That takes an hour on two cores; a run that
was stopped continues when the command is run again.

The forms round in other places, so two runs of a seed differ, and the difference grows
as training goes on. It should stay below that of two seeds. Printed is the root mean
square of the difference of two curves, each a mean of 50 steps.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from metaclip_jax import metric_rows
from metaclip_jax.cli import command

_WINDOW = 5  # rows, of 10 steps each
_PLAIN = {
    "model.attention": "jax",
    "model.layer_norm": "jax",
    "model.chunk": 0,
    "model.unroll": True,
}
_VIT_S = {
    "cpu_devices": 1,
    "mesh.data": 1,
    "global_batch": 32,
    "dtype": "bfloat16",
    "total_steps": 2000,
    "checkpoint_every_steps": 200,
    "optimizer.warmup_steps": 200,
    "optimizer.peak_lr": 5e-4,
    "model.patch_size": 16,
    "model.vision_width": 384,
    "model.vision_layers": 12,
    "model.vision_heads": 6,
    "model.chunk": 8,  # a part of the batch, as on a TPU
}
_MODELS: Mapping[str, Mapping[str, object]] = {
    "quick start": {"global_batch": 256, "model.chunk": 32},
    "ViT-S": _VIT_S,
}


def curve(workdir: Path, changes: Mapping[str, object]) -> np.ndarray:
    """Trains the quick start with changed keys; returns its losses, f64[N]."""
    values = flags.FLAGS
    keys = {
        "dataset": values.dataset,
        "tokenizer": values.tokenizer,
        "log_every_steps": 10,
        **changes,
    }
    subprocess.run(
        [
            *(sys.executable, "-m", "metaclip_jax.train"),
            *("--config=configs/quickstart.py", f"--workdir={workdir}"),
            *(f"--config.{key}={value}" for key, value in keys.items()),
        ],
        check=True,
    )
    return np.array([row["loss"] for row in metric_rows.read(workdir) if "loss" in row])


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the root mean square difference of two curves' means of windows."""
    rows = (one - other)[: len(one) // _WINDOW * _WINDOW]
    return float(np.sqrt(np.mean(rows.reshape(-1, _WINDOW).mean(axis=1) ** 2)))


def main(argv: Sequence[str]) -> int:
    """Trains three runs of each model, and prints how far apart their curves are."""
    command.refuse_arguments(argv)
    for name, keys in _MODELS.items():
        folder = Path(flags.FLAGS.workdir) / name.replace(" ", "_")
        fast = curve(folder / "fast", keys)
        plain = curve(folder / "plain", {**keys, **_PLAIN})
        seed = curve(folder / "seed", {**keys, "seed": 1})
        forms, seeds = difference(fast, plain), difference(fast, seed)
        print(
            f"{name}: loss from {fast[0]:.3f} to {fast[-_WINDOW:].mean():.3f}"
            f" (forms off: {plain[-_WINDOW:].mean():.3f}, another seed:"
            f" {seed[-_WINDOW:].mean():.3f})"
        )
        print(
            f"{name}: forms on and off differ by {forms:.2g}, two seeds by {seeds:.2g}"
        )
        print(f"{name}: {seeds / forms:.1f}x as far apart are two seeds as two forms")
    return 0


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("dataset", None, "Folder of the quick start's dataset.")
    flags.DEFINE_string("tokenizer", None, "Its tokenizer.json.")
    flags.DEFINE_string("workdir", None, "Folder for the runs.")
    flags.mark_flags_as_required(["dataset", "tokenizer", "workdir"])


if __name__ == "__main__":
    define_flags()
    command.run(main)
