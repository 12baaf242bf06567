"""Reads the tags in the bytes of a page, without building a tree.

Where tags, comments and texts end is as in the HTML standard's tokenizer. Compiled into
`tree_cost`, as the functions of `matching.native` are into theirs.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.matching.native import (
    FIRST_MULTIPLIER,
    borrowing,
    compiled,
    eight_bytes,
    letters_ahead,
    low_zeros,
)

BUCKETS = 128  # of the parser's own table of names
TOO_MANY = 1 << 40  # lookups for a name that `read` has no room for
_PROBES = 32  # in a hash table; beyond, it counts as full

# What is to be known of an element: one bit each.
(
    VOID,  # has no content
    RAW,  # its content is text
    LAST,  # all that follows is text
    SCRIPT,
    FORMATTING,
    LINK,  # ends the one before it
    UNCOUNTED,  # the page has one of it, or it is never in the parser's way
    ROOT,  # gets the attributes of all its start tags
    FOREIGN,
    INSIDE,  # surely in <svg> or <math>
    JOINT,  # there, but its content is HTML
    BREAKS_OUT,  # ends <svg> and <math>
    ENDS_P,
    HEADING,
    P,
    LI,
    DD,
    OPTION,
    CELL,
    ROW,
    ROWS,
    TABLE,
    FRAMES,  # may end the reading of all but frames
    OPTIONAL,  # its end tag may be left out
    CLOSES,  # its start tag may close others, in ways that are not followed
    TEMPLATE,
    MARKER,  # formatting in it ends with it
    IGNORED,  # its start tag may make nothing
    HEAD,  # its start tag may make something in <head>, wherever it is
    IN_TABLE,  # of a part of a table in a stack: the table is surely open
    IN_CELL,  # of a cell: so is the cell
    HTML,
    CONTEXT,  # of images, as `html` reads it: captions, the base of addresses
) = (1 << i for i in range(33))
PARTS = CELL | ROW | ROWS
_NAMES = {
    VOID: """area base basefont bgsound br col embed frame hr img image input keygen
        link meta param source track wbr""",
    RAW: "script style textarea title xmp iframe noembed noframes plaintext",
    LAST: "plaintext",
    SCRIPT: "script",
    FORMATTING: "a b big code em font i nobr s small strike strong tt u",
    LINK: "a nobr",
    UNCOUNTED: "html head body form colgroup",
    ROOT: "html body",
    FOREIGN: "svg math",
    JOINT: "foreignobject desc title mi mo mn ms mtext annotation-xml",
    BREAKS_OUT: """b big blockquote body br center code dd div dl dt em embed font h1
        h2 h3 h4 h5 h6 head hr i img li listing menu meta nobr ol p pre ruby s small
        span strong strike sub sup table tt u ul var""",
    ENDS_P: """address article aside blockquote center dd details dialog dir div dl dt
        fieldset figcaption figure footer h1 h2 h3 h4 h5 h6 header hgroup hr li listing
        main menu nav ol p plaintext pre search section summary ul xmp""",
    HEADING: "h1 h2 h3 h4 h5 h6",
    P: "p",
    LI: "li",
    DD: "dd dt",
    OPTION: "option",
    CELL: "caption td th",
    ROW: "tr",
    ROWS: "tbody tfoot thead",
    TABLE: "table",
    FRAMES: "frameset",
    OPTIONAL: "dd dt li optgroup option p rb rp rt rtc",
    CLOSES: """button col colgroup form frameset input keygen optgroup option rb rp rt
        rtc select table textarea""",
    TEMPLATE: "template",
    MARKER: "applet marquee object",
    IGNORED: "body col colgroup form frame frameset head html select",
    HEAD: "base basefont bgsound link meta noframes script style template title",
    HTML: "html",
    CONTEXT: "base figcaption",
}
_0, _EVERY = np.uint64(0), np.uint64(0x0101010101010101)
_HIGH_BITS = np.uint64(0x80) * _EVERY
_BASIS, _PRIME = 0xCBF29CE484222325, 0x100000001B3  # of the hash FNV-1a
_32 = np.uint64(32)
_CASE_BITS = np.uint64(0x20) * _EVERY


def _hash_of(name: str) -> int:
    """Returns what `_hash_name` does."""
    if name.isalpha() and len(name) < 8:
        packed = int.from_bytes(name.encode(), "little")
        state = packed * int(FIRST_MULTIPLIER) % 2**64
        return state ^ (state >> 32)
    state = _BASIS
    for letter in name.encode():
        state = (state ^ letter) * _PRIME % 2**64
    return state


_CONTENT_LANGUAGE = len("content-language")  # "content-type" is no context
_LANG, _XML_LANG, _HTTP_EQUIV = (
    np.uint64(_hash_of(name)) for name in ("lang", "xml:lang", "http-equiv")
)
LESS, _GREATER, SLASH, BANG, QUESTION, _EQUALS, _QUOTE, _APOSTROPHE = b"<>/!?=\"'"
CDATA, CDATA_END, _COMMENT, _COMMENT_END, _ODD_COMMENT_END = (
    np.frombuffer(text, np.uint8)
    for text in (b"<![cdata[", b"]]>", b"<!--", b"-->", b"--!>")
)


class Tag(NamedTuple):
    """A start tag or an end tag."""

    name: np.uint64  # its hash; that of <h1> for all headings
    bits: int
    attributes: int
    end: int  # after its ">"; beyond the page where there is none
    closed: bool  # ends in "/>"
    lookups: int  # names that the parser passes as it looks for those of this tag
    is_context: bool  # of images, or declares a language; <html lang> does not count


class Names(NamedTuple):
    """The names of a page's tags and attributes so far."""

    used: NDArray[np.uint64]  # [a power of two] hash table of their hashes, 0: free
    bits: NDArray[np.int64]  # of the elements of each
    places: NDArray[np.uint8]  # the parser's bucket of each
    buckets: NDArray[np.int64]  # [BUCKETS] how many of them are in each


