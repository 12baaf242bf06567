"""Which language a text is taken to be in."""

import pytest

from data_prep.language import (
    DOUBT_PROBABILITY,
    OTHER,
    UNDECIDED,
    Lid176,
    metadata_code,
    resolve,
)


@pytest.fixture(scope="module")
def identify():
    return Lid176()


class Hearing:
    """An identifier with one answer, that notes what it is asked."""

    def __init__(self, code):
        self.code, self.asked, self.probabilities = code, [], []

    def __call__(self, texts, /, *, min_probability=0.0):
        self.asked += texts
        self.probabilities.append(min_probability)
        return [self.code] * len(texts)


def test_plain_sentences_are_identified(identify):
    assert identify(
        [
            "a brown dog runs along the beach",
            "un chien brun court sur la plage",
            "ein brauner Hund läuft am Strand",
            "собака бежит по берегу",
            "海辺を走っている茶色い犬です",
        ]
    ) == ["en", "fr", "de", "ru", "ja"]


def test_texts_without_letters_are_undecided(identify):
    assert identify(["", " ", "123", "😀 !?", "_"]) == [UNDECIDED] * 5


def test_any_text_is_identified_without_error(identify):
    assert len(identify(["two\nlines", "\ud800 x", "x" * 100_000, "\0a\r\n"])) == 4


def test_a_demand_of_certainty_makes_doubtful_texts_undecided(identify):
    assert identify(["red apple"]) == ["en"]
    assert identify(["red apple"], min_probability=0.99) == [UNDECIDED]


def test_short_texts_of_a_declared_language_are_not_identified():
    hearing = Hearing("fr")
    assert resolve(["red apple", "café", "123"], ["en"] * 3, hearing) == ["en"] * 3
    assert hearing.asked == []


def test_undeclared_and_unknown_declarations_are_identified():
    hearing = Hearing("fr")
    assert resolve(["un", "deux", "x"], ["", "qqq", "en"], hearing) == [
        "fr",
        "fr",
        "en",
    ]
    assert hearing.asked == ["un", "deux"]
    assert hearing.probabilities == [0.0]


def test_a_telling_text_overrules_its_declaration_only_with_certainty():
    long = "une phrase bien assez longue pour en être certain"
    sure, unsure = Hearing("fr"), Hearing(UNDECIDED)
    assert resolve([long, "собака"], ["en", "en"], sure) == ["fr", "fr"]
    assert sure.probabilities == [DOUBT_PROBABILITY]
    assert resolve([long, "собака"], ["en", "en"], unsure) == ["en", "en"]
    assert unsure.asked == [long, "собака"]


def test_template_pages_that_declare_english_are_seen_through(identify):
    texts = ["белая собака бежит по пляжу", "un chien blanc qui court sur la plage"]
    assert resolve(texts, ["en", "en"], identify) == ["ru", "fr"]


def test_declared_aliases_become_the_codes_of_the_identifier():
    codes = resolve(["x"] * 4, ["eng", "nb", "iw", "cmn"], Hearing("xx"))
    assert codes == ["en", "no", "he", "zh"]


def test_nothing_in_nothing_out(identify):
    assert resolve([], [], identify) == []


def test_a_language_gets_the_metadata_of_its_name_else_other():
    assert metadata_code("en", {"en", OTHER}) == "en"
    assert metadata_code("yue", {"zh_yue", "zh", OTHER}) == "zh_yue"
    assert metadata_code("yue", {"yue"}) == "yue"
    assert metadata_code("br", {"en", OTHER}) == OTHER
    assert metadata_code(UNDECIDED, {"en", OTHER}) == OTHER
    assert metadata_code("br", {"en"}) is None
