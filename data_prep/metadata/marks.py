"""Prepares wikitext for mwparserfromhell, whose time and stack must be bounded.

The parser tries each opening mark to the end of the page and then again as text, often
in several ways, and calls itself for each closing "=" of a heading. So a page of 1 MB
can take it a day, or end the process. Here it gets pieces instead. No piece is
longer than MAX_CHARS, ends inside an element, or has a mark without its counterpart.
The time of any page then grows with its length.
"""

import re
from collections import Counter
from collections.abc import Iterator

from mwparserfromhell import definitions

MAX_CHARS = 4_096  # of a piece
# In place of what is taken out: "", " " and a new line in the end. XML has none of
# these characters. A space keeps neighbours of a lone mark from making new marks.
NOTHING, SPACE, LINE = "\x01", "\x02", "\x03"
# At the ends of an element. The end of one sorts before the start of the next.
_END, _BEGIN = "\x04", "\x05"
_OURS = re.compile(f"[{NOTHING}-{_BEGIN}]")

# Tags whose content is not prose. `table` is also the tag of {| ... |}.
HIDDEN = frozenset(
    "categorytree ce chem code div-col gallery graph hiero imagemap indicator inputbox"
    " mapframe maplink math noinclude pre ref references score script section source"
    " style syntaxhighlight table templatedata templatestyles timeline".split()
)
BLOCKS = frozenset(
    "blockquote br center dd div dl dt h1 h2 h3 h4 h5 h6 hr li ol p poem td th tr"
    " ul".split()
)
_VERBATIM = frozenset(definitions.PARSER_BLACKLIST)  # their content is not markup
_SINGLE = frozenset("br hr wbr img li dt dd tr td th".split())
_MARKUP = frozenset(("{{", "[[", "{|"))  # elements other than tags
_MAX_DEPTH = 20  # of nested markup; the parser gives up at 40
_MAX_LINKS = 4  # of links in the captions of links
# What opens or closes markup. A tag ends before the next "<"; what does not is text.
_MARKS = re.compile(
    r"""(?P<comment><!--)
    | <(?P<slash>/?)(?P<tag>[A-Za-z][A-Za-z0-9-]*+)(?P<rest>[^<>]*+)>
    | (?P<lone><)
    | ^[:*#\ ]{0,20}(?P<table>\{\|)
    | ^[ \t]{0,20}(?P<end_table>\|\})(?!\})
    | (?P<open>\{\{+|\[\[)
    | (?P<close>\}\}|\]\])
    """,
    re.MULTILINE | re.VERBOSE,
)
_VERBATIM_END = re.compile(r"</([^\W\d_]++[^\S\n]*+)>")
_OPENERS = {"}}": "{{", "]]": "[[", "|}": "{|"}
_LINE_STARTS = ":;*#=-"  # begin a list or a heading, at the start of a line
# The rest of a line, or as much of it as a piece holds, if possible up to a space.
_CHUNKS = re.compile(
    rf"[^\n]{{0,{MAX_CHARS - 2}}}\n|[^\n]{{1,{MAX_CHARS - 2}}}(?=\s)"
    rf"|[^\n]{{1,{MAX_CHARS - 2}}}"
)

_Edit = tuple[int, int, str]  # start, stop, and what takes the place


def pieces(markup: str) -> list[str]:
    """Returns wikitext in pieces that can be parsed independently.

    Comments, tags around prose, attributes, and marks without a counterpart are taken
    out. So are elements that are longer than a piece: they are templates, tables,
    references, or files with a long caption.

    Args:
      markup: wikitext.

    Returns:
      Pieces of at most MAX_CHARS characters, to be joined as they are.
    """
    markup = _OURS.sub("", markup)
    finished: list[str] = []
    piece: list[str] = []
    size = 0
    for line in _lines(_edited(markup)):
        whole = "".join(line)
        # A line that is longer than a piece is cut between its chunks.
        for chunk in [whole] if len(whole) < MAX_CHARS else line:
            if size + len(chunk) > MAX_CHARS and piece:
                finished.append("".join(piece))
                is_inside = not piece[-1].endswith("\n")
                piece = [NOTHING] if is_inside and chunk[0] in _LINE_STARTS else []
                size = len(piece)
            piece.append(chunk)
            size += len(chunk)
    return [*finished, "".join(piece)]


