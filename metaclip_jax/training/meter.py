"""Measures a run as it trains: rates, waits for data, losses, skipped steps."""

import collections
import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from tqdm import tqdm

from metaclip_jax import files
from metaclip_jax.data import pipeline
from metaclip_jax.training import runtime
from metaclip_jax.training.totals import Totals


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
