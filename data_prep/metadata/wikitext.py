"""Plain text out of wikitext, the markup of Wikipedia's pages.

mwparserfromhell parses: among the kept parsers it alone has a licence that suits ours
(MIT), and its tokens keep nested markup apart (measured in docs/metadata.md).
"""

import html
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator

from mwparserfromhell import definitions, parser
from mwparserfromhell.parser import tokenizer, tokens

from data_prep.metadata import titles

_Tokenizer = parser.CTokenizer if parser.use_c else tokenizer.Tokenizer
# Tags whose content is no prose. `table` is also the tag of {| ... |}.
_HIDDEN = frozenset(
    "categorytree ce chem code div-col gallery graph hiero imagemap indicator inputbox"
    " mapframe maplink math noinclude pre ref references score script section source"
    " style syntaxhighlight table templatedata templatestyles timeline".split()
)
# Tags whose content is not markup.
_VERBATIM = frozenset(
    "categorytree ce chem gallery graph hiero imagemap inputbox math nowiki pre score"
    " section source syntaxhighlight templatedata timeline".split()
)
_SINGLE = frozenset("br hr wbr img li dt dd tr td th".split())
_BLOCKS = frozenset(
    "blockquote br center dd div dl dt h1 h2 h3 h4 h5 h6 hr li ol p poem td th tr"
    " ul".split()
)
_MAX_DEPTH = 20  # of nested markup; the parser gives up at 40
_MAX_LINKS = 4  # of links in the captions of links
# In place of what is taken out, so that its neighbours make no new marks. XML has
# neither character.
_COMMENT, _BROKEN = "\x01", "\x02"
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
# The parser looks for the end of a value on all of the page.
_VALUE = re.compile(r"""=\s*+(?:"[^"]*+"|'[^']*+'|(?P<open>["']))""")
_OPENERS = {"}}": "{{", "]]": "[[", "|}": "{|"}
# Chinese and others: -{zh-hans:one; zh-hant:other}-, -{T|a title}-, -{unchanged}-.
_VARIANTS = re.compile(r"-\{(?!\{)([^{}]*)\}-")
_VARIANT = re.compile(r"\s*[a-z]{2,3}(?:-[a-z]+)*\s*:([^;]*)(?:;|$)")
_SHOWS_NOTHING = frozenset("HT-")  # flags of them
_BEHAVIOUR = re.compile(r"__[^\W\d_]{1,40}__")  # __NOTOC__, in any language
_LEFT = re.compile(r"'''?|</?[A-Za-z][^<>]*>")
_ROWS = re.compile(r"^[ \t]*(?:\{\||\|\}|\|-|[|!]).*$", re.MULTILINE)
# [https://address label], [mailto:address label], an address by itself, and the
# bracket of a link that does not close: the parser itself never sees such a link.
_SCHEMES = "|".join(k for k, slashes in definitions.URI_SCHEMES.items() if not slashes)
_ADDRESS = re.compile(
    rf"""\[(?:[A-Za-z]++:)?//[^\s\[\]<>{{}}|]*+(?P<label>[^\[\]\n]*+)\]
    | \[(?i:{_SCHEMES}):[^\s\[\]<>{{}}|]++\ ?(?P<name>[^\[\]\n]*+)\]
    | (?P<bare>(?:https?|ftp)://[^\s\[\]<>{{}}|]*+)
    | \[(?=(?:[A-Za-z]++:)?//|(?i:{_SCHEMES}):[^\n\ ])
    """,
    re.VERBOSE,
)


def plain_text(markup: str, *, namespaces: Container[str]) -> str:
    """Returns the prose of a page, a paragraph or list item a line.

    Templates, tables, references, formulas, galleries, code, comments and bare
    addresses are left out; links are replaced by their labels. Markup that does not
    close is read as text, so the time grows with the length of the page and not with
    its square, but for rare mixtures of marks.

    Args:
      markup: wikitext.
      namespaces: case-folded names of the wiki's namespaces, and codes of Wikipedias.
        Links into them ("File:", "Category:", "fr:") are left out.
    """
    if "-{" in markup:
        markup = _VARIANTS.sub(_first_variant, markup)
    markup = _ADDRESS.sub(_label, _BEHAVIOUR.sub("", markup))
    found = _Tokenizer().tokenize(_repaired(markup), 0, True)
    text = _ROWS.sub("", _LEFT.sub("", _prose(found, namespaces)))
    text = text.replace(_COMMENT, "").replace(_BROKEN, " ")
    return "\n".join(filter(None, map(str.strip, text.splitlines())))


def _label(match: re.Match[str]) -> str:
    if match.lastgroup:
        return match["label"] or match["name"] or _COMMENT
    return _BROKEN


def _first_variant(match: re.Match[str]) -> str:
    flags, bar, body = match[1].rpartition("|")
    # Rules and titles show nothing here; other flags may name variants (zh;zh-hans).
    if bar and _SHOWS_NOTHING.intersection(map(str.strip, flags.split(";"))):
        return ""
    variant = _VARIANT.match(body)
    return variant[1].strip() if variant else body


def _repaired(markup: str) -> str:
    """Returns the markup without comments and marks that have no counterpart.

    The parser tries each opening mark to the end of the page and then again as text.
    """
    kept: list[str] = []
    position = 0
    for start, stop in sorted(_removed(markup)):
        if start >= position:
            comment = markup.startswith("<!--", start)
            kept += markup[position:start], _COMMENT if comment else _BROKEN
        position = max(position, stop)
    return "".join([*kept, markup[position:]])


