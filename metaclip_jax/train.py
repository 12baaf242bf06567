"""Trains CLIP: from a dataset folder to checkpoints and metrics in a workdir.

    python -m metaclip_jax.train --config=configs/quickstart.py --workdir=RUN

Run again, it goes on from the newest checkpoint as if it had never stopped; once all
steps are done it ends at once. SIGTERM saves a checkpoint and ends with status 0.
Several processes: the same command on each, with --coordinator=auto on TPU pods and
Slurm, or --coordinator=HOST:PORT --process_count=N --process_index=I.
"""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from metaclip_jax import (
    checkpoint,
    evaluate,
    files,
    flops,
    loading,
    metrics,
    program,
    runtime,
    sharding,
    train_state,
)
from metaclip_jax.data import images, mixture, order, pipeline, texts
from metaclip_jax.data import tokenizer as tokenizers
from metaclip_jax.evaluation import held_out as held_outs
from metaclip_jax.models import clip
from metaclip_jax.program import Program

# Steps that an accelerator may have ahead: it never waits for Python, and does not
# hoard batches. On CPU each step is awaited: several under way can hang in collectives.
_STEPS_AHEAD = 2

Measure = Callable[[clip.Params], dict[str, float]]


class OnDevice(NamedTuple):
    """A global batch, or its copy under way, and what is to be said about it."""

    arrays: dict[str, jax.Array]  # image, tokens
    image_ids: np.ndarray  # bytes[b], of this process
    tally: collections.Counter[str]  # what this process had to mend to make it
    progress: dict[str, float]  # how far the datasets are seen after it


class Job(NamedTuple):
    """What is trained, how, on what and where; all checked, nothing compiled."""

    program: Program
    tokenizer: tokenizers.Tokenizer
    inputs: dict[str, str]  # fingerprints of the dataset and the tokenizer


def train(config: ConfigDict, workdir: str, process: runtime.Process) -> None:
    """Trains until config.total_steps steps are done, or until SIGTERM.

    `process` is this one among those of the run.

    Raises:
        ValueError: what is asked for does not fit together, or does not fit what the
            workdir holds; found before anything is compiled.
        FloatingPointError: config.max_skipped_steps steps in a row were not finite.
    """
    chief = process.index == 0
    start = checkpoint.latest_step(workdir) or 0
    with contextlib.ExitStack() as stack:
        stop_wanted = stack.enter_context(runtime.stop_on_sigterm(process))
        # The loader makes batches while JAX looks for devices and compiles.
        batches = stack.enter_context(
            contextlib.closing(open_batches(config, process, start_step=start))
        )
        job = prepare(config, process)
        checkpoint.claim_workdir(
            workdir, config.to_dict(), write=chief, tokenizer=job.tokenizer.to_json()
        )
        if start >= config.total_steps:
            finish(workdir, job, step=start)
            return
        if chief:
            checkpoint.clear_finished(workdir)
        measure = make_measure(job, config)
        manager = stack.enter_context(
            checkpoint.open_manager(
                workdir,
                keep_last=config.checkpoint.keep_last,
                keep_every_steps=config.checkpoint.keep_every_steps,
                keep_best=config.checkpoint.keep_best,
            )
        )
        state, totals = first_state(job, config, manager, workdir, start)
        mesh = job.program.mesh
        feed = feed_devices(mesh, batches, ahead=config.data.device_prefetch)
        step_function, compile_seconds = compile_step(job, config)
        writer = stack.enter_context(open_writer(config, workdir, start_step=start))
        meter = stack.enter_context(
            open_meter(job, config, workdir, totals, start_step=start)
        )
        next_is = stack.enter_context(
            runtime.profiler(
                workdir,
                first_step=config.profile.first_step,
                last_step=config.profile.last_step,
                settle=meter.settle,
                write=chief,
            )
        )

        for step in range(start + 1, config.total_steps + 1):
            next_is(step)
            with meter.waiting():
                batch = next(feed)
            with (
                jax.profiler.StepTraceAnnotation("train", step_num=step),
                jax.transfer_guard("disallow"),  # nothing may cross unasked
            ):
                state, measured = step_function(state, batch.arrays)
            meter.add(step, measured, batch.image_ids, batch.tally)

            stop, last = stop_wanted(step), step == config.total_steps
            scores: dict[str, float] = {}
            if last or due(step, config.log_every_steps):
                manager.check_for_errors()  # of a save in the background
                writer.write(step, meter.row(measured) | batch.progress)
                if compile_seconds:
                    writer.write(step, {"compile_seconds": compile_seconds})
                    compile_seconds = 0.0
            if measure and (last or due(step, config.eval_every_steps)):
                with meter.paused():
                    scores = measure(state.params)
                    writer.write(step, scores)
            if stop or last or due(step, config.checkpoint_every_steps):
                with meter.paused():
                    meter.sum_up()
                    # Rows first: where a checkpoint is, the rows before it are too.
                    writer.flush()
                    if chief:
                        metrics.write_replaced(workdir, totals)
                    save(job, config, manager, step, state, totals, scores)
            if stop and not last:
                logging.info("asked to stop: saved step %d", step)
                return
    finish(workdir, job, step=config.total_steps)


