"""Loads models: Hugging Face and open_clip folders, hub names, weight files, runs."""

import dataclasses
import os
import re
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from metaclip_jax import files
from metaclip_jax.conversion import (
    fields,
    huggingface,
    open_clip,
    processor,
    table,
    weights,
)
from metaclip_jax.data.images import Preprocess
from metaclip_jax.data.tokenizer import Tokenizer
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.models import clip, positions, presets
from metaclip_jax.training import run_config, sharding

METACLIP_LICENCE = "CC-BY-NC-4.0"
# Models on the hub with MetaCLIP's weights.
_METACLIP_NAMES = re.compile(
    r"facebook/metaclip-|ericlewis/metaclip-|cs-giung/clip-vit-base-patch\d+-fullcc"
)
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")
_PROCESSOR = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A loaded model. `params` has clip.init's structure, f32 on the host.

    `architecture.dtype` is the training's, f32 if the source does not say. `licence` is
    "" if the source names none.
    """

    name: str
    architecture: clip.Architecture
    params: clip.Params
    tokenizer: Tokenizer | None
    preprocess: Preprocess
    licence: str = ""


def load(
    source: str | os.PathLike,
    *,
    preset: str = "",
    trust_pickle: bool = False,
    step: int | None = None,
    image_size: int | None = None,
    position_resize: str = "open_clip",
) -> Loaded:
    """Loads a model.

    Args:
      source: a folder of Hugging Face ("clip", "metaclip_2") or open_clip; the workdir
        of a run; a weight file, with `preset`; or a name on the Hugging Face hub.
      preset: architecture of a weight file, which has no config.
      trust_pickle: see `weights.open_weights`.
      step: which checkpoint of a run; None = the newest.
      image_size: pixels; None = as trained. Another size resizes the position
        embeddings.
      position_resize: the convention, see models/positions.py.

    Raises:
      FileNotFoundError: there is no such model.
      ValueError: the model is not supported, or its files are damaged.
    """
    loaded = _load(source, preset=preset, trust_pickle=trust_pickle, step=step)
    if loaded.licence:
        logging.warning(
            "the weights of %s are licensed %s", loaded.name, loaded.licence
        )
    if image_size in (None, loaded.architecture.image_size):
        return loaded
    return resized(loaded, image_size, position_resize)


def resized(loaded: Loaded, image_size: int, convention: str) -> Loaded:
    """Returns the model for another image size in pixels; see models/positions.py."""
    architecture = dataclasses.replace(loaded.architecture, image_size=image_size)
    image = loaded.params["image"]
    table = positions.resize(
        image["position_embedding"],
        patches=(image_size // architecture.patch_size) ** 2,
        convention=convention,
    )
    return dataclasses.replace(
        loaded,
        architecture=architecture,
        params=loaded.params | {"image": image | {"position_embedding": table}},
        preprocess=_scaled(loaded.preprocess, image_size),
    )


def default_preprocess(architecture: clip.Architecture) -> Preprocess:
    """Returns the family's image preprocessing, if the source has none."""
    return Preprocess(architecture.image_size, squash=architecture.family == "siglip")


def _scaled(preprocess: Preprocess, size: int) -> Preprocess:
    shortest = round(preprocess.shortest * size / preprocess.size)
    return preprocess._replace(size=size, shortest=shortest)


def _load(
    source: str | os.PathLike, *, preset: str, trust_pickle: bool, step: int | None
) -> Loaded:
    name = os.fspath(source)
    path = files.path(name)
    if not path.exists():
        if not files.is_local(name):
            raise FileNotFoundError(
                f"wanted a model at {name}, found nothing there; correct the path"
            )
        path = _from_hub(name)
    if (path / "checkpoints").exists():
        return _load_run(name, step)
    is_file = path.is_file()
    architecture, preprocess = _of_file(path, preset) if is_file else _of_folder(path)
    folder = path.parent if is_file else path
    tokenizer = _tokenizer_of(folder, architecture)
    stored = weights.open_weights(path, trust_pickle=trust_pickle)
    return Loaded(
        name=os.fspath(path) if is_file else name,
        architecture=_with_marks(architecture, tokenizer, folder),
        params=read_params(stored, architecture),
        tokenizer=tokenizer,
        preprocess=preprocess,
        licence="" if is_file else _licence(path, name),
    )


