"""The matching kernel: a trie over the atoms of the entries, kept in one hash table.

A text is cut into atoms (runs of plain characters, and the marks and characters that
stand by themselves, see `spacing`) where it lies, in Arrow's UTF-8 buffer; the spaces
that MetaCLIP adds are never written. A node of the trie is a run of atoms that begins
some entry, and has a slot of 64 bits:

    32 bits of the node's hash | 1 bit: longer entries go on here | entry id + 1

`tables` makes sure that every node finds its own slot. A text that lands there by a
hash collision is told apart: the hash of an atom of at most 7 bytes is a bijection, so
comparing all 64 bits of it compares the bytes; anything longer is compared byte by
byte. So results are exact. The kernel works on blocks of texts, one depth of the trie
at a time: the look-ups of a block do not wait for each other's cache misses.

Numba's cache on disk sees changes of this file only, so compiled functions of other
files are not called here, nor these in compiled functions elsewhere.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from data_prep.matching.spacing import EXTENDS, IGNORED, MARK, PLAIN, SPACE

MULTIBYTE = 6  # class of a byte that does not say the class: see its code point

# Flags of an atom.
AFTER_SPACE = 1
CAN_START = 2  # an entry may begin, or end, at this atom
CAN_END = 4
LAST = 8  # of its text
SHORT = 16  # at most 7 bytes: its hash says all
HOLDS_IGNORED = 32

GOES_ON = np.uint64(1 << 31)
ID_BITS = np.uint64((1 << 31) - 1)

_0, _1, _8, _29, _32, _56 = (np.uint64(n) for n in (0, 1, 8, 29, 32, 56))
_EVERY = 0x0101010101010101  # times a byte: that byte eight times
_EVERY_BIT = np.uint64(0xFF * _EVERY)
_HIGH_BITS = np.uint64(0x80 * _EVERY)
_LOW_BITS = np.uint64(0x7F * _EVERY)
_CASE_BITS = np.uint64(0x20 * _EVERY)
_TO_A = np.uint64((0x80 - ord("a")) * _EVERY)
_BEHIND_Z = np.uint64((0x80 - ord("z") - 1) * _EVERY)
_FIRST_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SECOND_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)

_BLOCK_BYTES = 8192  # of text: the atoms of a block stay in the L2 cache
_BLOCK_TEXTS = 512


class Rules(NamedTuple):
    """How texts are cut; read-only arrays."""

    byte_classes: NDArray[np.uint8]  # [256]
    classes: NDArray[np.uint8]  # [0x110000], or [0] where the bytes say all
    literal: bool  # spaces count one by one, and the edge rule of v1 and v2 holds
    seed: np.uint64


class Tables(NamedTuple):
    """All that the kernel needs; plain read-only arrays, so they can be mapped."""

    slots: NDArray[np.uint64]  # [a power of two]
    entry_states: NDArray[np.uint64]  # [entries] hash if one short atom, else 0
    entry_bytes: NDArray[np.uint8]  # the entries in canonical form, joined
    entry_offsets: NDArray[np.int64]  # [entries + 1] into entry_bytes
    same_as: NDArray[np.int32]  # [entries or 0] next entry of the same form, or -1
    rules: Rules


class Atoms(NamedTuple):
    """Room for atoms, filled from the front."""

    start: NDArray[np.int64]  # byte position in the data
    length: NDArray[np.int32]  # bytes
    state: NDArray[np.uint64]  # hash of the bytes
    flags: NDArray[np.uint8]
    text: NDArray[np.int32]  # index of the text in its block


class _Hits(NamedTuple):
    first: NDArray[np.int32]  # atoms of the block
    last: NDArray[np.int32]
    entry: NDArray[np.int32]


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles to run without the GIL; cached on disk where a cache can be kept."""
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # numba found no folder that it may write to
        return numba.njit(function, nogil=True)


@intrinsic
def _eight_bytes(typing_context: Any, array: Any, at: Any) -> Any:
    """Returns eight bytes from `at` on as one number, the first one lowest."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, values[0])
        pointer = builder.gep(view.data, [values[1]])
        pointer = builder.bitcast(pointer, ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1)

    return numba.types.uint64(array, numba.types.int64), generate


@intrinsic
def _low_zeros(typing_context: Any, word: Any) -> Any:
    """Returns how many of the lowest bits are zero."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 0))

    return numba.types.int64(numba.types.uint64), generate


@compiled
def _mixed(state: Any) -> Any:
    """A bijection of 64 bits."""
    state = state * _FIRST_MULTIPLIER
    state = (state ^ (state >> _32)) * _SECOND_MULTIPLIER
    return state ^ (state >> _29)


