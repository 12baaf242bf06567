"""The flags that commands with a trained model share."""

from typing import Any

from absl import flags

from metaclip_jax.inference import model as inference
from metaclip_jax.training import runtime


def define(*, required: bool = True) -> None:
    """Defines --model and how it is computed; call it where a command is run."""
    flags.DEFINE_string(
        "model",
        None,
        "What metaclip_jax.load takes: a folder, a hub name, or a run's workdir.",
        required=required,
    )
    flags.DEFINE_enum(
        "dtype",
        None,
        ["float32", "bfloat16"],
        "Of the matrix products; default: a run's own, float32 for models of others.",
    )
    flags.DEFINE_integer(
        "batch", 0, "Most rows at a time; 0 = by the device.", lower_bound=0
    )
    flags.DEFINE_integer(
        "cpu_devices", 0, "Virtual CPU devices; 0 = real devices.", 0, 1_024
    )
    flags.DEFINE_string(
        "class_cache", "", "Folder that keeps class embeddings; empty = none."
    )
    flags.DEFINE_string(
        "compilation_cache", "", "Folder for compiled programs; empty = none."
    )


def load(values: Any, name: str = "", step: int | None = None) -> inference.Model:
    """Starts JAX and loads --model (or `name`) as the parsed flags say.

    `step` is the checkpoint of a run; None = the newest.
    """
    runtime.set_up_logging()
    runtime.start_jax(
        cpu_devices=values.cpu_devices, compilation_cache=values.compilation_cache
    )
    return inference.load(
        name or values.model,
        dtype=values.dtype or "",
        step=step,
        batch=values.batch,
        class_cache=values.class_cache,
    )
