"""Train steps on the accelerators at hand: ours against open_clip's, in one run.

    python -m benchmarks.accelerator             # writes docs/accelerator.md

Trains B/32, B/16 and L/14 in bf16 on random batches that are on the device already, by
each attention, with each rematerialisation, in growing batches until the memory is
full. Where torch is installed with open_clip or transformers, theirs is trained at the
same sizes: autocast to bf16, torch.compile, fused AdamW and torch's fused attention.
Each model of each library has a process of its own, one after another.

A rate is pairs a second of one device. Utilisation is model FLOPs, the same for both
libraries, over the device's peak: what rematerialisation computes again is not counted.
Memory is what the step needs at its peak: ours by the compiler's plan, torch's by its
allocator. The loader's share is how many cores make batches as fast as the steps take
them, by the rate of one core here. With --workers=N the trainer itself then trains each
model from a dataset, with N loader processes.

On CPUs this only shows that it runs: give it a small model, as
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

from absl import app, flags

from benchmarks import device_steps, steps
from benchmarks.device_steps import Device, Row
from metaclip_jax import metric_rows
from metaclip_jax.models import presets

_MODELS = flags.DEFINE_list(
    "models",
    "b32:512:1024:2048:4096,b16:256:512:1024:2048,l14:128:256:512:1024",
    "of the presets, each with its batches: pairs a device, ascending",
)
_ATTENTION = flags.DEFINE_list("attention", "xla,cudnn", "implementations of ours")
_REMAT = flags.DEFINE_list("remat", "none,dots,full", "what to recompute")
_UNROLL = flags.DEFINE_list("unroll", "false,true", "whether layers are no loop")
_SIZE = flags.DEFINE_integer("image_size", 224, "pixels", lower_bound=1)
_LAYERS = flags.DEFINE_integer("layers", 0, "of each tower; 0 = the preset's")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "timed of each, at least")
_THEIRS = flags.DEFINE_bool("theirs", True, "time torch's too, where it is installed")
_WORKERS = flags.DEFINE_integer("workers", 0, "loader processes of a fed run; 0 = none")
_FED_STEPS = flags.DEFINE_integer("fed_steps", 40, "of a fed run", lower_bound=4)
_OUTPUT = flags.DEFINE_string("output", "docs/accelerator.md", "what to write")

_GIB = 2**30
_LIBRARIES = ("jax", "jaxlib", "flax", "torch", "open_clip_torch", "transformers")


class Fed(NamedTuple):
    """What the trainer did when the loader fed it."""

    towers: str
    batch: int  # of one device
    rate: float  # pairs a second, of one device
    waited: float  # share of the time


def sizes_of(name: str) -> presets.Towers:
    """Returns a preset's sizes, with as many layers as --layers says."""
    towers = presets.TOWERS[name]
    if not (layers := _LAYERS.value):
        return towers
    vision, text = towers.vision, towers.text
    return towers._replace(
        vision=(vision[0], layers, vision[2]), text=(text[0], layers, text[2])
    )


def models() -> dict[str, list[int]]:
    """Returns which models to train, with their batches.

    Raises:
        app.UsageError: a model is unknown, or a batch is no number.
    """
    found = {}
    for model in _MODELS.value:
        name, *batches = model.split(":")
        if (
            name not in presets.TOWERS
            or not batches
            or not all(map(str.isdigit, batches))
        ):
            raise app.UsageError(
                "--models wants names and batches, as b32:512:1024, of"
                f" {', '.join(presets.TOWERS)}, got {model!r}"
            )
        found[name] = [int(batch) for batch in batches]
    return found


def measure(name: str, batches: Sequence[int], device: Device) -> list[Row]:
    """Returns the rows of one model, of both libraries."""
    common = {"size": _SIZE.value, "batches": batches, "seconds": _SECONDS.value}
    ours = functools.partial(
        device_steps.ours,
        sizes_of(name),
        attentions=[a for a in _ATTENTION.value if a == "xla" or device.has_cudnn],
        remats=_REMAT.value,
        unrolls=[value == "true" for value in _UNROLL.value],
        **common,
    )
    theirs = functools.partial(
        device_steps.theirs,
        sizes_of(name),
        remats=[remat for remat in _REMAT.value if remat != "dots"],
        **common,
    )
    libraries = [ours]
    if _THEIRS.value and steps.torch_library():
        libraries.append(theirs)
    rows = []
    for row in itertools.chain(*map(device_steps.run_alone, libraries)):
        print(f"{name} {row}", flush=True)
        rows.append(row)
    return rows


def images_a_core() -> Iterator[float]:
    """Yields, once, how many images a second one core loads, by the best of rounds.

    It is processor time of all threads, on one core.
    """
    from benchmarks import photographs
    from metaclip_jax.data import pipeline, tokenizer, workers

    count, rounds = 256, 4
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        photographs.write_dataset(folder, count=count, seed=0)
        stream = pipeline.batches(
            folder,
            tokenize=tokenizer.load(photographs.write_tokenizer(folder), family="clip"),
            global_batch=count,
            image_size=_SIZE.default,
            context_length=steps.CONTEXT,
            seed=0,
            total_steps=rounds + 1,
            read_threads=1,
            pool=workers.Pool(prefetch=0),
        )
        taken = []
        for _ in range(rounds + 1):
            start = time.process_time()
            next(stream)
            taken.append(time.process_time() - start)
    yield count / min(taken)


