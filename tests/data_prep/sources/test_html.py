"""What is read out of a page: images, their texts, their languages, its own text."""

import pytest

from data_prep import schema
from data_prep.sources import charset, html, texts
from data_prep.sources.warc import LostPage, Page
from metaclip_jax.data import records

TREE = 16 << 20
LIMITS = {
    "max_texts_per_page": 100,
    "max_text_chars": 50,
    "max_url_chars": 200,
    "max_tree_bytes": TREE,
}
PAGE_URL = "https://site.example/dir/page.html"


def page(markup, *, content_type="text/html", url=PAGE_URL):
    data = markup if isinstance(markup, bytes) else markup.encode()
    return Page(url, data, content_type)


def parse_page(page, **limits):
    """Returns the candidates of a page as a batch, and what it lost."""
    parsed = html.parse_page(page, **limits)
    if isinstance(parsed, LostPage):
        return parsed
    found, drops = parsed
    return schema.from_rows(found, schema.CANDIDATES), drops


def parse(markup, **kwargs):
    return parse_page(page(markup, **kwargs), **LIMITS)


def rows(markup, *columns, **kwargs):
    batch, _ = parse(markup, **kwargs)
    return [tuple(row[c] for c in columns) for row in batch.to_pylist()]


def url_of(attributes, before="", after=""):
    found = rows(f"{before}<img {attributes} alt=x>{after}", "image_url")
    return found[0][0] if found else None


@pytest.mark.parametrize(
    ("attributes", "url"),
    [
        ('src="https://other.example/a.jpg"', "https://other.example/a.jpg"),
        ('src="//other.example/a.jpg"', "https://other.example/a.jpg"),
        ('src="/a.jpg"', "https://site.example/a.jpg"),
        ('src="a.jpg"', "https://site.example/dir/a.jpg"),
        ('src="../a.jpg"', "https://site.example/a.jpg"),
        ('src="../../../a.jpg"', "https://site.example/a.jpg"),
        ('src="./x/../a.jpg"', "https://site.example/dir/a.jpg"),
        ('src="?id=1"', "https://site.example/dir/page.html?id=1"),
        ('src=" \n a.jpg\t "', "https://site.example/dir/a.jpg"),
        ('src="a\n.jpg"', "https://site.example/dir/a.jpg"),
        ('src="a.jpg#part"', "https://site.example/dir/a.jpg"),
        ('src="a.jpg?b=1&amp;c=2"', "https://site.example/dir/a.jpg?b=1&c=2"),
        ('src="/b&ouml;d.jpg"', "https://site.example/b%C3%B6d.jpg"),
        ('src="\\img\\a.jpg"', "https://site.example/img/a.jpg"),
        ('SRC="HTTP://other.example"', "http://other.example/"),
        ('data-src="lazy.jpg"', "https://site.example/dir/lazy.jpg"),
        ('src="spacer.gif" data-src="l.jpg"', "https://site.example/dir/l.jpg"),
        ('src="a.jpg" data-src="true"', "https://site.example/dir/a.jpg"),
        ('src="a.jpg" data-src="data:x/y"', "https://site.example/dir/a.jpg"),
        ('src="data:image/gif;base64,R0lG" data-original="o.jpg"',
         "https://site.example/dir/o.jpg"),
        ('src="data:image/gif;base64,R0lG" srcset="s.jpg"',
         "https://site.example/dir/s.jpg"),
        ('src="a.jpg" srcset="b.jpg 2x"', "https://site.example/dir/a.jpg"),
        ('srcset="s.jpg 100w, m.jpg 800w,l.jpg 3000w"',
         "https://site.example/dir/m.jpg"),
        ('srcset="s.jpg, l.jpg 2x"', "https://site.example/dir/l.jpg"),
        ('srcset="/w_1,h_2/s.jpg 1x, /w_2,h_4/l.jpg 2x"',
         "https://site.example/w_2,h_4/l.jpg"),
        ('data-srcset="s.jpg 1w, l.jpg 9w" src="spacer.gif"',
         "https://site.example/dir/l.jpg"),
        ('srcset=" , ,"', None),
    ],
)  # fmt: skip
def test_every_form_of_an_image_address_is_made_absolute(attributes, url):
    assert url_of(attributes) == url


def test_base_href_moves_relative_addresses_only():
    base = '<base target=x><base href="//cdn.example/x/"><base href="/no/">'
    assert url_of("src=a.jpg", base) == "https://cdn.example/x/a.jpg"
    assert url_of("src=/a.jpg", base) == "https://cdn.example/a.jpg"
    assert url_of("src=https://o.example/a.jpg", base) == "https://o.example/a.jpg"
    assert url_of("src=a.jpg", "<base href=sub/>") == (
        "https://site.example/dir/sub/a.jpg"
    )
    for useless in ("javascript:x", "http://[", "", "mailto:a@b.example"):
        assert url_of("src=a.jpg", f'<base href="{useless}">') == (
            "https://site.example/dir/a.jpg"
        )


