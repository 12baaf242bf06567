"""Pieces of wikitext: bounded for any markup, and of real pages without a loss."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.metadata import marks, titles, wikitext


def _text(markup):
    return wikitext.plain_text(markup, namespaces=titles.link_prefixes("en"))


_TOKENS = st.sampled_from(
    "{{ }} [[ ]] {{{ }}} {| |} [ ] | || ! !! = == <b> </b> <div> </div> <ref> </ref>"
    " <ref/> <ref <ref/ <b:x> <wbr/ <!-- --> <nowiki> </nowiki> <pre> </pre <math>"
    " </math> <references> <td> </td> <li> <br/> <a b=\" \" ' '' ''' -{ }- __ __TOC__"
    " https://a [https://a [//a mailto:a [mailto:a irc://a & &amp; &# < > / : ; * #"
    " {{a}} [[a|b]] <ref>a</ref> File: ---- word a".split()
    + ["\n", " ", "\n{|", "\n|", "\n|}", "\n|-", "\n!", "\n* ", "\n:", "\n;", "\n=="]
)
_MIXTURES = st.lists(_TOKENS, min_size=1, max_size=7).map("".join)
# Each took the parser by itself, or a page parsed whole, a time that grows with the
# square of the length, or worse: minutes to days for a page of 1 MB.
_HOSTILE = (
    "<ref ", "<b x=y ", '<a b="', "{{a|b=", "<b><!-- ", "{|\n|-\n| a || b\n", "[[a|",
    "[http://a [[", "{{{{{|\n\n", "}}}\n|}{{{<br/>''}}}{{{\n|}", "<nowiki>", "''a'''",
    "<div>", "<references>", "<li>", "<p>", "-{", "-{zh:{{a}}", "-{zh:a;", " ", "__",
    "\n", "[//", "[mailto:", "[Tel:1", "]][urn:", "[[//]//", "[//a <b>]</b>",
    "<pre></pre", "<pre></pre\n>", "[[news:<table></table\n>",
    "<section></section\n>", "<score></\u017fcore>", "<b></b x>", '<ref name="/>',
    "<br a='>", "\n{|\n!", "\n;a:", "{{{", "&#", "==", "=a", "\n{|--><wbr/\n:&",
    '--><!-- --><!-- --><td a="!!==\n{{{a|',
)  # fmt: skip


@given(_MIXTURES)
@settings(deadline=None, max_examples=100)
def test_no_piece_of_any_markup_is_longer_than_the_most(mixture):
    markup = mixture * (10_000 // len(mixture))
    assert max(map(len, marks.pieces(markup))) <= marks.MAX_CHARS


def _check_that_time_grows_with_length(make):
    """`make` returns markup of a length."""

    def seconds(length):
        markup = make(length)
        start = time.thread_time()
        _text(markup)
        return time.thread_time() - start

    most = 0.05 + 24 * seconds(5_000)  # 8 if linear, 64 if quadratic
    # Again, since the garbage of all tests may be collected meanwhile.
    assert any(seconds(40_000) < most for _ in range(3))


def _repeated(piece):
    return lambda length: (piece * (length // len(piece) + 1))[:length]


@pytest.mark.parametrize("piece", _HOSTILE)
def test_the_time_of_hostile_markup_grows_with_its_length(piece):
    _check_that_time_grows_with_length(_repeated(piece))


@given(_MIXTURES)
@settings(deadline=None, max_examples=30)
def test_the_time_of_any_mixture_of_marks_grows_with_its_length(mixture):
    _check_that_time_grows_with_length(_repeated(mixture))


@pytest.mark.parametrize("head", ["[//", "[mailto:", "<", "</", "<b x='", "&", "-{"])
def test_the_time_of_an_opening_before_a_long_word_grows_with_its_length(head):
    _check_that_time_grows_with_length(lambda length: head + "a" * length)


def test_a_line_of_headings_does_not_end_the_process():
    # The parser calls itself for each "=", and C has no limit on that.
    assert _text("=a" * 200_000).count("a") == 200_000


_PARAGRAPHS = st.lists(
    st.sampled_from(
        (
            "'''Cats''' are [[animal|animals]].<ref>{{cite|a=b}} c</ref> They purr.",
            "{{Infobox|a=\n* b\n* c\n}}",
            "{| class=x\n! head\n|-\n| cell || [[link]]\n|}",
            "== Life ==",
            "* one\n** two &amp; three",
            "; four : five",
            "a<br>b <!-- c\n\n -->d [https://a.example e]",
            "<div style='x'>\nH<sub>2</sub>O\n</div>",
            "[[File:A.png|thumb|A [[cat]]]]",
            "<math>a < b</math>",
            "word " * 99,
        )
    ),
    min_size=1,
    max_size=6,
)


@given(_PARAGRAPHS)
@settings(deadline=None, max_examples=40)
def test_a_long_page_has_the_text_of_its_paragraphs(paragraphs):
    many = paragraphs * (3 * marks.MAX_CHARS // sum(map(len, paragraphs)))
    alone = [text for each in many if (text := _text(each))]
    assert _text("\n".join(many)) == "\n".join(alone)


@pytest.mark.parametrize(
    "words", ["cat ", "[[Cat|cat]] ", "{{a}}cat<ref>b</ref> ", "猫"]
)
def test_a_line_longer_than_a_piece_keeps_its_words(words):
    once = _text(f"{words}.").removesuffix(".")
    assert _text(f"{words * marks.MAX_CHARS}.") == once * marks.MAX_CHARS + "."


@pytest.mark.parametrize(
    "opening, closing",
    [("{{a|", "}}"), ("\n{|\n|", "\n|}"), ("<ref>", "</ref>"), ("[[File:a|", "]]"),
     ("<math>", "</math>")],
)  # fmt: skip
def test_what_is_no_prose_goes_however_long_it_is(opening, closing):
    long = "b [[c]] {{d}}\n" * marks.MAX_CHARS
    assert _text(f"before {opening}{long}{closing} after").split() == [
        "before",
        "after",
    ]


def test_text_inside_of_long_tags_stays():
    long = "word\n" * marks.MAX_CHARS
    assert _text(f"<div class=a>\n{long}</div>").count("word") == marks.MAX_CHARS
