"""Trains CLIP: from a dataset folder to checkpoints and metrics in a workdir.

    python -m metaclip_jax.train --config=configs/quickstart.py --workdir=RUN

Run again, it continues from the newest checkpoint as if it had never stopped; once all
steps are done it ends at once. SIGTERM saves a checkpoint and ends with status 0.
Several processes: the same command on each, with --coordinator=auto on TPU pods, under
Slurm and in a JobSet, or --coordinator=HOST:PORT --process_count=N --process_index=I.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import orbax.checkpoint as ocp
from absl import flags, logging
from ml_collections import ConfigDict

from metaclip_jax import config as keys
from metaclip_jax import files
from metaclip_jax.cli import command, config_flag
from metaclip_jax.data import pipeline, workers
from metaclip_jax.evaluation import in_training
from metaclip_jax.training import (
    checkpoint,
    feed,
    flops,
    metrics,
    program,
    run_config,
    runtime,
    sharding,
    train_state,
    watchdog,
)
from metaclip_jax.training.job import Job, new_state, prepare, resume
from metaclip_jax.training.meter import Meter
from metaclip_jax.training.totals import Totals

# Steps that an accelerator may have ahead: it never waits for Python, and does not
# hoard batches. On CPU each step is awaited: several under way can hang in collectives.
_STEPS_AHEAD = 2

StepFunction = Callable[..., tuple[train_state.TrainState, dict[str, jax.Array]]]


def train(config: ConfigDict, workdir: str, prefetcher: workers.Prefetcher) -> None:
    """Trains to config.total_steps, or until SIGTERM.

    Raises:
        ValueError: what is asked for does not fit together, or does not fit what the
            workdir holds; found before anything is compiled.
        FloatingPointError: config.max_skipped_steps steps in a row were not finite.
    """
    job = prepare(config, workdir)
    chief = jax.process_index() == 0
    claim = functools.partial(
        run_config.claim, workdir, config.to_dict(), tokenizer=job.tokenizer.to_json()
    )
    claim(write=False)
    done = checkpoint.latest_step(workdir)
    if done is not None and done >= config.total_steps:
        finish(workdir, job, step=done)
        return
    mesh = job.program.mesh

    with contextlib.ExitStack() as stack:
        stop_wanted = stack.enter_context(runtime.stop_on_sigterm())
        watchdog.alive("looking for a checkpoint", starts=True)
        manager = stack.enter_context(
            checkpoint.open_manager(
                workdir,
                keep_last=config.checkpoint.keep_last,
                keep_every_steps=config.checkpoint.keep_every_steps,
                keep_best=config.checkpoint.keep_best,
            )
        )
        resumed = resume(job, config, manager, workdir)
        start = resumed.step if resumed else 0
        batches = open_batches(job, prefetcher, start_step=start)
        stack.callback(batches.close)
        _, job, state, totals = resumed or new_state(job, config)
        scores_of = make_measure(job, config)
        # Write only now, so that a refused config leaves no workdir.
        claim(write=chief)
        if chief:
            run_config.clear_finished(workdir)
        on_devices = feed.feed_devices(mesh, batches, ahead=config.data.device_prefetch)
        step_function, compile_seconds = compile_step(job, config)
        writer = stack.enter_context(open_writer(config, workdir, start_step=start))
        meter = stack.enter_context(
            open_meter(job, config, workdir, totals, start_step=start)
        )
        trace_step = stack.enter_context(
            runtime.profiler(
                workdir,
                first_step=config.profile.first_step,
                last_step=config.profile.last_step,
                settle=meter.settle,
                write=chief,
            )
        )

        for step in range(start + 1, config.total_steps + 1):
            trace_step(step)
            watchdog.alive(f"waiting for the batch of step {step:,}")
            with meter.waiting():
                batch = next(on_devices)
            state, measured = take_step(step_function, step, state, batch.arrays)
            meter.add(step, measured, batch.image_ids, batch.losses)

            stop, last = stop_wanted(step), step == config.total_steps
            scores: dict[str, float] = {}
            if last or due(step, config.log_every_steps):
                manager.check_for_errors()  # of a save in the background
                writer.write(step, meter.row(measured) | batches.progress(step))
                if compile_seconds:
                    writer.write(step, {"compile_seconds": compile_seconds})
                    compile_seconds = 0.0
            if scores_of and (last or due(step, config.eval_every_steps)):
                with meter.paused():
                    scores = scores_of(state.params)
                    writer.write(step, scores)
            if stop or last or due(step, config.checkpoint_every_steps):
                with meter.paused():
                    meter.sum_up()
                    # Flush rows first: a checkpoint must never exist without them.
                    writer.flush()
                    if chief:
                        totals.write_replaced(workdir)
                    save(job, config, manager, step, state, totals, scores)
            if stop and not last:
                logging.info("asked to stop: saved step %d", step)
                return
    finish(workdir, job, step=config.total_steps)


def open_batches(
    job: Job, prefetcher: workers.Prefetcher, *, start_step: int
) -> pipeline.Batches:
    """Returns the rows of each batch that this process reads."""
    mesh, global_batch = job.program.mesh, job.data.global_batch
    return pipeline.batches(
        job.data,
        job.tokenizer,
        start_step=start_step,
        rows=sharding.process_run(mesh, global_batch),
        owned=sharding.owned_rows(mesh, global_batch),
        prefetcher=prefetcher,
    )


def compile_step(job: Job, config: ConfigDict) -> tuple[StepFunction, float]:
    """Compiles (state, batch) -> (state, metrics); also returns the seconds it took."""
    watchdog.alive("compiling the step", starts=True)
    start = time.monotonic()
    compiled = program.lower(job.program, config).compile()
    seconds = time.monotonic() - start
    size = job.program.mesh.size
    logging.info("compiled the step for %d devices in %.1f s", size, seconds)
    return compiled, seconds


def take_step(
    step_function: StepFunction,
    number: int,
    state: train_state.TrainState,
    arrays: Mapping[str, jax.Array],
) -> tuple[train_state.TrainState, dict[str, jax.Array]]:
    """Hands a step to the devices; an implicit transfer to them is an error."""
    watchdog.alive(f"computing step {number:,}")
    with (
        jax.profiler.StepTraceAnnotation("train", step_num=number),
        jax.transfer_guard("disallow"),
    ):
        return step_function(state, arrays)


@contextlib.contextmanager
def open_writer(
    config: ConfigDict, workdir: str, *, start_step: int
) -> Iterator[metrics.Writer]:
    """Opens the writer of metrics; only one process writes."""
    writer = metrics.Writer(
        workdir,
        start_step=start_step,
        tensorboard=config.tensorboard,
        wandb=config.wandb,
        config=config.to_dict(),
        write=jax.process_index() == 0,
    )
    with contextlib.closing(writer):
        yield writer


@contextlib.contextmanager
def open_meter(
    job: Job,
    config: ConfigDict,
    workdir: str,
    totals: Totals,
    *,
    start_step: int,
) -> Iterator[Meter]:
    """Opens the meter of this process's steps."""
    meter = Meter(
        totals,
        workdir=workdir,
        start_step=start_step,
        total_steps=config.total_steps,
        global_batch=config.global_batch,
        max_skipped_steps=config.max_skipped_steps,
        steps_ahead=0 if jax.default_backend() == "cpu" else _STEPS_AHEAD,
        model_flops=program.model_flops(job.program, config),
        peak_flops=flops.peak(jax.devices()[0]),
        show=jax.process_index() == 0,
    )
    with contextlib.closing(meter):
        yield meter


