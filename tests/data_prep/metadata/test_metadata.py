"""Metadata: how entries are chosen, kept on disk, and refused."""

import bz2
import gzip
import json
import math
import subprocess
import sys
import tracemalloc
from collections import Counter
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.metadata import inputs, pieces, ranking, store, titles
from data_prep.metadata.store import Metadata
from data_prep.sources.archive import LostFile
from metaclip_jax import files
from tests import metadata_folders
from tests.data_prep import tiny_web
from tests.data_prep.metadata import dump_files


def metadata(*entries, code="en"):
    n = len(entries)
    return Metadata(code, entries, ("unigram",) * n, tuple(map(float, range(n))))


PAGEVIEWS = """\
en Red_apple 3 0
en.m Red_apple 4 0
en Caf%C3%A9 1 0
en File:Cat.jpg 9 0
en Alien:_Covenant 2 0
en - 9 0
en.b Cookbook 9 0
commons.m Cat 9 0
de Apfel 6 0
fr Pomme 6 0
en broken
en Odd two 0
en Three 3
"""


DAILY = """\
en.wikipedia Red_apple 7 desktop 3 A1B2
en.wikipedia Red_apple 7 mobile-web 4 X4
en.wikipedia Caf\u00e9 null desktop 1 C1
en.wikipedia File:Cat.jpg 8 desktop 9 A9
en.wikipedia Alien:_Covenant 9 mobile-app 2 A2
en.wikibooks Cookbook 9 desktop 9 A9
commons.wikimedia Cat 9 desktop 9 A9
de.wikipedia Apfel 5 desktop 6 A6
fr.wikipedia Pomme 5 desktop 6 A6
en.wikipedia broken
en.wikipedia Odd 5 desktop two A2
en.wikipedia Three 3
"""


def read(path, languages, **options):
    """Returns the views of a file, how many lines were malformed, and what was lost."""
    lost = Counter()
    views = {code: Counter() for code in languages}
    files_lost = []
    for found in titles.read_pageviews(
        str(path), languages=languages, lost=lost, **options
    ):
        if isinstance(found, LostFile):
            files_lost.append(found.reason)
        else:
            for code, some in found.items():
                views[code].update(some)
    return views, lost["malformed_line"], files_lost


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
@pytest.mark.parametrize("text", [PAGEVIEWS, DAILY], ids=["hour", "day"])
@pytest.mark.parametrize("most", [1, 1 << 20])
def test_views_of_wanted_wikipedias_are_summed_and_the_rest_left(
    tmp_path, text, compress, most
):
    path = tmp_path / "views"
    path.write_bytes(compress(text.encode() + b"en \xff 1 0\n"))
    titles.check(str(path))
    views, malformed, lost = read(path, ["en", "de", "it"], most=most)
    assert views == {
        "en": {"Red apple": 7, "Café": 1, "Alien: Covenant": 2},
        "de": {"Apfel": 6},
        "it": {},
    }
    assert (malformed, lost) == (3, [])


def test_only_desktop_and_mobile_views_of_a_wikipedia_count(tmp_path):
    lines = (
        "en.zero A 1 0",
        "en.m.m A 1 0",
        "en.d A 1 0",
        "zh-yue B 2 0",
        "zh_yue B 1 0",
    )
    lines += "be-tarask C 3 0", "zh-yue.m B 4 0", "zh_yue B 9 0", "eng A 1 0"
    path = tmp_path / "views"
    path.write_text("\n".join(lines))
    views, *_ = read(path, ["en", "zh_yue", "be_x_old"])
    assert views == {"en": {}, "zh_yue": {"B": 6}, "be_x_old": {"C": 3}}


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_a_damaged_file_of_views_gives_its_good_lines_and_is_counted(
    tmp_path, compress
):
    path = tmp_path / "views"
    whole = compress(PAGEVIEWS.encode())
    path.write_bytes(whole + whole[:-9])
    views, _, lost = read(path, ["de"])
    assert views["de"]["Apfel"] >= 6 and lost == ["truncated_file"]
    path.write_bytes(whole + b"BZh9 \x1f\x8b nonsense that is long enough")
    assert read(path, ["de"])[2] == ["corrupt_file"]


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("length", [60_000, 70_000, 300_000, 5_000_000])
def test_a_line_of_views_that_is_too_long_is_dropped_alone(tmp_path, length, end):
    path = tmp_path / "views"
    lines = "en A 1 0", "en " + "x" * length + " 1 0", "en B 2 0", "en C" + "y" * length
    path.write_text("\n".join(lines) + end)
    lost = Counter()
    views = titles.read_pageviews(str(path), languages=["en"], lost=lost)
    found = Counter(dict(next(iter(views))["en"]))
    assert (found["A"], found["B"]) == (1, 2)
    if length < 1 << 16:
        assert len(found) == 3 and lost == {"malformed_line": 1}
    else:
        assert len(found) == 2 and lost == {"line_too_long": 2}


