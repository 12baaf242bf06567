"""Metadata of languages without spaces, of merged editions, and of the others."""

import weakref

import pytest

from data_prep import build_metadata
from data_prep import config as config_lib
from data_prep.metadata import inputs, ranking, store
from metaclip_jax import files
from tests.data_prep.metadata import dump_files

# A phrase of two words, as it occurs in the page; both are entries, and it is.
PAGES = {
    "zh": ("我在北京大学学习。北京大学", "北京", "大学"),
    "ja": ("東京大学で学ぶ。東京大学", "東京", "大学"),
    "th": ("ประชากรหกสิบล้านคน ประชากรหกสิบล้าน", "หก", "สิบ"),
    "lo": ("ປະເທດລາວ ບໍ່ມີທາງອອກ ປະເທດລາວ", "ປະເທດ", "ລາວ"),
    "km": ("ប្រទេសកម្ពុជា ជាប្រទេសមួយ ប្រទេសកម្ពុជា", "ប្រទេស", "កម្ពុជា"),
    "my": ("မြန်မာနိုင်ငံသည် အရှေ့တောင် မြန်မာနိုင်ငံသည်", "မြန်မာနိုင်ငံ", "သည်"),
    "bo": ("བོད་ཡིག་ནི་བོད་མིའི་སྐད། བོད་ཡིག", "བོད", "ཡིག"),
    "ko": ("서울 대학교 그리고 서울 대학교", "서울", "대학교"),
}
VIEWS = """zh 交通大學 9 0
zh-classical 論語 5 0
zh-classical 交通大學 7 0
gan 交通大學 99 0
zh-min-nan Tâi-oân 3 0
ab Аҧсны 4 0
ab Tâi-oân 1 0
simple Apple 9 0
de Haus 9 0
"""


