"""The matching kernel: a trie over the atoms of the entries, in one hash table.

A text is cut into atoms (runs of plain characters, and single marks and characters, see
`spacing`) in place, in Arrow's UTF-8 buffer; the spaces that MetaCLIP adds are never
written. A node of the trie is a prefix of atoms of some entry, in a 64-bit slot:

    32 bits of the node's hash | 1 bit: longer entries continue here | entry id + 1

`tables` ensures that every node finds its own slot. Hash collisions of texts are
detected: the hash of an atom of at most 7 bytes is a bijection, so comparing its 64
bits compares the bytes; longer entries are compared byte by byte. So results are exact.
The kernel works on blocks of texts, one depth of the trie at a time, so that the cache
misses of a block's look-ups overlap.

Numba's cache on disk only sees changes of this file. So compiled functions call only
this file and `native`, which rarely changes.
"""

from typing import Any

import numpy as np

from data_prep.matching.native import (
    FIRST_MULTIPLIER,
    Atoms,
    Hits,
    compiled,
    eight_bytes,
    joined,
    letters_ahead,
    mixed,
)
from data_prep.matching.spacing import EXTENDS, IGNORED, MARK, PLAIN, SPACE

MULTIBYTE = 6  # class of a byte of a longer code point, which has the class

# Flags of an atom.
AFTER_SPACE = 1
CAN_START = 2  # an entry may begin, or end, at this atom
CAN_END = 4
LAST = 8  # the last atom of its text
SHORT = 16  # at most 7 bytes, so its hash is a bijection
HOLDS_IGNORED = 32

GOES_ON = np.uint64(1 << 31)
ID_BITS = np.uint64((1 << 31) - 1)

_0, _1, _32, _56 = (np.uint64(n) for n in (0, 1, 32, 56))
_ALL_BITS = np.uint64(2**64 - 1)
_BLOCK_BYTES = 8192  # of text, so that the atoms of a block fit the L2 cache
_BLOCK_TEXTS = 512


