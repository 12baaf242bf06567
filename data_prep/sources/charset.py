"""Decodes the bytes of a page for the HTML parser: to UTF-8 bytes or text.

Sources of the charset in order, as in browsers: byte-order mark, HTTP header, <meta>,
XML declaration. If none declares a charset, a page that is UTF-8 except for a few wrong
bytes is UTF-8, and any other is windows-1252. Labels mean what the encoding standard
(https://encoding.spec.whatwg.org) says, which is often more than Python's codec of
that name knows.
"""

import codecs
import re
from functools import cache

import webencodings

_WINDOW = 1024  # bytes in which a page declares its charset
_HEADER_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16le"),
    (codecs.BOM_UTF16_BE, "utf-16be"),
)
_XML_MARKS = ((b"<\0?\0x\0", "utf-16le"), (b"\0<\0?\0x", "utf-16be"))
# A page that is read as ASCII cannot be UTF-16; the other is the standard's choice.
_AS_ASCII = {
    "utf-16le": "utf-8",
    "utf-16be": "utf-8",
    "x-user-defined": "windows-1252",
}

_XML_DECLARATION = re.compile(
    rb"<\?xml[^>]*?\bencoding[\0- ]*=[\0- ]*([\"'])([^\"'>]*)\1[^>]*>"
)
_TAG = re.compile(rb"<(?:(!--)|/?([a-zA-Z][^\t\n\f\r />]*)|[!/?])")
_ATTRIBUTE = re.compile(  # name, value in three forms, a quote without its end
    rb"""[\t\n\f\r /]* ([^\t\n\f\r />][^\t\n\f\r />=]*)
    (?: [\t\n\f\r ]* = [\t\n\f\r ]*
        (?: "([^"]*)" | '([^']*)' | ([^\t\n\f\r >"'][^\t\n\f\r >]*) | (["']) ) )?""",
    re.X,
)
_TAG_END = re.compile(rb"[\t\n\f\r /]*>")
_CONTENT_CHARSET = re.compile(
    rb"charset[\t\n\f\r ]*=[\t\n\f\r ]*(?:\"([^\"]*)\"|'([^']*)'|([^\t\n\f\r ;\"']+))",
    re.I,
)
# Elements whose content is text, whatever it looks like.
_RAW_TEXT = frozenset(
    b"script style title textarea xmp iframe noembed noframes noscript".split()
)

_HIGH_BYTES = bytes(range(0x80, 0x100))
# Half a character beyond the basic plane, as some databases write it: two of these.
_SURROGATE = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
_CUT_OFF = re.compile(  # the beginning of a character at the end of the page
    rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z"
)

# Characters that Python's codec gives where browsers have others: Windows' wide forms,
# Big5's punctuation, and what GB 18030-2022 assigned in place of private characters.
_OTHERWISE = {
    "euc-jp": ("〜‖−¢£¬", "～∥－￠￡￢"),
    "big5": ("•､‾∼♁☉¥¢£", "‧﹑¯～⊕⊙￥￠￡"),
    "gb18030": (
        "\ue5e5\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796\ue7c7"
        "\ue81e\ue826\ue82b\ue82c\ue832\ue843\ue854\ue864",
        "\u3000\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18\ufe19\u1e3f"
        "\u9fb4\u9fb5\u9fb6\u9fb7\u9fb8\u9fb9\u9fba\u9fbb",
    ),
}
_OTHER_BYTES = {
    "koi8-u": {0xAE: "ў", 0xBE: "Ў"},
    "windows-1255": {0xCA: "\u05ba"},
}
_CODECS = {
    "utf-8": "utf-8",
    "utf-16le": "utf-16-le",
    "utf-16be": "utf-16-be",
    "gb18030": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
    "euc-jp": "euc_jp",
}
_MAX_NEC_BYTES = 100_000  # decoded one by one: a page of more is no Japanese text
_JIS_PAIRS = re.compile(rb"(?:[\xa1-\xfe]{2})+")
_JIS_SEGMENT = re.compile(rb"\x1b(\$[@B]|\([BJI])([^\x1b]*)")
_KATAKANA = re.compile(rb"[\x21-\x5f]+")
_SET_HIGH_BIT = bytes(
    byte | 0x80 if 0x21 <= byte <= 0x7E else byte for byte in range(256)
)


def to_parseable(html: bytes, content_type: str) -> bytes | str:
    """Returns the bytes of a page in valid UTF-8, or else the decoded text.

    Never fails: bytes that are wrong in the page's charset become U+FFFD.
    """
    for mark, name in _MARKS:
        if html.startswith(mark):
            return _decoded(html[len(mark) :], name)
    name = (
        _of_header(content_type)
        or _of_meta(html[:_WINDOW])
        or _of_xml_declaration(html[:_WINDOW])
    )
    if name in ("", "utf-8"):
        try:
            html.decode("utf-8")
        except UnicodeDecodeError:
            name = name or ("utf-8" if _mostly_utf8(html) else "windows-1252")
        else:
            return html
    return _decoded(html, name)


def _of_header(content_type: str) -> str:
    """Returns the charset of an HTTP Content-Type, the last of several types."""
    for media_type in reversed(content_type.split(",")):
        for label in _HEADER_CHARSET.findall(media_type):
            if name := _standard_name(label):
                return name
    return ""


