"""A run before its first step: what it trains, checked, and the state it begins with.

The state is a new one, that of another model (config.init_from), or the newest
checkpoint of the workdir.
"""

from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from ml_collections import ConfigDict

from metaclip_jax import config as keys
from metaclip_jax.data import mixture
from metaclip_jax.data.images import Preprocess
from metaclip_jax.data.options import DataOptions
from metaclip_jax.data.tokenizer import Tokenizer
from metaclip_jax.inference import loading
from metaclip_jax.models import clip
from metaclip_jax.training import checkpoint, metrics, program, train_state
from metaclip_jax.training.program import Program
from metaclip_jax.training.totals import Totals


class Job(NamedTuple):
    """What is trained, how, on what and where; all checked, nothing compiled."""

    program: Program
    data: DataOptions
    tokenizer: Tokenizer
    preprocess: Preprocess  # of images when the model is evaluated
    inputs: dict[str, str]  # fingerprints of the dataset and the tokenizer


class Start(NamedTuple):
    """What training starts with; `job` has the preprocessing of a loaded model."""

    step: int  # steps done
    job: Job
    state: train_state.TrainState
    totals: Totals


def prepare(config: ConfigDict, workdir: str) -> Job:
    """Loads and checks what the run needs; `pipeline.batches` checks the datasets."""
    keys.check(config)
    metrics.check_wandb(config.wandb)
    data = DataOptions.from_config(config, shared_folder=f"{workdir}/online")
    tokenizer = program.load_tokenizer(config)
    asked = program.make(config, **program.token_ids(tokenizer))
    return Job(
        program=asked,
        data=data,
        tokenizer=tokenizer,
        preprocess=loading.default_preprocess(asked.architecture),
        inputs={
            "dataset": mixture.fingerprint(data.folders, data.weights),
            "tokenizer": tokenizer.fingerprint,
        },
    )


def resume(
    job: Job, config: ConfigDict, manager: ocp.CheckpointManager, workdir: str
) -> Start | None:
    """Returns the newest checkpoint; None if there is none.

    With config.checkpoint.fallback, damaged ones are skipped, and removed once an older
    one is read.

    Raises:
        DamagedError: the newest checkpoint is damaged, or all are.
        ValueError: it is of another model, dataset or tokenizer.
    """
    saved = checkpoint.steps(workdir)
    for step in reversed(saved):
        try:
            state, meta = checkpoint.restore(
                workdir,
                manager,
                step,
                target=program.abstract_state(job.program),
                architecture=job.program.architecture,
                inputs=job.inputs,
            )
        except checkpoint.DamagedError as error:
            # If reading failed, and no checksum, other processes may have succeeded.
            alone = error.__cause__ is not None and jax.process_count() > 1
            if alone or step == saved[0] or not config.checkpoint.fallback:
                raise
            logging.error("%s", error)
            continue
        for damaged in (later for later in saved if later > step):
            logging.error("removing the damaged checkpoint of step %d", damaged)
            manager.delete(damaged)
        logging.info("%s goes on from step %d", workdir, step)
        job = job._replace(preprocess=checkpoint.preprocess_of(meta))
        return Start(step, job, state, Totals.from_json(meta["totals"]))
    return None


def new_state(job: Job, config: ConfigDict) -> Start:
    """Returns the state before the first step: new, or from config.init_from."""
    state = train_state.create(
        architecture=job.program.architecture,
        optimizer=job.program.optimizer,
        mesh=job.program.mesh,
        seed=config.seed,
    )
    if config.init_from:
        params, preprocess = initial_params(job, config)
        state = state._replace(params=params)
        job = job._replace(preprocess=preprocess)
    return Start(0, job, state, Totals())


def initial_params(job: Job, config: ConfigDict) -> tuple[clip.Params, Preprocess]:
    """Returns the parameters of config.init_from on the mesh, and its preprocessing.

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
    params = train_state.place(loaded.params, mesh=job.program.mesh)
    return params, loaded.preprocess
