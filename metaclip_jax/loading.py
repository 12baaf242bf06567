"""Models from anywhere: Hugging Face and open_clip folders, hub names, our own runs."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from metaclip_jax import checkpoint, files, run_config, sharding
from metaclip_jax.conversion import huggingface, open_clip, table, weights
from metaclip_jax.data import tokenizer as tokenizers
from metaclip_jax.models import clip, positions, presets

METACLIP_LICENCE = "CC-BY-NC-4.0"
# Owners on the hub whose models are MetaCLIP's weights.
_METACLIP_NAMES = re.compile(
    r"facebook/metaclip-|ericlewis/metaclip-|cs-giung/clip-vit-base-patch\d+-fullcc"
)
_TOKENIZER_FILES = ("tokenizer.json",)
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")
# Pillow's number of the bicubic filter.
_BICUBIC = 3


class Preprocess(NamedTuple):
    """How an image becomes what the model sees, before it is normalised."""

    size: int  # pixels, height and width
    squash: bool  # both sides resized; else the shortest, and the centre cut out


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model's parts. `params` is as clip.init makes it, f32 on the host.

    `licence` is "" where the source names none.
    """

    name: str
    architecture: clip.Architecture
    params: clip.Params
    tokenizer: tokenizers.Tokenizer | None
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
      preset: architecture of a weight file that comes without a config.
      trust_pickle: see `weights.open_weights`.
      step: which checkpoint of a run; None = the newest.
      image_size: pixels; None = as trained. Another size interpolates the positions.
      position_resize: how, see models/positions.py.

    Raises:
      FileNotFoundError: there is no such model.
      ValueError: it is none that this package knows; says what was wanted.
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
    """The same model for images of `image_size` pixels; see models/positions.py."""
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
        preprocess=loaded.preprocess._replace(size=image_size),
    )


def _load(
    source: str | os.PathLike, *, preset: str, trust_pickle: bool, step: int | None
) -> Loaded:
    name = os.fspath(source)
    path = Path(name)
    if not path.exists() and files.is_local(name):
        path = _from_hub(name)
    if path.is_file():
        return _load_file(path, preset, trust_pickle=trust_pickle)
    if (files.path(name) / "checkpoints").exists():
        return _load_run(name, step)
    return _load_folder(path, name, trust_pickle=trust_pickle)


def flat_params(params: clip.Params) -> dict[str, Any]:
    """Returns {"image/blocks/ln_1/scale": array, ...}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {sharding.path_name(path): leaf for path, leaf in leaves}


def read_params(source: table.Weights, architecture: clip.Architecture) -> clip.Params:
    """Reads weights in Hugging Face's or open_clip's names as our parameters.

    Raises:
      ValueError: tensors are missing, left over or of another shape.
    """
    theirs = open_clip if "visual.conv1.weight" in source.names() else huggingface
    shapes = {
        path: leaf.shape
        for path, leaf in flat_params(
            jax.eval_shape(lambda: clip.init(architecture, jax.random.key(0)))
        ).items()
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


def _load_folder(path: Path, name: str, *, trust_pickle: bool) -> Loaded:
    config_file = path / "config.json"
    open_clip_file = path / "open_clip_config.json"
    if config_file.exists():
        architecture = huggingface.read_architecture(_read_json(config_file))
        processor = path / "preprocessor_config.json"
        facts = _read_json(processor) if processor.exists() else {}
        preprocess = _huggingface_preprocess(facts, architecture)
    elif open_clip_file.exists():
        written = _read_json(open_clip_file)
        architecture = open_clip.read_architecture(written)
        preprocess = _open_clip_preprocess(written, architecture)
    else:
        raise ValueError(
            f"{path} is no model: it has neither config.json (Hugging Face) nor "
            "open_clip_config.json, nor the checkpoints of a run"
        )
    source = weights.open_weights(path, trust_pickle=trust_pickle)
    return Loaded(
        name=name,
        architecture=architecture,
        params=read_params(source, architecture),
        tokenizer=_tokenizer_of(path, architecture),
        preprocess=preprocess,
        licence=_licence(path, name),
    )


def _load_file(path: Path, preset: str, *, trust_pickle: bool) -> Loaded:
    if not preset:
        raise ValueError(
            f"{path} is a file of weights alone: say which model it is with preset=, "
            f"one of {', '.join(sorted(presets.PRESETS))}"
        )
    architecture = presets.architecture(preset)
    source = weights.open_weights(path, trust_pickle=trust_pickle)
    return Loaded(
        name=os.fspath(path),
        architecture=architecture,
        params=read_params(source, architecture),
        tokenizer=_tokenizer_of(path.parent, architecture),
        preprocess=Preprocess(architecture.image_size, squash=False),
    )


def _load_run(workdir: str, step: int | None) -> Loaded:
    """A run's own checkpoint."""
    config = run_config.read(workdir)
    step = checkpoint.find_step(workdir, step)
    meta = checkpoint.read_meta(workdir, step)
    architecture = checkpoint.architecture_of(meta)
    # Only what was converted into a checkpoint has these facts.
    squash, licence = meta.get("squash", False), meta.get("licence", "")
    tokenizer = tokenizers.load(
        run_config.tokenizer_path(workdir, config),
        siglip=meta.get("siglip_marks", False),
    )
    params, _ = checkpoint.restore_params(
        workdir,
        architecture=architecture,
        mesh=None,
        step=step,
        inputs={"tokenizer": tokenizer.fingerprint},
    )
    return Loaded(
        name=workdir,
        architecture=dataclasses.replace(architecture, dtype="float32"),
        params=params,
        tokenizer=tokenizer,
        preprocess=Preprocess(architecture.image_size, squash),
        licence=licence,
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if name.count("/") != 1:
        raise FileNotFoundError(
            f"there is no folder {name}, and names on the Hugging Face hub look like "
            "facebook/metaclip-b32-400m"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
    except (HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"{name} is no folder here, and could not be had from the Hugging Face hub "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}); fetch it "
            "elsewhere and give the folder"
        ) from error