@pytest.mark.parametrize("kind", ["pageviews", "wikipedia", "warc"])
def test_a_file_that_cannot_be_read_is_counted_and_named(tmp_path, kind, caplog):
    path = tmp_path / "a"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    flow = []
    options = pieces.Options(("en",), max_page_bytes=9, max_tree_bytes=9)
    piece = pieces.Piece(kind, str(path), code="en")
    assert not list(pieces.count(piece, options, flow))
    rows = [row for batch in flow for row in batch.to_pylist()]
    reason = {"pageviews": "no_page_views", "wikipedia": "not_dump"}.get(
        kind, "not_warc"
    )
    assert [row["count"] for row in rows if row["reason"] == reason] == [1]
    assert f"--{kind}: {path}: {reason}" in caplog.text


def test_every_file_of_another_format_is_refused(tmp_path):
    (tmp_path / "a").write_text("en A_cat 1 0\n")
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "b.csv").write_text("en A_cat 1 0\n")
    tiny_web.write_warc(tmp_path / "c", {"http://site.example/": "a cat"})
    pq.write_table(pa.table({"text": ["a cat"]}), tmp_path / "d")
    for kind, glob, got in (
        ("pageviews", "[abc]", "WARC"),
        ("warc", "[cd]", "Parquet"),
    ):
        with pytest.raises(ValueError, match=f"--{kind}: wanted .*, got {got} in"):
            inputs.find({kind: str(tmp_path / glob)}, ["en"])
    assert len(inputs.find({"pageviews": f"{tmp_path}/[ab]*"}, ["en"]).pieces) == 3
    with pytest.raises(ValueError, match="--warc: wanted WARC files, got none among 2"):
        inputs.find({"warc": f"{tmp_path}/[ab]"}, ["en"])
    assert len(inputs.find({"warc": f"{tmp_path}/[abc]"}, ["en"]).pieces) == 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<mediawiki>\n<page>\n",
        b"\x1f\x8b\x08 x",
        b"a b c\nin the 90 s\nthe end\n",
    ],
)
def test_a_file_without_views_is_refused(tmp_path, data):
    path = tmp_path / "views"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="page views"):
        titles.check(str(path))


def views_of(tmp_path, lines, languages):
    path = tmp_path / "views.txt"
    path.write_text("".join(f"{line} 1 0\n" for line in lines))
    views, malformed, _ = read(path, languages)
    assert malformed == 0
    return views


