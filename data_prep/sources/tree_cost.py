"""Estimates what a page's tree will cost, before the HTML parser builds it.

A small page can have a tree of gigabytes: formatting elements that are never closed
are reopened in each paragraph, and a text that comes in pieces is copied for each of
them. And the parser's time grows with the square of some counts: the depth, the
attributes of one tag, the names that a page invents. Once it runs it cannot be stopped,
so such a page must not reach it.

The estimate reads the tags once and follows which elements may be open. An element
counts as open until it is certain that the parser has closed it. So the estimate is an
upper bound: close to the truth where tags are closed in order, too high elsewhere.

The functions are compiled into one, as those of `matching.native` are.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.matching.native import borrowing, compiled
from data_prep.sources import tags

MAX_STEPS = 200_000_000  # the parser does them in about half a second

# What the parser allocates, in bytes; measured and rounded up.
_ELEMENT, _ATTRIBUTE, _TEXT, _COMMENT = 200, 240, 130, 160
# Open elements and slots of hash tables: what most pages need, and at most.
_SIZES = ((1 << 10, 1 << 10), (1 << 15, 1 << 14))
_ALIKE = 3  # equal formatting tags that the parser reopens; it forgets others
_MAX_TREE = 1 << 40  # bytes; nothing beyond is counted
_TABLES = tags.TABLE | tags.PARTS | tags.TEMPLATE
_ADOPTIONS = 8  # blocks that one misplaced end tag of a formatting element splits


class Cost(NamedTuple):
    """Upper bounds of what a page's tree costs."""

    bytes: int
    steps: int  # of the parser; where they reach MAX_STEPS, nothing beyond is counted
    has_context: bool  # False: no tag in the tree but <html> says more of its images


class _Open(NamedTuple):
    """What may be open, in the order of the start tags, and what was counted."""

    names: NDArray[np.uint64]  # [elements] hashes
    bits: NDArray[np.int64]
    bytes: NDArray[np.int64]  # that a formatting element takes each time
    slots: NDArray[np.int32]  # in `signatures`, or -1: counted as unlike all others
    parts: NDArray[np.int64]  # the last part of a table or <template> so far, or -1
    signatures: NDArray[np.uint64]  # [slots] hashes of formatting tags, or 0
    alike: NDArray[np.int32]  # how many of each may be open
    known: tags.Names
    counts: NDArray[np.int64]  # by the numbers below


(
    _DEPTH,  # elements above
    _PASSED,  # others, of which it is not certain that they were closed
    _FOREIGNERS,  # <svg> and <math> above
    _FORMATS,  # formatting elements that may be reopened
    _LINKS,  # those with tags.LINK among them
    _FORMAT_BYTES,  # what that takes each time
    _ROOT_ATTRIBUTES,
    _RUN,  # bytes of text that may be one node with the next one
    _BESIDE,  # bytes of text that may have been moved out of tables
    _IN_BODY,  # 1 where <body> has begun
    _FRAMED,  # 1 where all but frames may be ignored
    _TREE,
    _STEPS,
    _CONTEXT,  # 1 where a tag is_context
    _FULL,  # 1 where there was no room for an element or a name
    _COUNTS,
) = range(16)


def estimate(html: bytes) -> Cost:
    """Returns what the tree of a page costs at most."""
    found = _estimate(np.frombuffer(html, np.uint8), *tags.known())
    tree, steps, has_context = map(int, found)
    return Cost(tree, steps, bool(has_context))


@compiled
def _estimate(html: Any, hashes: Any, values: Any) -> Any:
    for depth, slots in _SIZES:
        open_ = _Open(
            np.empty(depth, np.uint64),
            np.empty(depth, np.int64),
            np.empty(depth, np.int64),
            np.empty(depth, np.int32),
            np.empty(depth, np.int64),
            np.zeros(slots, np.uint64),
            np.zeros(slots, np.int32),
            tags.no_names(slots),
            np.zeros(_COUNTS, np.int64),
        )
        found = _follow(open_, html, hashes, values)
        if not open_.counts[_FULL]:
            break
    return found