@compiled
def _joined(node: Any, spaces: Any, atom: Any) -> Any:
    """Returns the hash of a child node from its parent's and the next atom's."""
    state = (node + spaces) * _SECOND_MULTIPLIER
    return _mixed(state ^ (state >> _32) ^ atom)


@compiled
def _hashed(data: Any, start: int, size: int, seed: Any) -> Any:
    """Hashes bytes; a bijection of (bytes, size) up to 7 bytes."""
    state = seed
    while size > 7:
        state = (state ^ _eight_bytes(data, start)) * _FIRST_MULTIPLIER
        state ^= state >> _32
        start += 8
        size -= 8
    word = np.uint64(size) << _56
    for i in range(size):
        word |= np.uint64(data[start + i]) << np.uint64(8 * i)
    return _mixed(state ^ word)


@compiled
def _letters(word: Any) -> Any:
    """Returns how many of eight bytes are ASCII letters before another byte comes."""
    lower = (word | _CASE_BITS) & _LOW_BITS
    others = ~((lower + _TO_A) & ~(lower + _BEHIND_Z)) | word
    others &= _HIGH_BITS
    return _low_zeros(others) >> 3


@compiled
def _class_at(data: Any, at: int, end: int, classes: Any) -> Any:
    """Returns (class, bytes) of the code point at `at`; never reads past `end`."""
    lead = np.int64(data[at])
    code, size = np.int64(0xFFFD), 1
    if lead >= 0xF0 and at + 3 < end:
        size = 4
        code = (lead & 7) << 18 | (np.int64(data[at + 1]) & 63) << 12
        code |= (np.int64(data[at + 2]) & 63) << 6 | (np.int64(data[at + 3]) & 63)
    elif lead >= 0xE0 and at + 2 < end:
        size = 3
        code = (lead & 15) << 12 | (np.int64(data[at + 1]) & 63) << 6
        code |= np.int64(data[at + 2]) & 63
    elif lead >= 0xC0 and at + 1 < end:
        size = 2
        code = (lead & 31) << 6 | (np.int64(data[at + 1]) & 63)
    if code >= 0x110000:
        code = np.int64(0xFFFD)
    return np.int64(classes[code]), size


@compiled
def _without_ignored(
    data: Any, start: int, stop: int, byte_classes: Any, classes: Any
) -> Any:
    """Returns a copy of the bytes without those of ignored characters."""
    kept = 0
    copy = np.empty(stop - start, np.uint8)
    while start < stop:
        kind, size = np.int64(byte_classes[data[start]]), 1
        if kind == MULTIBYTE:
            kind, size = _class_at(data, start, stop, classes)
        for i in range(start, start + size if kind != IGNORED else start):
            copy[kept] = data[i]
            kept += 1
        start += size
    return copy[:kept]


@compiled
def room(texts: int, size: int) -> Any:
    """Returns room for the atoms of `texts` texts of `size` bytes in all."""
    most = 2 * size + texts  # every byte a mark, with a hole behind each and at the end
    return Atoms(
        np.empty(most, np.int64),
        np.empty(most, np.int32),
        np.empty(most, np.uint64),
        np.empty(most, np.uint8),
        np.empty(most, np.int32),
    )


