"""How much arithmetic a step is, and how much of it a chip can do."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from metaclip_jax.models import clip

# Peak FLOP/s of one chip in bfloat16 (the V100 in float16) without sparsity, from the
# makers' data sheets, by `jax.Device.device_kind`, which goes on with the form and the
# memory: "NVIDIA A100-SXM4-80GB".
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
    """Peak FLOP/s of a chip; None where nobody states one, as for CPUs.

    The longest name in PEAKS whose words are the first of the device's kind counts: an
    L40S is no L4.
    """
    words = _words(device.device_kind)
    names = [name for name in PEAKS if words[: len(_words(name))] == _words(name)]
    return PEAKS[max(names, key=len)] if names else None


def _words(name: str) -> list[str]:
    return name.replace("-", " ").split()


def of_step(architecture: clip.Architecture, *, global_batch: int, patches: int) -> int:
    """Model FLOPs of a train step, forward and backward, whatever its devices.

    Both towers, the image tower with `patches` patches an image, and a loss that
    computes each logit once. What rematerialisation does again is not counted.
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
    params = jax.eval_shape(lambda: clip.init(architecture, jax.random.key(0)))
    # Logits, and from their gradient that of images and that of texts.
    loss = 3 * 2 * global_batch**2 * architecture.embed_dim
    return global_batch * count(jax.grad(towers), params, pair) + loss


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of the matrix products and convolutions in a call.

    Arguments may be ShapeDtypeStructs: nothing is computed. A product of [m, k] and
    [k, n] is 2mkn; other operations are left out, as is usual for utilisation. Loops
    count as often as they run; what `shard_map` runs counts once a device. A function
    that computes something twice, as rematerialisation does, counts it twice.

    Raises:
        ValueError: a `while` loop, whose number of rounds is not known.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    taken: list[Any] = [variable.aval for variable in equation.invars]
    given: list[Any] = [variable.aval for variable in equation.outvars]
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        depth = math.prod(taken[0].shape[axis] for axis in contracted)
        return 2 * given[0].size * depth
    if name == "conv_general_dilated":
        filters = taken[1].shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * given[0].size * taken[1].size // filters
    if name == "cond":  # the dearest branch
        return max(_of(branch.jaxpr) for branch in params["branches"])
    inner = sum(_of(jaxpr) for jaxpr in core.jaxprs_in_params(params))
    if name == "while" and inner:
        raise ValueError("want loops of known length, got a while loop with products")
    if name == "scan":
        return params["length"] * inner
    if name == "shard_map":
        return params["mesh"].size * inner
    return inner
