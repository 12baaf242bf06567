"""Lingua behind the protocol of lid.176; `make test-parity` installs it."""

import pytest

from data_prep import language
from tests.data_prep.test_language import LATIN, TONGUES, names, on_page

pytest.importorskip("lingua", reason="make test-parity installs it")


@pytest.fixture(scope="module")
def identify():
    return language.load_identifier("lingua")


@pytest.fixture(scope="module")
def lid176():
    return language.load_identifier("lid176")


def share(identify, codes, expected):
    """The share of names in languages that are known, None = their own expected."""
    right = [
        identify(
            names(code, 60), expected=[code if expected is None else expected] * 60
        ).count(code)
        for code in codes
    ]
    return sum(right) / (60 * len(right))


def test_it_knows_more_texts_of_their_page_s_language_and_of_others(identify, lid176):
    assert share(identify, TONGUES, "") > share(lid176, TONGUES, "")
    assert share(identify, TONGUES, None) > share(lid176, TONGUES, None)
    foreign = LATIN[1:]
    assert share(identify, foreign, "en") > 1.3 * share(lid176, foreign, "en")


def test_texts_of_chinese_characters_alone_may_be_japanese(identify):
    assert on_page(identify, "ja", "東京", "海辺を走る犬") == ["ja"] * 2
    assert on_page(identify, "zh", "首页") == ["zh"]


def test_its_codes_are_those_of_lid_176_where_both_have_a_language(identify):
    texts = ["en blå bil på veien utenfor huset", "chó con chạy trên bãi biển"]
    assert identify(texts, expected=[""] * 2) == ["no", "vi"]


def test_languages_that_it_lacks_are_left_to_lid_176(identify, lid176):
    breton = ["ur c'hi bihan o c'hoari en erc'h", "ki"]
    for expected in ("br", ""):
        hints = [expected] * 2
        assert identify(breton[:1], expected=hints[:1]) == ["br"]
    assert identify(breton, expected=["br"] * 2) == lid176(breton, expected=["br"] * 2)


def test_texts_without_letters_are_what_is_expected_or_undecided(identify):
    nothing = ["", "123", "😀 !?", "\ud800", "https://www.a.example/b"]
    undecided = [language.UNDECIDED] * len(nothing)
    assert identify(nothing, expected=[""] * len(nothing)) == undecided
    assert identify(nothing, expected=["tr"] * len(nothing)) == ["tr"] * len(nothing)
