"""How weights of another library become ours, and ours theirs: rules in a table.

A rule names one of our leaves, the tensors of the other side that it is made of, and
the pair of transforms between them. Our leaves inside `blocks` hold several layers; the
other side has a tensor for each, so those names hold `{layer}`, and `{last}` where the
last one is apart. A conversion is total: a tensor that no rule uses, or one that a rule
misses, is an error that lists them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from metaclip_jax.models import text
from metaclip_jax.models.clip import Architecture

Array = NDArray[Any]
LAYER, LAST = "{layer}", "{last}"
_TOKEN_TABLE = "text/token_embedding"  # has more rows in storage


class Weights(Protocol):
    """Named tensors that are read one by one."""

    where: str  # what is named in errors

    def names(self) -> list[str]:
        """All names there are."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        ...

    def read(self, name: str) -> Array:
        """One tensor."""
        ...


class Transform(NamedTuple):
    """A pair of inverse functions; `heads` is the tower's number of heads."""

    to_ours: Callable[[Sequence[Array], int], Array]
    to_theirs: Callable[[Array, int], list[Array]]


class Rule(NamedTuple):
    """One of our leaves and what it is called on the other side."""

    ours: str  # path, such as "image/blocks/ln_1/scale"
    theirs: tuple[str, ...]
    transform: Transform


def _heads_out(kernel: Array, heads: int) -> Array:
    """[out, in] -> [in, H, out / H]."""
    return kernel.T.reshape(kernel.shape[1], heads, -1)


SAME = Transform(lambda a, _: a[0], lambda a, _: [a])
SCALAR = Transform(lambda a, _: a[0].reshape(()), lambda a, _: [a.reshape(())])
SINGLE = Transform(lambda a, _: a[0].reshape(()), lambda a, _: [a.reshape(1)])
PROBE = Transform(lambda a, _: a[0][0, 0], lambda a, _: [a[None, None]])  # [1, 1, D]
LINEAR = Transform(lambda a, _: a[0].T, lambda a, _: [a.T])  # [out, in] <-> [in, out]
PATCHES = Transform(  # OIHW <-> HWIO
    lambda a, _: a[0].transpose(2, 3, 1, 0), lambda a, _: [a.transpose(3, 2, 0, 1)]
)
# Query, key and value apart: three [D, D] or [D] <-> [D, 3, H, D / H] or [3, H, D / H].
QKV_KERNEL = Transform(
    lambda a, heads: np.stack([_heads_out(each, heads) for each in a], axis=1),
    lambda a, _: [a[:, i].reshape(a.shape[0], -1).T for i in range(3)],
)
QKV_BIAS = Transform(
    lambda a, heads: np.stack([each.reshape(heads, -1) for each in a]),
    lambda a, _: [each.reshape(-1) for each in a],
)
# Query, key and value in one: [3D, D] or [3D].
FUSED_KERNEL = Transform(
    lambda a, heads: QKV_KERNEL.to_ours(np.split(a[0], 3), heads),
    lambda a, heads: [np.concatenate(QKV_KERNEL.to_theirs(a, heads))],
)
FUSED_BIAS = Transform(
    lambda a, heads: QKV_BIAS.to_ours(np.split(a[0], 3), heads),
    lambda a, heads: [np.concatenate(QKV_BIAS.to_theirs(a, heads))],
)
OUT_KERNEL = Transform(  # [D, H * D / H] <-> [H, D / H, D]
    lambda a, heads: a[0].T.reshape(heads, -1, a[0].shape[0]),
    lambda a, _: [a.reshape(-1, a.shape[-1]).T],
)

# A block of any of transformers' models: our leaf, their tensors.
HUGGINGFACE_BLOCK = (
    ("ln_1/scale", ("layer_norm1.weight",), SAME),
    ("ln_1/bias", ("layer_norm1.bias",), SAME),
    (
        "attn/qkv/kernel",
        tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
        QKV_KERNEL,
    ),
    ("attn/qkv/bias", tuple(f"self_attn.{part}_proj.bias" for part in "qkv"), QKV_BIAS),
    ("attn/out/kernel", ("self_attn.out_proj.weight",), OUT_KERNEL),
    ("attn/out/bias", ("self_attn.out_proj.bias",), SAME),
    ("ln_2/scale", ("layer_norm2.weight",), SAME),
    ("ln_2/bias", ("layer_norm2.bias",), SAME),
    ("mlp/fc1/kernel", ("mlp.fc1.weight",), LINEAR),
    ("mlp/fc1/bias", ("mlp.fc1.bias",), SAME),
    ("mlp/fc2/kernel", ("mlp.fc2.weight",), LINEAR),
    ("mlp/fc2/bias", ("mlp.fc2.bias",), SAME),
)


def block_rules(
    ours: str,
    theirs: str,
    rows: Sequence[tuple[str, tuple[str, ...], Transform]],
    *,
    last_apart: bool = True,
) -> list[Rule]:
    """Returns the rules of one tower's blocks; names are relative to a block."""
    return [
        Rule(
            f"{ours}/{folder}/{leaf}",
            tuple(f"{theirs}.{number}.{name}" for name in names),
            transform,
        )
        for folder, number in (("blocks", LAYER), ("last", LAST))
        if folder == "blocks" or last_apart
        for leaf, names, transform in rows
    ]