def _huggingface_preprocess(
    facts: dict[str, Any], architecture: clip.Architecture
) -> Preprocess:
    """`size` is {"shortest_edge"} with a crop, or {"height", "width"}: a squash."""
    _check_statistics(facts.get("image_mean"), facts.get("image_std"), architecture)
    if facts.get("resample", _BICUBIC) != _BICUBIC:
        raise ValueError(
            f"preprocessor_config.json: wanted bicubic resampling ({_BICUBIC}), got "
            f"{facts['resample']}"
        )
    size = facts.get("size", architecture.image_size)
    squash = isinstance(size, dict) and "shortest_edge" not in size
    return Preprocess(architecture.image_size, squash=squash)


def _open_clip_preprocess(
    written: dict[str, Any], architecture: clip.Architecture
) -> Preprocess:
    facts = written.get("preprocess_cfg", {})
    _check_statistics(facts.get("mean"), facts.get("std"), architecture)
    return Preprocess(
        architecture.image_size, squash=facts.get("resize_mode") == "squash"
    )


def _check_statistics(mean: Any, std: Any, architecture: clip.Architecture) -> None:
    known = clip.image_statistics(architecture)
    for what, got, wanted in zip(("mean", "std"), (mean, std), known, strict=True):
        if got is not None and not np.allclose(got, wanted, atol=1e-6):
            raise ValueError(
                f"wanted the channel {what} {wanted.tolist()}, got {got}: images are "
                "normalised on the device with it"
            )


def _tokenizer_of(
    folder: Path, architecture: clip.Architecture
) -> tokenizers.Tokenizer | None:
    for file in _TOKENIZER_FILES:
        if (folder / file).exists():
            found = tokenizers.load(
                folder / file, siglip=architecture.family == "siglip"
            )
            if found.vocab_size > architecture.vocab_size:
                raise ValueError(
                    f"{folder / file} has {found.vocab_size} tokens, the model only "
                    f"{architecture.vocab_size}; it is another model's"
                )
            return found
    return None


def _licence(path: Path, name: str) -> str:
    """What the model card's head says, or what is known of MetaCLIP's weights."""
    card = path / "README.md"
    if card.exists():
        found = re.search(r"^license:\s*(\S+)", card.read_text(errors="replace"), re.M)
        if found:
            return found.group(1)
    return METACLIP_LICENCE if _METACLIP_NAMES.match(name) else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} should be JSON, but: {error}") from error
