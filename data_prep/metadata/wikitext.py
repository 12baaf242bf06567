"""Plain text out of wikitext, the markup of Wikipedia's pages.

mwparserfromhell parses: of the maintained parsers it is the one with a permissive
licence (MIT), and its tokens preserve nesting. docs/metadata.md compares them.
"""

import html
import re
from collections.abc import Callable, Container

from mwparserfromhell import definitions, parser
from mwparserfromhell.parser import tokenizer, tokens

from data_prep.metadata import marks, titles

_Tokenizer = parser.CTokenizer if parser.use_c else tokenizer.Tokenizer
# Chinese and others: -{zh-hans:one; zh-hant:other}-, -{T|a title}-, -{unchanged}-.
_VARIANTS = re.compile(r"-\{(?!\{)((?:[^{}]++|\{\{[^{}]*+\}\})*+)\}-")
_VARIANT = re.compile(r"(?:^|;)\s*[a-z]{2,3}(?:-[a-z]+)*\s*:")
_OTHER_FORM = re.compile("\x06([^\x06\x07\n]*)\x07")  # XML has neither character
_FLAGS = re.compile(r"([A-Za-z;\s-]*)\|")
_SHOWS_NOTHING = frozenset("HT-")
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
    close is read as text. Of words written in several scripts, the first form stays in
    its sentence, and the others are lines at the end. The time grows with the length
    of the page, whatever its markup.

    Args:
      markup: wikitext.
      namespaces: case-folded names of the wiki's namespaces, and codes of Wikipedias.
        Links into them ("File:", "Category:", "fr:") are left out.
    """
    if "-{" in markup:
        markup = _VARIANTS.sub(_forms, markup)
    markup = _ADDRESS.sub(_label, _BEHAVIOUR.sub("", markup))
    text = "".join(
        _prose(_Tokenizer().tokenize(piece, 0, True), namespaces)
        for piece in marks.pieces(markup)
    )
    text = _ROWS.sub("", _LEFT.sub("", text.replace(marks.LINE, "\n")))
    text = text.replace(marks.NOTHING, "").replace(marks.SPACE, " ")
    others = _OTHER_FORM.findall(text)
    text = "\n".join([_OTHER_FORM.sub("", text), *others])
    return "\n".join(filter(None, map(str.strip, text.splitlines())))


def _label(match: re.Match[str]) -> str:
    if match.lastgroup:
        return match["label"] or match["name"] or marks.NOTHING
    return marks.SPACE


def _forms(match: re.Match[str]) -> str:
    body = match[1]
    if flags := _FLAGS.match(body):
        # Rules and titles show nothing here; other flags may name variants (zh-hans).
        if _SHOWS_NOTHING.intersection(map(str.strip, flags[1].split(";"))):
            return ""
        body = body[flags.end() :]
    before, *forms = _VARIANT.split(body)
    if before.strip() or not forms:
        return body
    first, *others = dict.fromkeys(form.strip(" \t\n;") for form in forms)
    return first + "".join(f"\x06{form}\x07" for form in others)


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
    return "" if (head or "").strip().lower() in marks.HIDDEN else inside


# The text that replaces closed markup, given its text, its head, and the namespaces.
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
    tokens.TagCloseSelfclose: lambda inside, head, _: "\n",  # of a list
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