def flat_params(params: clip.Params) -> dict[str, Any]:
    """Returns {"image/blocks/ln_1/scale": array, ...}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {sharding.path_name(path): leaf for path, leaf in leaves}


def read_params(
    source: weights.Weights, architecture: clip.Architecture
) -> clip.Params:
    """Reads weights with Hugging Face's or open_clip's names as our parameters.

    Raises:
      ValueError: tensors are missing, left over or of another shape.
    """
    theirs = open_clip if "visual.conv1.weight" in source.names() else huggingface
    shapes = {
        path: leaf.shape
        for path, leaf in flat_params(clip.param_shapes(architecture)).items()
    }
    rows = architecture.vocab_size, architecture.text_width
    params: clip.Params = {}
    for path, leaf in table.to_ours(
        source,
        theirs.rules(architecture),
        architecture,
        ignored=theirs.is_ignored,
        shapes=shapes | {"text/token_embedding": rows},
    ):
        *folders, last = path.split("/")
        into = params
        for folder in folders:
            into = into.setdefault(folder, {})
        into[last] = leaf
    return params


def _of_folder(path: epath.Path) -> tuple[clip.Architecture, Preprocess]:
    config_file = path / "config.json"
    open_clip_file = path / "open_clip_config.json"
    if config_file.exists():
        architecture = huggingface.read_architecture(
            _read_object(config_file), file=os.fspath(config_file)
        )
        preprocess = read_preprocess(path, architecture)
    elif open_clip_file.exists():
        written, file = _read_object(open_clip_file), os.fspath(open_clip_file)
        architecture = open_clip.read_architecture(written, file=file)
        preprocess = processor.read_open_clip(
            fields.section(file, written, "preprocess_cfg"),
            architecture,
            file=f"{file}, preprocess_cfg",
        )
    else:
        raise ValueError(
            f"{path} must be a model, but has neither config.json (Hugging Face) nor "
            "open_clip_config.json nor a run's checkpoints; check the path"
        )
    return architecture, preprocess


def _of_file(path: epath.Path, preset: str) -> tuple[clip.Architecture, Preprocess]:
    if not preset:
        raise ValueError(
            f"{path} is a weight file without a config: give its architecture by "
            f"preset=, one of {', '.join(sorted(presets.PRESETS))}"
        )
    architecture = presets.architecture(preset)
    return architecture, default_preprocess(architecture)


def _load_run(workdir: str, step: int | None) -> Loaded:
    """Loads a checkpoint of a run."""
    from metaclip_jax.training import checkpoint  # a slow import, because of Orbax

    config = run_config.read(workdir)
    step = checkpoint.find_step(workdir, step)
    meta = checkpoint.read_meta(workdir, step)
    architecture = checkpoint.architecture_of(meta)
    tokenizer = load_tokenizer(
        run_config.tokenizer_path(workdir, config), family=architecture.family
    )
    params, _ = checkpoint.restore_params(
        workdir,
        architecture=architecture,
        mesh=None,
        step=step,
        inputs={"tokenizer": tokenizer.fingerprint},
    )
    for leaf_path, leaf in flat_params(params).items():
        if not np.isfinite(leaf).all():
            raise ValueError(
                f"{workdir}, step {step}: {leaf_path} holds NaN or inf; the run"
                " diverged, so give an earlier step"
            )
    return Loaded(
        name=workdir,
        # The execution options were for the run's devices.
        architecture=dataclasses.replace(architecture, attention="xla", remat="none"),
        params=params,
        tokenizer=tokenizer,
        preprocess=checkpoint.preprocess_of(meta),
        licence=meta.get("licence", ""),  # of weights converted to a checkpoint
    )


def _from_hub(name: str) -> epath.Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if name.count("/") != 1:
        raise FileNotFoundError(
            f"wanted a folder, or a name on the Hugging Face hub such as "
            f"facebook/metaclip-b32-400m, got {name}; there is no such folder"
        )
    try:
        return epath.Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
    except (HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"there is no folder {name}, and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}); download "
            "it elsewhere and give the folder"
        ) from error


def read_preprocess(folder: epath.Path, architecture: clip.Architecture) -> Preprocess:
    """Reads the image preprocessing of a Hugging Face folder.

    Like transformers, it prefers the object "image_processor" of processor_config.json,
    which transformers 5 writes, to preprocessor_config.json.

    Raises:
      ValueError: a field has a value that we do not support; the message names it.
    """
    nested, alone = folder / "processor_config.json", folder / _PROCESSOR
    outer = _read_object(nested) if nested.exists() else {}
    if outer.get("image_processor") is not None:
        found = fields.section(os.fspath(nested), outer, "image_processor")
        file = f"{nested}, image_processor"
        return processor.read_huggingface(found, architecture, file=file)
    if alone.exists():
        found = _read_object(alone)
        return processor.read_huggingface(found, architecture, file=os.fspath(alone))
    return default_preprocess(architecture)


def _tokenizer_of(
    folder: epath.Path, architecture: clip.Architecture
) -> Tokenizer | None:
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    found = load_tokenizer(file, family=architecture.family)
    if found.vocab_size > architecture.vocab_size:
        raise ValueError(
            f"{file} must have at most the model's {architecture.vocab_size} tokens,"
            f" got {found.vocab_size}; give this model's tokenizer"
        )
    return found


def _with_marks(
    architecture: clip.Architecture,
    tokenizer: Tokenizer | None,
    folder: epath.Path,
) -> clip.Architecture:
    """Returns the architecture with the tokenizer's marks: configs often have others.

    Raises:
      ValueError: the end marks differ, so the model would pool at a wrong position.
    """
    if tokenizer is None:
        return architecture
    if architecture.text_pool == "eos" and tokenizer.eos_id != architecture.eos_id:
        raise ValueError(
            f"{folder}: wanted eos_token_id (eos_id) {tokenizer.eos_id} in the config,"
            f" the end mark of tokenizer.json, got {architecture.eos_id}; correct one"
        )
    return dataclasses.replace(
        architecture, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id
    )


def _licence(path: epath.Path, name: str) -> str:
    """Returns the licence in the model card's header, or MetaCLIP's for its weights."""
    card = path / "README.md"
    if card.exists():
        text = card.read_bytes().decode(errors="replace")
        found = re.search(r"^license:\s*(\S+)", text, re.M)
        if found:
            return found.group(1)
    return METACLIP_LICENCE if _METACLIP_NAMES.match(name) else ""


def _read_object(path: epath.Path) -> dict[str, Any]:
    value = files.read_json(path)
    if not isinstance(value, dict):
        fields.refuse(os.fspath(path), "the file to hold", "an object", value)
    return value
