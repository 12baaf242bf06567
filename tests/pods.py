"""Training runs of several processes on this machine, as on the hosts of a pod."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from metaclip_jax.data import tokenizer
from tests import stopping, waiting

ROOT = Path(__file__).resolve().parents[1]
STEPS, SAVED, DEVICES = 12, 6, 4  # a step of two processes takes a second

RECIPE = """
from metaclip_jax import config as keys

def get_config():
    config = keys.default()
    config.dataset = "{place}/dataset"
    config.tokenizer = "{place}/tokenizer.json"
    config.global_batch = 32
    config.total_steps = {steps}
    config.log_every_steps = 1
    config.checkpoint_every_steps = {saved}
    config.checkpoint.keep_last = 100
    config.image_size = 16
    config.dtype = "float32"
    config.mesh.fsdp = 2
    config.mesh.tensor = 1
    config.loss_form = "ring"
    config.tensorboard = False
    config.model.patch_size = 8
    config.model.vision_width = 32
    config.model.vision_layers = 2
    config.model.vision_heads = 2
    config.model.text_width = 32
    config.model.text_layers = 2
    config.model.text_heads = 2
    config.model.context_length = 12
    config.model.embed_dim = 32
    config.optimizer.warmup_steps = {steps} - 1  # up to here, total_steps says nothing
    config.data.read_threads = 1
    return config.lock()
"""


def prepare(folder, write_dataset, *, place=None):
    """Writes a dataset with damaged images, a tokenizer and a recipe.

    The recipe reads them from `place`: `folder`, or where they are copied.
    """
    write_dataset(
        folder / "dataset",
        record_count=100,
        images={3: b"no image", 60: b"no image", 97: b"no image"},
        texts={n: ("word " * 40,) for n in (5, 41, 77)},
    )
    texts = [f"picture {n} told as {n % 3}" for n in range(100)]
    (folder / "tokenizer.json").write_text(tokenizer.train(texts, 560).to_str())
    recipe = RECIPE.format(place=place or folder, steps=STEPS, saved=SAVED)
    (folder / "recipe.py").write_text(recipe)


def start(
    folder,
    workdir,
    *flags,
    limit: str = "",
    stops=None,
    code: str = "",
    environment: Mapping[str, str] = os.environ,
):
    """Starts training; `limit` is a command of the shell before it.

    `code` is Python that gets the flags and trains, in place of the command.
    """
    place = workdir if "://" in workdir else folder / workdir
    flags = (f"--config={folder}/recipe.py", f"--workdir={place}", *flags)
    command = [sys.executable, "-m", "metaclip_jax.train", *flags]
    if code:
        command = [sys.executable, "-c", code, *flags]
    if stops:
        command = stopping.command("metaclip_jax.train", *flags, **stops)
    return subprocess.Popen(
        ["bash", "-c", f'{limit} exec "$@"', "train", *command],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # with its children, so that they can be counted
    )


def start_all(folder, workdir, *, processes: int = 1, flags=(), **values):
    """Starts the processes of a run, which share `DEVICES`."""
    devices = f"--config.cpu_devices={DEVICES // processes}"
    with socket.create_server(("127.0.0.1", 0)) as free:
        coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    peers = [coordinator, f"--process_count={processes}"] if processes > 1 else []
    return [
        start(
            folder,
            workdir,
            *(devices, *peers, f"--process_index={index}", *flags),
            **values,
        )
        for index in range(processes)
    ]


def ends(started):
    """Returns exit statuses and what was written, by process, once all have ended."""
    output = [process.communicate(timeout=waiting.SECONDS)[0] for process in started]
    return [process.returncode for process in started], output


def run(folder, workdir, **values):
    """Returns exit statuses and what was written, by process."""
    return ends(start_all(folder, workdir, **values))


def is_gone(process) -> bool:
    """Whether the process has ended and all its children."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False
