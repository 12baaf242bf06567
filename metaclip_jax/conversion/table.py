"""Converts weights from and to another library's format by a table of rules.

A rule names one of our leaves, the other library's tensors for it, and the pair of
transforms between them. Our leaves inside `blocks` stack several layers; the other
library has a tensor per layer, with the layer's number at `{layer}` of the name, or at
`{last}` for the last block, which is outside our stack. A conversion is total: tensors
that no rule uses, or that a rule lacks, are an error that lists them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metaclip_jax.conversion.weights import Array, Weights
from metaclip_jax.models import text
from metaclip_jax.models.clip import Architecture

LAYER, LAST = "{layer}", "{last}"
_TOKEN_TABLE = "text/token_embedding"  # its stored rows are padded
_SHOWN = 12  # names in a message


class Transform(NamedTuple):
    """A pair of inverse functions; `heads` is the tower's number of heads."""

    to_ours: Callable[[Sequence[Array], int], Array]
    to_theirs: Callable[[Array, int], list[Array]]


class Rule(NamedTuple):
    """One of our leaves and the other library's tensors for it."""

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
# Separate query, key and value: three [D, D] or [D] <-> [D, 3, H, D / H] or
# [3, H, D / H].
QKV_KERNEL = Transform(
    lambda a, heads: np.stack([_heads_out(part, heads) for part in a], axis=1),
    lambda a, _: [a[:, i].reshape(a.shape[0], -1).T for i in range(3)],
)
QKV_BIAS = Transform(
    lambda a, heads: np.stack([part.reshape(heads, -1) for part in a]),
    lambda a, _: [part.reshape(-1) for part in a],
)
# Fused query, key and value: [3D, D] or [3D].
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


def norm(ours: str, theirs: str) -> list[Rule]:
    """Returns the rules of a layer norm."""
    return [
        Rule(f"{ours}/scale", (f"{theirs}.weight",), SAME),
        Rule(f"{ours}/bias", (f"{theirs}.bias",), SAME),
    ]


def linear(ours: str, theirs: str, kernel: Transform = LINEAR) -> list[Rule]:
    """Returns the rules of a linear layer."""
    return [
        Rule(f"{ours}/kernel", (f"{theirs}.weight",), kernel),
        Rule(f"{ours}/bias", (f"{theirs}.bias",), SAME),
    ]


def inside(ours: str, theirs: str, rules: Sequence[Rule]) -> list[Rule]:
    """Returns rules whose names are relative to a module with the module's names."""
    return [
        Rule(f"{ours}/{leaf}", tuple(f"{theirs}.{name}" for name in names), transform)
        for leaf, names, transform in rules
    ]


def blocks(ours: str, theirs: str, block: Sequence[Rule]) -> list[Rule]:
    """Returns the rules of a tower's blocks, the last of which is outside our stack."""
    return [
        *inside(f"{ours}/blocks", f"{theirs}.{LAYER}", block),
        *inside(f"{ours}/last", f"{theirs}.{LAST}", block),
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
      weights: the other library's.
      rules: of its format.
      architecture: of the model.
      ignored: whether a name is not a weight, for instance a saved constant.
      shapes: our shape by path; the token table's is without padding.

    Raises:
      ValueError: tensors are left over, missing or of another shape (checked before any
        is read), or one holds NaN or inf; the message names them.
    """
    wanted = {
        name
        for rule in rules
        for names in _layers(rule, architecture, shapes[rule.ours])
        for name in names
    }
    found = {name for name in weights.names() if not ignored(name)}
    if wanted != found:
        raise ValueError(
            f"{weights.where} must hold the tensors of its config: missing"
            f" {_some(wanted - found)}; left over {_some(found - wanted)}"
        )
    for rule in rules:
        _check_shapes(weights, rule, architecture, shapes[rule.ours])
    for rule in rules:
        yield rule.ours, _read_leaf(weights, rule, architecture, shapes[rule.ours])


def _read_leaf(
    weights: Weights, rule: Rule, architecture: Architecture, shape: tuple[int, ...]
) -> Array:
    """Reads one leaf layer by layer, without a second copy of the whole leaf."""
    stored = shape
    if rule.ours == _TOKEN_TABLE:
        stored = text.stored_rows(shape[0]), shape[1]
    leaf = np.zeros(stored, np.float32)
    layers, wanted = leaf[None], shape
    if _is_stacked(rule):
        layers, wanted = leaf, shape[1:]
    heads = _heads(rule, architecture)
    for number, names in enumerate(_layers(rule, architecture, shape)):
        tensors = [weights.read(name) for name in names]
        for name, tensor in zip(names, tensors, strict=True):
            if not np.isfinite(tensor).all():
                raise ValueError(
                    f"{weights.where}: {name} holds NaN or inf; the training diverged"
                    " or the file is damaged"
                )
        layer = rule.transform.to_ours(tensors, heads)
        at: tuple[Any, ...] = (number, *(slice(size) for size in wanted))
        layers[at] = layer
    return leaf


def _check_shapes(
    weights: Weights, rule: Rule, architecture: Architecture, shape: tuple[int, ...]
) -> None:
    """Compares the shapes of a leaf's tensors with those that the export would have."""
    layer = shape[1:] if _is_stacked(rule) else shape
    wanted: list[tuple[int, ...]] | None = None
    for names in _layers(rule, architecture, shape):
        found = [weights.shape(name) for name in names]
        # Check the sizes first: the transform allocates as much as the leaf's layer.
        fits = sum(map(math.prod, found)) == math.prod(layer)
        if fits and wanted is None:
            whole = np.broadcast_to(np.float32(0), layer)
            made = rule.transform.to_theirs(whole, _heads(rule, architecture))
            wanted = [tensor.shape for tensor in made]
        # A scalar may be [] or [1].
        if not fits or (layer and found != wanted):
            shown = ", ".join(str(list(size)) for size in found)
            raise ValueError(
                f"{weights.where}: wanted {', '.join(names)} to give {rule.ours}"
                f" {list(layer)}, as its config says, got {shown}; give the config and"
                " the weights of one model"
            )


def to_theirs(
    leaves: Mapping[str, Any], rules: Sequence[Rule], architecture: Architecture
) -> Iterator[tuple[str, Array]]:
    """Yields (name, f32 array) of the other library's tensors, a layer at a time.

    Args:
      leaves: path -> array, on any device.
      rules: of the other library's format.
      architecture: of the model.

    Raises:
      ValueError: leaves are left over or missing; the message lists them.
    """
    wanted = {rule.ours for rule in rules}
    if wanted != set(leaves):
        raise ValueError(
            "the model must have exactly the format's weights: missing "
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
    """Returns the tensors' names by layer; a leaf outside the stack has one list.

    `shape` is our leaf's.
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


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN]) or "nothing"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
