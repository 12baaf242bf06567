"""Turns the bytes of a page into what the HTML parser takes: UTF-8 bytes or text.

Asked in this order, as browsers do: byte-order mark, HTTP header, <meta charset>. Where
nobody says, it is UTF-8 if it is valid, else windows-1252.
"""

import codecs
import re

_HEADER_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
_META_CHARSET = re.compile(rb"<meta[^>]{0,256}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
_META_WINDOW = 1024  # browsers look no further
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Python's names of the encodings that pages may use: any other label is ignored, since
# Python also has codecs such as "unicode_escape" that are no charsets.
_ALLOWED = frozenset(
    """utf-8 utf-16 utf-16-le utf-16-be ascii iso8859-1 iso8859-2 iso8859-3 iso8859-4
    iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-9 iso8859-10 iso8859-11 iso8859-13
    iso8859-14 iso8859-15 iso8859-16 cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256
    cp1257 cp1258 cp866 cp874 koi8-r koi8-u mac-roman mac-cyrillic tis-620 gb2312 gbk
    gb18030 big5 big5hkscs euc_jp shift_jis cp932 iso2022_jp euc_kr cp949""".split()
)
# Labels that pages give to a superset of what the label means.
_SUPERSETS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-16-le",
}


def to_parseable(html: bytes, content_type: str) -> bytes | str:
    """Returns valid UTF-8 bytes where the page is that, else the decoded text.

    Never fails: bytes that are wrong in the page's charset become U+FFFD.
    """
    for mark, name in _MARKS:
        if html.startswith(mark):
            return html[len(mark) :].decode(name, "replace")
    name = _declared(html, content_type)
    if name in ("", "utf-8"):
        try:
            html.decode("utf-8")
        except UnicodeDecodeError:
            return html.decode(name or "cp1252", "replace")
        return html
    return html.decode(name, "replace")


def _declared(html: bytes, content_type: str) -> str:
    """Returns Python's name of the declared charset, "" where there is none known."""
    in_header = _HEADER_CHARSET.search(content_type)
    name = _python_name(in_header[1]) if in_header else ""
    if name:
        return name
    in_meta = _META_CHARSET.search(html, 0, _META_WINDOW)
    name = _python_name(in_meta[1].decode("ascii", "replace")) if in_meta else ""
    # Whoever can read the <meta> as ASCII does not read UTF-16.
    return "utf-8" if name.startswith("utf-16") else name


def _python_name(label: str) -> str:
    try:
        name = codecs.lookup(label).name
    except LookupError:
        return ""
    return _SUPERSETS.get(name, name) if name in _ALLOWED else ""
