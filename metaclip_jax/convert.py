"""Writes a model in another library's format.

    python -m metaclip_jax.convert --model=RUN --to=huggingface --output=DIR
    python -m metaclip_jax.convert --model=facebook/metaclip-b32-400m --to=open_clip \\
        --output=DIR

transformers.AutoModel.from_pretrained(DIR) or
open_clip.create_model_and_transforms("local-dir:DIR") opens the folder.
--to=checkpoint writes a workdir from which config.init_from starts training.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging
from etils import epath

from metaclip_jax import config as keys
from metaclip_jax import files
from metaclip_jax.cli import command
from metaclip_jax.conversion import (
    huggingface,
    open_clip,
    processor,
    table,
    weights,
)
from metaclip_jax.inference import loading
from metaclip_jax.models import positions
from metaclip_jax.training import checkpoint, run_config

FORMATS = ("huggingface", "open_clip", "checkpoint")


def convert(loaded: loading.Loaded, to: str, output: str) -> None:
    """Writes a folder with weights, config, preprocessor and tokenizer.

    The format "checkpoint" is a run after 0 steps, without an optimizer's state.

    Args:
      loaded: the model.
      to: one of FORMATS.
      output: folder, local or gs://; new, empty, or with files of this format, which
        are replaced. A local folder is locked while it is written. The config is
        written last, because no library opens a folder without it.

    Raises:
      ValueError: the format is unknown, or does not support this model, or the folder
        has other files.
    """
    if to not in FORMATS:
        raise ValueError(f"wanted --to one of {', '.join(FORMATS)}, got {to!r}")
    if to == "checkpoint":
        with files.lock(output):
            _write_checkpoint(loaded, output)
        return
    theirs = huggingface if to == "huggingface" else open_clip
    rules = theirs.rules(loaded.architecture)
    config = _config(loaded, to)
    root = files.path(output)
    tokenizer_files = _tokenizer_files(loaded)
    with files.lock(output):
        _refuse_others(root, [*tokenizer_files, _CONFIGS[to]])
        weights.write_folder(
            output,
            table.to_theirs(
                loading.flat_params(loaded.params), rules, loaded.architecture
            ),
            name=_WEIGHTS[to],
        )
        for name, content in tokenizer_files.items():
            files.write_bytes(root / name, content.encode())
        if to == "huggingface":
            images = processor.write_huggingface(loaded.preprocess, loaded.architecture)
            files.write_json(root / "preprocessor_config.json", images)
        files.write_bytes(root / "README.md", _card(loaded).encode())
        files.write_json(root / _CONFIGS[to], config)


def _refuse_others(root: epath.Path, names: Sequence[str]) -> None:
    """Refuses a folder that holds more than a converted model."""
    ours = re.compile(
        r"\..*|README\.md|preprocessor_config\.json|.*\.safetensors(\.index\.json)?"
    )
    others = sorted(
        path.name
        for path in (root.iterdir() if root.exists() else ())
        if path.name not in names and not ours.fullmatch(path.name)
    )
    if others:
        raise ValueError(
            f"wanted a new folder, or one with a model of this format, got {root} with"
            f" {', '.join(others[:3])}; choose another --output"
        )


def _write_checkpoint(loaded: loading.Loaded, output: str) -> None:
    if loaded.tokenizer is None:
        raise ValueError(
            f"wanted a model with a tokenizer, got {loaded.name} without; copy its"
            " tokenizer.json into its folder"
        )
    if checkpoint.latest_step(output) is not None:
        raise ValueError(f"{output} holds checkpoints already; choose another folder")
    config = keys.of_architecture(loaded.architecture).to_dict()
    run_config.claim(output, config, write=True, tokenizer=loaded.tokenizer.to_json())
    meta = checkpoint.describe(
        architecture=loaded.architecture,
        preprocess=loaded.preprocess,
        inputs={"tokenizer": loaded.tokenizer.fingerprint},
        config=config,
        licence=loaded.licence,
    )
    params = jax.tree.map(jnp.asarray, loaded.params)
    with checkpoint.open_manager(output, keep_last=1) as manager:
        checkpoint.save(manager, 0, {"params": params}, meta=meta)


_WEIGHTS = {"huggingface": weights.SINGLE, "open_clip": "open_clip_model.safetensors"}
_CONFIGS = {"huggingface": "config.json", "open_clip": "open_clip_config.json"}


def _config(loaded: loading.Loaded, to: str) -> dict[str, Any]:
    if to == "huggingface":
        bos = None if loaded.tokenizer is None else loaded.tokenizer.bos_id
        return huggingface.write_config(loaded.architecture, bos_id=bos)
    preprocess = processor.write_open_clip(loaded.preprocess, loaded.architecture)
    tokenizer = loaded.tokenizer
    own = tokenizer is not None and tokenizer.vocab_size != open_clip.CLIP_VOCABULARY
    return open_clip.write_config(
        loaded.architecture,
        preprocess=preprocess,
        clean_up=tokenizer.clean_up if tokenizer and own else None,
    )


def _tokenizer_files(loaded: loading.Loaded) -> dict[str, str]:
    if loaded.tokenizer is None:
        logging.warning("%s has no tokenizer, so none is written", loaded.name)
        return {}
    return loaded.tokenizer.to_huggingface(loaded.architecture.context_length)


def _card(loaded: loading.Loaded) -> str:
    """Returns a model card whose header has the licence of the weights."""
    head = f"license: {loaded.licence.lower()}\n" if loaded.licence else ""
    return (
        f"---\n{head}library_name: metaclip-jax\n---\n\nConverted from "
        f"`{os.path.basename(loaded.name.rstrip('/'))}` by metaclip-jax "
        f"{files.version()}.\n"
    )


def main(argv: Sequence[str]) -> None:
    """Converts a model from the command line."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    loaded = loading.load(
        values.model,
        preset=values.preset,
        trust_pickle=values.trust_pickle,
        step=values.step,
        image_size=values.image_size,
        position_resize=values.position_resize,
    )
    convert(loaded, values.to, values.output)
    print(f"{values.output}: {values.to} folder of {loaded.name}")


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Folder, hub name, run, or weight file.")
    flags.DEFINE_enum("to", None, FORMATS, "Format to write.")
    flags.DEFINE_string("output", None, "Folder to write.")
    flags.DEFINE_string("preset", "", "Architecture of a weight file.")
    flags.DEFINE_integer(
        "step", None, "Checkpoint of a run; default: the newest.", lower_bound=0
    )
    flags.DEFINE_integer(
        "image_size", None, "Pixels; default: as trained.", lower_bound=1
    )
    flags.DEFINE_enum(
        "position_resize",
        "open_clip",
        positions.CONVENTIONS,
        "How position embeddings are resized for another image size.",
    )
    flags.DEFINE_bool("trust_pickle", False, "Let torch files run their author's code.")
    flags.mark_flags_as_required(["model", "to", "output"])
    command.run(main)
