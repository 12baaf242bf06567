"""Plain text of wikitext: what stays and what goes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.metadata import titles, wikitext


def _text(markup, code="en"):
    return wikitext.plain_text(markup, namespaces=titles.link_prefixes(code))


@pytest.mark.parametrize(
    "markup, text",
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("a [[cat]] and [[Dog|dogs]]s", "a cat and dogss"),
        ("== Birds ==\nThey fly.", "Birds\nThey fly."),
        ("* one\n** two\n# three\n: four\n; five", "one\ntwo\nthree\nfour\nfive"),
        ("fish &amp; chips&nbsp;&#8212;&#x41;", "fish & chips\xa0\u2014A"),
        ("see [https://a.example/b?c=d its site] now", "see  its site now"),
        ("see https://a.example/b now", "see  now"),
        ("H<sub>2</sub>O", "H2O"),
        ("one<br>two<br/>three", "one\ntwo\nthree"),
        ("<div style='x'>inside</div>", "inside"),
        ("a<!-- b\n\n -->c", "ac"),
        ("<nowiki>[[not a link]] '' {{x}}</nowiki>", "[[not a link]]  {{x}}"),
        ("[[:Category:Cats|cats]] and [[:File:A.png]]", "cats and File:A.png"),
        ("Mission: [[Mission: Impossible]]", "Mission: Mission: Impossible"),
        ("-{zh-hans:计算机; zh-hant:電腦}-和-{T|题}--{網}-", "计算机和網\n電腦"),
        ("-{zh-cn:信息; zh-tw:資訊; zh-hk:資訊;}-上", "信息上\n資訊"),
        ("-{A|sr-ec:мачка; sr-el:mačka}- је", "мачка је\nmačka"),
        ("-{zh-hans:{{a|b}}甲&amp;乙; zh-hant:[[c|丙]]}-。", "甲&乙。\n丙"),
        ("[[a|-{zh-hans:甲; zh-hant:乙}-]]<ref>-{zh-hans:丙; zh-hant:丁}-</ref>",
         "甲\n乙"),
        ("-{zh;zh-hans;zh-hant|博客、網誌}-", "博客、網誌"),
        ("-{-|zh-hans:甲}--{H|甲}-乙", "乙"),
        ("__NOTOC__ text __目次強制__", "text"),
    ],
)  # fmt: skip
def test_prose_and_labels_stay(markup, text):
    assert _text(markup) == text


@pytest.mark.parametrize(
    "markup",
    [
        "{{Infobox|name={{lang|fr|x}}|list=\n* one\n}}",
        "\n{| class=x\n! head\n|-\n| cell || [[link]]\n{| \n| inner\n|}\n|}",
        "<ref name=a>{{cite|x}} seen</ref>",
        "<ref name=b />",
        "<REF>seen</REF>",
        "<references>\n<ref>x</ref>\n</references>",
        "<math>a < b</math>",
        "<gallery>\nFile:a.png|A [[cat]]\n</gallery>",
        "<syntaxhighlight lang=c>for (;;) {{ [[ </syntaxhighlight>",
        "[[File:A.png|thumb|A [[cat]] on a [[mat|rug]]]]",
        "[[Image:A.png]]",
        "[[category:Cats| ]]",
        "[[fr:Chat]] [[zh-yue:貓]]",
        "{{{{nested name}}|x}}",
        "https://a.example [https://a.example/b]",
    ],
)
def test_what_is_no_prose_goes(markup):
    assert _text(f"before {markup} after").split() == ["before", "after"]


@pytest.mark.parametrize(
    "code, markup, text",
    [
        ("zh", "'''猫'''是[[哺乳动物|动物]]。[[文件:猫.jpg|缩略图|猫]][[分类:猫]]",
         "猫是动物。"),
        ("ja", "'''猫'''は[[動物]]。[[ファイル:Neko.jpg|thumb|猫]][[カテゴリ:猫]]",
         "猫は動物。"),
        ("th", "'''แมว''' เป็น[[สัตว์]] [[ไฟล์:แมว.jpg|thumb]][[หมวดหมู่:แมว]]",
         "แมว เป็นสัตว์"),
        ("ar", "'''القط''' هو [[حيوان|الحيوان]].[[ملف:قط.jpg|تصغير]][[تصنيف:قطط]]",
         "القط هو الحيوان."),
        ("he", "'''חתול''' הוא [[בעל חיים]].[[קובץ:א.jpg]][[קטגוריה:חתולים]]",
         "חתול הוא בעל חיים."),
        ("hi", "'''बिल्ली''' एक [[जानवर]] है।[[चित्र:क.jpg|अंगूठाकार]][[श्रेणी:बिल्ली]]",
         "बिल्ली एक जानवर है।"),
        ("ko", "'''고양이'''는 [[동물]]이다.[[파일:고양이.jpg|섬네일]][[분류:고양이]]",
         "고양이는 동물이다."),
    ],
)  # fmt: skip
def test_each_wiki_has_its_own_names_of_files_and_categories(code, markup, text):
    assert _text(markup, code) == text


@pytest.mark.parametrize(
    "markup, words",
    [
        ("a {{never closed [[b]] c", "a never closed b c"),
        ("a [[never closed {{x}} c", "a never closed c"),
        ("a }} b ]] c", "a b c"),
        ("a <ref>never closed b", "a never closed b"),
        ("a </ref> b </small>", "a b"),
        ("a\n{| never closed\n| b\nc", "a never closed c"),
        ("x < y <5 <b z", "x y 5 b z"),
        ("[[a {{b]] c}} d", "a b c d"),
        ("<nowiki>a [[b]]", "a b"),
        ("a <references> b", "a b"),
        ("a <!-- never closed b", "a"),
        ("a {{{1|default}}} b", "a } b"),
    ],
)
def test_broken_markup_is_read_as_text(markup, words):
    assert _text(markup).split() == words.split()


_PIECES = st.sampled_from(
    "{{ }} [[ ]] | = <b> </b> <ref> </ref> <ref/> <!-- --> <nowiki> </nowiki> <math>"
    " </math> '' ''' {{{ }}} -{ }- __TOC__ https://a [https://a ] & &amp; < > / : ;"
    " <br> <li> <table> <td> </table> File: word a".split()
    + ["\n", " ", "\n{|", "\n|}", "\n|-", "\n* ", "\n==", "\x01"]
)


@given(st.lists(_PIECES, max_size=40).map("".join))
@settings(deadline=None, max_examples=200)
def test_any_markup_gives_text_without_paired_marks(markup):
    text = _text(markup.replace("<nowiki>", ""))
    assert "<ref>" not in text and "\x02" not in text
    assert text == text.strip()


@given(words=st.lists(st.text("abc猫ع", min_size=1), max_size=8))
@settings(deadline=None, max_examples=50)
def test_text_without_marks_stays_as_it_is(words):
    assert _text(" ".join(words)) == " ".join(words)


@pytest.mark.parametrize(
    "markup, words",
    [
        ("a [mailto:b@c.example d] e", "a d e"),
        ("a [mailto:b@c.example] e", "a e"),
        ("a [HTTP://b.example c] d", "a c d"),
        ("a [MAILTO:b@c.example d\ne] f", "a d e] f"),
        ('a <ref name="b>c</ref> d <ref name="e/> f', "a d f"),
        ("a [news: b] c", "a [news: b] c"),
        ("a [//b.example c", "a //b.example c"),
        ("<pre>a</pre >b <pre>c</pre x>d</pre>e", "b e"),
    ],
)
def test_links_and_verbatim_tags_close_as_in_mediawiki(markup, words):
    assert _text(markup).split() == words.split()


@pytest.mark.parametrize("opening, closing", [("{{a|", "}}"), ("[[a|", "]]")])
def test_deep_nesting_is_read(opening, closing):
    assert _text(opening * 5_000 + "x" + closing * 5_000 + " after").endswith("after")
