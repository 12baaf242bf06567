"""Metrics of a run: JSON lines in immutable parts, TensorBoard, W&B, a progress line.

WORKDIR/metrics/part-NNNNNN.jsonl holds one object a line with `step` and numbers. A
part is written whole and never again; each flush makes a new one. A resumed run writes
the steps after its checkpoint once more, and the last row of a step wins.
"""

import collections
import contextlib
import hashlib
import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from metaclip_jax import files, metric_rows
from metaclip_jax.data import pipeline
from metaclip_jax.training import runtime
from metaclip_jax.training.totals import Totals

# Metrics that depend on the machine and the moment; all others are deterministic.
TIMINGS = frozenset(
    {
        "examples_per_second",
        "examples_per_second_per_chip",
        "model_teraflops_per_second_per_chip",
        "model_flops_utilisation",
        "data_wait",
        "compile_seconds",
    }
)
# How long a row may wait on this machine, in seconds; each flush makes a part.
FLUSH_SECONDS = 300.0


class Writer:
    """Collects rows and writes them as a new part at each flush.

    A row is complete when the next step's row begins; if the last flush is then more
    than `flush_seconds` ago, it is flushed. With `tensorboard`, the numbers also go to
    WORKDIR/tensorboard, and with the name of a `wandb` project to Weights & Biases,
    together with `config`. With `write` False nothing is written: of several processes,
    one writes.
    """

    def __init__(
        self,
        workdir: str,
        *,
        start_step: int,
        tensorboard: bool,
        wandb: str = "",
        config: Mapping[str, Any] | None = None,
        write: bool = True,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self._rows: dict[int, dict[str, Any]] = {}
        self._flush_seconds, self._flushed = flush_seconds, time.monotonic()
        self._tensorboard = None
        self._wandb = None
        self._write = write
        if not write:
            return
        self._folder = files.path(workdir) / "metrics"
        self._folder.mkdir(parents=True, exist_ok=True)
        numbers = (number for number, _ in metric_rows.numbered_parts(workdir))
        self._next_part = 1 + max(numbers, default=-1)
        if tensorboard:
            self._tensorboard = _Events(
                workdir, start_step=start_step, start=self._next_part
            )
        if wandb:
            self._wandb = _open_wandb(wandb, workdir, config or {})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers to the row of a step. Not finite ones are written as null."""
        if not self._write:
            return
        waited = time.monotonic() - self._flushed
        if step not in self._rows and waited > self._flush_seconds:
            self.flush()
        row = self._rows.setdefault(step, {"step": step})
        if self._wandb is not None:
            self._wandb.log({**values, "step": step})
        for key, value in values.items():
            number = float(value)
            row[key] = number if math.isfinite(number) else None
            if self._tensorboard is not None:
                self._tensorboard.add(step, key, number)

    def flush(self) -> None:
        """Writes the rows since the last flush; without any it writes nothing."""
        self._flushed = time.monotonic()
        if not self._rows:
            return
        text = "".join(
            json.dumps(row, allow_nan=False) + "\n" for row in self._rows.values()
        )
        name = f"part-{self._next_part:06d}.jsonl"
        files.write_bytes(self._folder / name, text.encode())
        self._next_part += 1
        self._rows = {}
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


@contextlib.contextmanager
def _seeming_absent(*packages: str) -> Iterator[None]:
    """Makes imports of packages fail, unless they were imported before.

    tensorboardX imports these where they are installed, to log tensors and to write to
    s3://, neither of which is done here; torch takes two seconds.
    """
    modules: Any = sys.modules
    hidden = [name for name in packages if name not in modules]
    modules.update(dict.fromkeys(hidden))  # None makes an import fail
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


class _Events:
    """TensorBoard's file of one start, in WORKDIR/tensorboard.

    Each event is written at once: a flush leaves nothing in a queue. The file is
    appended to, which gs:// does not know: there a local file is uploaded whole at each
    flush. It grows by about 60 bytes a number.

    Args:
        workdir: of the run.
        start_step: steps done; what a killed run wrote of later ones is hidden.
        start: number of this start, in the file's name: two may begin in one second.
    """

    def __init__(self, workdir: str, *, start_step: int, start: int) -> None:
        with _seeming_absent("torch", "boto3"):
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2

        self._new_event, self._scalar = event_pb2.Event, summary.scalar
        self._final = files.path(workdir) / "tensorboard"
        self._staging = None
        folder = Path(str(self._final))
        if files.is_local(workdir):
            folder.mkdir(parents=True, exist_ok=True)
        else:
            self._staging = tempfile.TemporaryDirectory()
            folder = Path(self._staging.name)
        self._writer = event_file_writer.EventsWriter(
            str(folder / "events"), filename_suffix=f".{start}"
        )
        log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(
            event_pb2.Event(step=start_step + 1, wall_time=time.time(), session_log=log)
        )

    def add(self, step: int, key: str, number: float) -> None:
        value = self._scalar(key, number)
        self._writer.write_event(
            self._new_event(step=step, wall_time=time.time(), summary=value)
        )

    def flush(self) -> None:
        self._writer.flush()
        if self._staging is not None:
            for events in Path(self._staging.name).iterdir():
                files.write_bytes(self._final / events.name, events.read_bytes())

    def close(self) -> None:
        self._writer.close()
        if self._staging is not None:
            self._staging.cleanup()


class Meter:
    """Measures rates, waits and losses of training.

    It shows a progress line, keeps the device at most `steps_ahead` steps behind, and
    counts steps that were skipped because their numbers were not finite.
    """

    def __init__(
        self,
        totals: Totals,
        *,
        workdir: str,
        start_step: int,
        total_steps: int,
        global_batch: int,
        max_skipped_steps: int,
        steps_ahead: int,
        model_flops: int = 0,
        peak_flops: float | None = None,
        show: bool,
    ) -> None:
        """Starts the clock.

        Args:
            totals: of all processes; counted further in place.
            workdir: where the images of skipped steps are written down.
            start_step: steps done.
            total_steps: where the progress line ends.
            global_batch: examples a step.
            max_skipped_steps: this many in a row end the run.
            steps_ahead: how many steps may be under way on the device.
            model_flops: FLOPs of a step, over all chips, without recomputation.
            peak_flops: of a chip, a second; None = unknown.
            show: whether this process shows the line.
        """
        self._totals = totals
        self._own = Totals()  # what this process lost since the last `sum_up`
        self._workdir = workdir
        self._step = start_step
        self._global_batch = global_batch
        self._max_skipped_steps = max_skipped_steps
        self._steps_ahead = steps_ahead
        self._model_flops = model_flops
        self._peak_flops = peak_flops
        self._ahead: collections.deque[tuple[int, jax.Array, np.ndarray]] = (
            collections.deque()
        )
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            desc="train",
            unit="step",
            disable=not show,
            # A log file gets a line now and then, a terminal a lively one.
            mininterval=0.2 if sys.stderr.isatty() else 10,
        )
        self._start_interval()

    def _start_interval(self) -> None:
        self._since = time.monotonic()
        self._since_step = self._step
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Times a wait for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Awaits all steps, then leaves what is not training out of the rates."""
        self.settle()
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    def add(
        self,
        step: int,
        measured: Mapping[str, jax.Array],
        image_ids: np.ndarray,
        losses: pipeline.Losses,
    ) -> None:
        """Takes a step that was handed to the device, and awaits earlier ones.

        `image_ids`, bytes[b], are those of this process; they are written down if the
        step turns out to be skipped. `losses` are those of the rows that this process
        owns.

        Raises:
            FloatingPointError: too many steps in a row were not finite.
        """
        self._step = step
        self._own.add_losses(losses)
        self._ahead.append((step, measured["skipped"], image_ids))
        while len(self._ahead) > self._steps_ahead:
            self._await_one()
        self._bar.update()

    def settle(self) -> None:
        """Awaits all steps."""
        while self._ahead:
            self._await_one()

    def sum_up(self) -> None:
        """Makes the totals those of this step and of all processes.

        All processes must call it at the same steps.
        """
        self.settle()
        for lost in runtime.gather(self._own.as_json()):
            self._totals.add(Totals.from_json(lost))
        self._own = Totals()

    def row(self, measured: Mapping[str, jax.Array]) -> dict[str, float]:
        """Returns the newest step's numbers, the totals, and rates since the last row.

        `data_wait` is the share of time spent waiting for data. The model's FLOPs per
        second do not count what rematerialisation recomputes. Their share of the chip's
        peak, `model_flops_utilisation`, is missing if the peak is unknown. All
        processes must call it at the same steps.
        """
        row = {key: float(value) for key, value in jax.device_get(measured).items()}
        del row["skipped"]
        self.sum_up()
        seconds = max(time.monotonic() - self._since, 1e-9)
        steps, chips = self._step - self._since_step, jax.device_count()
        examples = steps * self._global_batch
        flops = steps * self._model_flops / seconds / chips
        row["examples_seen"] = float(self._step * self._global_batch)
        row.update(self._totals.numbers())
        row["examples_per_second"] = examples / seconds
        row["examples_per_second_per_chip"] = examples / seconds / chips
        row["model_teraflops_per_second_per_chip"] = flops / 1e12
        if self._peak_flops:
            row["model_flops_utilisation"] = flops / self._peak_flops
        row["data_wait"] = self._waited / seconds
        self._start_interval()
        self._bar.set_postfix_str(
            f"loss {row['loss']:.3f}, {row['examples_per_second']:.0f} examples/s,"
            f" {row['data_wait']:.0%} waiting for data",
            refresh=False,
        )
        return row

    def close(self) -> None:
        """Ends the progress line."""
        self._bar.close()

    def _await_one(self) -> None:
        step, flag, image_ids = self._ahead.popleft()
        skipped = bool(jax.device_get(flag))
        if skipped:
            write_skipped(self._workdir, step, image_ids)
        self._totals.add_step(skipped=skipped)
        in_a_row = self._totals.skipped_in_a_row
        if skipped and in_a_row >= self._max_skipped_steps:
            raise FloatingPointError(
                f"loss, gradient or parameters were not finite in {in_a_row} steps in"
                f" a row, up to step {step}; wanted fewer than max_skipped_steps="
                f"{self._max_skipped_steps}. Lower optimizer.peak_lr, lengthen"
                " optimizer.warmup_steps, or look at the images of these steps: their"
                f" ids are in {self._workdir}/metrics/skipped"
            )


def write_skipped(workdir: str, step: int, image_ids: np.ndarray) -> None:
    """Writes down which images, bytes[b], this process had in a step that was skipped.

    WORKDIR/metrics/skipped/STEP-PROCESS.json: {"step", "image_ids"}.
    """
    name = f"{step:08d}-{jax.process_index():05d}.json"
    ids = [image_id.decode() for image_id in image_ids.tolist()]
    path = files.path(workdir) / "metrics" / "skipped" / name
    files.write_json(path, {"step": step, "image_ids": ids})


def check_wandb(project: str) -> None:
    """Refuses a project name where Weights & Biases is not installed; "" is none.

    Raises:
        ValueError: there is no package wandb.
    """
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"config.wandb={project!r} needs the package wandb: pip install wandb, or"
            " leave the key empty"
        )


def _open_wandb(project: str, workdir: str, config: Mapping[str, Any]) -> Any:
    """Starts or resumes the workdir's run at Weights & Biases, and returns it."""
    check_wandb(project)
    wandb = importlib.import_module("wandb")
    name = str(files.path(workdir))
    run = wandb.init(
        project=project,
        id=hashlib.sha256(name.encode()).hexdigest()[:16],
        resume="allow",
        name=name,
        config=dict(config),
        dir=name if files.is_local(workdir) else tempfile.gettempdir(),
    )
    # A resumed run repeats the steps after its checkpoint.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
