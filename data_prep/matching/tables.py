"""Builds the tables that the kernel in `token_trie` matches with."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.matching import spacing
from data_prep.matching.native import FIRST_MULTIPLIER, Rules, Tables, compiled
from data_prep.matching.token_trie import (
    GOES_ON,
    ID_BITS,
    LAST,
    MULTIBYTE,
    SHORT,
    cut_all,
)

_1, _32 = np.uint64(1), np.uint64(32)
# Entries that are their own canonical form in fixed mode.
_PLAIN_WORDS = "^[0-9A-Za-z]+( [0-9A-Za-z]+)*$"


def build(entries: pa.Array, *, mode: str) -> Tables:
    """Builds the tables of a mode for distinct, non-empty entries.

    Args:
      entries: Arrow strings without nulls; the entry id is the position.
      mode: one of spacing.MODES.
    """
    fixed = mode == "fixed"
    data, offsets = buffers(_canonical(entries) if fixed else entries)
    same_as = np.empty(len(entries) if fixed else 0, np.int32)
    for seed in range(1, 100):
        atoms, n, nodes = cut_all(data, offsets, _entry_rules(mode, seed=seed))
        slots = np.zeros(_slot_count(np.unique(nodes).size), np.uint64)
        same_as[:] = -1
        if not _fill(atoms, nodes, offsets, data, slots, same_as):
            continue
        alone = np.bincount(atoms.text[:n], minlength=len(entries)) == 1
        short = np.flatnonzero(alone[atoms.text[:n]] & (atoms.flags[:n] & SHORT != 0))
        entry_states = np.zeros(len(entries), np.uint64)
        entry_states[atoms.text[short]] = nodes[short]
        return Tables(
            slots=frozen(slots),
            entry_states=frozen(entry_states),
            entry_bytes=data,
            entry_offsets=offsets,
            same_as=frozen(same_as if (same_as >= 0).any() else same_as[:0].copy()),
            rules=_text_rules(mode, seed=seed),
        )
    raise RuntimeError("wanted a hash seed without collisions, got none of 99")


def buffers(strings: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns (u8[bytes], i64[n + 1] offsets), read-only, mostly without a copy."""
    _, offset_buffer, data_buffer = strings.buffers()
    width = np.int32 if pa.types.is_string(strings.type) else np.int64
    offsets = np.zeros(1, np.int64)
    if len(strings):
        ends = np.frombuffer(offset_buffer, width)[strings.offset :]
        offsets = ends[: len(strings) + 1].astype(np.int64, copy=False)
    data = np.frombuffer(data_buffer or b"", np.uint8)
    if offsets[0] or offsets[-1] != data.size:
        data, offsets = data[offsets[0] : offsets[-1]], offsets - offsets[0]
    return frozen(data), frozen(offsets)


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Makes an array read-only like mapped ones, so the kernel compiles once."""
    array.flags.writeable = False
    return array


def _text_rules(mode: str, *, seed: int) -> Rules:
    """Returns the rules that cut texts in a mode; `seed` changes the hashes."""
    classes = spacing.character_classes(mode)
    wide = bool((classes[128:] != spacing.PLAIN).any())
    byte_classes = classes[:256].copy()
    byte_classes[128:] = MULTIBYTE if wide else spacing.PLAIN
    return Rules(
        byte_classes=frozen(byte_classes),
        classes=classes if wide else classes[:0],
        literal=mode != "fixed",
        seed=np.uint64(seed * int(FIRST_MULTIPLIER) % 2**64),
    )


def _entry_rules(mode: str, *, seed: int) -> Rules:
    """Returns the rules that cut entries; in v1 and v2 only at " "."""
    rules = _text_rules(mode, seed=seed)
    if not rules.literal:
        return rules
    byte_classes = rules.byte_classes.copy()
    byte_classes[np.isin(byte_classes, (spacing.SPACE, spacing.MARK))] = spacing.PLAIN
    byte_classes[ord(" ")] = spacing.SPACE
    return rules._replace(byte_classes=frozen(byte_classes))


def _canonical(entries: pa.Array) -> pa.Array:
    """Returns the entries' canonical forms in fixed mode; they may repeat."""
    plain = pc.match_substring_regex(entries, _PLAIN_WORDS)
    others = entries.filter(pc.invert(plain)).to_pylist()
    spaced = pa.array(["".join(spacing.atoms(e)) for e in others], entries.type)
    return pc.replace_with_mask(entries, pc.invert(plain), spaced)


def _slot_count(nodes: int) -> int:
    """Returns the number of slots, a power of two at most a third full.

    Most look-ups are for word pairs of no entry, which an empty slot ends early.
    """
    return max(16, 1 << (3 * nodes).bit_length())


@compiled
def _fill(
    atoms: Any, nodes: Any, offsets: Any, data: Any, slots: Any, same_as: Any
) -> bool:
    """Writes the nodes into `slots` and `same_as`.

    Returns False if the slots of two nodes would be equal. Otherwise each look-up finds
    its own node, since later insertions never come before it.
    """
    flags, texts, starts, lengths = atoms.flags, atoms.text, atoms.start, atoms.length
    mask = np.uint64(slots.size - 1)
    owner = np.empty(slots.size, np.int32)  # an entry that has the node as a prefix
    size = np.empty(slots.size, np.int32)  # bytes of that entry up to there
    for a in range(nodes.size):
        entry = texts[a]
        begin = offsets[entry]
        length = np.int32(starts[a] + lengths[a] - begin)
        tag = nodes[a] >> _32
        at = nodes[a] & mask
        while slots[at] and slots[at] >> _32 != tag:
            at = (at + _1) & mask
        if not slots[at]:
            owner[at], size[at] = entry, length
            slots[at] = tag << _32
        elif size[at] != length:
            return False
        else:
            other = offsets[owner[at]]
            for i in range(length):
                if data[begin + i] != data[other + i]:
                    return False
        if not flags[a] & LAST:
            slots[at] |= GOES_ON
            continue
        known = slots[at] & ID_BITS
        if same_as.size:
            same_as[entry] = np.int32(known) - 1
        slots[at] = (slots[at] ^ known) | np.uint64(entry + 1)
    return True