@compiled
def _hashed(data: Any, start: int, size: int, seed: Any) -> Any:
    """Hashes bytes; a bijection of (bytes, size) up to 7 bytes."""
    state = seed
    while size > 7:
        state = (state ^ eight_bytes(data, start)) * FIRST_MULTIPLIER
        state ^= state >> _32
        start += 8
        size -= 8
    word = np.uint64(size) << _56
    for i in range(size):
        word |= np.uint64(data[start + i]) << np.uint64(8 * i)
    return mixed(state ^ word)


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
    """Returns a copy of the bytes without ignored characters."""
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
    """Returns buffers for the atoms of `texts` texts of `size` bytes in total."""
    most = 2 * size + texts  # if every byte is a mark followed by a hole
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

    In the literal modes two adjacent spaces have a hole between them, an atom without
    bytes, so that "a  b" differs from "a b".
    """
    byte_classes, classes = rules.byte_classes, rules.classes
    literal, seed = rules.literal, rules.seed
    starts, lengths, states = atoms.start, atoms.length, atoms.state
    all_flags, texts = atoms.flags, atoms.text
    free = CAN_START | CAN_END
    hole_flags = AFTER_SPACE | free | SHORT
    hole = mixed(seed)
    n = 0
    for text in range(first, last):
        at, end = offsets[text], offsets[text + 1]
        begin = n
        fresh = True  # after a space
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
                    letters = letters_ahead(eight_bytes(data, at))
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
                word = eight_bytes(data, start) & ~(_ALL_BITS << np.uint64(8 * length))
                states[n] = mixed(seed ^ word ^ np.uint64(length) << _56)
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
    n = cut(data, offsets, np.int64(0), offsets.size - 1, rules, atoms)
    nodes = np.empty(n, np.uint64)
    for a in range(n):
        nodes[a] = atoms.state[a]
        if a > 0 and atoms.text[a - 1] == atoms.text[a]:
            spaces = np.uint64(atoms.flags[a] & AFTER_SPACE)
            nodes[a] = joined(nodes[a - 1], spaces, atoms.state[a])
    return atoms, n, nodes


@compiled
def match(data: Any, offsets: Any, tables: Any) -> Any:
    """Matches every text; runs without the GIL.

    Args:
      data: u8[bytes], UTF-8.
      offsets: i64[texts + 1], the bounds of each text in `data`.
      tables: from `tables.build`.

    Returns:
      (i64[texts + 1], i32[matches]): the entry ids of text i, ascending and unique,
      are matches[offsets[i] : offsets[i + 1]].
    """
    texts = offsets.size - 1
    ends = np.zeros(texts + 1, np.int64)
    ids = np.empty(4 * texts + 16, np.int32)
    used = np.int64(0)
    atoms = room(np.int64(_BLOCK_TEXTS), np.int64(_BLOCK_BYTES))
    first = np.int64(0)
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
        _confirm(data, atoms, hits, tables)
        counts, found = _grouped(atoms, hits, tables.same_as, last - first)
        if used + found.size > ids.size:
            ids = _larger(ids, used, 2 * (used + found.size))
        used = _gather(counts, found, ids, used, ends, first)
        first = last
    return ends, ids[:used].copy()


@compiled
def _walk(atoms: Any, n: int, slots: Any) -> Any:
    """Returns all runs of atoms whose node has an entry id, by depth.

    Hashes may collide, so `_confirm` must check the hits.
    """
    atom_states, atom_flags = atoms.state, atoms.flags
    mask = np.uint64(slots.size - 1)
    begins = np.empty(n, np.int32)
    depth = 0
    states = np.empty(n, np.uint64)
    fetched = np.empty(n, np.uint64)
    first, last = np.empty(2 * n, np.int32), np.empty(2 * n, np.int32)
    entry = np.empty(2 * n, np.int32)
    count = np.int64(0)
    alive = np.int64(0)
    for a in range(n):
        if atom_flags[a] & CAN_START:
            begins[alive] = a
            states[alive] = atom_states[a]
            alive += 1
    while alive > 0:
        for j in range(alive):  # the loads overlap
            fetched[j] = slots[states[j] & mask]
        if count + alive > first.size:
            size = 2 * (count + alive)
            first, last = _larger(first, count, size), _larger(last, count, size)
            entry = _larger(entry, count, size)
        onward = np.int64(0)
        for j in range(alive):
            slot, state = fetched[j], states[j]
            if slot != _0 and slot >> _32 != state >> _32:
                at = state & mask
                while slot != _0 and slot >> _32 != state >> _32:
                    at = (at + _1) & mask
                    slot = slots[at]
            # Unpredictable, so without a branch: the processor would guess wrong.
            begin = begins[j]
            end = begin + depth
            flags = atom_flags[end]
            first[count], last[count] = begin, end
            entry[count] = np.int32(slot & ID_BITS) - 1
            count += np.int64((slot & ID_BITS != _0) & (flags & CAN_END != 0))
            next_atom = end + np.int64(flags & LAST == 0)
            spaces = np.uint64(atom_flags[next_atom] & AFTER_SPACE)
            begins[onward] = begin
            states[onward] = joined(state, spaces, atom_states[next_atom])
            onward += np.int64((slot & GOES_ON != _0) & (flags & LAST == 0))
        alive = onward
        depth += 1
    return Hits(first[:count], last[:count], entry[:count])


@compiled
def _larger(array: Any, used: int, size: int) -> Any:
    """Returns i32[size] with the first `used` numbers of `array`."""
    larger = np.empty(size, np.int32)
    for i in range(used):
        larger[i] = array[i]
    return larger


@compiled
def _confirm(data: Any, atoms: Any, hits: Any, tables: Any) -> None:
    """Sets hits.entry to -1 where the atoms are not the entry, byte for byte."""
    entry_states, entry_offsets = tables.entry_states, tables.entry_offsets
    firsts, lasts, entries = hits.first, hits.last, hits.entry
    states, flags = atoms.state, atoms.flags
    known = np.empty(entries.size, np.uint64)
    for j in range(entries.size):  # the loads overlap
        known[j] = entry_states[entries[j]]
    doubtful = np.empty(entries.size, np.int32)
    count = 0
    for j in range(entries.size):
        if known[j] == _0 or not flags[firsts[j]] & SHORT:
            doubtful[count] = j
            count += 1
        elif firsts[j] != lasts[j] or known[j] != states[firsts[j]]:
            entries[j] = -1
    begins = np.empty(count, np.int64)
    for k in range(count):
        begins[k] = entry_offsets[entries[doubtful[k]]]
    touched = np.empty(count, np.uint8)
    for k in range(count):  # prefetches the bytes; the loads overlap
        touched[k] = tables.entry_bytes[begins[k]]
    _compare(data, atoms, hits, tables, doubtful[:count], begins)


@compiled
def _compare(
    data: Any, atoms: Any, hits: Any, tables: Any, doubtful: Any, begins: Any
) -> None:
    """Compares the bytes of the hits that need it, see _confirm."""
    starts, lengths, flags = atoms.start, atoms.length, atoms.flags
    entry_bytes, entry_offsets = tables.entry_bytes, tables.entry_offsets
    byte_classes, classes = tables.rules.byte_classes, tables.rules.classes
    firsts, lasts, entries = hits.first, hits.last, hits.entry
    for k in range(doubtful.size):
        j = doubtful[k]
        at, end = begins[k], entry_offsets[entries[j] + 1]
        same = True
        for a in range(firsts[j], lasts[j] + 1):
            if a > firsts[j] and flags[a] & AFTER_SPACE:
                same = at < end and entry_bytes[at] == 32
                at += 1
            start, length = starts[a], np.int64(lengths[a])
            i = 0
            if same and flags[a] & HOLDS_IGNORED:
                stop = start + length
                kept = _without_ignored(data, start, stop, byte_classes, classes)
                length = kept.size
                same = at + length <= end
                while same and i < length:
                    same = kept[i] == entry_bytes[at + i]
                    i += 1
            same = same and at + length <= end
            while same and i + 8 <= length:
                same = eight_bytes(data, start + i) == eight_bytes(entry_bytes, at + i)
                i += 8
            while same and i < length:
                same = data[start + i] == entry_bytes[at + i]
                i += 1
            at += length
            if not same:
                break
        if not same or at != end:
            entries[j] = -1


@compiled
def _grouped(atoms: Any, hits: Any, same_as: Any, texts: int) -> Any:
    """Returns (i64[texts + 1] ends, i32[matches]): the matches grouped by text."""
    atom_texts, firsts, entries = atoms.text, hits.first, hits.entry
    ends = np.zeros(texts + 2, np.int64)
    for j in range(entries.size):
        entry = entries[j]
        while entry >= 0:
            ends[atom_texts[firsts[j]] + 2] += 1
            entry = same_as[entry] if same_as.size else np.int32(-1)
    for text in range(2, texts + 2):
        ends[text] += ends[text - 1]
    grouped = np.empty(ends[texts + 1], np.int32)
    for j in range(entries.size):
        entry = entries[j]
        while entry >= 0:
            text = atom_texts[firsts[j]] + 1
            grouped[ends[text]] = entry
            ends[text] += 1
            entry = same_as[entry] if same_as.size else np.int32(-1)
    return ends[: texts + 1], grouped


@compiled
def _gather(counts: Any, found: Any, ids: Any, used: int, ends: Any, first: int) -> int:
    """Sorts the matches of each text and appends each id once; returns the new end."""
    for text in range(counts.size - 1):
        begin, end = counts[text], counts[text + 1]
        gap = end - begin
        while gap > 1:  # Shell's sort; an insertion sort for the usual few
            gap = gap // 2 if gap > 8 else 1
            for i in range(begin + gap, end):
                moving = found[i]
                j = i
                while j >= begin + gap and found[j - gap] > moving:
                    found[j] = found[j - gap]
                    j -= gap
                found[j] = moving
        for i in range(begin, end):
            if i == begin or found[i] != found[i - 1]:
                ids[used] = found[i]
                used += 1
        ends[first + text + 1] = used
    return used