def record(page, language):
    body = f"<html lang={language}><body>{page}".encode()
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
    return (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
        b"WARC-Target-URI: http://x.example/\r\nContent-Type: application/http\r\n"
        b"Content-Length: %d\r\n\r\n%s\r\n\r\n" % (len(http), http)
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    records = [record(text, code) for code, (text, *_) in PAGES.items()]
    records += [record("Ein Haus am See", "de"), record("kotik " * 8, "csb")]
    (folder / "a.warc").write_bytes(b"".join(records))
    (folder / "views").write_text(VIEWS)
    return folder


def build(sources, output, *languages, given=None, **changed):
    keys = {"unigram_min_count": 1, "bigram_min_count": 2, "bigram_min_score": 0.0}
    keys |= {"title_min_views": 1, "languages": languages} | changed
    config = config_lib.recipe(config_lib.metadata(), {"": keys}, "")
    given = given or {"warc": f"{sources}/*.warc", "pageviews": f"{sources}/views"}
    run = build_metadata.plan(config, str(output), None, [], sources=given, workers="1")
    parts = build_metadata.count(run)
    merged = build_metadata.choose(run, parts)
    build_metadata.save(run, merged)
    build_metadata.remove_parts(run)
    return store.load(output)


def test_the_entries_of_one_language_are_held_at_a_time(sources, tmp_path, monkeypatch):
    write, seen = store.write, []

    def held(folder, one):
        assert not any(before() for before in seen)
        seen.append(weakref.ref(one))
        return write(folder, one)

    monkeypatch.setattr(store, "write", held)
    build(sources, tmp_path, *PAGES)
    assert len(seen) == len(PAGES)


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    return build(sources, tmp_path_factory.mktemp("out"), *PAGES, "other")


def by_source(metadata, source):
    scored = zip(metadata.entries, metadata.sources, metadata.scores, strict=True)
    return {entry: score for entry, name, score in scored if name == source}


@pytest.mark.parametrize("code", PAGES)
def test_words_and_bigrams_are_entries_as_they_occur_in_texts(built, code):
    text, *words = PAGES[code]
    between = {"ko": " ", "bo": "་"}.get(code, "")
    found = by_source(built[code], "unigram")
    assert all(found[word] == text.count(word) for word in words)
    assert between.join(words) in by_source(built[code], "bigram")
    assert all(entry in text for entry in by_source(built[code], "bigram"))


def test_merged_editions_add_their_entries_with_the_highest_of_their_scores(built):
    assert by_source(built["zh"], "title") == {"交通大學": 99, "論語": 5}


def test_other_has_the_editions_and_the_pages_without_metadata_of_their_own(built):
    assert by_source(built["other"], "title") == {"Аҧсны": 4, "Tâi-oân": 3}
    assert by_source(built["other"], "unigram")["Haus"] == 1  # a page in German


def test_a_rerun_makes_the_same_bytes(sources, built, tmp_path):
    build(sources, tmp_path / "one", "other", "zh")
    build(sources, tmp_path / "two", "zh", "other")
    one, two = (files.read_json(tmp_path / n / "manifest.json") for n in ("one", "two"))
    assert one["metadata"] == two["metadata"]
    assert one["metadata"]["zh"]["fingerprint"] == built["zh"].fingerprint
    for name in ("zh.parquet", "other.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (
            tmp_path / "two" / name
        ).read_bytes()


def test_the_shares_of_the_command_are_of_distinct_words_and_titles(sources, tmp_path):
    shares = {"unigram_share": 0.5, "bigrams_per_unigram": 0.5, "title_share": 0.5}
    found = build(sources, tmp_path, "ko", "zh", **shares)
    assert found["ko"].entries == ("대학교",)  # of that, 서울 and 그리고
    # Of two titles in zh_classical one, of one title in zh and gan none.
    assert by_source(found["zh"], "title") == {"交通大學": 7}


def test_a_named_edition_leaves_the_metadata_that_it_is_part_of(sources, tmp_path):
    found = build(sources, tmp_path, "ab", "gan", "zh", "other")
    assert by_source(found["ab"], "title") == {"Аҧсны": 4, "Tâi-oân": 1}
    assert by_source(found["gan"], "title") == {"交通大學": 99}
    assert by_source(found["zh"], "title") == {"交通大學": 9, "論語": 5}
    assert "Аҧсны" not in found["other"].entries


def test_dumps_of_all_editions_are_found_by_their_codes(sources, tmp_path):
    articles = {
        "zh": "北京大学", "zh_classical": "論語", "ab": "Аҧсны", "ja": "[[東京]]大学"
    }  # fmt: skip
    for code, text in articles.items():
        dump = dump_files.multistream(code, [("1", text)])
        (tmp_path / f"{code}wiki-20240501-pages-articles.xml.bz2").write_bytes(dump)
    given = {"wikipedia": f"{tmp_path}/{{code}}wiki-*-pages-articles.xml.bz2"}
    wanted = "zh", "ja", "other"
    thresholds = {"bigram_min_count": 1}
    found = build(sources, tmp_path / "out", *wanted, given=given, **thresholds)
    assert set(by_source(found["zh"], "unigram")) == {"1", "北京", "大学", "論語"}
    assert set(by_source(found["ja"], "unigram")) == {"1", "東京", "大学"}
    assert set(by_source(found["ja"], "bigram")) == {"東京大学"}
    assert set(by_source(found["other"], "unigram")) == {"1", "Аҧсны"}
    with pytest.raises(ValueError, match="wanted {code} in the path for .* other"):
        build(sources, tmp_path / "x", "other", given={"wikipedia": "abwiki.xml"})
    with pytest.raises(ValueError, match="--wikipedia: wanted files.*kowiki"):
        build(sources, tmp_path / "x", "ja", "ko", given=given)
    (tmp_path / "abwiki-20240501-pages-articles.xml.bz2").unlink()
    with pytest.raises(ValueError, match="an edition of 'other', got none"):
        build(sources, tmp_path / "x", "ja", "other", given=given)


def test_a_language_without_entries_is_left_out_unless_all_are(sources, tmp_path):
    found = build(sources, tmp_path / "some", "ko", "sw", unigram_min_count=2)
    assert list(found) == ["ko"]
    manifest = files.read_json(tmp_path / "some" / "manifest.json")
    assert manifest["read"]["language: no_entries"] == 1
    for wanted in (("sw",), ("sw", "yo")):
        message = f"entries of {', '.join(wanted)}, got none above .*10 page: other_"
        with pytest.raises(ValueError, match=message):
            build(sources, tmp_path / "_".join(wanted), *wanted)


def test_an_error_says_that_nothing_could_be_read(tmp_path):
    (tmp_path / "a").write_bytes(b"WARC/1.0\r\nWARC-Type: response\r\n")
    message = "got none, since nothing could be read; .*lost: 0 files, 1 file: "
    with pytest.raises(ValueError, match=message):
        build(None, tmp_path / "out", "en", given={"warc": str(tmp_path / "a")})


def test_many_languages_are_named_in_short():
    with pytest.raises(ValueError, match="en, de, fr, ja, th and 2 more, got x;"):
        languages = "en", "de", "fr", "ja", "th", "ko", "lo"
        inputs.find({"wikipedia": "x"}, languages)


def test_the_union_of_editions_is_that_of_their_metadata():
    def sources(words, titles, most):
        return [
            ranking.Source("unigram", words, most),
            ranking.Source("title", titles, 9),
        ]

    one = sources([("a", 5.0), ("b", 3.0)], [("c", 2.0), ("d", 1.0)], 1)
    two = sources([("c", 4.0), ("a", 3.0)], [("b", 7.0)], 9)
    none = sources([], [], 9)
    found = ranking.merge("x", ranking.union("x", [one, none, two])).metadata
    assert by_source(found, "unigram") == {"a": 5.0, "c": 4.0}
    assert by_source(found, "title") == {"b": 7.0, "d": 1.0}
    apart = [ranking.merge("x", each).metadata.entries for each in (one, two)]
    assert set(found.entries) == set(apart[0]) | set(apart[1])


@pytest.mark.parametrize(
    ("shares", "most"),
    [
        ({}, [9, 20, 7, 6]),
        ({"unigram_share": 0.1}, [9, 3, 7, 6]),
        ({"unigram_share": 0.1, "bigrams_per_unigram": 0.4}, [9, 3, 1, 6]),
        ({"bigrams_per_unigram": 0.4}, [9, 20, 7, 6]),
        ({"title_share": 0.76}, [9, 20, 7, 4]),
    ],
)
def test_shares_lower_the_caps_of_their_sources(shares, most):
    offered = {"synset": 50, "unigram": 30, "bigram": 40, "title": 6}
    caps = dict(zip(offered, [9, 20, 7, 6], strict=True))
    sources = [ranking.Source(n, [], caps[n], offered=offered[n]) for n in offered]
    given = {"unigram_share": 1.0, "bigrams_per_unigram": None, "title_share": 1.0}
    found = ranking.limit(sources, **given | shares)
    assert [source.max_entries for source in found] == most