def test_a_picture_gives_its_source_to_an_image_without_address():
    before = '<picture><source srcset="a.webp 1x, b.webp 2x"><source srcset="c.jpg">'
    assert url_of("", before, "</picture>") == "https://site.example/dir/b.webp"
    assert url_of("src=d.jpg", before) == "https://site.example/dir/d.jpg"
    assert url_of("", '<div><source srcset="a.webp"></div>') is None


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ("", "no_image_url"),
        ("src", "no_image_url"),
        ('src=" "', "no_image_url"),
        ('src="#top"', "no_image_url"),
        ('src="data:image/png;base64,AAAA"', "image_url_not_http"),
        ('src="ftp://a.example/b"', "image_url_not_http"),
        ('src="JavaScript:alert(1)"', "image_url_not_http"),
        ('src="file:///etc/passwd"', "image_url_not_http"),
        ('src="http://"', "bad_url"),
        ('src="//"', "bad_url"),
        ('src="http://a b/c"', "bad_url"),
        (f'src="{"a" * 201}"', "image_url_too_long"),
        (f'src="{"a" * 190}"', "image_url_too_long"),
    ],
)
def test_an_unusable_address_drops_its_texts_by_reason(attributes, reason):
    batch, drops = parse(f"<img {attributes} alt=one title=two>")
    assert batch.num_rows == 0
    assert drops == {reason: 2}


def test_all_text_sources_are_read_in_order():
    markup = (
        '<figure><div><img src=a.jpg alt="an alt" title="a title" '
        'data-image-title="an image title"></div>'
        "<figcaption>a <b>cap</b>tion<br>of two\nlines</figcaption></figure>"
    )
    assert rows(markup, "text_source", "text") == [
        ("alt", "an alt"),
        ("title", "a title"),
        ("data-image-title", "an image title"),
        ("figcaption", "a caption of two lines"),
    ]


def test_a_caption_of_several_images_belongs_to_none():
    markup = "<figure><img src=a><img src=b alt=x><figcaption>c</figcaption></figure>"
    assert rows(markup, "text") == [("x",)]


def test_rows_follow_the_schema():
    batch, _ = parse("<img src=a.jpg alt=x><img src=b.jpg alt=y>")
    assert batch.schema == schema.CANDIDATES
    batch.validate(full=True)
    for row in batch.to_pylist():
        assert row["image_id"] == records.image_id(row["image_url"])
        assert row["page_url"] == PAGE_URL
    empty, drops = parse("")
    assert empty.schema == schema.CANDIDATES and empty.num_rows == 0 and not drops


def test_texts_found_are_rows_plus_drops():
    markup = (
        "<img src=a.jpg>"  # no text: one
        "<img src=a.jpg alt>"  # one, empty
        '<img src=a.jpg alt=" &nbsp; " title="">'  # two, empty
        f'<img src=a.jpg alt="{"x" * 51}" title="{"x" * 50}">'  # one too long
        "<img alt=x>"  # no address
        "<img alt='' title=t>"  # one empty, one without address
    )
    batch, drops = parse(markup)
    assert drops == {"empty_text": 5, "text_too_long": 1, "no_image_url": 2}
    assert batch.num_rows == 1


def test_texts_of_one_page_are_bounded():
    batch, drops = parse("<img src=a.jpg alt=x title=y>" * 60)
    assert batch.num_rows == 100
    assert drops == {"too_many_texts": 20}


@pytest.mark.parametrize(
    ("alt", "text"),
    [
        ("caf&eacute; &amp; bar &#128512; &lt;3", "café & bar 😀 <3"),
        ("  two \n\t words  ", "two words"),
        ("a&nbsp;b&#x3000;c", "a b c"),
        ("a\x01b &#1; c", "ab c"),
        ("&#xD800;x", "\ufffdx"),
        ("ن\u200cم", "ن\u200cم"),
    ],
)
def test_texts_are_cleaned_of_entities_space_and_controls(alt, text):
    assert rows(f'<img src=a.jpg alt="{alt}">', "text") == [(text,)]


def test_cleaning_removes_lone_surrogates():
    assert texts.clean("a\ud800 b\udfff") == "a b"