def _removed(markup: str) -> Iterator[tuple[int, int]]:
    """Yields the ranges of comments and of marks without a counterpart."""
    nesting = _Nesting()
    endless: set[str] = set()  # verbatim tags that no longer close
    position = 0
    while mark := _MARKS.search(markup, position):
        tag = (mark["tag"] or "").lower()
        start, position = mark.span(0 if tag else mark.lastgroup or 0)
        for value in _VALUE.finditer(mark["rest"] or ""):
            if value["open"]:
                first = mark.start("rest") + value.start("open")
                yield first, first + 1
        if mark["comment"]:
            end = markup.find("-->", position)
            position = end + 3 if end >= 0 else len(markup)
            yield start, position
        elif mark["lone"]:
            yield start, position
        elif mark["slash"] and mark["rest"].strip():  # </b x> closes nothing
            yield start, position
        elif tag in _SINGLE or tag and mark["rest"].endswith("/"):
            continue
        elif tag in _VERBATIM and not mark["slash"]:
            end = -1 if tag in endless else _end_of_verbatim(markup, tag, position)
            if end < 0:
                endless.add(tag)
                yield start, position
            position = max(position, end)
        elif mark["close"] or mark["end_table"] or mark["slash"]:
            yield from nesting.close(
                tag or _OPENERS[markup[start:position]], start, position
            )
        elif mark["open"]:
            # Three braces would be a parameter, which only templates have.
            if odd := markup[start] == "{" and (position - start) % 2:
                yield start, start + 1
            for first in range(start + odd, position, 2):
                yield from ((first, first),) if first > start else ()
                nesting.open(markup[first : first + 2], first, first + 2)
        else:
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
    """Opening marks that wait for their counterparts; ranges are what to remove."""

    def __init__(self) -> None:
        self._stack: list[tuple[str, int, int]] = []  # kind, start, stop
        self._waiting: Counter[str] = Counter()  # by kind

    def open(self, kind: str, start: int, stop: int) -> None:
        self._stack.append((kind, start, stop))
        self._waiting[kind] += 1

    def close(self, kind: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yields this mark if it has no counterpart; what opened inside otherwise."""
        if not self._waiting[kind]:
            yield start, stop
            return
        while True:
            opened, first, last = self._stack.pop()
            self._waiting[opened] -= 1
            if opened == kind:
                break
            yield first, last
        if len(self._stack) >= _MAX_DEPTH or self._waiting["[["] >= _MAX_LINKS:
            yield first, stop

    def unclosed(self) -> Iterator[tuple[int, int]]:
        """Yields what never closed."""
        for _, start, stop in self._stack:
            yield start, stop


def _prose(found: list[tokens.Token], namespaces: Container[str]) -> str:
    """Returns the text of the parser's tokens, which are well nested."""
    parts: list[list[str]] = [[]]  # texts of what is open, innermost last
    heads: list[str | None] = []  # of each: a link's target, a tag's name
    for token in found:
        kind = type(token)
        if kind is tokens.Text:
            parts[-1].append(token["text"])
        elif kind in _OPEN:
            parts.append([])
            heads.append(None)
        elif kind in _BETWEEN:
            if heads[-1] is None:  # later ones are of a tag's attributes
                heads[-1] = "".join(parts[-1])
            parts[-1] = []
        elif kind is tokens.TagOpenClose:  # the closing tag's name follows
            parts.append([])
        elif kind is tokens.HTMLEntityNumeric:
            parts[-1].append("#")
        elif kind is tokens.HTMLEntityHex:
            parts[-1].append(token["char"])
        elif kind in _CLOSE:
            if kind is tokens.TagCloseClose:
                parts.pop()
            inside, head = "".join(parts.pop()), heads.pop()
            parts[-1].append(_CLOSE[kind](inside, head, namespaces))
    return "".join(parts[0])


def _link(inside: str, head: str | None, namespaces: Container[str]) -> str:
    title = (inside if head is None else head).strip()
    namespace, colon, _ = title.partition(":")
    if colon and titles.folded(namespace) in namespaces:
        return ""
    return inside.removeprefix(":") if head is None else inside


def _tag(inside: str, head: str | None, namespaces: Container[str]) -> str:
    name = (head or "").strip().lower()
    if name in _HIDDEN:
        return ""
    return f"\n{inside}\n" if name in _BLOCKS else inside


def _single_tag(inside: str, head: str | None, namespaces: Container[str]) -> str:
    name = (inside if head is None else head).strip().lower()
    return "\n" if name in _BLOCKS else ""


# What stands for markup that closes, given its text, its head, and the namespaces.
_Text = Callable[[str, str | None, Container[str]], str]
_CLOSE: dict[type[tokens.Token], _Text] = {
    tokens.TemplateClose: lambda inside, head, _: "",
    tokens.ArgumentClose: lambda inside, head, _: "",
    tokens.CommentEnd: lambda inside, head, _: "",
    tokens.ExternalLinkClose: lambda inside, head, _: "" if head is None else inside,
    tokens.HeadingEnd: lambda inside, head, _: f"\n{inside}\n",
    tokens.HTMLEntityEnd: lambda inside, head, _: html.unescape(f"&{inside};"),
    tokens.WikilinkClose: _link,
    tokens.TagCloseClose: _tag,
    tokens.TagCloseSelfclose: _single_tag,
}
_OPEN = frozenset(
    (
        tokens.TemplateOpen, tokens.ArgumentOpen, tokens.CommentStart,
        tokens.ExternalLinkOpen, tokens.HeadingStart, tokens.HTMLEntityStart,
        tokens.WikilinkOpen, tokens.TagOpenOpen,
    )
)  # fmt: skip
_BETWEEN = frozenset(
    (
        tokens.ExternalLinkSeparator, tokens.WikilinkSeparator, tokens.TagAttrStart,
        tokens.TagCloseOpen,
    )
)  # fmt: skip
