"""Compiles a step for described TPUs: its memory, estimated cycles and collectives."""

import hashlib
import importlib.metadata
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from metaclip_jax import files
from metaclip_jax.training import cycles

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TOO_MUCH = re.compile(
    r"\(?([\d.]+)([KMGT]?)\)? exceeds available[^\d]*([\d.]+)([KMGT]?)"
)


class Chip(NamedTuple):
    """A TPU's clock and links."""

    hertz: float
    link_bytes: float  # per second, of all links of a chip together, one way


# Clocks follow from the peak FLOP/s and the number of multipliers. Links are the rates
# of Google's documentation; half of them counts, since slices smaller than a pod are
# not closed to rings.
CHIPS = {
    "TPU v4": Chip(1.05e9, 300e9 / 2),
    "TPU v5 lite": Chip(1.5e9, 200e9 / 2),
    "TPU v5": Chip(1.75e9, 600e9 / 2),
    "TPU v6 lite": Chip(1.75e9, 448e9 / 2),
}


class Compiled(NamedTuple):
    """One compiled program, or why it does not fit. Memory is per device."""

    seconds: float  # that compiling took
    refusal: str = ""  # the compiler's message, if the program does not fit
    argument_bytes: int = 0
    temporary_bytes: int = 0
    peak_bytes: int = 0  # the compiler's estimate
    needed_bytes: int = 0  # a safe upper estimate
    cycles: int = 0  # the compiler's estimate, without collectives
    collective_bytes: Mapping[str, int] = {}


def chip(device: jax.Device) -> Chip | None:
    """Returns the row of CHIPS of a device, or None."""
    return CHIPS.get(device.device_kind)


def transfer_seconds(collective_bytes: Mapping[str, int], chip: Chip) -> float:
    """Returns the least number of seconds that a chip's links are busy.

    An all-reduce is a reduce-scatter and an all-gather, and moves everything twice.
    """
    moved = sum(collective_bytes.values()) + collective_bytes.get("all-reduce", 0)
    return moved / chip.link_bytes


def step_seconds(
    cycles: int, collective_bytes: Mapping[str, int], chip: Chip
) -> tuple[float, float]:
    """Returns the seconds of a step's cycles, and of its transfers."""
    return cycles / chip.hertz, transfer_seconds(collective_bytes, chip)


def compile(lowered: jax.stages.Lowered, *, topology: str, cache: str = "") -> Compiled:
    """Compiles a lowered program, unless `cache` has its result.

    Args:
        lowered: for the devices of a described slice.
        topology: the name of that slice.
        cache: folder of results; "" = none. A result is found by the slice, the
            program's text with its shardings, and libtpu's version.
    """
    if not cache:
        return _compile(lowered)
    version = importlib.metadata.version("libtpu")
    key = "\n".join((topology, version, lowered.as_text()))
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    path = files.path(cache) / name
    if not path.exists():
        files.write_json(path, _compile(lowered)._asdict())
    return Compiled(**files.read_json(path))


def too_much(message: str) -> tuple[int, int] | None:
    """Returns the needed and the available bytes of a compiler's refusal.

    None: the message is another error's.
    """
    match = _TOO_MUCH.search(message)
    if match is None:
        return None
    needed, needed_unit, limit, limit_unit = match.groups()
    return (
        round(float(needed) * _UNITS[needed_unit]),
        round(float(limit) * _UNITS[limit_unit]),
    )


def total_bytes(memory: Any) -> int:
    """Returns the bytes of arguments, results and temporaries, without those shared.

    Args:
        memory: of `jax.stages.Compiled.memory_analysis()`.
    """
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def _compile(lowered: jax.stages.Lowered) -> Compiled:
    start = time.monotonic()
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if too_much(str(error)) is None:
            raise
        return Compiled(seconds=time.monotonic() - start, refusal=str(error))
    seconds = time.monotonic() - start
    memory = done.memory_analysis()
    if memory is None:
        raise RuntimeError(
            "wanted the compiler's memory analysis, got none from this libtpu; install"
            " another version"
        )
    # The compiler's peak omits some temporaries, and the sum counts temporaries that
    # never exist at the same time. The larger of the two is a safe estimate.
    text = done.as_text()
    assert text is not None
    estimate = cycles.estimate(text)
    return Compiled(
        seconds=seconds,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        needed_bytes=max(memory.peak_memory_in_bytes, total_bytes(memory)),
        cycles=estimate.cycles,
        collective_bytes=estimate.collective_bytes,
    )