@compiled
def cut(data: Any, offsets: Any, first: int, last: int, rules: Any, atoms: Any) -> int:
    """Cuts texts first to last - 1 into atoms; returns the number of atoms.

    In the literal modes, where nothing stands between two spaces, there is a hole: an
    atom of no bytes. That makes "a  b" differ from "a b".
    """
    byte_classes, classes = rules.byte_classes, rules.classes
    literal, seed = rules.literal, rules.seed
    starts, lengths, states = atoms.start, atoms.length, atoms.state
    all_flags, texts = atoms.flags, atoms.text
    free = CAN_START | CAN_END
    hole_flags = AFTER_SPACE | free | SHORT
    hole = _mixed(seed)
    n = 0
    for text in range(first, last):
        at, end = offsets[text], offsets[text + 1]
        begin = n
        fresh = True  # a space stands before what comes next
        while at < end:
            kind, size = np.int64(byte_classes[data[at]]), 1
            if kind == MULTIBYTE:
                kind, size = _class_at(data, at, end, classes)
            if kind == IGNORED:
                at += size
                continue
            if kind == SPACE or kind == MARK:
                if literal and fresh:
                    starts[n], lengths[n], states[n] = at, 0, hole
                    all_flags[n], texts[n] = hole_flags, text - first
                    n += 1
                fresh = True
                if kind == SPACE:
                    at += size
                    continue
            if kind == EXTENDS:
                kind = np.int64(PLAIN)
            flags = 0 if kind == PLAIN and literal else free
            if fresh:
                flags |= AFTER_SPACE | CAN_START
            fresh = kind == MARK
            start = at
            at += size
            behind = np.int64(SPACE)
            while at < end:
                if kind == PLAIN and at + 8 <= data.size:
                    letters = _letters(_eight_bytes(data, at))
                    at = min(at + letters, end)
                    if letters == 8 or at == end:
                        continue
                behind, size = np.int64(byte_classes[data[at]]), 1
                if behind == MULTIBYTE:
                    behind, size = _class_at(data, at, end, classes)
                if behind == IGNORED:
                    flags |= HOLDS_IGNORED
                elif behind != EXTENDS and (behind != PLAIN or kind != PLAIN):
                    break
                behind = np.int64(SPACE)
                at += size
            if behind == SPACE or behind == MARK:
                flags |= CAN_END
            length = at - start
            if length < 8 and start + 8 <= data.size and not flags & HOLDS_IGNORED:
                word = _eight_bytes(data, start) & ~(
                    _EVERY_BIT << np.uint64(8 * length)
                )
                states[n] = _mixed(seed ^ word ^ np.uint64(length) << _56)
                flags |= SHORT
            elif flags & HOLDS_IGNORED:
                kept = _without_ignored(data, start, at, byte_classes, classes)
                states[n] = _hashed(kept, 0, kept.size, seed)
            else:
                states[n] = _hashed(data, start, length, seed)
                flags |= SHORT if length < 8 else 0
            starts[n], lengths[n] = start, length
            all_flags[n], texts[n] = flags, text - first
            n += 1
        if literal and fresh:
            starts[n], lengths[n], states[n] = end, 0, hole
            all_flags[n], texts[n] = hole_flags, text - first
            n += 1
        if n > begin:
            all_flags[n - 1] |= LAST
    return n


@compiled
def cut_all(data: Any, offsets: Any, rules: Any) -> Any:
    """Returns (atoms, number of atoms, node hashes) of the entries.

    The node hashes u64[atoms] are those of the nodes that end at each atom.
    """
    atoms = room(offsets.size - 1, offsets[-1] - offsets[0])
    n = cut(data, offsets, 0, offsets.size - 1, rules, atoms)
    nodes = np.empty(n, np.uint64)
    for a in range(n):
        nodes[a] = atoms.state[a]
        if a > 0 and atoms.text[a - 1] == atoms.text[a]:
            spaces = np.uint64(atoms.flags[a] & AFTER_SPACE)
            nodes[a] = _joined(nodes[a - 1], spaces, atoms.state[a])
    return atoms, n, nodes


@compiled
def match(data: Any, offsets: Any, tables: Any) -> Any:
    """Matches every text; runs without the GIL.

    Args:
      data: u8[bytes], UTF-8.
      offsets: i64[texts + 1], where each text begins and ends in `data`.
      tables: what `tables.build` returned.

    Returns:
      (i64[texts + 1], i32[matches]): the entry ids of text i, ascending and unique,
      are matches[offsets[i] : offsets[i + 1]].
    """
    texts = offsets.size - 1
    ends = np.zeros(texts + 1, np.int64)
    ids = np.empty(4 * texts + 16, np.int32)
    used = 0
    atoms = room(_BLOCK_TEXTS, _BLOCK_BYTES)
    first = 0
    while first < texts:
        last = first + 1
        while last < texts and last - first < _BLOCK_TEXTS:
            if offsets[last + 1] - offsets[first] > _BLOCK_BYTES:
                break
            last += 1
        size = offsets[last] - offsets[first]
        if 2 * size + last - first > atoms.start.size:
            atoms = room(last - first, size)
        n = cut(data, offsets, first, last, tables.rules, atoms)
        hits = _walk(atoms, n, tables.slots)
        counts, found = _confirmed(data, atoms, hits, tables, last - first)
        if used + found.size > ids.size:
            larger = np.empty(2 * (used + found.size), np.int32)
            larger[:used] = ids[:used]
            ids = larger
        used = _gather(counts, found, ids, used, ends, first)
        first = last
    return ends, ids[:used].copy()