@pytest.mark.parametrize(
    ("markup", "language"),
    [
        ("<img {}>", ""),
        ("<html lang=en-GB><img {}>", "en"),
        ("<html lang=zh_TW><img {}>", "zh"),
        ("<html lang=en><body lang=FR><div><img {}>", "fr"),
        ("<html lang=en><p lang=de>x</p><img {}>", "en"),
        ("<html lang=en><div lang=''><img {}>", ""),
        ("<html lang=en><img lang=ja {}>", "ja"),
        ("<meta http-equiv=Content-Language content=es-MX><img {}>", "es"),
        ("<meta http-equiv=content-language content='en, fr'><img {}>", ""),
        ("<html lang=en><meta http-equiv=content-language content=fr><img {}>", "en"),
        ("<html lang='not a language'><img {}>", ""),
        ("<html lang=x><img {}>", ""),
    ],
)
def test_the_nearest_declared_language_counts(markup, language):
    assert rows(markup.format("src=a.jpg alt=x"), "language") == [(language,)]


WORDS = "We sell small brown dogs that play in the snow."


@pytest.mark.parametrize(
    ("markup", "wanted"),
    [
        ("{words}<img {}>", [("", f"{WORDS} x")]),
        (
            "<title>Our shop</title><p>{words}<script>a</script><img {}>",
            [("", f"Our shop {WORDS} x")],
        ),
        (
            f"<img src=a.jpg alt='{WORDS[:19]}'><img src=b.jpg title='{WORDS[20:]}'>",
            [("", f"{WORDS[:19]} {WORDS[20:]}")] * 2,
        ),
        ("<html lang=not-known>{words}<img {}>", [("not", f"{WORDS} x")]),
        (
            "<p lang=fr><img {}></p>{words}<img {}>",
            [("fr", ""), ("", f"{WORDS} x x")],
        ),
        ("<html lang=fr>{words}<img {}>", [("fr", "")]),
        ("{words}", []),  # nothing to know the language for
        ("{words}<img src=a.jpg>", []),
    ],
)
def test_texts_without_a_known_language_bring_the_text_of_their_page(markup, wanted):
    filled = markup.replace("{words}", WORDS).replace("{}", "src=a.jpg alt=x")
    assert rows(filled, "language", "page_text") == wanted


def test_the_beginning_of_a_page_is_enough_to_know_its_language():
    ((text,),) = rows("<img src=a.jpg alt=x>" + f"<p>{WORDS}" * 1_000, "page_text")
    assert len(text) == 300


CYRILLIC = "Красное яблоко"


@pytest.mark.parametrize(
    ("encoding", "content_type", "head"),
    [
        ("koi8-r", "text/html; charset=KOI8-R", ""),
        ("koi8-r", 'text/html; charset="koi8-r"; x', "<meta charset=utf-8>"),
        ("cp1251", "text/html", "<meta charset='windows-1251'>"),
        ("cp1251", "text/html; charset=nonsense",
         "<meta http-equiv=Content-Type content='text/html; charset=windows-1251'>"),
        ("utf-8", "text/html", ""),
        ("utf-8-sig", "text/html; charset=koi8-r", ""),
        ("utf-16", "text/html", ""),
        ("utf-8", "text/html", "<meta charset=utf-16>"),
    ],
)  # fmt: skip
def test_charsets_come_from_mark_header_or_meta(encoding, content_type, head):
    markup = f"{head}<img src=a.jpg alt='{CYRILLIC}'>".encode(encoding)
    assert rows(markup, "text", content_type=content_type) == [(CYRILLIC,)]


def test_without_declaration_invalid_utf8_is_windows_1252():
    markup = "<img src=a.jpg alt='café – “x”'>".encode("cp1252")
    assert rows(markup, "text") == [("café – “x”",)]
    assert rows(markup, "text", content_type="text/html; charset=latin1") == [
        ("café – “x”",)
    ]


