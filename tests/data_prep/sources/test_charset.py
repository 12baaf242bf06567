"""Which charset a page is read in: by its labels, its declarations, or by neither."""

import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webencodings.labels import LABELS

from data_prep.sources import charset

# A text that each charset of the encoding standard can say, and Python's codec for it.
SAMPLES = {
    "utf-8": ("café 東京 😀", "utf-8"),
    "utf-16le": ("café 東京 😀", "utf-16-le"),
    "utf-16be": ("café 東京 😀", "utf-16-be"),
    "ibm866": ("чёрная кошка", "cp866"),
    "iso-8859-2": ("żółty kot", "iso8859-2"),
    "iso-8859-3": ("ĉevalo ħobż", "iso8859-3"),
    "iso-8859-4": ("melns kaķis ģ", "iso8859-4"),
    "iso-8859-5": ("чёрная кошка", "iso8859-5"),
    "iso-8859-6": ("قطة سوداء", "iso8859-6"),
    "iso-8859-7": ("μαύρη γάτα", "iso8859-7"),
    "iso-8859-8": ("חתול שחור", "iso8859-8"),
    "iso-8859-8-i": ("חתול שחור", "iso8859-8"),
    "iso-8859-10": ("ĸøttur ŋ", "iso8859-10"),
    "iso-8859-13": ("juoda katė", "iso8859-13"),
    "iso-8859-14": ("cath ddu ŵ", "iso8859-14"),
    "iso-8859-15": ("10 € œuf", "iso8859-15"),
    "iso-8859-16": ("pisică neagră ș", "iso8859-16"),
    "koi8-r": ("чёрная кошка", "koi8-r"),
    "koi8-u": ("чорний кіт ґ", "koi8-u"),
    "macintosh": ("café ﬁn", "mac-roman"),
    "x-mac-cyrillic": ("чёрная кошка", "mac-cyrillic"),
    "windows-874": ("แมวสีดำ…", "cp874"),
    "windows-1250": ("żółty „kot”", "cp1250"),
    "windows-1251": ("чёрная «кошка»", "cp1251"),
    "windows-1252": ("café – “x” €", "cp1252"),
    "windows-1253": ("μαύρη γάτα", "cp1253"),
    "windows-1254": ("kara kedi ığş", "cp1254"),
    "windows-1255": ("חתול שחור", "cp1255"),
    "windows-1256": ("قطة سوداء", "cp1256"),
    "windows-1257": ("juoda katė", "cp1257"),
    "windows-1258": ("con mèo đen", "cp1258"),
    "gbk": ("黑猫 朱镕基 €", "gb18030"),
    "gb18030": ("黑猫 朱镕基 𠀀", "gb18030"),
    "big5": ("黑貓 咗", "big5hkscs"),
    "euc-jp": ("黒い猫 ﾈｺ 丂", "euc_jp"),
    "iso-2022-jp": ("黒い猫", "iso2022_jp"),
    "shift_jis": ("黒い猫 ①㈱髙", "cp932"),
    "euc-kr": ("검은 고양이 똠", "cp949"),
    "x-user-defined": ("cat \uf7e9", None),
    "replacement": ("\ufffd", None),
}
BYTES = {"x-user-defined": b"cat \xe9", "replacement": b"any bytes \xe9"}


def sample(name):
    text, codec = SAMPLES[name]
    return text, text.encode(codec) if codec else BYTES[name]


def read(page, content_type=""):
    found = charset.to_parseable(page, content_type)
    return found if isinstance(found, str) else found.decode("utf-8")


def test_every_label_of_the_standard_is_known_in_a_header():
    assert set(LABELS.values()) == set(SAMPLES)
    for label, name in LABELS.items():
        text, data = sample(name)
        for form in (label, label.upper(), f'"{label}"', f" '{label}' ; x=y"):
            assert read(data, f"text/html; charset={form}") == text, label


AS_ASCII = {"utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": "windows-1252"}


@pytest.mark.parametrize(
    "declaration",
    [
        "<meta charset={}>",
        "<html><head><title>x</title><META CharSet = '{}' >",
        '<meta http-equiv="Content-Type" content="text/html; charset={}"/>',
        "<meta content='text/html;charset={}'http-equiv=CONTENT-type>",
        "<?xml version='1.0' encoding='{}'?>",
        '<?xml version="1.0" encoding = "{}" standalone="no" ?>',
    ],
)
def test_every_label_of_the_standard_is_known_in_a_page(declaration):
    for label, name in LABELS.items():
        text, data = sample(AS_ASCII.get(name, name))
        if name != "replacement":
            text = declaration.format(label) + text
        for form in (label, label.upper()):
            page = declaration.format(form).encode() + data
            assert read(page).lower() == text.lower(), label


def test_labels_that_the_standard_lacks_are_passed_over():
    for label in ("unicode_escape", "zip", "utf-7", "idna", "rot13", "x" * 999, "é"):
        for page in (b"\xff", rb"\x41", b"+AGE-", "é".encode()):
            wanted = page.decode("utf-8" if page == "é".encode() else "cp1252")
            assert read(page, f"text/html; charset={label}") == wanted