TITLES = {
    "en": ("3:10 to Yuma (2007 film)", "Nier:Automata", "Re:Zero", "UTC+03:00",
           "Alien: Covenant", "Mission: Impossible", "2:22 (2017 film)", "ISO 639:a",
           "Talking Heads: Live", "Users: The Film", "Diskussion:x", "C:x"),
    "de": ("2001: Odyssee", "ISO 639:a", "Talkshow: Die", "Portale: x"),
    "ja": ("Re:ゼロから始める異世界生活", "ドラえもん: のび太"),
    "zh": ("Re:從零開始", "3:10到尤馬"),
    "no-such-wiki": ("Re:Zero", "Diskussion:x"),
}  # fmt: skip
OTHERS = {
    "en": ("User talk:Someone", "Template talk:Infobox", "Wikipedia talk:Manual",
           "File:Cat.jpg", "Special:Search", "Talk:Cat", "Project:Village pump",
           "WP:NPOV", "Image:Cat.jpg", "Draft:X", "Draft talk:X", "Portal talk:X",
           "Category talk:X", "MOS:X", "Help:X", "Module:X", "MediaWiki:X",
           "talk:cat", "USER:x", ":Category:Cats", "User : x", "Talk: A: B"),
    "de": ("Benutzer:X", "Benutzerin Diskussion:X", "Datei:X", "Bild:X", "Vorlage:X",
           "Spezial:Suche", "Hilfe Diskussion:X", "BD:X", "User:X", "Talk:X"),
    "fr": ("Utilisateur:X", "Discussion utilisatrice:X", "Wikipédia:Accueil",
           "Discussion Projet:X", "Portail:X", "Fichier:X", "Special:Search"),
    "ru": ("Участник:X", "Обсуждение участницы:X", "Служебная:Поиск", "Файл:X",
           "Обсуждение Википедии:X", "Википедия:X", "вп:x", "Портал:X"),
    "ja": ("利用者‐会話:X", "特別:検索", "ノート:X", "ファイル:X", "Portal‐ノート:X"),
    "zh": ("用户讨论:X", "使用者討論:X", "维基百科:X", "維基百科討論:X", "特殊:搜索"),
    "es": ("Usuaria discusión:X", "Especial:Buscar", "Wikiproyecto:X", "Discusión:X"),
    "pl": ("Wikipedystka:X", "Dyskusja wikipedysty:X", "Plik:X"),
    "ar": ("مستخدم:X", "نقاش:X", "خاص:بحث"),
    "no-such-wiki": ("User talk:X", "Special:X"),
}  # fmt: skip


@pytest.mark.parametrize("language", OTHERS)
def test_a_colon_parts_a_namespace_from_a_title_only_if_the_wiki_has_it(
    tmp_path, language
):
    own = TITLES.get(language, ())
    forms = (
        lambda title: title.replace(" ", "_"),
        lambda title: quote(title.replace(" ", "_")),
        lambda title: quote(title),
    )
    for form in forms:
        lines = [f"{language} {form(title)}" for title in (*own, *OTHERS[language])]
        views = views_of(tmp_path, lines, [language])
        assert set(views[language]) == set(own)


def test_every_namespace_of_every_wiki_is_known_in_any_letter_case(tmp_path):
    table = titles._NAMESPACES.read_text("utf-8").splitlines()
    names = dict(line.split("\t") for line in table if not line.startswith("#"))
    shared = names.pop("*").split("|")
    assert len(names) > 300 and "Template talk" in shared
    wanted = {}
    lines = []
    for code, listed in names.items():
        wanted[code] = {f"{name}x:Kept" for name in listed.split("|")}
        for name in (*listed.split("|"), *shared):
            cased = (name, name.lower(), name.upper() if name.isascii() else name)
            lines += [f"{code} {form.replace(' ', '_')}:Lost" for form in cased]
        lines += [f"{code} {kept.replace(' ', '_')}" for kept in wanted[code]]
    views = views_of(tmp_path, lines, names)
    assert views == {code: dict.fromkeys(kept, 1) for code, kept in wanted.items()}


def test_an_entry_belongs_to_its_first_source_and_caps_count_new_entries():
    merged = ranking.merge(
        "en",
        [
            ranking.Source("unigram", [("a", 3.0), ("b", 2.0), ("c", 1.0)], 2, 1.0, 9),
            ranking.Source("bigram", [], 5),
            ranking.Source("title", [("b", 9.0), ("d", 8.0), ("c", 7.0)], 1, 5.0),
        ],
    )
    assert merged.metadata.entries == ("a", "b", "d")
    assert merged.metadata.sources == ("unigram", "unigram", "title")
    assert merged.metadata.scores == (3.0, 2.0, 8.0)
    assert merged.shares == (
        ranking.Share("unigram", 1.0, 2, 9, 2, 0, 0, 7),
        ranking.Share("bigram", None, 5, 0, 0, 0, 0, 0),
        ranking.Share("title", 5.0, 1, 3, 1, 1, 0, 1),
    )
    assert merged.overlap == ((2, 0, 1), (0, 0, 0), (1, 0, 2))