@compiled
def _walk(atoms: Any, n: int, slots: Any) -> Any:
    """Returns all runs of atoms whose node holds an entry id, by depth.

    Hashes may collide, so the hits are to be confirmed.
    """
    atom_states, atom_flags = atoms.state, atoms.flags
    mask = np.uint64(slots.size - 1)
    begins = np.empty(n, np.int32)
    depth = 0
    states = np.empty(n, np.uint64)
    fetched = np.empty(n, np.uint64)
    first, last = np.empty(2 * n, np.int32), np.empty(2 * n, np.int32)
    entry = np.empty(2 * n, np.int32)
    count = 0
    alive = 0
    for a in range(n):
        if atom_flags[a] & CAN_START:
            begins[alive] = a
            states[alive] = atom_states[a]
            alive += 1
    while alive > 0:
        for j in range(alive):  # these loads do not wait for each other
            fetched[j] = slots[states[j] & mask]
        if count + alive > first.size:
            first, last, entry = _more_room(first), _more_room(last), _more_room(entry)
        onward = 0
        for j in range(alive):
            slot, state = fetched[j], states[j]
            if slot != _0 and slot >> _32 != state >> _32:
                at = state & mask
                while slot != _0 and slot >> _32 != state >> _32:
                    at = (at + _1) & mask
                    slot = slots[at]
            begin = begins[j]
            end = begin + depth
            if slot & ID_BITS and atom_flags[end] & CAN_END:
                first[count] = begin
                last[count] = end
                entry[count] = np.int32(slot & ID_BITS) - 1
                count += 1
            if slot & GOES_ON and not atom_flags[end] & LAST:
                begins[onward] = begin
                spaces = np.uint64(atom_flags[end + 1] & AFTER_SPACE)
                states[onward] = _joined(state, spaces, atom_states[end + 1])
                onward += 1
        alive = onward
        depth += 1
    return _Hits(first[:count], last[:count], entry[:count])


@compiled
def _more_room(array: Any) -> Any:
    larger = np.empty(2 * array.size, array.dtype)
    larger[: array.size] = array
    return larger


@compiled
def _confirmed(data: Any, atoms: Any, hits: Any, tables: Any, texts: int) -> Any:
    """Returns (matches of each text of the block, matches grouped by text)."""
    same_as, entry_states = tables.same_as, tables.entry_states
    entry_bytes, entry_offsets = tables.entry_bytes, tables.entry_offsets
    firsts, lasts, entries = hits.first, hits.last, hits.entry
    atom_states, atom_flags, atom_texts = atoms.state, atoms.flags, atoms.text
    starts = np.zeros(texts + 2, np.int64)
    known = np.empty(entries.size, np.uint64)
    for j in range(entries.size):  # these loads do not wait for each other
        known[j] = entry_states[entries[j]]
    good = 0
    for j in range(entries.size):
        first, last, entry = firsts[j], lasts[j], entries[j]
        if known[j] != _0 and atom_flags[first] & SHORT:
            same = first == last and known[j] == atom_states[first]
        else:
            begin, end = entry_offsets[entry], entry_offsets[entry + 1]
            same = _spell(
                data, atoms, first, last, tables.rules, entry_bytes[begin:end]
            )
        if not same:
            continue
        text = atom_texts[first]
        firsts[good], entries[good] = text, entry
        good += 1
        starts[text + 2] += 1
        if same_as.size:
            other = same_as[entry]
            while other >= 0:
                starts[text + 2] += 1
                other = same_as[other]
    for text in range(2, texts + 2):
        starts[text] += starts[text - 1]
    grouped = np.empty(starts[texts + 1], np.int32)
    for j in range(good):
        text, entry = firsts[j] + 1, entries[j]
        while entry >= 0:
            grouped[starts[text]] = entry
            starts[text] += 1
            entry = same_as[entry] if same_as.size else np.int32(-1)
    return starts[: texts + 1], grouped


@compiled
def _spell(
    data: Any, atoms: Any, first: int, last: int, rules: Any, entry: Any
) -> bool:
    """Returns whether these atoms spell the entry u8[size], byte for byte."""
    starts, lengths, all_flags = atoms.start, atoms.length, atoms.flags
    at = 0
    for a in range(first, last + 1):
        flags = all_flags[a]
        if a > first and flags & AFTER_SPACE:
            if at >= entry.size or entry[at] != 32:
                return False
            at += 1
        atom = data[starts[a] : starts[a] + lengths[a]]
        if flags & HOLDS_IGNORED:
            atom = _without_ignored(
                atom, 0, atom.size, rules.byte_classes, rules.classes
            )
        if at + atom.size > entry.size:
            return False
        for i in range(atom.size):
            if atom[i] != entry[at + i]:
                return False
        at += atom.size
    return at == entry.size


@compiled
def _gather(counts: Any, found: Any, ids: Any, used: int, ends: Any, first: int) -> int:
    """Sorts the matches of each text and appends each id once; returns the new end."""
    for text in range(counts.size - 1):
        begin, end = counts[text], counts[text + 1]
        if end - begin > 64:
            found[begin:end].sort()
        else:
            for i in range(begin + 1, end):
                moving = found[i]
                j = i
                while j > begin and found[j - 1] > moving:
                    found[j] = found[j - 1]
                    j -= 1
                found[j] = moving
        for i in range(begin, end):
            if i == begin or found[i] != found[i - 1]:
                ids[used] = found[i]
                used += 1
        ends[first + text + 1] = used
    return used
