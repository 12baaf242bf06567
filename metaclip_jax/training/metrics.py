"""Writes a run's metrics: JSON lines in immutable parts, TensorBoard, W&B.

WORKDIR/metrics/part-NNNNNN.jsonl holds one object a line with `step` and numbers. A
part is written whole and never again; each flush makes a new one. A resumed run writes
the steps after its checkpoint once more, and the last row of a step wins.
"""

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

from metaclip_jax import files, metric_rows

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