@borrowing
def _follow(open_: Any, html: Any, hashes: Any, values: Any) -> Any:
    counts = open_.counts
    counts[_TREE] = html.size
    at = np.int64(0)
    text_until = np.int64(0)  # end tags before this may be text
    while counts[_STEPS] < MAX_STEPS and counts[_TREE] < _MAX_TREE:
        text = at
        at = tags.next_(html, at, tags.LESS)
        _text(open_, html[text:at])
        name = at + 1
        if name < html.size and html[name] == tags.SLASH:
            name += 1
        if name >= html.size:
            break
        uncertain = counts[_FRAMED] + counts[_FOREIGNERS] > 0
        if not tags.is_letter(html[name]):
            counts[_TREE] += _COMMENT
            end = name
            if uncertain and at >= text_until and tags.matches(html, at, tags.CDATA):
                text_until = tags.find(html, at, tags.CDATA_END)
            if html[name] in (tags.BANG, tags.QUESTION) or name > at + 1:
                end = tags.comment_end(html, at)
        else:
            tag = tags.read(html, name, hashes, values, open_.known)
            end = tag.end
            counts[_STEPS] += 2 * tag.lookups
            counts[_FULL] |= tag.lookups >= tags.TOO_MANY
            counts[_CONTEXT] |= tag.is_context
            if end <= html.size:
                if name == at + 1:
                    _start(open_, tag, html[at:end])
                else:
                    _end(open_, tag, at >= text_until)
                if name == at + 1 and tag.bits & tags.RAW and end >= text_until:
                    raw_end = tags.raw_end(html, end, name, tag.bits)
                    if not uncertain:
                        end = raw_end
                    else:  # it may be an element like any other
                        text_until = max(text_until, raw_end)
        if at < text_until < end:  # if this is text, tags may come before its end
            at, text_until = text_until, min(end, html.size)
        else:
            at = end
    return counts[_TREE], counts[_STEPS], counts[_CONTEXT]


@borrowing
def _start(open_: Any, tag: Any, written: Any) -> None:
    """Follows a start tag."""
    counts, bits = open_.counts, tag.bits
    size = _ELEMENT + tag.attributes * _ATTRIBUTE
    squared = tag.attributes * tag.attributes // 2
    counts[_TREE] += size
    if bits & tags.VOID and bits & tags.CLOSES:
        counts[_TREE] += _ELEMENT  # the group that a <col> implies
    counts[_STEPS] += squared
    if bits & tags.ROOT:
        counts[_STEPS] += tag.attributes * counts[_ROOT_ATTRIBUTES]
        counts[_ROOT_ATTRIBUTES] += tag.attributes
    _charge(open_, bits & (tags.ENDS_P | tags.PARTS | tags.CLOSES) != 0)
    counts[_FRAMED] |= bits & tags.FRAMES != 0
    _end_run(open_, bits)
    inside = np.int64(0)
    if counts[_FOREIGNERS] > 0:
        if bits & (tags.TABLE | tags.PARTS):
            _doubt_tables(open_)
        if bits & tags.BREAKS_OUT:
            _leave_foreign(open_)
            if bits & tags.VOID:
                return
        elif open_.bits[counts[_DEPTH] - 1] & tags.INSIDE:
            if tag.closed:
                return
            if bits & tags.JOINT == 0:
                inside = np.int64(tags.INSIDE)
    else:
        if bits & tags.PARTS:
            _pop_cell(open_)
        elif bits & tags.TABLE and not _in_cell(open_):
            _doubt_tables(open_)
        _close_before(open_, bits)
        if bits & (tags.VOID | tags.RAW | tags.UNCOUNTED):
            return
        if bits & tags.FOREIGN:
            if tag.closed:
                return
            inside = np.int64(tags.INSIDE)
    if bits & tags.LINK and counts[_LINKS] > 0:
        _end_formatting(open_, tag.name, True)
    at = counts[_DEPTH]
    if at == open_.names.size:
        counts[_STEPS] += MAX_STEPS
        counts[_FULL] = 1
        return
    counts[_DEPTH] += 1
    counts[_FOREIGNERS] += bits & tags.FOREIGN != 0
    part = open_.parts[at - 1] if at > 0 else np.int64(-1)
    above = open_.bits[part] if part >= 0 else np.int64(0)
    if bits & tags.CELL and above & tags.ROW == 0:
        counts[_TREE] += 2 * _ELEMENT  # a row and its group, if there are none
    elif bits & tags.ROW and above & tags.ROWS == 0:
        counts[_TREE] += _ELEMENT
    if bits & tags.TABLE and inside == 0 and counts[_FOREIGNERS] == 0:
        bits |= tags.IN_TABLE
    elif bits & tags.PARTS and above & tags.IN_TABLE:
        bits |= tags.IN_TABLE
        counts[_RUN] = 0
        if bits & tags.CELL:
            bits |= tags.IN_CELL
    open_.parts[at] = at if bits & _TABLES else part
    open_.names[at] = tag.name
    open_.bits[at] = bits | inside
    if bits & tags.FORMATTING:
        counts[_STEPS] += counts[_FORMATS] * (10 + squared)
        open_.bytes[at] = size + written.size
        open_.slots[at] = -1
        if counts[_FORMATS] >= _ALIKE:  # most pages never have that many open
            signature = tags.hash_(written)
            slot = tags.probe(open_.signatures, signature)
            if slot >= 0:
                open_.signatures[slot] = signature
            counts[_FULL] |= slot < 0
            open_.slots[at] = slot
        _count_formatting(open_, at, 1)