sources_ = st.lists(
    st.tuples(
        st.dictionaries(st.text("ab.\x07", min_size=1, max_size=3), st.integers(1, 3)),
        st.integers(0, 8),
    ),
    min_size=1,
    max_size=4,
)


def best_first(scores):
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


@given(sources=sources_, mode=st.sampled_from(["any", "v1", "v2", "fixed"]))
def test_every_source_is_accounted_for_and_in_the_order_of_scores_then_texts(
    sources, mode
):
    sources = [
        ranking.Source(str(i), best_first(scores), most)
        for i, (scores, most) in enumerate(sources)
    ]
    merged = ranking.merge("en", sources, mode=mode)
    if merged is None:
        assert not any(
            source.max_entries and not ranking.never_matches(entry, mode=mode)
            for source in sources
            for entry, _ in source.ranked
        )
        return
    made = merged.metadata
    rows = list(zip(map(int, made.sources), made.scores, made.entries, strict=True))
    assert rows == sorted(rows, key=lambda row: (row[0], -row[1], row[2]))
    added = {str(i): set() for i in range(len(sources))}
    for source, entry in zip(made.sources, made.entries, strict=True):
        added[source].add(entry)
    for i, (source, share) in enumerate(zip(sources, merged.shares, strict=True)):
        assert share.offered == len(source.ranked)
        assert share.added == len(added[source.name]) <= source.max_entries
        assert share.cut == 0 or share.added == source.max_entries
        lost = share.already + share.never_matching + share.cut
        assert share.offered == share.added + lost
        assert merged.overlap[i][i] == share.added + share.already
        for j in range(i):
            assert merged.overlap[i][j] == merged.overlap[j][i]
            both = added[str(j)] & dict(source.ranked).keys() - set(merged.left_out)
            assert merged.overlap[i][j] >= len(both) * (share.cut == 0)
    assert not any(ranking.never_matches(entry, mode=mode) for entry in made.entries)
    assert all(ranking.never_matches(entry, mode=mode) for entry in merged.left_out)


@pytest.mark.parametrize("mode", ["any", "v1", "v2", "fixed"])
def test_what_never_matches_by_the_rule_leaves_its_place_to_the_next(mode):
    ranked = [("\x07", 9.0), ("St. Louis", 8.0), ("a  b", 7.0), ("cat", 6.0), ("d", 5)]
    merged = ranking.merge("en", [ranking.Source("title", ranked, 3)], mode=mode)
    kept = {
        "any": ("St. Louis", "a  b", "cat"),
        "v1": ("cat", "d"),
        "v2": ("cat", "d"),
        "fixed": ("St. Louis", "a  b", "cat"),
    }[mode]
    assert merged.metadata.entries == kept
    (share,) = merged.shares
    assert (share.added, share.never_matching) == (len(kept), len(merged.left_out))


@pytest.mark.parametrize(
    "ranked", [[("a", 1.0), ("b", 2.0)], [("b", 1.0), ("a", 1.0)], [("a", math.nan)]]
)
def test_a_source_out_of_its_order_is_refused(ranked):
    with pytest.raises(ValueError, match="'x' of metadata 'en': wanted entries best"):
        ranking.merge("en", [ranking.Source("x", ranked, 9)])


def test_sources_without_any_entry_make_no_metadata():
    for ranked, most in (([], 5), ([("a", 1.0)], 0), ([("\x07", 1.0)], 5)):
        assert ranking.merge("en", [ranking.Source("x", ranked, most)]) is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("cat", "", "dog", " "), "2 entries are empty: '' at 1, ' ' at 3"),
        (("cat", "dog", "cat", "cat"), "2 entries are repeated: 'cat' at 0 and 2"),
        (("cat", 7), "1 entries are not strings: 7 at 1"),
        ((), "wanted entries, got none"),
    ],
)
def test_empty_repeated_and_strange_entries_are_named(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        metadata(*entries)
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=message):
        store.load(path)