def _lines(markup: str) -> Iterator[list[str]]:
    """Yields the chunks of each line, which are elements and what is between them.

    Args:
      markup: with marks at the ends of elements, which are left out.
    """
    line: list[str] = []
    depth = 0
    element: list[str] = []
    for part in re.split(f"([{_END}{_BEGIN}])", markup):
        if part == _BEGIN:
            depth += 1
        elif part == _END:
            depth -= 1
            if not depth:
                whole = "".join(element)
                line.append(whole if len(whole) < MAX_CHARS else NOTHING)
                element = []
        elif depth:
            element.append(part)
        else:
            for chunk in _CHUNKS.findall(part):
                line.append(chunk)
                if chunk.endswith("\n"):
                    yield line
                    line = []
    yield line


def _edited(markup: str) -> str:
    """Returns the markup as the parser gets it, with marks at the ends of elements."""
    kept: list[str] = []
    position = 0
    for start, stop, text in sorted(_edits(markup)):
        if start >= position:
            kept += markup[position:start], text
            position = stop
    return "".join([*kept, markup[position:]])


def _edits(markup: str) -> Iterator[_Edit]:
    """Yields what to take out; of overlapping ranges the first, longest one counts."""
    nesting = _Nesting()
    endless: set[str] = set()  # verbatim tags that no longer close
    position = 0
    while mark := _MARKS.search(markup, position):
        tag, rest = (mark["tag"] or "").lower(), mark["rest"] or ""
        start, position = mark.span(0 if tag else mark.lastgroup or 0)
        is_single = rest.endswith("/")
        if mark["comment"]:
            end = markup.find("-->", position)
            position = end + 3 if end >= 0 else len(markup)
            yield start, position, NOTHING
        elif mark["lone"] or rest[:1] not in ("", "/") and not rest[0].isspace():
            yield start, position, SPACE
        elif mark["slash"] and rest.strip():  # </b x> closes nothing
            yield start, position, SPACE
        elif is_single or tag in _SINGLE:
            yield start, position, LINE if tag in BLOCKS else NOTHING
        elif tag in _VERBATIM and not mark["slash"]:
            end = -1 if tag in endless else _end_of_verbatim(markup, tag, position)
            if end < 0:
                endless.add(tag)
                yield start, position, SPACE
            else:
                yield mark.start("rest"), position - 1, ""
                yield from ((start, start, _BEGIN), (end, end, _END))
                position = end
        elif mark["close"] or mark["end_table"] or mark["slash"]:
            if rest:  # the parser wants no new line there
                yield mark.start("rest"), position - 1, ""
            yield from nesting.close(
                tag or _OPENERS[markup[start:position]], start, position
            )
        elif mark["open"]:
            # Three braces would be a parameter, which only templates have.
            if odd := markup[start] == "{" and (position - start) % 2:
                yield start, start + 1, SPACE
            for first in range(start + odd, position, 2):
                yield from ((first, first, SPACE),) if first > start else ()
                nesting.open(markup[first : first + 2], first, first + 2)
        else:
            if rest:
                yield mark.start("rest"), position - 1, ""
            nesting.open(tag or "{|", start, position)
    yield from nesting.unclosed()


def _end_of_verbatim(markup: str, tag: str, position: int) -> int:
    """Returns where the text after a verbatim tag begins, -1 if the tag never closes.

    What closes it is what the parser takes: </pre >, but not </pre or </pre x>.
    """
    for end in _VERBATIM_END.finditer(markup, position):
        if end[1].rstrip().lower() == tag:
            return end.end()
    return -1


class _Nesting:
    """Opening marks that wait for their counterparts."""

    def __init__(self) -> None:
        self._stack: list[tuple[str, int, int]] = []  # kind, start, stop
        self._waiting: Counter[str] = Counter()  # by kind

    def open(self, kind: str, start: int, stop: int) -> None:
        self._stack.append((kind, start, stop))
        self._waiting[kind] += 1

    def close(self, kind: str, start: int, stop: int) -> Iterator[_Edit]:
        """Yields this mark if it has no counterpart, else what opened since then."""
        if not self._waiting[kind]:
            yield start, stop, SPACE
            return
        while True:
            opened, first, last = self._stack.pop()
            self._waiting[opened] -= 1
            if opened == kind:
                break
            yield first, last, SPACE
        if len(self._stack) >= _MAX_DEPTH or self._waiting["[["] >= _MAX_LINKS:
            yield first, stop, SPACE
        elif kind in _MARKUP or kind in HIDDEN:
            yield from ((first, first, _BEGIN), (stop, stop, _END))
        else:
            text = LINE if kind in BLOCKS else NOTHING
            yield first, last, text
            yield start, stop, text

    def unclosed(self) -> Iterator[_Edit]:
        """Yields what never closed."""
        for _, start, stop in self._stack:
            yield start, stop, SPACE