def test_the_japanese_charsets_hold_the_same_rows_as_windows_has():
    """NEC's and IBM's characters included, in the order of the code tables."""
    shift_jis = [
        bytes([lead, trail])
        for lead in (*range(0x81, 0xA0), *range(0xE0, 0xF0))
        for trail in (*range(0x40, 0x7F), *range(0x80, 0xFD))
    ]
    rows = list(itertools.product(range(0x21, 0x7F), repeat=2))
    assert len(rows) == len(shift_jis) == 94 * 94
    defined = 0
    for (row, cell), windows in zip(rows, shift_jis, strict=True):
        wanted = windows.decode("cp932", "replace")
        if "\ufffd" in wanted:
            continue
        defined += 1
        euc, jis = bytes([row | 0x80, cell | 0x80]), bytes([row, cell])
        assert read(b"a" + euc + b"b", "x; charset=euc-jp") == f"a{wanted}b"
        page = b"a\x1b$B" + jis + b"\x1b(Bb"
        assert read(page, "x; charset=iso-2022-jp") == f"a{wanted}b"
    assert defined == 7336


@pytest.mark.parametrize(
    ("label", "data", "text"),
    [
        ("euc-jp", b"\xad\xa1\xa4\xa2 \xff\xa4\xa2", "①あ \ufffdあ"),
        ("euc-jp", b"\x8e\xc8\x8f\xb0\xa1\xad", "ﾈ丂\ufffd"),
        ("iso-2022-jp", b"\x1b$@\x24\x22\x1b(J a \x1b(IH\x1b(B b", "あ a ﾈ b"),
        ("big5", "哈利‧波特￥".encode("cp950"), "哈利‧波特￥"),
        ("gb2312", b"\xa3\xa0\xa8\xbc", "\u3000ḿ"),
        ("koi8-ru", b"\xae", "ў"),
        ("windows-1252", b"\x81\x8d\x80", "\x81\x8d€"),
        ("windows-1253", b"\x98\xaa", "\x98\ufffd"),
        ("tis-620", b"\x85\xa1", "…ก"),
        ("iso-8859-1", b"\x93x\x94", "“x”"),
        ("us-ascii", b"caf\xe9", "café"),
        ("iso-8859-9", b"\x80", "€"),
        ("shift_jis", b"\x87\x40\xfb\xfc", "①髙"),
        ("ks_c_5601-1987", b"\x8c\x63", "똠"),
    ],
)
def test_bytes_mean_what_browsers_show(label, data, text):
    assert read(data, f"text/html; charset={label}") == text


@pytest.mark.parametrize(
    ("content_type", "name"),
    [
        ("text/html; charset=koi8-r; charset=utf-8", "koi8-r"),
        ("text/html; charset=utf-8, text/html; charset=koi8-r", "koi8-r"),
        ("text/html; charset=koi8-r, text/html", "koi8-r"),
        ("text/html; charset=; charset=koi8-r", "koi8-r"),
        ("text/html charset=koi8-r", "koi8-r"),
        ("charset=koi8-r", "koi8-r"),
        ("text/html; CHARSET = 'KOI8-R'", "koi8-r"),
        ("text/html; charset=nonsense", "windows-1251"),
        ("text/html; charset=", "windows-1251"),
        ("text/html", "windows-1251"),
    ],
)
def test_a_header_comes_before_the_page_where_it_names_a_charset(content_type, name):
    text, data = sample(name)
    head = "<meta charset=windows-1251>"
    assert read(head.encode() + data, content_type) == head + text


NOTHING = (
    "<!-- <meta charset=big5> -->",
    "<!--> <!---> <!-- > -- <meta charset=big5>-->",
    "<!-- <meta http-equiv=Content-Type content='text/html; charset=big5'>-->",
    "<meta name=description content='what charset=shift_jis means'>",
    "<meta name=x data-charset=big5>",
    "<meta name=charset content=big5>",
    "<meta http-equiv=refresh content='0; charset=big5'>",
    "<meta http-equiv=content-type content='text/html'>",
    "<meta http-equiv=content-type content=big5>",
    "<meta content='text/html; charset=big5'>",
    "<meta charset>",
    "<meta charset=''>",
    "<meta charset=nonsense>",
    "<meta data-x='<meta charset=big5>'>",
    "<metal charset=big5>",
    "</meta charset=big5>",
    "<script>s = '<meta charset=big5>'</script>",
    "<STYLE><meta charset=big5></STYLE>",
    "<title><meta charset=big5></title>",
    "<noscript><meta charset=big5></noscript>",
    "<script charset=big5 src=x></script>",
    "<link href='?a=1&amp;charset=big5'>",
    '<p title="<meta charset=big5>">',
    "<!doctype html SYSTEM '<meta charset=big5'>",
    "<?xml version='1.0' encoding='big5'?>",  # not at the beginning
    "< meta charset=big5>",
    "charset=big5 encoding='big5'",
)
REAL = (
    "<meta charset={}>",
    "<meta/charset='{}'/>",
    "<META x CHARSET = \"{}\" charset=big5>",
    "<meta charset={} http-equiv=content-type content='text/html; charset=big5'>",
    "<meta http-equiv=' content-type ' content='charset = \"{}\"'>",
    "<meta http-equiv=Content-Type content=text/html;charset={}>",
)  # fmt: skip
noise = st.lists(st.sampled_from(NOTHING), max_size=6).map(" ".join)


