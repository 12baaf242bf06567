"""The kernel that finds words in UTF-8 text and counts them and their bigrams.

It works on a block of words at a time, in three steps: find them, look up their ids,
count their bigrams by the two ids. Each step first reads all the slots that it will
need, so that the processor fetches many cache lines at once instead of waiting for one
after another; that doubles the rate where the tables exceed the cache.

numba's cache on disk does not see changes of the functions that are compiled into
others: after an edit, remove the __pycache__ beside this file.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.matching.native import compiled, eight_bytes, mixed

BLOCK = 1 << 13  # words
PADDING = 8  # bytes after those of words, and of data
# Classes of characters.
OTHER, LETTER, MARK, JOINER = range(4)
COUNT, END = range(2)  # columns of Words.facts
KEY, TIMES = range(2)  # columns of the table of bigrams

_SPACE = np.uint8(ord(" "))
_PRIME = np.uint64(0x100000001B3)
_32 = np.uint64(32)
_ID = np.uint64(0xFFFFFFFF)
_NONE = np.uint64(0)


class Block(NamedTuple):
    """The words of a block: buffers with an entry each."""

    start: NDArray[np.int64]  # byte in the data
    stop: NDArray[np.int64]
    hashed: NDArray[np.uint64]
    follows: NDArray[np.bool_]  # whether it and the word before are a bigram
    word: NDArray[np.int64]  # its id


class Words(NamedTuple):
    """The words so far. Their ids are in the order of their first occurrence."""

    slots: NDArray[np.uint64]  # [a power of two] half a hash << 32 | id + 1, or 0
    hashes: NDArray[np.uint64]  # [capacity]
    facts: NDArray[np.int64]  # [capacity + 1, 2] count, end in `arena`; ends start at 1
    arena: NDArray[np.uint8]  # the bytes of all words, joined, and PADDING


def new_block() -> Block:
    """Returns buffers for a block."""
    return Block(
        np.empty(BLOCK, np.int64),
        np.empty(BLOCK, np.int64),
        np.empty(BLOCK, np.uint64),
        np.empty(BLOCK, np.bool_),
        np.empty(BLOCK, np.int64),
    )


def no_words(capacity: int, arena: int) -> Words:
    """Returns an empty table for `capacity` words of `arena` bytes in all."""
    return Words(
        np.zeros(1 << (2 * capacity - 1).bit_length(), np.uint64),
        np.empty(capacity, np.uint64),
        np.zeros((capacity + 1, 2), np.int64),
        np.zeros(arena + PADDING, np.uint8),
    )


def no_bigrams(capacity: int) -> NDArray[np.uint64]:
    """Returns an empty table for `capacity` bigrams.

    It is u64[slots, 2]: first id << 32 | second id, and the count.
    """
    return np.zeros((1 << (2 * capacity - 1).bit_length(), 2), np.uint64)


@compiled
def _class_at(data: Any, at: Any, classes: Any) -> Any:
    """Returns the class of the character at a byte, and the character's length."""
    code = np.int64(data[at])
    if code < 0x80:
        return classes[code], 1
    if code < 0xE0:
        return classes[(code & 0x1F) << 6 | np.int64(data[at + 1]) & 0x3F], 2
    low = (np.int64(data[at + 1]) & 0x3F) << 6 | np.int64(data[at + 2]) & 0x3F
    if code < 0xF0:
        return classes[(code & 0x0F) << 12 | low], 3
    code = (code & 0x07) << 18 | low << 6 | np.int64(data[at + 3]) & 0x3F
    return classes[code], 4


@compiled
def find_words(data: Any, at: Any, classes: Any, block: Block) -> Any:
    """Finds the next words; returns how many, and the byte to continue from.

    Args:
      data: u8[n], valid UTF-8 that ends with PADDING characters of no word.
      at: byte to start from, 0 or after a word.
      classes: u8[0x110000], of characters.
      block: filled.
    """
    size, n, end = data.size, 0, at
    while at < size and n < block.start.size:
        kind, length = _class_at(data, at, classes)
        if kind != LETTER:
            at += length
            continue
        start = at
        hashed = np.uint64(0xCBF29CE484222325)
        while kind != OTHER:  # the character at `at` belongs to the word
            for i in range(at, at + length):
                hashed = (hashed ^ np.uint64(data[i])) * _PRIME
            at += length
            kind, length = _class_at(data, at, classes)
            if kind == JOINER:  # only before a letter
                after, more = _class_at(data, at + length, classes)
                if after != LETTER:
                    break
                length += more
        block.start[n], block.stop[n] = start, at
        block.hashed[n] = mixed(hashed)
        block.follows[n] = start == end + 1 and end > 0 and data[end] == _SPACE
        end = at
        n += 1
    return n, end if n == block.start.size else size