@cache
def known() -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Returns a hash table of the names above: hashes, 0 where none, and bits."""
    bits: dict[str, int] = {}
    for bit, names in _NAMES.items():
        for name in names.split():
            bits[name] = bits.get(name, 0) | bit
    hashes, values = np.zeros(1024, np.uint64), np.zeros(1024, np.int64)
    for name, value in bits.items():
        state = _hash_of(name)
        slot = state % hashes.size
        while hashes[slot]:
            slot = (slot + 1) % hashes.size
        hashes[slot], values[slot] = state, value
    return hashes, values


@compiled
def no_names(slots: Any) -> Any:
    """Returns Names without any, with room for some."""
    used, bits = np.zeros(slots, np.uint64), np.empty(slots, np.int64)
    places, buckets = np.empty(slots, np.uint8), np.zeros(BUCKETS, np.int64)
    return Names(used, bits, places, buckets)


@borrowing
def read(html: Any, at: Any, hashes: Any, values: Any, names: Any) -> Any:
    """Returns the tag whose name starts at `at`.

    Args:
      html: u8[bytes], the page.
      at: position of the first letter.
      hashes, values: what `known` returned.
      names: those of the page so far.
    """
    at, name, slot, lookups = _read_name(html, at, False, hashes, values, names)
    bits: Any = names.bits[slot] if slot >= 0 else np.int64(0)
    if bits & HEADING:
        name = np.uint64(HEADING)
    attributes, closed, is_context = 0, False, bits & CONTEXT != 0
    while True:
        closed = False
        while at < html.size and (is_space(html[at]) or html[at] == SLASH):
            closed = html[at] == SLASH
            at += 1
        if at >= html.size or html[at] == _GREATER:
            break
        at, attribute, _, passed = _read_name(html, at, True, hashes, values, names)
        if attribute == _LANG or attribute == _XML_LANG:
            is_context |= bits & HTML == 0
        lookups += passed
        attributes += 1
        after = at
        while after < html.size and is_space(html[after]):
            after += 1
        if after < html.size and html[after] == _EQUALS:
            at = _value_end(html, after + 1)
            if attribute == _HTTP_EQUIV and at <= html.size:
                quotes = 2 * (html[at - 1] in (_QUOTE, _APOSTROPHE))
                is_context |= at - after - 1 - quotes >= _CONTENT_LANGUAGE
    return Tag(name, bits, attributes, at + 1, closed, lookups, is_context)


@borrowing
def _read_name(
    html: Any, at: Any, attribute: Any, hashes: Any, values: Any, names: Any
) -> Any:
    """Returns where the name ends, its hash and slot, and what a search passes."""
    end, state = _hash_name(html, at, attribute)
    slot = probe(names.used, state)
    if slot < 0:
        return end, state, slot, np.int64(TOO_MANY)
    if names.used[slot] == _0:
        names.used[slot] = state
        names.bits[slot] = values[probe(hashes, state)]
        names.places[slot] = _bucket(html[at:end])
        names.buckets[names.places[slot]] += 1
    return end, state, slot, names.buckets[names.places[slot]]


@borrowing
def _hash_name(html: Any, at: Any, attribute: Any) -> Any:
    """Returns where the name ends, and its hash: quick for up to seven letters."""
    if at + 8 <= html.size:
        word = eight_bytes(html, at)
        size = letters_ahead(word)
        if 0 < size < 8 and _ends_name(html[at + size], attribute):
            return at + size, _short(word | _CASE_BITS, size)
    state, word = np.uint64(_BASIS), _0
    first, letters = at, True
    while at < html.size:
        byte = html[at]
        if _ends_name(byte, attribute and at > first):
            break
        letter = np.uint64(byte | 32 if 65 <= byte <= 90 else byte)
        state = (state ^ letter) * np.uint64(_PRIME)
        letters &= is_letter(byte)
        if at - first < 8:
            word |= letter << np.uint64(8 * (at - first))
        at += 1
    if letters and 0 < at - first < 8:
        state = _short(word, at - first)
    return at, state


@borrowing
def _ends_name(byte: Any, attribute: Any) -> Any:
    if byte == SLASH or byte == _GREATER or is_space(byte):
        return True
    return attribute and byte == _EQUALS


@borrowing
def _short(word: Any, size: Any) -> Any:
    """Returns the hash of a name: `size` lower-case letters at the start of a word."""
    word &= (np.uint64(1) << np.uint64(8 * size)) - np.uint64(1)
    word *= FIRST_MULTIPLIER
    return word ^ (word >> _32)


@borrowing
def _bucket(name: Any) -> Any:
    """Returns the parser's bucket of a name, by Jenkins' one-at-a-time hash."""
    bucket, mask = _0, np.uint64(0xFFFFFFFF)
    for byte in name:
        bucket += np.uint64(byte | 32 if 65 <= byte <= 90 else byte)
        bucket &= mask
        bucket = (bucket + (bucket << np.uint64(10))) & mask
        bucket ^= bucket >> np.uint64(6)
    bucket = (bucket + (bucket << np.uint64(3))) & mask
    bucket ^= bucket >> np.uint64(11)
    return (bucket + (bucket << np.uint64(15))) & np.uint64(BUCKETS - 1)


@borrowing
def probe(table: Any, value: Any) -> Any:
    """Returns the slot that has `value` or is free for it, -1 in a full table."""
    slot = np.int64(value) & (table.size - 1)
    for _ in range(_PROBES):
        if table[slot] == _0 or table[slot] == value:
            return slot
        slot = (slot + 1) & (table.size - 1)
    return np.int64(-1)


@borrowing
def hash_(written: Any) -> Any:
    """Returns the hash of u8[bytes]."""
    state, at = np.uint64(_BASIS) ^ np.uint64(written.size), np.int64(0)
    if written.size < 8:
        for byte in written:
            state = (state ^ np.uint64(byte)) * np.uint64(_PRIME)
        return state
    while at + 8 < written.size:
        state = (state ^ eight_bytes(written, at)) * FIRST_MULTIPLIER
        state ^= state >> _32
        at += 8
    state = (state ^ eight_bytes(written, written.size - 8)) * FIRST_MULTIPLIER
    return state ^ (state >> _32)


@borrowing
def _value_end(html: Any, at: Any) -> Any:
    """Returns where the value of an attribute ends; `at` is after the "="."""
    while at < html.size and is_space(html[at]):
        at += 1
    if at < html.size and (html[at] == _QUOTE or html[at] == _APOSTROPHE):
        return next_(html, at + 1, html[at]) + 1
    while at < html.size and not is_space(html[at]) and html[at] != _GREATER:
        at += 1
    return at


@borrowing
def comment_end(html: Any, at: Any) -> Any:
    """Returns where the comment ends that starts at `at`, also one of another kind."""
    if not matches(html, at, _COMMENT):
        return find(html, at, _COMMENT_END[2:]) + 1
    if matches(html, at + 2, _COMMENT_END) or matches(html, at + 3, _COMMENT_END):
        return find(html, at, _COMMENT_END[2:]) + 1
    at = next_(html, at + _COMMENT.size, _COMMENT[2])
    while at < html.size:
        for end in (_COMMENT_END, _ODD_COMMENT_END):
            if matches(html, at, end):
                return at + end.size
        at = next_(html, at + 1, _COMMENT[2])
    return at


@borrowing
def raw_end(html: Any, at: Any, name: Any, bits: Any) -> Any:
    """Returns where the end tag comes of an element whose content is text.

    Args:
      html: the page.
      at: where the content starts.
      name: where the element's name starts in its start tag.
      bits: those of the element.
    """
    if bits & LAST:
        return html.size
    size = 0
    while is_letter(html[name + size]):
        size += 1
    word = html[name : name + size]
    inside = 0  # 1 in a comment of a script, 2 in a script in that
    while at < html.size:
        if html[at] == LESS:
            if _is_tag(html, at + 2, word) and html[at + 1] == SLASH:
                if inside < 2:
                    return at
                inside = 1
            elif bits & SCRIPT and inside == 0 and matches(html, at, _COMMENT):
                inside = 1
                at += 2
                continue
            elif inside == 1 and _is_tag(html, at + 1, word):
                inside = 2
        elif inside > 0 and matches(html, at, _COMMENT_END):
            inside = 0
        at += 1
    return at


@borrowing
def _is_tag(html: Any, at: Any, word: Any) -> Any:
    behind = at + word.size
    if behind >= html.size or not matches(html, at, word):
        return False
    return is_space(html[behind]) or html[behind] in (SLASH, _GREATER)


@borrowing
def find(html: Any, at: Any, word: Any) -> Any:
    """Returns where `word` comes next, the page's size where it does not."""
    at = next_(html, at, word[0])
    while at < html.size and not matches(html, at, word):
        at = next_(html, at + 1, word[0])
    return at


@borrowing
def next_(html: Any, at: Any, byte: Any) -> Any:
    """Returns where `byte` comes next, the page's size where it does not."""
    pattern = np.uint64(byte) * _EVERY
    while at + 8 <= html.size:
        word = eight_bytes(html, at) ^ pattern
        zeros = (word - _EVERY) & ~word & _HIGH_BITS
        if zeros != _0:
            return at + np.int64(low_zeros(zeros) >> 3)
        at += 8
    while at < html.size and html[at] != byte:
        at += 1
    return at


@borrowing
def matches(html: Any, at: Any, word: Any) -> Any:
    """Says whether `word` is at `at`; the case of ASCII letters does not count."""
    if at + word.size > html.size:
        return False
    for i in range(word.size):
        ours, other = html[at + i], word[i]
        if ours != other and not (is_letter(ours) and ours ^ other == 32):
            return False
    return True


@borrowing
def is_letter(byte: Any) -> Any:
    """Says whether it is one of ASCII."""
    return 97 <= byte | 32 <= 122


@borrowing
def is_space(byte: Any) -> Any:
    """Says whether it is white space of HTML."""
    return byte == 32 or 9 <= byte <= 13 and byte != 11