def test_lengths_and_codes_are_checked():
    with pytest.raises(ValueError, match="wanted 2 sources and scores"):
        Metadata("en", ("a", "b"), ("unigram",), (1.0, 2.0))
    with pytest.raises(ValueError, match="metadata code"):
        metadata("a", code="../en")


def test_the_fingerprint_is_of_the_entries_in_their_order():
    one = metadata("ab", "c").fingerprint
    assert one == Metadata("fr", ("ab", "c"), ("x", "y"), (0.0, 9.0)).fingerprint
    others = [metadata("c", "ab"), metadata("a", "bc"), metadata("ab"), metadata("abc")]
    assert len({one, *(m.fingerprint for m in others)}) == 5


def test_what_is_saved_is_loaded_and_equal_input_gives_equal_bytes(tmp_path):
    saved = {"en": metadata("cat", "Łódź", "a, b"), "zh_yue": metadata("貓")}
    saved["zh_yue"] = Metadata("zh_yue", ("貓",), ("title",), (1.5,))
    for folder in ("a", "b"):
        metadata_folders.save(tmp_path / folder, saved, read={"pages": 2})
    loaded = store.load(tmp_path / "a")
    assert list(loaded) == ["en", "zh_yue"]
    for code, one in loaded.items():
        for field in ("code", "entries", "sources", "scores", "fingerprint"):
            assert getattr(one, field) == getattr(saved[code], field)
    for name in ("en.parquet", "zh_yue.parquet", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name
        ).read_bytes()
    manifest = files.finished(tmp_path / "a", {})
    assert manifest["read"] == {"pages": 2}
    assert manifest["metadata"]["en"] == {
        "entries": 3,
        "fingerprint": saved["en"].fingerprint,
        "sources": {"unigram": 3},
    }


def test_a_json_list_loads_as_english_and_an_object_by_its_codes(tmp_path):
    path = tmp_path / "metadata.json"
    path.write_text('["photo", "St. Louis", "caf\\u00e9"]')
    loaded = store.load(path)
    assert list(loaded) == ["en"]
    assert loaded["en"].entries == ("photo", "St. Louis", "café")
    path.write_text('{"zh_yue": ["貓"], "en": ["photo"]}')
    loaded = store.load(path)
    assert {code: one.entries for code, one in loaded.items()} == {
        "en": ("photo",),
        "zh_yue": ("貓",),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"en": {"photo": 1}}', "should be a JSON list of strings, but: it is a dict"),
        ('"photo"', "should be a JSON list of strings, but: it is a str"),
        ("{}", "should be a JSON list of strings, or an object .* no lists"),
        ('{"../en": ["photo"]}', "metadata code"),
        ('["photo", "\\ud800"]', "1 entries have lone surrogates"),
        ("[", "should be JSON"),
    ],
)
def test_json_of_another_form_is_refused(tmp_path, content, message):
    path = tmp_path / "metadata.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"metadata.json.*{message}"):
        store.load(path)


ENGLISH = {"en": metadata("photo", "St. Louis", "café")}
TWO = ENGLISH | {"zh_yue": metadata("貓", code="zh_yue")}


@pytest.mark.parametrize("name", ["metadata.json", "folder"])
@pytest.mark.parametrize("saved", [ENGLISH, TWO], ids=["en", "two"])
def test_json_out_and_in_keeps_the_ids(tmp_path, saved, name):
    metadata_folders.save(tmp_path / "parquet", saved)
    for _ in range(2):  # again, when it is finished
        flags = ["--format=json", f"--output={name}", "parquet"]
        done = build(tmp_path, *flags, module="export")
        assert done.returncode == 0, done.stderr
    loaded = store.load(tmp_path / name)
    assert {code: one.fingerprint for code, one in loaded.items()} == {
        code: one.fingerprint for code, one in saved.items()
    }