def to_ours(
    weights: Weights,
    rules: Sequence[Rule],
    architecture: Architecture,
    *,
    ignored: Callable[[str], bool],
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, Array]]:
    """Yields (path, f32 array) of all our leaves, reading one leaf's tensors at a time.

    Args:
      weights: of the other side.
      rules: of its format.
      architecture: of the model.
      ignored: names that hold no weight, such as constants that are saved along.
      shapes: wanted shape by path, the token table without its padding.

    Raises:
      ValueError: tensors are left over or missing, or have another shape, found before
        any is read; or one holds NaN or inf. Names them.
    """
    wanted = {
        name
        for rule in rules
        for names in _layers(rule, architecture, shapes[rule.ours])
        for name in names
    }
    there = {name for name in weights.names() if not ignored(name)}
    if wanted != there:
        raise ValueError(
            f"{weights.where} does not fit its config: missing"
            f" {_some(wanted - there)}; left over {_some(there - wanted)}"
        )
    for rule in rules:
        _check_shapes(weights, rule, architecture, shapes[rule.ours])
    for rule in rules:
        yield rule.ours, _read_leaf(weights, rule, architecture, shapes[rule.ours])


def _read_leaf(
    weights: Weights, rule: Rule, architecture: Architecture, shape: tuple[int, ...]
) -> Array:
    """One of our leaves, filled layer by layer: reading takes no second copy of it."""
    stored = shape
    if rule.ours == _TOKEN_TABLE:
        stored = text.stored_rows(shape[0]), shape[1]
    leaf = np.zeros(stored, np.float32)
    layers, wanted = leaf[None], shape
    if _is_stacked(rule):
        layers, wanted = leaf, shape[1:]
    heads = _heads(rule, architecture)
    for place, names in enumerate(_layers(rule, architecture, shape)):
        tensors = [weights.read(name) for name in names]
        for name, tensor in zip(names, tensors, strict=True):
            if not np.isfinite(tensor).all():
                raise ValueError(
                    f"{weights.where}: {name} holds NaN or inf; the model has diverged,"
                    " or its file is damaged"
                )
        layer = rule.transform.to_ours(tensors, heads)
        at: tuple[Any, ...] = (place, *(slice(size) for size in wanted))
        layers[at] = layer
    return leaf


def _check_shapes(
    weights: Weights, rule: Rule, architecture: Architecture, shape: tuple[int, ...]
) -> None:
    """Compares the tensors of a leaf with what each of its layers becomes."""
    layer = shape[1:] if _is_stacked(rule) else shape
    wanted: list[tuple[int, ...]] | None = None
    for names in _layers(rule, architecture, shape):
        found = [weights.shape(name) for name in names]
        # Sizes first: what is made to compare with is as large as the file's tensors.
        fits = sum(map(math.prod, found)) == math.prod(layer)
        if fits and wanted is None:
            whole = np.broadcast_to(np.float32(0), layer)
            made = rule.transform.to_theirs(whole, _heads(rule, architecture))
            wanted = [tensor.shape for tensor in made]
        # A scalar may be [] or [1].
        if not fits or (layer and found != wanted):
            shown = ", ".join(str(list(one)) for one in found)
            raise ValueError(
                f"{weights.where}: wanted {', '.join(names)} to give {rule.ours}"
                f" {list(layer)}, as its config says, got {shown}; is the config that"
                " of another model?"
            )


def to_theirs(
    leaves: Mapping[str, Any], rules: Sequence[Rule], architecture: Architecture
) -> Iterator[tuple[str, Array]]:
    """Yields (name, f32 array) of the other side's tensors, a layer at a time.

    Args:
      leaves: path -> array, on any device.
      rules: of the format wanted.
      architecture: of the model.

    Raises:
      ValueError: leaves are left over or missing; lists them.
    """
    wanted = {rule.ours for rule in rules}
    if wanted != set(leaves):
        raise ValueError(
            "the model does not fit the format: missing "
            f"{_some(wanted - set(leaves))}; left over {_some(set(leaves) - wanted)}"
        )
    for rule in rules:
        leaf = np.asarray(leaves[rule.ours])
        if rule.ours == _TOKEN_TABLE:
            leaf = leaf[: architecture.vocab_size]
        heads = _heads(rule, architecture)
        layers = leaf if _is_stacked(rule) else [leaf]
        names_of_layers = _layers(rule, architecture, leaf.shape)
        for names, layer in zip(names_of_layers, layers, strict=True):
            tensors = rule.transform.to_theirs(np.asarray(layer), heads)
            for name, tensor in zip(names, tensors, strict=True):
                yield name, np.asarray(tensor, order="C")


def _layers(
    rule: Rule, architecture: Architecture, shape: tuple[int, ...]
) -> list[list[str]]:
    """The names of each layer's tensors, one list for leaves outside the stack.

    `shape` is that of our leaf.
    """
    image = rule.ours.startswith("image/")
    count = architecture.vision_layers if image else architecture.text_layers
    if not _is_stacked(rule):
        return [[name.replace(LAST, str(count - 1)) for name in rule.theirs]]
    return [
        [name.replace(LAYER, str(layer)) for name in rule.theirs]
        for layer in range(shape[0])
    ]


def _is_stacked(rule: Rule) -> bool:
    return "/blocks/" in rule.ours


def _heads(rule: Rule, architecture: Architecture) -> int:
    image = rule.ours.startswith("image/")
    return architecture.vision_heads if image else architecture.text_heads


def _some(names: set[str], *, most: int = 12) -> str:
    shown = ", ".join(sorted(names)[:most]) or "nothing"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