@borrowing
def _charge(open_: Any, reopens: Any) -> None:
    """Counts the steps for a tag, and what may be reopened after it."""
    counts = open_.counts
    depth = counts[_DEPTH] + counts[_PASSED] + 4
    counts[_STEPS] += depth
    if reopens:
        counts[_STEPS] += depth * counts[_FORMATS]
        counts[_TREE] += counts[_FORMAT_BYTES]


@borrowing
def _count_formatting(open_: Any, at: Any, change: Any) -> None:
    """Counts a formatting element as opened (change 1) or closed (change -1)."""
    counts, slot = open_.counts, open_.slots[at]
    counts[_LINKS] += change * (open_.bits[at] & tags.LINK != 0)
    if slot >= 0:
        open_.alike[slot] += change
        if max(open_.alike[slot], open_.alike[slot] - change) > _ALIKE:
            return
    counts[_FORMATS] += change
    counts[_FORMAT_BYTES] += change * open_.bytes[at]


@borrowing
def _close_before(open_: Any, bits: Any) -> None:
    """Closes what a start tag closes: the <p> before a block, and so on."""
    wanted, over = np.int64(0), np.int64(tags.FORMATTING)
    if bits & tags.PARTS:
        over |= tags.OPTIONAL
        wanted |= tags.CELL
        if bits & tags.CELL == 0:
            wanted |= tags.ROW
        if bits & tags.ROWS:
            wanted |= tags.ROWS
    elif bits & tags.ENDS_P:
        wanted = tags.P | (bits & (tags.LI | tags.DD))
    elif bits & tags.OPTION:
        wanted, over = np.int64(tags.OPTION), np.int64(0)
    depth = open_.counts[_DEPTH]
    last, i = depth, depth - 1
    while i >= 0 and open_.bits[i] & (wanted | over):
        if open_.bits[i] & wanted:
            last = i
            if open_.bits[i] & (tags.LI | tags.DD):
                break
        i -= 1
    if bits & tags.HEADING and last > 0 and open_.bits[last - 1] & tags.HEADING:
        last -= 1
    if bits & (tags.HEADING | tags.OPTION) and last < depth:
        # Formatting that was reopened inside would keep it open.
        open_.counts[_PASSED] += open_.counts[_FORMATS] > 0
    _pop(open_, last, wanted)


@borrowing
def _end(open_: Any, tag: Any, certain: Any) -> None:
    """Follows an end tag, or what may be one."""
    counts, bits, foreign = open_.counts, tag.bits, open_.counts[_FOREIGNERS] > 0
    if not foreign and bits & tags.FORMATTING:
        _end_formatting(open_, tag.name, certain)
        return
    over, i = np.int64(0), counts[_DEPTH] - 1
    if not foreign:
        over |= tags.OPTIONAL | tags.FORMATTING
    if not foreign and bits & (tags.PARTS | tags.TABLE):
        over |= tags.PARTS
        if _in_cell(open_):
            i = open_.parts[i]
    while i >= 0 and open_.names[i] != tag.name and open_.bits[i] & over:
        i -= 1
    _charge(open_, True)
    if certain and i >= 0 and open_.names[i] == tag.name:
        if open_.bits[i] & tags.FORMATTING:
            _count_formatting(open_, i, -1)
        if bits & (tags.PARTS | tags.TABLE):
            _pop_cell(open_)
        if i < counts[_DEPTH]:
            _pop(open_, i, np.int64(tags.PARTS))
        return
    counts[_TREE] += _ELEMENT  # </p> and </br> make one
    if foreign:
        _leave_foreign(open_)
    if bits & (tags.TABLE | tags.TEMPLATE) or foreign and bits & tags.PARTS:
        _doubt_tables(open_)
    elif bits & tags.PARTS and _in_cell(open_):
        open_.bits[open_.parts[counts[_DEPTH] - 1]] &= ~tags.IN_CELL


