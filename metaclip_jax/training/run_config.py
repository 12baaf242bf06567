"""The config of a run in its workdir, which shows whether a restart is the same run.

WORKDIR/config.json is the resolved config, tokenizer.json a copy of the tokenizer, and
manifest.json is there once all steps are done.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, NoReturn

from etils import epath
from ml_collections import ConfigDict

from metaclip_jax import config as keys
from metaclip_jax import files
from metaclip_jax.cli import ranges

TOKENIZER = "tokenizer.json"
# A run may go on with other values of these keys; an entry that ends in "." means all
# keys under it. The data and the tokenizer may move but not change, which `restore`
# checks. A new total_steps also stretches the rest of the learning-rate schedule.
FREE_KEYS = (
    "total_steps",
    "log_every_steps",
    "checkpoint_every_steps",
    "eval_every_steps",
    "max_skipped_steps",
    "dataset",
    "tokenizer",
    "vocabulary",
    "init_from",
    "loss_form",
    "loss_chunk",
    "microbatches",
    "cpu_devices",
    "compilation_cache",
    "mesh.",
    "model.attention",
    "model.layer_norm",
    "model.remat",
    "model.unroll",
    "model.chunk",
    "data.mixture",
    "data.max_replaced_share",
    "data.read_threads",
    "data.worker_count",
    "data.prefetch",
    "data.device_prefetch",
    "checkpoint.",
    "tensorboard",
    "wandb",
    "profile.",
    "evaluation.",
)
_RUN_KEY = "seed"  # a key of every run's config, and of no model's


def claim(
    workdir: str, config: Mapping[str, Any], *, write: bool, tokenizer: str = ""
) -> None:
    """Claims the workdir for this run, or checks that it is this run's.

    Writes config.json. An existing one must agree with `config` in all keys outside
    FREE_KEYS.

    Args:
        workdir: local or gs://.
        config: the resolved config, a JSON object.
        tokenizer: contents of its tokenizer.json; with its own copy a run can be moved
            and loaded from anywhere. "" = none is written.
        write: whether this process writes (one of all processes does).

    Raises:
        ValueError: the workdir belongs to a run with another config; names the keys. Or
            it holds something else, such as a dataset or a model.
    """
    path = files.path(workdir) / "config.json"
    mine = _flat_json(config)
    if path.exists():
        with files.naming(path, "the config of a run"):
            theirs = dict(ranges.flat(files.read_json(path)))
        if _RUN_KEY not in theirs:
            _refuse(path)
        # Keys that are newer than the run had their default.
        default = _flat_json(keys.default().to_dict())
        theirs |= {k: default[k] for k in mine if k not in theirs and k in default}
        different = [
            key
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key) and not _is_free(key)
        ]
        if different:
            listed = "; ".join(
                f"{key}: wanted {mine.get(key)!r}, found {theirs.get(key)!r}"
                for key in different
            )
            raise ValueError(
                f"{workdir} belongs to a run with another config: {listed}. Choose"
                " another --workdir, or give these keys the values found"
            )
    else:
        for name in (files.MANIFEST, files.CLAIM):
            if path.with_name(name).exists():
                _refuse(path.with_name(name))
    if write:
        if tokenizer:
            files.write_bytes(path.with_name(TOKENIZER), tokenizer.encode())
        files.write_json(path, config)


def _refuse(path: epath.Path) -> NoReturn:
    raise ValueError(
        f"wanted a new or empty workdir, or that of a run, got {path.parent}, which"
        f" holds something else ({path.name}); choose another folder"
    )


def read(workdir: str) -> ConfigDict:
    """Reads a run's config; keys that are newer than the run have their default.

    Raises:
        FileNotFoundError: the workdir holds no run.
        ValueError: its config is damaged; names the keys.
    """
    path = files.path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{workdir} holds no run: wanted {path}, as metaclip_jax.train writes it;"
            " correct the path"
        )
    config = keys.default()
    with config.unlocked(), files.naming(path, "the config of a run"):
        held = files.read_json(path)
        _check_form(held, config.to_dict())
        config.update(ConfigDict(held, convert_dict=True))
        keys.check(config)
    return config.lock()


def tokenizer_path(workdir: str, config: ConfigDict) -> str:
    """Returns the run's own copy of its tokenizer; an older run names another file."""
    own = files.path(workdir) / TOKENIZER
    return os.fspath(own) if own.exists() else config.tokenizer


def write_finished(workdir: str, *, step: int, inputs: Mapping[str, Any]) -> None:
    """Marks the run as finished after `step` steps on these inputs."""
    files.write_manifest(workdir, inputs=inputs, step=step)


def clear_finished(workdir: str) -> None:
    """Removes the mark of a run that goes on to more steps."""
    path = files.path(workdir) / files.MANIFEST
    if path.exists():
        path.unlink()


def _check_form(held: Any, wanted: Mapping[str, Any], name: str = "it") -> None:
    """Refuses a value in the place of an object, or an object in that of a value."""
    if not isinstance(held, dict):
        raise ValueError(f"wanted {name} to be an object, got {str(held)[:100]}")
    for key, value in held.items():
        if isinstance(wanted.get(key), dict):
            _check_form(value, wanted[key], key)
        elif isinstance(value, dict) and key in wanted:
            raise ValueError(f"wanted {key} to be a value, got an object")


def _flat_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values by dotted key as JSON has them: tuples are lists."""
    return dict(ranges.flat(json.loads(json.dumps(config))))


def _is_free(key: str) -> bool:
    return any(
        key.startswith(free) if free.endswith(".") else key == free
        for free in FREE_KEYS
    )