def make_measure(job: Job, config: ConfigDict) -> in_training.Measure | None:
    """Returns parameters -> metrics of the evaluation, None where not wanted."""
    if not config.eval_every_steps:
        return None
    return in_training.make_measure(
        architecture=job.program.architecture,
        tokenizer=job.tokenizer,
        preprocess=job.preprocess,
        mesh=job.program.mesh,
        batch=config.evaluation.batch,
        held_out=config.evaluation.held_out,
        task_names=config.evaluation.tasks,
        data_dir=config.evaluation.data_dir,
        best=config.checkpoint.keep_best,
    )


def due(step: int, every_steps: int) -> bool:
    """Whether something that happens every so many steps (0 = never) happens now."""
    return every_steps > 0 and step % every_steps == 0


def save(
    job: Job,
    config: ConfigDict,
    manager: ocp.CheckpointManager,
    step: int,
    state: train_state.TrainState,
    totals: Totals,
    scores: Mapping[str, float],
) -> None:
    """Starts to write a checkpoint, in the background."""
    watchdog.alive(f"saving step {step:,}")
    meta = checkpoint.describe(
        architecture=job.program.architecture,
        preprocess=job.preprocess,
        inputs=job.inputs,
        config=config.to_dict(),
        totals=totals.as_json(),
    )
    checkpoint.save(manager, step, state, meta=meta, scores=scores)


