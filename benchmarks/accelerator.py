"""Train steps on this machine's accelerators: ours against open_clip's, in one run.

    python -m benchmarks.accelerator             # writes docs/accelerator.md

Trains B/32, B/16 and L/14 in bf16 on one random batch that is already on the device,
with each attention and each rematerialisation, and raises the batch until memory is
full. If torch is installed with open_clip or transformers, their model is trained at
the same sizes: bf16 autocast, torch.compile, fused AdamW, torch's fused attention.
Each library trains each model in a separate process, one after another.

Rates are pairs per second per device. Utilisation is model FLOPs (the same number for
both libraries, without recomputation) over the device's peak. Memory is the step's
peak: ours from the compiler's plan, torch's from its allocator. The page also says how
many CPU cores keep a device supplied, from the rate of one core here. With --workers=N
the trainer then trains each model from a dataset, with N loader processes.

On a CPU this only shows that the benchmark runs; use a small model:
--models=s16:4 --layers=2 --image_size=32.
"""

import datetime
import functools
import importlib.metadata
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from benchmarks import device_steps, steps
from benchmarks.device_steps import Device, Row
from metaclip_jax import metric_rows
from metaclip_jax.cli import command
from metaclip_jax.models import presets

_LOADED_SIZE = 224  # pixels: how many images one core loads
_GIB = 2**30
_LIBRARIES = ("jax", "jaxlib", "flax", "torch", "open_clip_torch", "transformers")


class LoaderRun(NamedTuple):
    """A run of the trainer on a dataset."""

    towers: str
    batch: int  # pairs per device
    rate: float  # pairs per second per device
    waited: float  # share of the time spent waiting for data


def sizes_of(name: str) -> presets.Towers:
    """Returns a preset's sizes, with --layers layers if that flag is set."""
    towers = presets.TOWERS[name]
    if not (layers := flags.FLAGS.layers):
        return towers
    vision, text = towers.vision, towers.text
    return towers._replace(
        vision=(vision[0], layers, vision[2]), text=(text[0], layers, text[2])
    )


def models() -> dict[str, list[int]]:
    """Returns the models to train, with their batches."""
    named = (model.split(":") for model in flags.FLAGS.models)
    return {name: [int(batch) for batch in batches] for name, *batches in named}


def is_model(model: str) -> bool:
    """Whether this is NAME:BATCH:BATCH..., a preset with batches above 0."""
    name, *batches = model.split(":")
    numbers = all(batch.isdecimal() and int(batch) for batch in batches)
    return name in presets.TOWERS and bool(batches) and numbers


def measure(name: str, batches: Sequence[int], device: Device) -> list[Row]:
    """Returns the rows of one model, for both libraries."""
    values = flags.FLAGS
    common = {"size": values.image_size, "batches": batches, "seconds": values.seconds}
    ours = functools.partial(
        device_steps.ours,
        sizes_of(name),
        attentions=[a for a in values.attention if a == "xla" or device.has_cudnn],
        remats=values.remat,
        unrolls=[value == "true" for value in values.unroll],
        **common,
    )
    theirs = functools.partial(
        device_steps.theirs,
        sizes_of(name),
        remats=[remat for remat in values.remat if remat != "dots"],
        **common,
    )
    libraries = [ours]
    if values.theirs and steps.torch_library():
        libraries.append(theirs)
    rows = []
    for row in itertools.chain(*map(device_steps.run_alone, libraries)):
        print(f"{name} {row}", flush=True)
        rows.append(row)
    return rows


def images_a_core() -> Iterator[float]:
    """Yields once: images per second that one core loads, from the best round.

    Measures CPU time of all threads, pinned to one core.
    """
    from benchmarks import photographs
    from metaclip_jax.data import pipeline, tokenizer, workers
    from metaclip_jax.data.options import DataOptions

    count, rounds = 256, 4
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        photographs.write_dataset(folder, count=count, seed=0)
        stream = pipeline.batches(
            DataOptions(
                folders=(folder,),
                global_batch=count,
                image_size=_LOADED_SIZE,
                context_length=steps.CONTEXT,
                total_steps=rounds + 1,
                read_threads=1,
            ),
            tokenizer.load(photographs.write_tokenizer(folder), family="clip"),
            prefetcher=workers.Prefetcher(prefetch=0),
        )
        taken = []
        for _ in range(rounds + 1):
            start = time.process_time()
            next(stream)
            taken.append(time.process_time() - start)
    yield count / min(taken)


