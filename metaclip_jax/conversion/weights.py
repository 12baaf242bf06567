"""Weight files: safetensors whole or in parts, torch's .pt and .bin; and writing.

safetensors hold nothing but numbers. torch's own files may hold code: they are read
with its loader for plain tensors unless the caller says that the file is trusted.
"""

import contextlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from metaclip_jax import files

Array = NDArray[Any]

SINGLE = "model.safetensors"
_INDEX_END = ".safetensors.index.json"
# In the order of preference inside a folder.
_NAMES = (
    SINGLE,
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "open_clip_model.safetensors.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# What training frameworks put before every name.
_PREFIXES = ("_orig_mod.", "module.")
_MAX_FILE_BYTES = 2 << 30


class SafeTensors:
    """Tensors of one or several safetensors files, read one at a time."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        """Args: paths: tensor name -> file that holds it."""
        self._paths = dict(paths)
        self._open: dict[Path, Any] = {}

    def names(self) -> list[str]:
        """All names, without the prefixes of training frameworks."""
        return [_bare(name) for name in self._paths]

    def read(self, name: str) -> Array:
        """One tensor; bfloat16 comes as f32."""
        stored = next(s for s in self._paths if _bare(s) == name)
        path = self._paths[stored]
        if path not in self._open:
            # JAX's arrays know bfloat16, numpy's do not.
            self._open[path] = safe_open(path, framework="flax")
        return np.asarray(self._open[path].get_tensor(stored), np.float32)


class TorchTensors:
    """Tensors of a torch file, which is loaded whole."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        """Args: tensors: name -> torch.Tensor."""
        self._tensors = {_bare(name): tensor for name, tensor in tensors.items()}

    def names(self) -> list[str]:
        """All names, without the prefixes of training frameworks."""
        return list(self._tensors)

    def read(self, name: str) -> Array:
        """One tensor as f32."""
        return self._tensors[name].float().numpy()


def open_weights(
    source: str | os.PathLike, *, trust_pickle: bool = False
) -> SafeTensors | TorchTensors:
    """Opens the weights of a file, or those that a folder holds.

    Args:
      source: local file, or folder of Hugging Face or open_clip.
      trust_pickle: whether a torch file may run code of its own: only for files whose
        maker you trust as you would trust a program of theirs.

    Raises:
      FileNotFoundError: there are no weights; says what was looked for.
      ValueError: the file is damaged, or needs `trust_pickle`.
    """
    path = Path(source)
    if path.is_dir():
        found = [path / name for name in _NAMES if (path / name).exists()]
        if not found:
            raise FileNotFoundError(
                f"{path} holds no weights; looked for {', '.join(_NAMES)}"
            )
        path = found[0]
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.name.endswith(_INDEX_END):
        index = json.loads(path.read_text())["weight_map"]
        # The names of an index come from strangers: they stay in their folder.
        return SafeTensors(
            {name: path.parent / Path(file).name for name, file in index.items()}
        )
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="numpy") as file:
                return SafeTensors({name: path for name in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}; fetch it again") from error
    return TorchTensors(_torch_state(path, trust_pickle=trust_pickle))


def write_folder(
    folder: str | os.PathLike,
    tensors: Iterator[tuple[str, Array]],
    *,
    name: str = SINGLE,
    max_file_bytes: int = _MAX_FILE_BYTES,
) -> None:
    """Writes tensors as safetensors, in parts of at most `max_file_bytes`.

    Holds one part at a time. Several parts come with an index, as transformers and
    open_clip read it; the index gets its name last.
    """
    root = files.path(folder)
    stem = name.removesuffix(".safetensors")
    parts: list[list[str]] = []
    total = 0
    held: dict[str, Array] = {}
    with files.naming_full_disk(root / name), contextlib.ExitStack() as stack:
        staged: list[Path] = []

        def flush() -> None:
            number = len(parts)
            local = stack.enter_context(_temporary(root, f"{stem}-{number}"))
            save_file(held, local, metadata={"format": "pt"})
            staged.append(local)
            parts.append(list(held))
            held.clear()

        for tensor_name, tensor in tensors:
            if held and sum(a.nbytes for a in held.values()) + tensor.nbytes > (
                max_file_bytes
            ):
                flush()
            held[tensor_name] = tensor
            total += tensor.nbytes
        flush()
        if len(parts) == 1:
            files.publish(staged[0], root / name)
            return
        weight_map: dict[str, str] = {}
        for number, (local, names) in enumerate(zip(staged, parts, strict=True), 1):
            file = f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors"
            files.publish(local, root / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files.write_json(root / f"{name}.index.json", index)


@contextlib.contextmanager
def _temporary(root: Any, name: str) -> Iterator[Path]:
    """A local file beside its final place, removed if it was not published."""
    folder = Path(os.fspath(root))
    folder.mkdir(parents=True, exist_ok=True)
    local = folder / f"{files.TEMPORARY_PREFIX}{name}"
    try:
        yield local
    finally:
        local.unlink(missing_ok=True)


def _torch_state(path: Path, *, trust_pickle: bool) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is a file of torch, which is not installed: pip install torch, or "
            "use the model's safetensors"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        if trust_pickle:
            raise ValueError(f"{path} is damaged: {error}") from error
        raise ValueError(
            f"{path} holds more than tensors, and loading that may run code of its "
            "maker. If you trust them as you would trust a program of theirs, pass "
            f"trust_pickle=True (--trust_pickle). ({str(error).splitlines()[0]})"
        ) from error
    if isinstance(state, torch.nn.Module):
        state = state.state_dict()
    for key in ("state_dict", "model", "module"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors, but {sorted(state)[:8]}")
    return tensors


def _bare(name: str) -> str:
    """A tensor's own name, without what torch.compile and wrappers put before it."""
    for prefix in (*_PREFIXES, *_PREFIXES):
        name = name.removeprefix(prefix)
    return name
