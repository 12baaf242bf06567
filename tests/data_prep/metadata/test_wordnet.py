"""Names of synsets out of Princeton's files and OMW's, in their real syntax."""

from collections import Counter

import pytest

from data_prep.metadata import editions, wordnet
from data_prep.sources import remote
from tests.data_prep.sources.test_remote import serving

LICENCE = "  1 This software and database is being provided to you, the\n"
NOUN = (
    "02121620 05 n 03 cat 0 true_cat 0 Felis_catus 0 002 @ 02120997 n 0000 "
    "~ 02122948 n 0000 | feline mammal; ''cats \n"
    "09140993 15 n 02 St._Louis 0 Gateway_to_the_West 0 001 @i 08524735 n 0000 | city\n"
    "02985963 06 n 02 cat 0 Caterpillar 0 001 @ 04471912 n 0000 | a large vehicle  \n"
)
ADJ = "00012071 00 s 02 galore(ip) 0 aplenty 1 001 & 00013887 a 0000 | existing  \n"
VERB = "00076400 29 v 02 vomit 0 cat 2 001 @ 00104539 v 0000 01 + 02 00 | eject  \n"
ADV = "00001740 02 r 01 a_cappella 0 000 | without musical accompaniment  \n"
FRENCH = (
    "# WOLF\tfra\thttp://wolf.example/\tCeCILL-C\n"
    "02121620-n\tfra:lemma\tchat\n"
    "02121620-n\tfra:lemma\tFelis catus\n"
    "02121620-n\tfra:def\t0\tun félin\n"
    "02985963-n\tlemma\tchat\n"
    "02985963-n\tfra:lemma\tGAP!\n"
    "not a row\n"
)


@pytest.fixture
def folder(tmp_path):
    of = {"noun": NOUN, "verb": VERB, "adj": ADJ, "adv": ADV}
    for name, text in of.items():
        (tmp_path / f"data.{name}").write_text(LICENCE + text)
    (tmp_path / "wns/fra").mkdir(parents=True)
    (tmp_path / "wns/fra/wn-data-fra.tab").write_text(FRENCH, "utf-8")
    (tmp_path / "wn-data-eng.tab").write_text("02121620-n\tlemma\ttrue cat\n")
    return str(tmp_path)


def _names(folder, code):
    lost = Counter()
    read = [wordnet.read_names(p, lost=lost) for p in wordnet.find(folder, code)]
    assert not lost.keys() - {"malformed_line"}
    return {k: n for names in read for k, n in names.items()}, lost.total()


def test_english_names_are_the_first_lemmas_in_lower_case(folder):
    names = {"cat": 2, "st. louis": 1, "galore": 1, "vomit": 1, "a cappella": 1}
    assert _names(folder, "en") == (names, 0)


def test_other_languages_have_all_their_lemmas_and_bad_rows_are_counted(folder):
    assert _names(folder, "fr") == ({"chat": 2, "Felis catus": 1}, 1)
    assert _names(folder, "de") == ({}, 0)


def test_what_no_text_has_is_taken_out_of_lemmas(tmp_path):
    rows = {"cmn": "大+的", "arb": "كَلْب", "heb": "חָתוּל"}
    for code, lemma in rows.items():
        (tmp_path / f"wn-data-{code}.tab").write_text(
            f"01382086-a\t{code}:lemma\t{lemma}\n", "utf-8"
        )
    found = {code: list(_names(str(tmp_path), code)[0]) for code in ("zh", "ar", "he")}
    assert found == {"zh": ["大"], "ar": ["كلب"], "he": ["חתול"]}


def test_the_papers_31_languages_have_a_wordnet():
    codes = {e.code: e.wordnet for e in editions.table().values() if e.wordnet}
    assert len(codes) == len(set(codes.values())) == 31
    assert codes["sq"] == "als" and not codes.keys() & {"als", "gsw"}
    assert (codes["zh"], codes["ar"], codes["ms"]) == ("cmn", "arb", "zsm")


def test_a_line_that_is_too_long_is_one_malformed_line(tmp_path):
    row = "02121620-n\tlemma\tcat\n"
    long = "02121620-n\tlemma\t" + "x" * (3 << 20) + "\n"
    (tmp_path / "wn-data-eng.tab").write_text(row + long + row)
    assert _names(str(tmp_path), "en") == ({"cat": 2}, 1)


def test_a_damaged_file_is_refused_and_damaged_lines_are_counted(folder, tmp_path):
    (tmp_path / "data.adv").write_text(LICENCE + "nothing\n")
    with pytest.raises(ValueError, match="synsets"):
        _names(folder, "en")
    (tmp_path / "data.adv").write_text(LICENCE + "nothing\n" + ADV)
    assert _names(folder, "en")[1] == 1


@pytest.mark.parametrize("code, name", [("en", "data.noun"), ("fr", "wn-data-fra.tab")])
def test_a_truncated_file_is_refused(folder, tmp_path, code, name):
    (path,) = tmp_path.rglob(name)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"{name}.*truncated"):
        _names(folder, code)


def test_lemmas_of_another_language_are_counted_as_malformed(tmp_path):
    rows = ("spa:lemma\tgato", "fra:lemma\tchat", "SPA:lemma\tperro", "es:lemma\tave")
    text = "".join(f"02121620-n\t{row}\n" for row in rows)
    (tmp_path / "wn-data-spa.tab").write_text(text)
    assert _names(str(tmp_path), "es") == ({"gato": 1, "perro": 1}, 2)


def test_wordnet_on_a_web_server_is_read(monkeypatch, folder):
    monkeypatch.setattr(remote, "_PACES", {})
    files = {f"/{name}": (LICENCE + ADV).encode() for name in wordnet.PRINCETON}
    files["/wn-data-fra.tab"] = FRENCH.encode()
    with serving(files) as (base, _):
        assert _names(base, "en") == ({"a cappella": 1}, 0)
        assert _names(base, "fr")[0] == {"chat": 2, "Felis catus": 1}
        assert wordnet.find(base, "it") == []
