"""The flags of commands that use a trained model."""

from typing import Any

from absl import flags

from metaclip_jax.inference import model as inference
from metaclip_jax.training import runtime


def define(*, required: bool = True) -> None:
    """Defines --model and the flags of its computation."""
    flags.DEFINE_string(
        "model",
        None,
        "A folder, a hub name, or a run's workdir, as metaclip_jax.load takes it.",
        required=required,
    )
    flags.DEFINE_enum(
        "dtype",
        None,
        ["float32", "bfloat16"],
        "Of matrix products; default: that of a run's training, else float32.",
    )
    flags.DEFINE_integer(
        "batch", 0, "Most rows at a time; 0 = by the device.", lower_bound=0
    )
    flags.DEFINE_integer(
        "cpu_devices", 0, "Virtual CPU devices; 0 = real devices.", 0, 1_024
    )
    flags.DEFINE_string("class_cache", "", "Folder for class embeddings; empty = none.")
    flags.DEFINE_string(
        "compilation_cache", "", "Folder for compiled programs; empty = none."
    )


def load(values: Any, name: str = "", step: int | None = None) -> inference.Model:
    """Starts JAX and loads --model (or `name`) with the options of the flags.

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