def train_from_loader(name: str, row: Row, device: Device) -> Fed:
    """Runs the trainer itself as the row has it, on a dataset of photographs."""
    from benchmarks import photographs

    batch = row.batch * device.count
    config = steps.config_of(sizes_of(name), batch=batch, size=_SIZE.value)
    config.model.attention, config.model.remat = row.attention, row.remat
    config.model.unroll = row.unrolled
    config.total_steps = _FED_STEPS.value
    config.optimizer.warmup_steps = 1
    config.log_every_steps = max(_FED_STEPS.value // 4, 1)
    config.data.worker_count = _WORKERS.value
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
        command = [sys.executable, "-m", "metaclip_jax.train", f"--config={recipe}"]
        subprocess.run([*command, f"--workdir={folder}/run"], check=True)
        last = metric_rows.read(f"{folder}/run")[-1]
    return Fed(name, row.batch, last["examples_per_second_per_chip"], last["data_wait"])


def report(
    device: Device, rows: dict[str, list[Row]], core: float, fed: Sequence[Fed]
) -> str:
    """Returns the page."""
    lines = [
        "# Train steps on an accelerator",
        "",
        f"Written by `{_command()}` on {datetime.date.today()}; what is measured, and"
        " how, is at the head of that file.",
        "",
        f"Device: {device.count} x {device.kind}, driver {_driver()},"
        f" {os.cpu_count()} CPU cores ({platform.machine()}). Python"
        f" {platform.python_version()}, {_versions()}."
        f" XLA_FLAGS: `{os.environ.get('XLA_FLAGS') or 'none'}`.",
    ]
    if missing := [name for name in models() if name not in rows]:
        lines += ["", f"The run has not come to {', '.join(missing)}."]
    for name, found in rows.items():
        lines += ["", f"## {name}, {_SIZE.value} pixels", "", *_table(device, found)]
        lines += ["", _verdict(found, core)]
    if fed:
        lines += [
            "",
            "## The trainer, fed by the loader",
            "",
            f"{_WORKERS.value} loader processes, 640 x 480 JPEGs; the last quarter of"
            f" {_FED_STEPS.value} steps.",
            "",
            "| model | batch a device | pairs/s a device | waiting for data |",
            "|---|---|---|---|",
            *(
                f"| {one.towers} | {one.batch:,} | {one.rate:,.0f} | {one.waited:.1%} |"
                for one in fed
            ),
        ]
    return "\n".join(lines) + "\n"


def _table(device: Device, rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "| library | attention | remat | layers | batch a device | pairs/s"
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
    """Returns the row of the highest rate, of ours or of torch's; None = none ran."""
    ran = [
        row
        for row in rows
        if (row.library == device_steps.OURS) == ours and not row.problem
    ]
    return max(ran, key=lambda row: row.rate, default=None)


def _verdict(rows: Sequence[Row], core: float) -> str:
    """Compares the fastest of both, and says what the loader has to do."""
    mine, other = fastest(rows, ours=True), fastest(rows, ours=False)
    if mine is None:
        return "None of ours ran."
    words = f"Fastest: {mine.rate:,.0f} pairs/s"
    if other is not None:
        words += f", {mine.rate / other.rate:.2f}x {other.library}'s {other.rate:,.0f}"
    if core:
        words += (
            f". A core loads {core:,.0f} images/s here: {mine.rate / core:.1f} cores a"
            " device keep up with it"
        )
    return words + "."


def _command() -> str:
    """Returns how it was called, but for where the page goes."""
    given = [flag for flag in sys.argv[1:] if not flag.startswith("--output")]
    return shlex.join(["python", "-m", "benchmarks.accelerator", *given])


def _driver() -> str:
    """Returns the NVIDIA driver's version, "none" where there is none."""
    if not shutil.which("nvidia-smi"):
        return "none"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.split("\n")[0].strip() or "none"


def _versions() -> str:
    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def main(argv: Sequence[str]) -> None:
    """Measures, and writes the page."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; use --flags")
    wanted = models()
    device_steps.take_all_memory()
    (device,) = list(device_steps.run_alone(device_steps.describe))
    if device.platform == "cpu" and not _LAYERS.value:
        print("accelerator: none here; see the head of the file for a try on CPUs")
        return
    core = next(device_steps.run_alone(images_a_core), 0.0)
    rows: dict[str, list[Row]] = {}
    fed: list[Fed] = []
    for name, batches in wanted.items():
        rows[name] = measure(name, batches, device)
        best = fastest(rows[name], ours=True)
        if _WORKERS.value and best is not None:
            fed.append(train_from_loader(name, best, device))
        # After each, as a large model may take long.
        Path(_OUTPUT.value).write_text(report(device, rows, core, fed))
    print(Path(_OUTPUT.value).read_text())


if __name__ == "__main__":
    app.run(main)