def test_supersets_of_declared_charsets_are_used():
    for label, text in [("gb2312", "朱镕基"), ("shift_jis", "①"), ("euc-kr", "똠")]:
        encoding = {"gb2312": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949"}[label]
        markup = f"<img src=a.jpg alt='{text}'>".encode(encoding)
        content_type = f"text/html; charset={label}"
        assert rows(markup, "text", content_type=content_type) == [(text,)]


def test_codecs_that_are_no_charsets_are_not_used():
    for label in ("unicode_escape", "zip", "utf-7", "idna", "rot13", "x" * 1000):
        for data in (b"\xff", rb"\x41", b"+AGE-"):
            result = charset.to_parseable(data, f"text/html; charset={label}")
            assert result in (data, data.decode("cp1252"))


@pytest.mark.parametrize(
    "markup",
    [
        "<img alt=x src=a.jpg",
        "<img alt=x src=a.jpg><",
        "<table><tr><img alt=x src=a.jpg></b></i><td",
        "<p><b><img alt=x src=a.jpg></p></b><img",
        "<img/alt='x'/src='a.jpg'>",
        "</html></body><img alt=x src=a.jpg>",
        "<image alt=x src=a.jpg>",
        "<noscript><img alt=x src=a.jpg></noscript>",
        "\0\0<img alt=x src=a.jpg>",
        "<!--><img alt=x src=a.jpg>",
        "<b>" * 2000 + "<img alt=x src=a.jpg>",
    ],
)
def test_malformed_markup_is_read_as_a_browser_would(markup):
    found = rows(markup, "text", "image_url")
    if markup.endswith("a.jpg"):  # never closed: no element
        assert found == []
    else:
        assert ("x", "https://site.example/dir/a.jpg") in found


def test_any_bytes_are_parsed():
    for n in range(256):
        data = bytes([n]) * 7 + b"<img src=a.jpg alt='" + bytes([n]) * 3 + b"'>"
        batch, drops = parse_page(page(data), **LIMITS)
        batch.validate(full=True)
        assert isinstance(
            html.page_text(page(data), max_tree_bytes=TREE), html.PageText
        )


def test_scripts_comments_and_templates_hold_no_images():
    markup = (
        "<script>'<img src=a.jpg alt=x>'</script><!-- <img src=a.jpg alt=x> -->"
        "<template><img src=a.jpg alt=x></template>"
    )
    assert rows(markup, "text") == []


def test_page_text_is_what_a_reader_sees():
    text = html.page_text(
        page(
            "<html lang=en><title>A &amp; B</title><style>p {}</style><nav>menu</nav>"
            "<svg><title>icon</title></svg><p>Two <b>w</b>ords<script>no()</script>, "
            "<a href=x>more</a>.<div>block</div>after<ul><li>one<li>two</ul>"
            "<noscript>no</noscript><img alt=no>"
        ),
        max_tree_bytes=TREE,
    )
    assert text == html.PageText(
        "A & B", "Two words, more.\nblock\nafter\none\ntwo", "en"
    )
    empty = html.page_text(page(""), max_tree_bytes=TREE)
    assert empty == html.PageText("", "", "")


@pytest.mark.parametrize(
    ("before", "language"),
    [
        ('<svg xml:lang="en"></svg>', ""),
        ("<svg xml:lang></svg>", ""),
        ('<svg xlink:href="#a" xml:space=preserve xmlns:xlink=x></svg>', ""),
        ('<math xml:lang="en"><mi xml:lang=fr>x</mi></math>', ""),
        ('<svg xml:lang="fr"><foreignObject>', "fr"),
        ('<svg xml:lang="fr" lang=de><foreignObject>', "de"),
        ('<svg xml:lang="fr"><foreignObject lang>', ""),
        ("<svg><base xlink:href=x></base><meta xlink:http-equiv=x></meta></svg>", ""),
        ("<p xml:lang=fr>", ""),  # in HTML it has no meaning
    ],
)
def test_attributes_of_other_namespaces_are_read_as_written(before, language):
    found = rows(f"{before}<img src=a.jpg alt='a cat'>", "text", "language")
    assert found == [("a cat", language)]
    text = html.page_text(page(before), max_tree_bytes=TREE)
    assert isinstance(text, html.PageText)


def test_whatever_goes_wrong_with_a_page_is_its_own_loss(caplog):
    broken = Page("https://a.example/broken", None, "text/html")
    with caplog.at_level("DEBUG", logger="absl"):
        assert parse_page(broken, **LIMITS) == LostPage("parser_error")
        assert html.page_text(broken, max_tree_bytes=TREE) == LostPage("parser_error")
    assert caplog.text.count("https://a.example/broken: ") == 2


def test_a_page_with_too_large_a_tree_is_lost_before_it_is_built():
    markup = "<p>" + "".join(f"<b id={i}>" for i in range(700)) + "</p>" + "<p>x" * 700
    markup += "<img>"
    assert parse_page(page(markup), **LIMITS) == LostPage("tree_too_large")
    enough = LIMITS | {"max_tree_bytes": 1 << 30}
    batch, _ = parse_page(page("<p>" + markup[700 * 10 :]), **enough)
    assert batch.num_rows == 0
    deep = page("<div>" * 30_000)
    assert html.page_text(deep, max_tree_bytes=TREE) == LostPage("tree_too_slow")


def test_texts_beyond_the_bound_of_a_page_are_not_read():
    """An image costs at most one count once the bound is reached, whatever it is."""
    markup = "<img src=a.jpg alt=x>" * 100 + "<img><img alt=''><img alt=x title=y>"
    batch, drops = parse(markup)
    assert batch.num_rows == 100
    assert drops == {"too_many_texts": 4}


@pytest.mark.parametrize("markup", ["<b>" * 40_000, "a < b, <i>m</i>, &lt;img>", ""])
def test_a_page_without_images_is_not_parsed(markup, monkeypatch):
    monkeypatch.setattr(html, "LexborHTMLParser", None)
    batch, drops = parse(markup)
    assert batch.num_rows == 0 and not drops