@borrowing
def _end_formatting(open_: Any, name: Any, certain: Any) -> None:
    """Takes out a formatting element; what is in it stays open."""
    counts = open_.counts
    depth, blocks = counts[_DEPTH], 0
    i = depth - 1
    while i >= 0 and open_.names[i] != name:
        if open_.bits[i] & (tags.OPTIONAL | tags.FORMATTING) == 0:
            break
        blocks += open_.bits[i] & tags.OPTIONAL != 0
        i -= 1
    found = i >= 0 and open_.names[i] == name and blocks < _ADOPTIONS and certain
    _charge(open_, not found or i < depth - 1)
    if not found:
        blocks = _ADOPTIONS
    counts[_TREE] += blocks * counts[_FORMAT_BYTES]
    counts[_STEPS] += blocks * (3 * (depth + counts[_PASSED]) + counts[_FORMATS])
    if found:
        _count_formatting(open_, i, -1)
        for j in range(i + 1, depth):
            open_.names[j - 1], open_.bits[j - 1] = open_.names[j], open_.bits[j]
            open_.bytes[j - 1], open_.slots[j - 1] = open_.bytes[j], open_.slots[j]
            open_.parts[j - 1] = open_.parts[j] - (open_.parts[j] > i)
        counts[_DEPTH] -= 1


@borrowing
def _pop(open_: Any, to: Any, certain: Any) -> None:
    """Removes the elements from `to` on; formatting may still be reopened.

    That the first and the `certain` ones are closed is beyond doubt.
    """
    counts = open_.counts
    for i in range(to, counts[_DEPTH]):
        counts[_FOREIGNERS] -= open_.bits[i] & tags.FOREIGN != 0
        counts[_PASSED] += i > to and open_.bits[i] & certain == 0
    counts[_DEPTH] = to


@borrowing
def _leave_foreign(open_: Any) -> None:
    """From here on the parser may be out of <svg> and <math>."""
    i = open_.counts[_DEPTH] - 1
    while i >= 0 and open_.bits[i] & tags.INSIDE:
        open_.bits[i] &= ~tags.INSIDE
        i -= 1


@borrowing
def _in_cell(open_: Any) -> Any:
    """Says whether it is certain that the parser is in a cell of a table."""
    depth = open_.counts[_DEPTH]
    part = open_.parts[depth - 1] if depth > 0 else np.int64(-1)
    return part >= 0 and open_.bits[part] & tags.IN_CELL != 0


@borrowing
def _pop_cell(open_: Any) -> None:
    """Closes a cell that is certain to be open, and with it all that is in it."""
    if not _in_cell(open_):
        return
    counts = open_.counts
    cell = open_.parts[counts[_DEPTH] - 1]
    i = counts[_DEPTH] - 1
    while i > cell and open_.bits[i] & tags.MARKER == 0:
        if open_.bits[i] & tags.FORMATTING:
            _count_formatting(open_, i, -1)
        i -= 1
    _pop(open_, cell, ~np.int64(0))


@borrowing
def _doubt_tables(open_: Any) -> None:
    """From here on no table and no cell is certain to be open."""
    part = open_.counts[_DEPTH] - 1
    while part >= 0:
        part = open_.parts[part]
        if part >= 0:
            open_.bits[part] &= ~(tags.IN_TABLE | tags.IN_CELL)
            part -= 1


@borrowing
def _text(open_: Any, text: Any) -> None:
    """Follows a text: where it is added to one before it, both are copied.

    The parser keeps what it copied from, so this takes memory. It happens where nothing
    is made of the tags between two texts, and where texts are moved out of a table.
    """
    counts, depth = open_.counts, open_.counts[_DEPTH]
    if text.size == 0:
        return
    counts[_TREE] += _TEXT
    if counts[_RUN] > 0:
        counts[_TREE] += (counts[_RUN] + text.size) // 2  # measured: a third
    counts[_RUN] += text.size
    if depth > 0 and open_.parts[depth - 1] >= 0 and not _in_cell(open_):
        i = 0
        while i < text.size and tags.is_space(text[i]):
            i += 1
        if i < text.size:
            if counts[_BESIDE] > 0:
                counts[_TREE] += (counts[_BESIDE] + text.size) // 2
            counts[_BESIDE] += text.size


@borrowing
def _end_run(open_: Any, bits: Any) -> None:
    """Ends the run of texts where the start tag surely makes an element here."""
    counts, depth = open_.counts, open_.counts[_DEPTH]
    part = open_.parts[depth - 1] if depth > 0 else np.int64(-1)
    if bits & (tags.IGNORED | tags.PARTS) or counts[_FRAMED]:
        return
    if part >= 0 and not _in_cell(open_):
        return
    if bits & tags.HEAD == 0:
        counts[_IN_BODY] |= part < 0
        counts[_RUN] = 0
    elif counts[_IN_BODY]:
        counts[_RUN] = 0
