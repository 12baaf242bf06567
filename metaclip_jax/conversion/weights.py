"""Weight files: safetensors whole or in parts, torch's .pt and .bin; and writing.

safetensors hold nothing but numbers. torch's own files may hold code: they are read
with its loader for plain tensors unless the caller says that the file is trusted.
"""

import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
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
# What is read as it is, by safetensors' names.
_FLOATS = ("F64", "F32", "F16", "BF16")
_AGAIN = "fetch it again"


class SafeTensors:
    """Tensors of one or several safetensors files, read one at a time."""

    def __init__(self, where: str, held: Iterable[tuple[str, Any]]) -> None:
        """Takes tensors where they lie.

        Args:
          where: what is named in errors.
          held: each tensor's name and the open file that holds it.

        Raises:
          ValueError: two have one name but for the prefixes of training frameworks.
        """
        self.where = where
        self._held: dict[str, tuple[str, Any]] = {}
        for name, file in held:
            if _bare(name) in self._held:
                raise ValueError(f"{where} should hold {_bare(name)} once; {_AGAIN}")
            self._held[_bare(name)] = name, file

    def names(self) -> list[str]:
        """All names, without the prefixes of training frameworks."""
        return list(self._held)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from its file's head.

        Raises:
          ValueError: it does not hold floating-point numbers as they are.
        """
        stored, file = self._held[name]
        held = file.get_slice(stored)
        if held.get_dtype() not in _FLOATS:
            raise ValueError(
                f"{self.where}: wanted {name} in {' or '.join(_FLOATS)}, got"
                f" {held.get_dtype()}; quantised weights are not read"
            )
        return tuple(held.get_shape())

    def read(self, name: str) -> Array:
        """One tensor as f32."""
        stored, file = self._held[name]
        return np.asarray(file.get_tensor(stored), np.float32)


class TorchTensors:
    """Tensors of a torch file, which is loaded whole."""

    def __init__(self, where: str, tensors: Mapping[str, Any]) -> None:
        """Args: where: what is named in errors. tensors: name -> torch.Tensor."""
        self.where = where
        self._tensors = {_bare(name): tensor for name, tensor in tensors.items()}

    def names(self) -> list[str]:
        """All names, without the prefixes of training frameworks."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape.

        Raises:
          ValueError: it does not hold floating-point numbers.
        """
        tensor = self._tensors[name]
        if not tensor.is_floating_point():
            raise ValueError(
                f"{self.where}: wanted {name} in floating point, got {tensor.dtype}"
            )
        return tuple(tensor.shape)

    def read(self, name: str) -> Array:
        """One tensor as f32."""
        return self._tensors[name].float().numpy()


def open_weights(
    source: epath.PathLike, *, trust_pickle: bool = False
) -> SafeTensors | TorchTensors:
    """Opens the weights of a file, or those that a folder holds.

    Args:
      source: file, or folder of Hugging Face or open_clip; local or gs://.
      trust_pickle: whether a torch file may run code of its own: only for files whose
        maker you trust as you would trust a program of theirs.

    Raises:
      FileNotFoundError: there are no weights; says what was looked for.
      ValueError: the file is damaged, or needs `trust_pickle`.
    """
    path = files.path(source)
    if path.is_dir():
        found = [path / name for name in _NAMES if (path / name).exists()]
        if not found:
            raise FileNotFoundError(
                f"{path} holds no weights; looked for {', '.join(_NAMES)}"
            )
        path = found[0]
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    where = os.fspath(path)
    if path.name.endswith(_INDEX_END):
        return SafeTensors(where, _held_by_index(path))
    if path.suffix == ".safetensors":
        opened = _open_safetensors(path)
        return SafeTensors(where, ((name, opened) for name in opened.keys()))  # noqa: SIM118
    return TorchTensors(where, _torch_state(path, trust_pickle=trust_pickle))


def _held_by_index(path: epath.Path) -> Iterator[tuple[str, Any]]:
    """Yields each tensor's name and the open file that an index names for it."""
    index = files.read_json(path)
    held = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(held, dict) or not all(isinstance(f, str) for f in held.values()):
        raise ValueError(
            f"{path}: wanted weight_map, an object of file names, got {str(held)[:100]}"
        )
    opened, names = {}, {}
    for file in sorted(set(held.values())):
        # The names of an index come from strangers: they stay in their folder.
        part = path.parent / Path(file).name
        if not part.exists():
            raise FileNotFoundError(f"there is no file {part}, which {path} names")
        opened[file] = _open_safetensors(part)
        names[file] = set(opened[file].keys())
    for name, file in held.items():
        if name not in names[file]:
            raise ValueError(f"{path}: wanted {name} in {file}, which lacks it")
        yield name, opened[file]


def _open_safetensors(path: epath.Path) -> Any:
    """An open file; it is mapped, so that a copy of gs:// may be gone afterwards."""
    try:
        with files.local_copy(path) as local:
            # JAX's arrays know bfloat16, numpy's do not.
            return safe_open(local, framework="flax")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; {_AGAIN}") from error


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
    root.mkdir(parents=True, exist_ok=True)
    # Beside their final place where that is local, so that they need not be copied.
    near = os.fspath(root) if files.is_local(root) else None
    temporary = tempfile.TemporaryDirectory(prefix=files.TEMPORARY_PREFIX, dir=near)
    with files.naming_full_disk(root / name), temporary as staging:

        def staged(part: int) -> Path:
            return Path(staging) / f"{part}.safetensors"

        def flush() -> None:
            save_file(held, staged(len(parts)), metadata={"format": "pt"})
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
            files.publish(staged(0), root / name)
            return
        weight_map: dict[str, str] = {}
        for part, names in enumerate(parts):
            file = f"{stem}-{part + 1:05d}-of-{len(parts):05d}.safetensors"
            files.publish(staged(part), root / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files.write_json(root / f"{name}.index.json", index)


def _torch_state(path: epath.Path, *, trust_pickle: bool) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is a file of torch, which is not installed: pip install torch, or "
            "use the model's safetensors"
        ) from error
    try:
        with files.local_copy(path) as local:
            state = torch.load(local, map_location="cpu", weights_only=not trust_pickle)
    except (RuntimeError, EOFError, LookupError, UnicodeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged: {reason}; {_AGAIN}") from error
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
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no tensors by name, but a {type(state)}")
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors, but {list(map(str, state))[:8]}")
    return tensors


def _bare(name: str) -> str:
    """A tensor's own name, without what torch.compile and wrappers put before it."""
    for prefix in (*_PREFIXES, *_PREFIXES):
        name = name.removeprefix(prefix)
    return name