def _of_meta(html: bytes) -> str:
    """Returns the charset that a <meta> declares: the HTML standard's prescan.

    Beyond the standard, the content of scripts and the like is skipped, as parsers do.
    """
    position = 0
    while tag := _TAG.search(html, position):
        position = tag.end()
        if tag[1]:  # "<!-->" is a whole comment
            position = html.find(b"-->", tag.end() - 2) + 3
            if position < 3:
                return ""
            continue
        if not tag[2]:
            position = html.find(b">", position) + 1
            if not position:
                return ""
            continue
        attributes: dict[bytes, bytes] = {}
        while found := _ATTRIBUTE.match(html, position):
            if found[5]:
                return ""  # cut off by the window
            position = found.end()
            value = found[2] or found[3] or found[4] or b""
            attributes.setdefault(found[1].lower(), value)
        if not (end := _TAG_END.match(html, position)):
            return ""  # cut off, too
        position = end.end()
        element = tag[2].lower()
        if element == b"meta" and not tag[0].startswith(b"</"):
            if name := _of_attributes(attributes):
                return name
        elif element in _RAW_TEXT and not tag[0].startswith(b"</"):
            close = re.compile(b"</" + re.escape(element), re.I).search(html, position)
            if close is None:
                return ""
            position = close.start()
    return ""


def _of_attributes(attributes: dict[bytes, bytes]) -> str:
    """Returns the charset of a <meta> with these attributes."""
    if b"charset" in attributes:
        label = attributes[b"charset"]
    elif attributes.get(b"http-equiv", b"").strip().lower() == b"content-type":
        found = _CONTENT_CHARSET.search(attributes.get(b"content", b""))
        label = (found[1] or found[2] or found[3] or b"") if found else b""
    else:
        return ""
    name = _standard_name(label.decode("latin-1"))
    return _AS_ASCII.get(name, name)


def _of_xml_declaration(html: bytes) -> str:
    for mark, name in _XML_MARKS:
        if html.startswith(mark):
            return name
    found = _XML_DECLARATION.match(html)
    name = _standard_name(found[2].decode("latin-1")) if found else ""
    return _AS_ASCII.get(name, name)


def _standard_name(label: str) -> str:
    """Returns the encoding standard's name of a label, "" if unknown."""
    encoding = webencodings.lookup(label) if label.isascii() else None
    return encoding.name if encoding else ""


def _mostly_utf8(html: bytes) -> bool:
    """Whether a page that is not valid UTF-8 is meant to be.

    In other charsets, few letters happen to form a character of UTF-8: with none in
    Western European texts, up to one for three wrong bytes in Thai and Chinese ones.
    """
    html = _SURROGATE.sub(b"", _CUT_OFF.sub(b"", html))
    text = html.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    right = len(text) - len(html.translate(None, _HIGH_BYTES)) - wrong
    return right >= max(1, 2 * wrong - 1)  # one character outweighs one wrong byte


def _decoded(html: bytes, name: str) -> str:
    """Decodes as browsers do; `name` is the encoding standard's."""
    if name == "iso-2022-jp":
        html, name = _JIS_SEGMENT.sub(_to_euc, html), "euc-jp"
    if name == "gbk":
        name = "gb18030"
    if name in _CODECS:
        text = html.decode(_CODECS[name], "replace")
        if name == "euc-jp" and 0 < text.count("\ufffd") <= _MAX_NEC_BYTES:
            text = html.decode("euc_jp", "data_prep.euc_jp")
        for character, other in zip(*_OTHERWISE.get(name, ("", "")), strict=True):
            text = text.replace(character, other)
        return text
    if name == "replacement":  # of charsets that browsers refuse, as an attack hides so
        return "\ufffd"
    if name == "x-user-defined":
        return webencodings.lookup(name).codec_info.decode(html)[0]
    return codecs.charmap_decode(html, "replace", _table(name))[0]


@cache
def _table(name: str) -> str:
    """Returns the 256 characters of a single-byte charset, U+FFFE for none.

    Bytes of 0x80 to 0x9F that Python leaves undefined are control characters.
    """
    codec = webencodings.lookup(name).codec_info
    characters = [codec.decode(bytes([byte]), "replace")[0] for byte in range(256)]
    for byte, character in enumerate(characters):
        if character == "\ufffd":
            characters[byte] = chr(byte) if 0x80 <= byte < 0xA0 else "\ufffe"
    for byte, character in _OTHER_BYTES.get(name, {}).items():
        characters[byte] = character
    return "".join(characters)


def _to_euc(segment: re.Match[bytes]) -> bytes:
    """Returns a segment of ISO-2022-JP, which an escape sequence begins, as EUC-JP."""
    escape, data = segment.groups()
    if escape == b"(I":
        return _KATAKANA.sub(_katakana_to_euc, data)
    return data.translate(_SET_HIGH_BIT) if escape.startswith(b"$") else data


def _katakana_to_euc(run: re.Match[bytes]) -> bytes:
    """Returns half-width katakana with EUC-JP's prefix before each byte."""
    out = bytearray(b"\x8e" * (2 * len(run[0])))
    out[1::2] = run[0].translate(_SET_HIGH_BIT)
    return bytes(out)


def _decode_nec_rows(error: UnicodeError) -> tuple[str, int]:
    """Decodes EUC-JP's pairs of bytes that Python lacks: NEC's special characters.

    Windows' Shift_JIS has all of them.
    """
    assert isinstance(error, UnicodeDecodeError)
    pairs = _JIS_PAIRS.match(error.object, error.start)
    if pairs is None:
        return "\ufffd", error.start + 1
    data = pairs[0]
    return "".join(
        _jis_character(data[i], data[i + 1]) for i in range(0, len(data), 2)
    ), pairs.end()


@cache
def _jis_character(row: int, cell: int) -> str:
    lead, trail = divmod((row - 0xA1) * 94 + cell - 0xA1, 188)
    lead += 0x81 if lead < 0x1F else 0xC1
    trail += 0x40 if trail < 0x3F else 0x41
    return bytes([lead, trail]).decode("cp932", "replace")


codecs.register_error("data_prep.euc_jp", _decode_nec_rows)
