"""The model FLOPs of a train step, and the peak FLOP/s of a chip."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from metaclip_jax.models import clip

# Peak dense FLOP/s of one chip in bfloat16 (V100: float16), from the makers' data
# sheets. Keys are prefixes of `jax.Device.device_kind`, which may add the form factor
# and the memory: "NVIDIA A100-SXM4-80GB".
PEAKS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v4 lite": 138e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA B200": 2_250e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "Tesla V100": 125e12,
    "Tesla V100-PCIE": 112e12,
}


def peak(device: jax.Device) -> float | None:
    """Returns the peak FLOP/s of a chip, or None if PEAKS lacks it, as for CPUs.

    The longest name in PEAKS that is a prefix of the device's kind in whole words
    counts: an L40S is not an L4.
    """
    words = _words(device.device_kind)
    names = [name for name in PEAKS if words[: len(_words(name))] == _words(name)]
    return PEAKS[max(names, key=len)] if names else None


def _words(name: str) -> list[str]:
    return name.replace("-", " ").split()


def of_step(architecture: clip.Architecture, *, global_batch: int, patches: int) -> int:
    """Returns the model FLOPs of a train step, forward and backward, on all devices.

    They cover both towers, with `patches` patches an image, and a loss that computes
    each logit once. Rematerialisation is not counted.
    """

    def towers(params: clip.Params, pair: dict[str, jax.Array]) -> jax.Array:
        image = clip.encode_image(architecture, params, pair["image"], pair["patches"])
        return jnp.sum(image + clip.encode_text(architecture, params, pair["tokens"]))

    architecture = dataclasses.replace(architecture, remat="none")
    size, length = architecture.image_size, architecture.context_length
    pair = {
        "image": jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8),
        "tokens": jax.ShapeDtypeStruct((1, length), jnp.int32),
        "patches": jax.ShapeDtypeStruct((1, patches), jnp.int32),
    }
    params = clip.param_shapes(architecture)
    # Three matmuls: the logits, the images' gradient and the texts' gradient.
    loss = 3 * 2 * global_batch**2 * architecture.embed_dim
    return global_batch * count(jax.grad(towers), params, pair) + loss


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Returns the FLOPs of the matrix products and convolutions in a call.

    Arguments may be ShapeDtypeStructs: nothing is computed. A product of [m, k] and
    [k, n] is 2mkn; other operations are not counted, as is usual for utilisation. A
    loop counts all its iterations, a `shard_map` all its devices, and a recomputation
    counts again.

    Raises:
        ValueError: there is a `while` loop, whose number of iterations is unknown.
    """
    return _count_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count_jaxpr(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    inputs: list[Any] = [variable.aval for variable in equation.invars]
    outputs: list[Any] = [variable.aval for variable in equation.outvars]
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        depth = math.prod(inputs[0].shape[axis] for axis in contracted)
        return 2 * outputs[0].size * depth
    if name == "conv_general_dilated":
        filters = inputs[1].shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * outputs[0].size * inputs[1].size // filters
    if name == "cond":  # count the most expensive branch
        return max(_count_jaxpr(branch.jaxpr) for branch in params["branches"])
    inner = sum(_count_jaxpr(jaxpr) for jaxpr in core.jaxprs_in_params(params))
    if name == "while" and inner:
        raise ValueError(
            "wanted loops of known length, got a while loop with matrix products; use"
            " jax.lax.scan"
        )
    if name == "scan":
        return params["length"] * inner
    if name == "shard_map":
        return params["mesh"].size * inner
    return inner