@given(noise, noise, st.sampled_from(REAL), st.sampled_from(sorted(SAMPLES)))
def test_only_a_real_declaration_counts_whatever_stands_around_it(
    before, after, form, name
):
    label = next(label for label in LABELS if LABELS[label] == name)
    name = AS_ASCII.get(name, name)
    text, data = sample(name)
    head = f" {before}{form.format(label)}{after}"
    assert len(head) < 1024 or before or after
    if len(f" {before}{form.format(label)}") > 1024:
        return
    wanted = text if name == "replacement" else head + text
    assert read(head.encode() + data) == wanted


@given(noise)
def test_without_a_declaration_utf8_is_utf8(before):
    page = f" {before} café, 東京"
    assert read(page.encode()) == page


def test_a_declaration_counts_in_the_first_1024_bytes_only():
    text, data = sample("koi8-r")
    tag = b"<meta charset=koi8-r>"
    for tag in (b"<meta charset=koi8-r>", b"<meta charset='koi8-r'>"):
        inside = b" " * (1024 - len(tag)) + tag
        assert read(inside + data).endswith(text)
        assert read(b" " + inside + data).endswith(data.decode("cp1252"))
    # iso-8859-1 would be read out of iso-8859-15.
    cut = (
        b" " * (1024 - len(b"<meta charset=iso-8859-1")) + b"<meta charset=iso-8859-15>"
    )
    assert read(cut + "żółty €".encode()).endswith("żółty €")


def test_a_page_that_is_read_as_ascii_is_not_utf16():
    for label in ("utf-16", "utf-16be", "unicode"):
        for form in ("<meta charset={}>", "<?xml encoding='{}'?>"):
            page = form.format(label) + "東京"
            assert read(page.encode()) == page
    for codec in ("utf-16-le", "utf-16-be"):
        page = "<?xml version='1.0'?><p>東京"
        assert read(page.encode(codec)) == page


def test_a_meta_comes_before_an_xml_declaration_and_a_mark_before_all():
    text, data = sample("koi8-r")
    page = b"<?xml encoding='big5'?><meta charset=koi8-r>" + data
    assert read(page).endswith(text)
    for codec in ("utf-8-sig", "utf-16"):
        page = "<meta charset=koi8-r>東京".encode(codec)
        assert read(page, "text/html; charset=koi8-r") == "<meta charset=koi8-r>東京"


UNDECLARED = "<html><p>Café, 東京タワー, чёрная кошка, قطة 😀 </p>"
CESU = b"\xed\xa0\xbd\xed\xb8\x80"


@given(
    st.integers(0, len(UNDECLARED.encode())),
    st.one_of(st.binary(min_size=1, max_size=1), st.just(CESU), st.just(b"\xe6\x9d")),
)
def test_a_wrong_byte_anywhere_does_not_change_the_charset(position, wrong):
    data = UNDECLARED.encode()
    text = read(data[:position] + wrong + data[position:])
    kept = [w for w in UNDECLARED.split(" ") if w in text]
    assert len(kept) >= len(UNDECLARED.split(" ")) - 2


@given(st.integers(0, len(UNDECLARED.encode())))
def test_a_page_cut_anywhere_keeps_its_charset(position):
    if position == UNDECLARED.encode().index("é".encode()) + 1:
        return  # in the first character: nothing says that it is one
    text = read(UNDECLARED.encode()[:position])
    assert UNDECLARED.startswith(text.rstrip("\ufffd"))


@pytest.mark.parametrize("name", [n for n in SAMPLES if not n.startswith("utf")])
def test_a_page_in_another_charset_is_not_taken_for_utf8(name):
    text, data = sample(name)
    if data.isascii() or name in BYTES:
        pytest.skip("has no byte that could be mistaken")
    for page in (data, b"<p>" + data * 20, data + b"<p>caf\xe9"):
        assert read(page) == charset._decoded(page, "windows-1252")


def test_a_page_of_errors_costs_no_call_for_each():
    calls = 0

    def on_event(frame, event, argument):
        nonlocal calls
        calls += 1

    data = b"\xad\xa1\xfd\x81\xff" * 50_000
    for name in SAMPLES:
        sys.setprofile(on_event)
        try:
            charset.to_parseable(data, f"text/html; charset={name}")
        finally:
            sys.setprofile(None)
    assert calls < 50_000


@given(st.binary(max_size=300), st.sampled_from([*LABELS, ""]))
def test_any_bytes_can_be_read_in_any_charset(data, label):
    read(data, f"text/html; charset={label}").encode("utf-8")
    read(b"<meta " + data + b"<?xml <meta charset=" + label.encode() + b">" + data)
