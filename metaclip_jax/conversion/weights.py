"""Reads safetensors, single or sharded, and torch's .pt and .bin; writes safetensors.

safetensors contain only numbers. torch's files are pickles, which may contain code:
they are loaded with `weights_only` unless the caller trusts the file.
"""

import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from metaclip_jax import files

Array = NDArray[Any]

SINGLE = "model.safetensors"
_OF_NUMPY = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
_INDEX_END = ".safetensors.index.json"
# File names in a folder; the first that exists is read.
_NAMES = (
    SINGLE,
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "open_clip_model.safetensors.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# torch.compile and DistributedDataParallel add these to every name.
_PREFIXES = ("_orig_mod.", "module.")
_MAX_FILE_BYTES = 2 << 30
# The dtypes that are read, by safetensors' names.
_FLOATS = ("F64", "F32", "F16", "BF16")
_AGAIN = "fetch it again"


class Tensor(NamedTuple):
    """A stored tensor; `read` returns it as f32."""

    shape: tuple[int, ...]
    dtype: str
    is_float: bool
    read: Callable[[], Array]


class Weights:
    """Named tensors of a file or folder, which are read one by one."""

    def __init__(self, where: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Stores the tensors by their names without the wrappers' prefixes.

        Args:
          where: the file or folder, for messages.
          tensors: with their stored names.

        Raises:
          ValueError: two names are equal without the wrappers' prefixes.
        """
        self.where = where
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in tensors:
            if _bare(name) in self._tensors:
                raise ValueError(f"{where} should hold {_bare(name)} once; {_AGAIN}")
            self._tensors[_bare(name)] = tensor

    def names(self) -> list[str]:
        """Returns all names, without the wrappers' prefixes."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape without reading the tensor.

        Raises:
          ValueError: its dtype is not floating point.
        """
        tensor = self._tensors[name]
        if not tensor.is_float:
            raise ValueError(
                f"{self.where}: wanted {name} in {' or '.join(_FLOATS)}, got"
                f" {tensor.dtype}; quantised weights are not read"
            )
        return tensor.shape

    def read(self, name: str) -> Array:
        """Reads one tensor as f32."""
        return self._tensors[name].read()


def of_torch(where: str, tensors: Mapping[str, Any]) -> Weights:
    """Returns the torch.Tensors of a state dict; `where` is for messages."""
    return Weights(where, ((name, _of_torch(t)) for name, t in tensors.items()))


def _of_torch(tensor: Any) -> Tensor:
    return Tensor(
        tuple(tensor.shape),
        str(tensor.dtype),
        tensor.is_floating_point(),
        lambda: tensor.float().numpy(),
    )


def _of_safetensors(file: Any, name: str) -> Tensor:
    held = file.get_slice(name)
    return Tensor(
        tuple(held.get_shape()),
        held.get_dtype(),
        held.get_dtype() in _FLOATS,
        lambda: np.asarray(file.get_tensor(name), np.float32),
    )


def open_weights(source: epath.PathLike, *, trust_pickle: bool = False) -> Weights:
    """Opens a weight file, or that of a folder.

    Args:
      source: a file, or a folder of Hugging Face or open_clip; local or gs://.
      trust_pickle: whether a torch file may run its own code. Trust it only as you
        would trust a program by the same author.

    Raises:
      FileNotFoundError: there are no weights; the message lists the file names tried.
      ValueError: the file is damaged, or needs `trust_pickle`.
    """
    path = files.path(source)
    if path.is_dir():
        present = [path / name for name in _NAMES if (path / name).exists()]
        if not present:
            raise FileNotFoundError(
                f"wanted weights in {path} ({', '.join(_NAMES)}), got none; copy them"
                " there, or correct the path"
            )
        path = present[0]
    if not path.exists():
        raise FileNotFoundError(
            f"wanted weights at {path}, got no such file; correct the path"
        )
    where = os.fspath(path)
    if path.name.endswith(_INDEX_END):
        return Weights(where, _held_by_index(path))
    if path.suffix == ".safetensors":
        file = _open_safetensors(path)
        names = file.keys()
        return Weights(where, ((name, _of_safetensors(file, name)) for name in names))
    return of_torch(where, _torch_state(path, trust_pickle=trust_pickle))


def _held_by_index(path: epath.Path) -> Iterator[tuple[str, Tensor]]:
    """Yields each tensor's name, and the tensor of the file that the index gives."""
    index = files.read_json(path)
    held = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(held, dict) or not all(isinstance(f, str) for f in held.values()):
        raise ValueError(
            f"{path}: wanted weight_map, an object of file names, got"
            f" {str(held)[:100]}; {_AGAIN}"
        )
    opened, names = {}, {}
    for file in sorted(set(held.values())):
        # Drop folders: an index from a stranger must not name files elsewhere.
        shard = path.parent / Path(file).name
        if not shard.exists():
            raise FileNotFoundError(
                f"{path}: wanted the file {shard}, got no such file; {_AGAIN}"
            )
        opened[file] = _open_safetensors(shard)
        names[file] = set(opened[file].keys())
    for name, file in held.items():
        if name not in names[file]:
            raise ValueError(
                f"{path}: wanted {name} in {file}, got a file without; {_AGAIN}"
            )
        yield name, _of_safetensors(opened[file], name)


def _open_safetensors(path: epath.Path) -> Any:
    """Opens a file. It stays mapped, so the local copy of a gs:// file may go."""
    try:
        with files.local_copy(path) as local:
            opened = safe_open(local, framework="numpy")
            kinds = {opened.get_slice(name).get_dtype() for name in opened.keys()}
            # JAX has bfloat16, too, but compiles a program for each shape.
            return opened if kinds <= _OF_NUMPY else safe_open(local, framework="flax")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; {_AGAIN}") from error


def write_folder(
    folder: str | os.PathLike,
    tensors: Iterator[tuple[str, Array]],
    *,
    name: str = SINGLE,
    max_file_bytes: int = _MAX_FILE_BYTES,
) -> None:
    """Writes tensors as safetensors, in shards of at most `max_file_bytes`.

    Holds one shard in memory. Several shards get the index that transformers and
    open_clip read; it is written last.
    """
    root = files.path(folder)
    stem = name.removesuffix(".safetensors")
    shards: list[list[str]] = []
    total = 0
    held: dict[str, Array] = {}
    root.mkdir(parents=True, exist_ok=True)
    # Stage inside a local folder, so that publishing is a rename and not a copy.
    parent = os.fspath(root) if files.is_local(root) else None
    temporary = tempfile.TemporaryDirectory(prefix=files.TEMPORARY_PREFIX, dir=parent)
    with files.naming_full_disk(root / name), temporary as staging:

        def staged(shard: int) -> Path:
            return Path(staging) / f"{shard}.safetensors"

        def flush() -> None:
            save_file(held, staged(len(shards)), metadata={"format": "pt"})
            shards.append(list(held))
            held.clear()

        for tensor_name, tensor in tensors:
            if held and sum(a.nbytes for a in held.values()) + tensor.nbytes > (
                max_file_bytes
            ):
                flush()
            held[tensor_name] = tensor
            total += tensor.nbytes
        flush()
        if len(shards) == 1:
            files.publish(staged(0), root / name)
            return
        weight_map: dict[str, str] = {}
        for shard, names in enumerate(shards):
            file = f"{stem}-{shard + 1:05d}-of-{len(shards):05d}.safetensors"
            files.publish(staged(shard), root / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files.write_json(root / f"{name}.index.json", index)


def _torch_state(path: epath.Path, *, trust_pickle: bool) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} needs torch, which is not installed; pip install torch, or use the"
            " model's safetensors"
        ) from error
    try:
        with files.local_copy(path) as local:
            state = torch.load(local, map_location="cpu", weights_only=not trust_pickle)
    except (RuntimeError, EOFError, LookupError, UnicodeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged: {reason}; {_AGAIN}") from error
    except pickle.UnpicklingError as error:
        if trust_pickle:
            raise ValueError(f"{path} is damaged: {error}; {_AGAIN}") from error
        raise ValueError(
            f"{path} should hold only tensors, got other objects, and loading them may "
            "run the author's code; if you would run a program by the author, pass "
            f"trust_pickle=True (--trust_pickle) ({str(error).splitlines()[0]})"
        ) from error
    if isinstance(state, torch.nn.Module):
        state = state.state_dict()
    for key in ("state_dict", "model", "module"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise ValueError(
            f"{path} must hold a dict of tensors, got a {type(state)}; give a file"
            " of a state dict"
        )
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise ValueError(
            f"{path} must hold tensors, got {list(map(str, state))[:8]}; give a file of"
            " a state dict"
        )
    return tensors


def _bare(name: str) -> str:
    """Returns a tensor's name without the wrappers' prefixes."""
    for prefix in (*_PREFIXES, *_PREFIXES):
        name = name.removeprefix(prefix)
    return name