def train_from_loader(name: str, row: Row, device: Device) -> LoaderRun:
    """Runs the trainer with the row's settings on a dataset of photographs."""
    from benchmarks import photographs

    values = flags.FLAGS
    batch = row.batch * device.count
    config = steps.config_of(sizes_of(name), batch=batch, size=values.image_size)
    config.model.attention, config.model.remat = row.attention, row.remat
    config.model.unroll = row.unrolled
    config.total_steps = values.loader_steps
    config.optimizer.warmup_steps = 1
    config.log_every_steps = max(values.loader_steps // 4, 1)
    config.data.worker_count = values.workers
    with tempfile.TemporaryDirectory() as folder:
        config.dataset = f"{folder}/dataset"
        os.mkdir(config.dataset)
        photographs.write_dataset(config.dataset, count=4 * batch, seed=0)
        config.tokenizer = photographs.write_tokenizer(folder)
        recipe = Path(folder, "recipe.py")
        recipe.write_text(
            "from metaclip_jax import config as keys\n\n\n"
            "def get_config():\n"
            "    config = keys.default()\n"
            f"    config.update({config.to_dict()!r})\n"
            "    return config.lock()\n"
        )
        train = [sys.executable, "-m", "metaclip_jax.train", f"--config={recipe}"]
        subprocess.run([*train, f"--workdir={folder}/run"], check=True)
        last = metric_rows.read(f"{folder}/run")[-1]
    return LoaderRun(
        name, row.batch, last["examples_per_second_per_chip"], last["data_wait"]
    )


def report(
    device: Device,
    rows: dict[str, list[Row]],
    core: float,
    loader_runs: Sequence[LoaderRun],
) -> str:
    """Returns the page."""
    lines = [
        "# Train steps on an accelerator",
        "",
        f"Written by `{_command()}` on {datetime.date.today()}. The docstring of"
        " `benchmarks/accelerator.py` says what is measured, and how.",
        "",
        f"Device: {device.count} x {device.kind}, driver {_driver()},"
        f" {os.cpu_count()} CPU cores ({platform.machine()}). Python"
        f" {platform.python_version()}, {_versions()}."
        f" XLA_FLAGS: `{os.environ.get('XLA_FLAGS') or 'none'}`.",
    ]
    if missing := [name for name in models() if name not in rows]:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    size = flags.FLAGS.image_size
    for name, model_rows in rows.items():
        lines += [
            "",
            f"## {name}, {size} pixels",
            "",
            *_table(device, model_rows),
        ]
        lines += ["", _verdict(model_rows, core)]
    if loader_runs:
        lines += [
            "",
            "## The trainer on a dataset",
            "",
            f"{flags.FLAGS.workers} loader processes, 640 x 480 JPEGs; the last quarter"
            f" of {flags.FLAGS.loader_steps} steps.",
            "",
            "| model | batch per device | pairs/s per device | waiting for data |",
            "|---|---|---|---|",
            *(
                f"| {run.towers} | {run.batch:,} | {run.rate:,.0f} | {run.waited:.1%} |"
                for run in loader_runs
            ),
        ]
    return "\n".join(lines) + "\n"


def _table(device: Device, rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "| library | attention | remat | layers | batch per device | pairs/s"
        " | utilisation | memory, GiB | compile, s |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    flops = next((row.flops for row in rows if row.flops), 0)
    for row in rows:
        layers = "unrolled" if row.unrolled else "looped"
        if row.library != device_steps.OURS:
            layers = ""
        begin = (
            f"| {row.library} | {row.attention} | {row.remat} | {layers}"
            f" | {row.batch:,} |"
        )
        if row.problem:
            yield f"{begin} {row.problem} | | | |"
            continue
        share = "unknown"
        if device.peak_flops:
            share = f"{row.rate * flops / device.peak_flops:.1%}"
        memory = f"{row.memory_bytes / _GIB:.1f}" if row.memory_bytes else "unknown"
        compiled = f"{row.compile_seconds:.0f}"
        yield f"{begin} {row.rate:,.1f} | {share} | {memory} | {compiled} |"


def fastest(rows: Sequence[Row], *, ours: bool) -> Row | None:
    """Returns our row, or torch's, with the highest rate; None if none ran."""
    ran = [
        row
        for row in rows
        if (row.library == device_steps.OURS) == ours and not row.problem
    ]
    return max(ran, key=lambda row: row.rate, default=None)


def _verdict(rows: Sequence[Row], core: float) -> str:
    """Compares the fastest row of each library, and says what the loader must do."""
    mine, other = fastest(rows, ours=True), fastest(rows, ours=False)
    if mine is None:
        return "None of ours ran."
    words = f"Fastest: {mine.rate:,.0f} pairs/s"
    if other is not None:
        words += f", {mine.rate / other.rate:.2f}x {other.library}'s {other.rate:,.0f}"
    if core:
        words += (
            f". A core loads {core:,.0f} images/s here, so {mine.rate / core:.1f} cores"
            " keep one device supplied"
        )
    return words + "."


def _command() -> str:
    """Returns the command that was run, without --output."""
    given = [flag for flag in sys.argv[1:] if not flag.startswith("--output")]
    return shlex.join(["python", "-m", "benchmarks.accelerator", *given])


def _driver() -> str:
    """Returns the version of the NVIDIA driver, or "none"."""
    if not shutil.which("nvidia-smi"):
        return "none"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.split("\n")[0].strip() or "none"


def _versions() -> str:
    versions = []
    for name in _LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


def main(argv: Sequence[str]) -> None:
    """Measures, and writes the page."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    device_steps.take_all_memory()
    (device,) = list(device_steps.run_alone(device_steps.describe))
    if device.platform == "cpu" and not values.layers:
        print("accelerator: none here; --help says how to try this on a CPU")
        return
    core = next(device_steps.run_alone(images_a_core), 0.0)
    rows: dict[str, list[Row]] = {}
    loader_runs: list[LoaderRun] = []
    for name, batches in models().items():
        rows[name] = measure(name, batches, device)
        best = fastest(rows[name], ours=True)
        if values.workers and best is not None:
            loader_runs.append(train_from_loader(name, best, device))
        # After each model: a later one may take long, or fail.
        Path(values.output).write_text(report(device, rows, core, loader_runs))
    print(Path(values.output).read_text())


if __name__ == "__main__":
    flags.DEFINE_list(
        "models",
        "b32:512:1024:2048:4096,b16:256:512:1024:2048,l14:128:256:512:1024",
        "Presets, each with its batches: pairs per device, ascending.",
    )
    flags.register_validator(
        "models",
        lambda given: bool(given) and all(map(is_model, given)),
        "wanted presets with batches, such as b32:512:1024, among"
        f" {', '.join(presets.TOWERS)}",
    )
    flags.DEFINE_list("attention", "xla,cudnn", "Our implementations to time.")
    flags.DEFINE_list("remat", "none,dots,full", "Rematerialisations to time.")
    flags.DEFINE_list("unroll", "false,true", "Time looped layers, unrolled ones.")
    flags.register_validator(
        "unroll",
        lambda given: bool(given) and set(given) <= {"false", "true"},
        "wanted false, true, or both separated by a comma",
    )
    flags.DEFINE_integer("image_size", 224, "Pixels.", lower_bound=1)
    flags.DEFINE_integer(
        "layers", 0, "Layers of each tower; 0 = the preset's.", lower_bound=0
    )
    flags.DEFINE_float("seconds", 3.0, "Least time to measure each row.")
    flags.register_validator(
        "seconds", lambda n: 0 < n <= 3_600, "wanted more than 0, up to 3600"
    )
    flags.DEFINE_bool("theirs", True, "Time torch too, if it is installed.")
    flags.DEFINE_integer(
        "workers", 0, "Loader processes for runs on a dataset; 0 = none.", lower_bound=0
    )
    flags.DEFINE_integer("loader_steps", 40, "Steps of such a run.", lower_bound=4)
    flags.DEFINE_string("output", "docs/accelerator.md", "Page to write.")
    command.run(main)