def prepare(config: ConfigDict, process: runtime.Process) -> Job:
    """Loads and checks all that the run needs."""
    runtime.check_process(process)
    members = mixture.members(config.dataset, config.data.mixture)
    tokenizer = tokenizers.load(config.tokenizer)
    return Job(
        program=program.make(
            config,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
        ),
        tokenizer=tokenizer,
        inputs={
            "dataset": mixture.fingerprint(*members),
            "tokenizer": tokenizer.fingerprint,
        },
    )


def first_state(
    job: Job, config: ConfigDict, manager: ocp.CheckpointManager, workdir: str, at: int
) -> tuple[train_state.TrainState, collections.Counter[str]]:
    """The state at a step, and what was lost until then: those of its checkpoint.

    At step 0 it is a new state, from config.init_from if that is given.
    """
    if not at:
        state = train_state.create(
            architecture=job.program.architecture,
            optimizer=job.program.optimizer,
            mesh=job.program.mesh,
            seed=config.seed,
        )
        if config.init_from:
            state = state._replace(params=initial_params(job, config))
        return state, collections.Counter()
    state, meta = checkpoint.restore(
        workdir,
        manager,
        at,
        target=program.abstract_state(job.program),
        architecture=job.program.architecture,
        inputs=job.inputs,
    )
    logging.info("%s goes on from step %d", workdir, at)
    return state, collections.Counter(meta["totals"])


def initial_params(job: Job, config: ConfigDict) -> clip.Params:
    """The parameters of config.init_from on the mesh.

    Raises:
        ValueError: they are those of another architecture.
    """
    loaded = loading.load(config.init_from, image_size=config.image_size)
    different = checkpoint.differences(
        want=job.program.architecture, got=loaded.architecture
    )
    if different:
        raise ValueError(
            f"config.init_from={config.init_from!r} is another model:"
            f" {'; '.join(different)}. Give config.model and the tokenizer its values"
        )
    return train_state.place(loaded.params, mesh=job.program.mesh)


def open_batches(
    config: ConfigDict, process: runtime.Process, *, start_step: int
) -> pipeline.Batches:
    """This process's batches from a step on, made ahead from now on, without JAX."""
    data = config.data
    if data.device_prefetch < 0:
        raise ValueError(f"data.device_prefetch={data.device_prefetch} is negative")
    if start_step >= config.total_steps:
        return pipeline.Batches(iter(()))
    return pipeline.batches(
        config.dataset,
        weights=data.mixture,
        tokenizer_path=config.tokenizer,
        global_batch=config.global_batch,
        image_size=config.image_size,
        context_length=config.model.context_length,
        seed=config.seed,
        start_step=start_step,
        total_steps=config.total_steps,
        process_index=process.index,
        process_count=process.count,
        order_blocks=order.check_blocks(
            data.order, records=data.block_records, window=data.window_blocks
        ),
        augmentation=images.Augmentation(
            scale=tuple(data.crop_scale), flip=data.flip, colour=data.colour
        ),
        choice=texts.Choice(
            weights=data.text_source_weights,
            synthetic_sources=data.synthetic_sources,
            synthetic_share=data.synthetic_share,
        ),
        online_t=data.online_t,
        online_tail_share=data.online_tail_share,
        max_replaced_share=data.max_replaced_share,
        worker_count=data.worker_count,
        read_threads=data.read_threads,
        prefetch=data.prefetch,
    )


def feed_devices(
    mesh: Mesh, batches: pipeline.Batches, *, ahead: int
) -> Iterator[OnDevice]:
    """Yields batches on the devices; the copies of the next `ahead` are under way."""
    waiting: collections.deque[OnDevice] = collections.deque()
    for batch in batches:
        arrays = sharding.put_batch(
            mesh, {"image": batch["image"], "tokens": batch["tokens"]}
        )
        waiting.append(
            OnDevice(arrays, batch["image_id"], batches.tally, batches.progress)
        )
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def compile_step(job: Job, config: ConfigDict) -> tuple[jax.stages.Compiled, float]:
    """The compiled (state, batch) -> (state, metrics), and the seconds it took."""
    start = time.monotonic()
    compiled = program.lower(job.program, config).compile()
    seconds = time.monotonic() - start
    size = job.program.mesh.size
    logging.info("compiled the step for %d devices in %.1f s", size, seconds)
    return compiled, seconds