def test_a_folder_of_lists_by_code_loads_unless_it_is_unfinished(tmp_path):
    store.save_json(tmp_path, TWO)
    (tmp_path / "zh_yue.json").write_text('["photo"]')
    with pytest.raises(ValueError, match="zh_yue.json: wanted fingerprint"):
        store.load(tmp_path)
    (tmp_path / "manifest.json").unlink()  # as MetaCLIP writes them
    assert store.load(tmp_path)["zh_yue"].entries == ("photo",)
    (tmp_path / "unfinished.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="wanted finished metadata"):
        store.load(tmp_path)


def test_a_folder_without_metadata_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="build_metadata"):
        store.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="wanted finished metadata"):
        store.load(tmp_path)
    files.write_manifest(tmp_path, inputs={})
    with pytest.raises(ValueError, match="has no metadata"):
        store.load(tmp_path)


def test_changed_or_broken_files_are_refused(tmp_path):
    metadata_folders.save(tmp_path / "a", {"en": metadata("cat", "dog")})
    metadata_folders.save(tmp_path / "b", {"en": metadata("dog", "cat")})
    file = tmp_path / "a" / "en.parquet"
    file.write_bytes((tmp_path / "b" / "en.parquet").read_bytes())
    with pytest.raises(ValueError, match="fingerprint.*was changed"):
        store.load(tmp_path / "a")
    file.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="should be Parquet"):
        store.load(tmp_path / "a")


def build(folder, *flags, module="build_metadata"):
    command = [sys.executable, "-m", f"data_prep.{module}", *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_long_entry_that_repeats_takes_memory_once_and_is_named_in_short(tmp_path):
    rows = 1_000  # 3 GB if each had its own
    column = pa.DictionaryArray.from_arrays(
        pa.array([0] * rows, pa.int32()), ["x" * 3_000_000]
    )
    one = store.Metadata("en", ("a",), ("b",), (1.0,))
    metadata_folders.save(tmp_path, {"en": one})
    table = pa.table({"entry": column, "source": column, "score": [1.0] * rows})
    pq.write_table(table, tmp_path / "en.parquet", dictionary_pagesize_limit=1 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="999 entries are repeated") as error:
            store.load(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 2_000


def test_files_of_another_format_and_folders_are_refused_before_reading(tmp_path):
    tiny_web.write_warc(tmp_path / "a.warc.gz", {"http://site.example/": "a cat"})
    pq.write_table(pa.table({"text": ["a cat"]}), tmp_path / "a.parquet")
    (tmp_path / "views.txt").write_text("en A_cat 1 0\n")
    (tmp_path / "a.xml").write_bytes(dump_files.xml("en", [("Cat", "meow")]))
    good = {"warc": "a.warc.gz", "pageviews": "views.txt", "wikipedia": "a.xml"}

    def find(key, name):
        return inputs.find({key: str(tmp_path / name)}, ["en"])

    for key, name in good.items():
        (piece,) = find(key, name).pieces
        assert (piece.kind, piece.path) == (key, str(tmp_path / name))
        with pytest.raises(ValueError, match=f"{key}: wanted .*, got Parquet "):
            find(key, "*.parquet")
        with pytest.raises(ValueError, match=f"{key}: wanted files, got the folder "):
            find(key, "")
        with pytest.raises(ValueError, match=f"{key}: wanted files, got none for "):
            find(key, "*.none")
    for key, other in (("pageviews", "warc"), ("wikipedia", "warc")):
        with pytest.raises(ValueError, match=f"{key}: wanted .*, got WARC "):
            find(key, good[other])
    with pytest.raises(ValueError, match="wordnet: wanted .*data.noun.*, got none in"):
        find("wordnet", "")
    with pytest.raises(ValueError, match="got none; give --warc or --wikipedia"):
        inputs.find({"warc": None, "wikipedia": ""}, ["en"])
    with pytest.raises(ValueError, match="wanted {code} in the path"):
        inputs.find({"wikipedia": str(tmp_path / "a.xml")}, ["en", "de"])