def finish(workdir: str, job: Job, *, step: int) -> None:
    """Marks the run as finished, after checking that it is this run, and sound.

    Raises:
        FloatingPointError: the last steps were not finite, so the model may not work.
    """
    meta = checkpoint.read_meta(workdir, step)
    checkpoint.check_inputs(workdir, want=job.inputs, got=meta["inputs"])
    skipped = Totals.from_json(meta["totals"]).skipped_in_a_row
    if skipped:
        raise FloatingPointError(
            f"wanted a last step with a finite loss, got {skipped} of {step} steps at"
            f" the end of {workdir} that were not: it is not marked as finished. Its"
            " last checkpoint has the parameters before them. Train anew with a lower"
            " optimizer.peak_lr or a longer optimizer.warmup_steps, or go on from here"
            " with a higher total_steps"
        )
    if jax.process_index() == 0:
        run_config.write_finished(workdir, step=step, inputs=job.inputs)
    logging.info("%s is finished: %d steps are done", workdir, step)


def main(argv: Sequence[str]) -> None:
    """Trains from the command line."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    config: ConfigDict = values.config
    keys.check(config)  # also here, before any process is started
    runtime.set_up_logging()
    with workers.Prefetcher(  # before JAX, which starts threads
        worker_count=config.data.worker_count, prefetch=config.data.prefetch
    ) as prefetcher:
        runtime.start_jax(
            cpu_devices=config.cpu_devices,
            compilation_cache=config.compilation_cache,
            coordinator=values.coordinator,
            process_count=values.process_count,
            process_index=values.process_index,
            wait_seconds=values.wait_seconds,
        )
        # One writer a workdir; the other processes of this run write through Orbax.
        alone = jax.process_index() == 0
        locked = files.lock(values.workdir) if alone else contextlib.nullcontext()
        full = files.naming_full_disk(values.workdir)
        watched = watchdog.watch(values.stall_seconds)
        with runtime.fail_with_peers(), full, locked, watched:
            train(config, values.workdir, prefetcher)


def define_flags(to: flags.FlagValues) -> None:
    """Defines the flags of the command line; importing this module defines none."""
    text = functools.partial(flags.DEFINE_string, flag_values=to)
    number = functools.partial(flags.DEFINE_integer, flag_values=to)
    config_flag.define(keys.RANGES, flag_values=to)
    text("workdir", None, "Folder of the run, local or gs://.")
    text("coordinator", "", '"auto" or HOST:PORT; "" = one process.')
    number("process_count", 1, "Processes, with HOST:PORT.", lower_bound=1)
    number("process_index", 0, "This process, with HOST:PORT.", lower_bound=0)
    number("wait_seconds", 300, "How long to wait for the others.", lower_bound=1)
    number(
        "stall_seconds",
        3_600,
        "End, to be started again, if a step takes longer; 0 = never. What comes before"
        " the first step may take an hour.",
        lower_bound=0,
    )
    flags.mark_flags_as_required(["config", "workdir"], flag_values=to)
    # Otherwise each process would train alone, or wait forever.
    flags.register_multi_flags_validator(
        ["coordinator", "process_count", "process_index"],
        lambda got: (
            got["process_index"] < got["process_count"]
            and (got["process_count"] == 1 or ":" in got["coordinator"])
        ),
        "wanted process_index below process_count, and HOST:PORT as the coordinator of"
        " several processes",
        flag_values=to,
    )


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    command.run(main)