@compiled
def look_up(data: Any, block: Block, n: Any, words: Words, known: Any) -> Any:
    """Counts the first n words of a block and sets their ids in `block.word`.

    `known` is the number of words in the table, which must have room for n more.
    Returns the new number, and what was read ahead, so that it is not optimised away.
    """
    mask = np.uint64(words.slots.size - 1)
    read = _NONE
    for i in range(n):  # most words are in their first slot
        found = words.slots[block.hashed[i] & mask]
        block.word[i] = np.int64(found & _ID) - 1 if found != _NONE else 0
    for i in range(n):
        block.word[i] = words.facts[block.word[i], END]
    for i in range(n):
        read |= np.uint64(words.arena[block.word[i]])
    for i in range(n):
        hashed, start, stop = block.hashed[i], block.start[i], block.stop[i]
        slot = hashed & mask
        while True:
            found = words.slots[slot]
            if found == _NONE:
                word = known
                begin = words.facts[word, END]
                for j in range(stop - start):
                    words.arena[begin + j] = data[start + j]
                words.hashes[word] = hashed
                words.facts[word + 1, END] = begin + stop - start
                known += 1
                words.slots[slot] = (hashed >> _32) << _32 | np.uint64(known)
                break
            if found >> _32 == hashed >> _32:
                word = np.int64(found & _ID) - 1
                begin = words.facts[word, END]
                if words.facts[word + 1, END] - begin == stop - start and _equal(
                    words.arena, begin, data, start, stop - start
                ):
                    break
            slot = (slot + np.uint64(1)) & mask
        words.facts[word, COUNT] += 1
        block.word[i] = word
    return known, read


@compiled
def _equal(one: Any, at: Any, other: Any, start: Any, length: Any) -> Any:
    """Whether bytes are equal; both arrays have eight more than those."""
    while length > 8:
        if eight_bytes(one, at) != eight_bytes(other, start):
            return False
        at, start, length = at + 8, start + 8, length - 8
    unlike = eight_bytes(one, at) ^ eight_bytes(other, start)
    return unlike << np.uint64(64 - 8 * length) == _NONE


@compiled
def pair(block: Block, n: Any, last: Any, bigrams: Any) -> Any:
    """Counts the bigrams of the first n words of a block.

    `last` is the word before the block. There must be room for n more bigrams. Returns
    how many are new, and what was read ahead, so that it is not optimised away.
    """
    mask = np.uint64(bigrams.shape[0] - 1)
    read, new = _NONE, 0
    for i in range(n):
        if block.follows[i]:
            first = last if i == 0 else block.word[i - 1]
            key = np.uint64(first) << _32 | np.uint64(block.word[i])
            block.hashed[i] = key
            read |= bigrams[mixed(key) & mask, TIMES]
    for i in range(n):
        if block.follows[i]:
            key = block.hashed[i]
            slot = _slot(key, bigrams, mask)
            new += bigrams[slot, TIMES] == _NONE
            bigrams[slot, KEY] = key
            bigrams[slot, TIMES] += np.uint64(1)
    return new, read


@compiled
def _slot(key: Any, bigrams: Any, mask: Any) -> Any:
    """Returns where a bigram is, or where it is to be put."""
    slot = mixed(key) & mask
    while bigrams[slot, TIMES] != _NONE and bigrams[slot, KEY] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@compiled
def place_words(hashes: Any, slots: Any) -> None:
    """Puts all words into empty slots, by their hashes."""
    mask = np.uint64(slots.size - 1)
    for word in range(hashes.size):
        slot = hashes[word] & mask
        while slots[slot] != _NONE:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = (hashes[word] >> _32) << _32 | np.uint64(word + 1)


@compiled
def place_bigrams(old: Any, new: Any) -> None:
    """Copies all bigrams to an empty table."""
    mask = np.uint64(new.shape[0] - 1)
    for i in range(old.shape[0]):
        if old[i, TIMES] != _NONE:
            slot = _slot(old[i, KEY], new, mask)
            new[slot, KEY], new[slot, TIMES] = old[i, KEY], old[i, TIMES]
