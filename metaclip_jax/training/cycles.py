"""The TPU compiler's own estimate of a program: its cycles and collectives.

They are read from the text of an optimized program. A loop counts once per iteration.
The estimates have not been compared with a TPU: they rank programs, they do not time
them. The compiler estimates no cycles for collectives, whose bytes are counted instead.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+)\b.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(
    r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


class Estimate(NamedTuple):
    """One execution of a program on one device."""

    cycles: int  # without collectives
    collective_bytes: dict[str, int]  # of the results, by kind of collective


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    line: str


_Program = dict[str, list[_Instruction]]  # by the name of a computation


def estimate(text: str) -> Estimate:
    """Sums the compiler's estimates over an optimized program of a TPU.

    Args:
        text: of `jax.stages.Compiled.as_text()`.

    Raises:
        ValueError: a loop has no constant number of iterations.
    """
    program, entry = _parse(text)
    cycles, collectives = 0, Counter[str]()
    for times, instruction in _executed(program, entry):
        if match := _CYCLES.search(instruction.line):
            cycles += times * int(match[1])
        # An asynchronous collective has its result in its "-done" instruction.
        kind = instruction.opcode.removesuffix("-done")
        if kind in COLLECTIVES:
            collectives[kind] += times * _result_bytes(instruction)
    return Estimate(cycles, dict(collectives))


def _parse(text: str) -> tuple[_Program, str]:
    """Returns the instructions of each computation, and the entry's name."""
    program: _Program = {}
    entry = current = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            match = _COMPUTATION.match(line)
            if match and not line.startswith("HloModule"):
                current = match[2]
                program[current] = []
                entry = current if match[1] else entry
        elif current and (match := _INSTRUCTION.match(line)):
            shape, rest = _split_shape(match[2])
            opcode = re.match(r"[\w\-]*", rest)
            assert opcode is not None
            program[current].append(_Instruction(match[1], shape, opcode[0], line))
    return program, entry


def _split_shape(text: str) -> tuple[str, str]:
    """Splits "SHAPE opcode(...)"; the shape of a tuple has spaces inside brackets."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == " " and depth == 0:
            return text[:position], text[position + 1 :]
    return text, ""


def _executed(program: _Program, name: str) -> Iterator[tuple[int, _Instruction]]:
    """Yields the instructions of a computation, and how often each is executed.

    Instructions inside a fusion are not yielded: the fusion has its own estimate.
    """
    for instruction in program[name]:
        inside: list[str] = []
        times = 1
        if instruction.opcode == "while":
            times = _iterations(program, instruction)
            inside = [_attribute("body", instruction)]
        elif not _CYCLES.search(instruction.line) and instruction.opcode in (
            "call",
            "conditional",
            "async-start",
        ):
            inside = _called(instruction)
        else:
            yield 1, instruction
        for inner in inside:
            for count, executed in _executed(program, inner):
                yield times * count, executed


def _iterations(program: _Program, loop: _Instruction) -> int:
    """Returns a loop's number of iterations: N of its condition `i < N`.

    Scans count from 0. libtpu says the number itself ("known_trip_count") for some
    loops only.
    """
    if match := _KNOWN_TRIPS.search(loop.line):
        return int(match[1])
    condition = list(program[_attribute("condition", loop)])
    for instruction in tuple(condition):  # the constant may be inside a fusion
        for inner in _called(instruction):
            condition += program[inner]
    text = "\n".join(instruction.line for instruction in condition)
    limits = set(re.findall(r" constant\((\d+)\)", text))
    if len(limits) != 1:
        raise ValueError(
            f"wanted a loop whose condition has one constant, its number of iterations,"
            f" got {sorted(limits)} for {loop.name}; use jax.lax.scan"
        )
    return int(limits.pop())


def _attribute(name: str, instruction: _Instruction) -> str:
    match = re.search(rf"\b{name}=%?([\w.\-]+)", instruction.line)
    assert match is not None, instruction.line
    return match[1]


def _called(instruction: _Instruction) -> list[str]:
    """Returns the computations that an instruction calls."""
    names = _CALLED.findall(instruction.line)
    if match := _BRANCHES.search(instruction.line):
        names += [name.strip().lstrip("%") for name in match[1].split(",")]
    return names


def _result_bytes(instruction: _Instruction) -> int:
    """Returns the bytes of a result, which may be a tuple."""
    size = 0
    for bits, dimensions in _ARRAY.findall(instruction.shape):
        count = math.prod(map(int, filter(None, dimensions.split(","))))
        size += count * int(bits or 8) // 8  # pred has no number, and 8 bits
    return size