@contextlib.contextmanager
def open_writer(
    config: ConfigDict, workdir: str, *, start_step: int
) -> Iterator[metrics.Writer]:
    """What one of all processes writes metrics with."""
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
    totals: collections.Counter[str],
    *,
    start_step: int,
) -> Iterator[metrics.Meter]:
    """What watches the steps of this process."""
    meter = metrics.Meter(
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


def make_measure(job: Job, config: ConfigDict) -> Measure | None:
    """Returns parameters -> scores on the held-out images, None where not wanted."""
    wanted, best = config.evaluation.held_out, config.checkpoint.keep_best
    if best and not (wanted and config.eval_every_steps):
        raise ValueError(
            f"checkpoint.keep_best={best!r} needs evaluation.held_out and"
            " eval_every_steps"
        )
    if best and config.checkpoint_every_steps % config.eval_every_steps:
        raise ValueError(
            "with checkpoint.keep_best, want checkpoint_every_steps a multiple of"
            f" eval_every_steps={config.eval_every_steps}, got"
            f" {config.checkpoint_every_steps}: a checkpoint is judged when saved"
        )
    if not config.eval_every_steps or not wanted:
        return None
    held_out = held_outs.load_held_out(wanted)
    if best and best not in evaluate.score_names(held_out):
        raise ValueError(
            f"checkpoint.keep_best must be one of {evaluate.score_names(held_out)},"
            f" got {best!r}"
        )
    model = evaluate.make_model(
        architecture=job.program.architecture,
        tokenize=job.tokenizer,
        mesh=job.program.mesh,
        batch=config.evaluation.batch,
    )

    def measure(params: clip.Params) -> dict[str, float]:
        found = evaluate.scores(
            model,
            params,
            held_out,
            evaluate.embed(model, params, held_out),
            bootstrap_samples=1,  # the rows hold no intervals
        )
        return evaluate.flat(found)

    return measure


def due(step: int, every_steps: int) -> bool:
    """Whether something that happens every so many steps (0 = never) happens now."""
    return every_steps > 0 and step % every_steps == 0


def save(
    job: Job,
    config: ConfigDict,
    manager: ocp.CheckpointManager,
    step: int,
    state: train_state.TrainState,
    totals: collections.Counter[str],
    scores: Mapping[str, float],
) -> None:
    """Starts to write a checkpoint, in the background."""
    meta = checkpoint.describe(
        architecture=job.program.architecture,
        inputs=job.inputs,
        config=config.to_dict(),
        totals=dict(totals),
    )
    checkpoint.save(manager, step, state, meta=meta, scores=scores)


def finish(workdir: str, job: Job, *, step: int) -> None:
    """Marks the run as finished, once it is sure that it is this run."""
    meta = checkpoint.read_meta(workdir, step)
    checkpoint.check_inputs(workdir, want=job.inputs, got=meta["inputs"])
    if jax.process_index() == 0:
        checkpoint.write_finished(workdir, step=step, inputs=job.inputs)
    logging.info("%s is finished: %d steps are done", workdir, step)


def main(argv: Sequence[str]) -> None:
    """Trains from the command line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; use --flags")
    values = flags.FLAGS
    config: ConfigDict = values.config
    runtime.log_our_own_notes()
    process = runtime.start_jax(
        cpu_devices=config.cpu_devices,
        compilation_cache=config.compilation_cache,
        coordinator=values.coordinator,
        process_count=values.process_count,
        process_index=values.process_index,
    )
    # One writer a workdir; the other processes of this run write through Orbax only.
    chief = process.index == 0
    with files.lock(values.workdir) if chief else contextlib.nullcontext():
        train(config, values.workdir, process)


if __name__ == "__main__":
    # Here, so that importing this module defines no flags.
    config_flags.DEFINE_config_file("config", help_string="Recipe, configs/NAME.py.")
    flags.DEFINE_string("workdir", None, "Folder of the run, local or gs://.")
    flags.DEFINE_string("coordinator", "", '"auto" or HOST:PORT; "" = one process.')
    flags.DEFINE_integer("process_count", 1, "Processes, with HOST:PORT.")
    flags.DEFINE_integer("process_index", 0, "This process, with HOST:PORT.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
