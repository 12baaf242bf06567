"""Articles of dumps: which are read, in what ranges, and what of damage is said."""

import bz2
import gzip
import random
import re

import pytest

from data_prep.metadata import dumps
from data_prep.sources import remote
from data_prep.sources.archive import LostFile
from tests.data_prep.metadata import dump_files
from tests.data_prep.sources.test_remote import serving

PAGES = {
    "zh": ("猫", "'''猫'''是[[哺乳动物]]。"),
    "ja": ("ネコ", "'''ネコ'''は[[動物]]。"),
    "th": ("แมว", "'''แมว''' เป็น[[สัตว์]]"),
    "ar": ("قط", "'''القط''' هو [[حيوان]]."),
    "hi": ("बिल्ली", "'''बिल्ली''' एक [[जानवर]] है।"),
    "ko": ("고양이", "'''고양이'''는 [[동물]]이다."),
    "en": ("Cat & dog", 'The "cat" < the dog; &nbsp; <page> </page>'),
}
MANY = [(f"Title {i}", f"text {i} " * (i % 7 * 40 + 1)) for i in range(60)]


def _read(path, **options):
    return list(dumps.read_pages(str(path), **{"max_page_bytes": 1 << 20} | options))


def _in_ranges(path, range_bytes):
    dump = dumps.check(str(path), "en")
    found = dump.ranges(path.stat().st_size, range_bytes=range_bytes)
    return [p for start, stop in found for p in _read(path, start=start, stop=stop)]


def _written(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("code", sorted(PAGES))
@pytest.mark.parametrize("compress", [bytes, bz2.compress, gzip.compress])
def test_an_article_is_read_as_it_was_written(tmp_path, code, compress):
    path = _written(tmp_path, "dump", compress(dump_files.xml(code, [PAGES[code]])))
    dumps.check(str(path), code)
    assert _read(path) == [dumps.DumpPage(*PAGES[code])]


def test_only_articles_are_read_and_the_rest_is_counted(tmp_path):
    pages = [
        dump_files.page("Talk:Cat", "x", namespace=1),
        dump_files.page("Cats", "#REDIRECT [[Cat]]", redirect="Cat"),
        dump_files.page("Data", "{}", model="json"),
        dump_files.page("Nothing", ""),
        dump_files.page("Long", "x" * 9_000),
        dump_files.page("Broken", "x").replace("<ns>", "<ns"),
        dump_files.page("Entity", "x").replace("abc", "&undeclared;"),
        dump_files.page("Cat", "meow"),
    ]
    path = _written(tmp_path, "dump.xml", dump_files.xml("en", pages))
    lost = [getattr(p, "reason", "") for p in _read(path, max_page_bytes=5_000)]
    assert lost == [
        "other_namespace", "redirect", "not_wikitext", "empty_page", "page_too_large",
        "bad_xml", "bad_xml", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "base, title",
    [
        ("https://en.wikipedia.org/wiki/Main_Page", "Main Page"),
        ("https://ja.wikipedia.org/wiki/%E7%8C%AB%2F%26", "猫/&amp;"),
    ],
)
def test_the_main_page_is_no_article(tmp_path, base, title):
    pages = dump_files.page("A", "a") + dump_files.page("B", "b").replace(
        ">B<", f">{title}<"
    )
    head = dump_files.head("en").replace(
        "https://en.wikipedia.org/wiki/Main_Page", base
    )
    path = _written(tmp_path, "dump.xml", (head + pages + dump_files.END).encode())
    main_page = dumps.check(str(path), "en").main_page
    found = [dumps.DumpPage("A", "a"), dumps.LostPage("main_page")]
    assert _read(path, main_page=main_page) == found


def test_a_dump_that_names_no_main_page_loses_no_article(tmp_path):
    text = dump_files.xml("en", [("Main Page", "a")])
    path = _written(tmp_path, "dump.xml", re.sub(b"<base>.*</base>", b"", text))
    assert dumps.check(str(path), "en").main_page == ""
    assert _read(path) == [dumps.DumpPage("Main Page", "a")]


@pytest.mark.parametrize("range_bytes", [64, 999, 20_000, 10**6])
def test_ranges_have_each_article_once_in_order(tmp_path, range_bytes):
    wanted = [dumps.DumpPage(*page) for page in MANY]
    plain = dump_files.xml("en", MANY)
    cut = random.Random(0)
    places = sorted(cut.sample(range(len(plain)), 50))
    edges = list(zip([0, *places], [*places, len(plain)], strict=True))
    anywhere = b"".join(bz2.compress(plain[a:b]) for a, b in edges)  # as pbzip2's
    for data in (
        plain,
        bz2.compress(plain),
        dump_files.multistream("en", MANY, per_stream=7),
        anywhere,
        gzip.compress(plain),
    ):
        path = _written(tmp_path, "dump", data)
        assert _in_ranges(path, range_bytes) == wanted


def test_utf16_is_read(tmp_path):
    text = dump_files.xml("en", MANY[:9]).decode().encode("utf-16")
    wanted = [dumps.DumpPage(*page) for page in MANY[:9]]
    for data in (text, bz2.compress(text)):
        path = _written(tmp_path, "dump", data)
        dumps.check(str(path), "en")
        assert _in_ranges(path, 1_000) == wanted


@pytest.mark.parametrize("compress", [bytes, bz2.compress, gzip.compress])
def test_a_truncated_dump_gives_its_whole_pages_and_says_so(tmp_path, compress):
    data = compress(dump_files.xml("en", MANY))
    path = _written(tmp_path, "dump", data[: len(data) - 60])
    *pages, last = _read(path)
    assert last == LostFile("truncated_dump")
    assert pages == [dumps.DumpPage(*page) for page in MANY[: len(pages)]]


def test_a_dump_cut_between_streams_is_truncated(tmp_path):
    data = dump_files.multistream("en", MANY, per_stream=10)
    path = _written(tmp_path, "dump", data[: data.rindex(b"BZh9")])
    assert _in_ranges(path, 500)[-1] == LostFile("truncated_dump")


def test_damage_loses_the_rest_of_its_range_only(tmp_path):
    data = bytearray(dump_files.multistream("en", MANY, per_stream=10))
    data[data.index(b"BZh9", len(data) // 2) + 30] ^= 255
    path = _written(tmp_path, "dump", bytes(data))
    found = _in_ranges(path, 400)
    assert found.count(LostFile("corrupt_dump")) == 1
    assert len(found) == len(MANY) - 10 + 1


def test_a_damaged_head_of_a_stream_is_one_loss(tmp_path):
    data = dump_files.multistream("en", MANY, per_stream=20)
    head = data.index(b"BZh9", len(data) // 2)
    for i in range(10):
        damaged = bytearray(data)
        damaged[head + i] ^= 128
        path = _written(tmp_path, "dump", bytes(damaged))
        for range_bytes in (head - 5, head, 10**6):
            found = _in_ranges(path, range_bytes)
            assert found.count(LostFile("corrupt_dump")) == 1


def test_a_dump_that_ends_in_the_head_of_a_stream_is_one_loss(tmp_path):
    data = dump_files.multistream("en", MANY, per_stream=20)
    head = data.index(b"BZh9", len(data) // 2)
    for size in range(1, 10):
        path = _written(tmp_path, "dump", data[: head + size])
        for range_bytes in (head - 5, head, 10**6):
            found = _in_ranges(path, range_bytes)
            assert found.count(LostFile("truncated_dump")) == 1


@pytest.mark.parametrize("padding", [b"\n", b"\0" * 512])
def test_padding_after_a_dump_is_no_loss(tmp_path, padding):
    wanted = [dumps.DumpPage(*page) for page in MANY]
    several = dump_files.multistream("en", MANY, per_stream=20)
    for data in (several, gzip.compress(dump_files.xml("en", MANY))):
        path = _written(tmp_path, "dump", data + padding)
        for range_bytes in (len(data) // 3, len(data), 10**6):
            assert _in_ranges(path, range_bytes) == wanted


def test_an_entity_bomb_is_never_expanded(tmp_path):
    levels = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 20))
    bomb = f'<!DOCTYPE m [<!ENTITY e0 "x">{levels}]>'
    page = dump_files.page("Bomb", "BODY").replace("BODY", "&e19;")
    text = bomb.encode() + dump_files.xml("en", [page, ("Cat", "meow")])
    path = _written(tmp_path, "dump.xml", text)
    assert _read(path) == [dumps.LostPage("bad_xml"), dumps.DumpPage("Cat", "meow")]


def test_an_endless_page_is_not_held(tmp_path):
    pages = [("Cat", "meow"), ("Long", "x" * (1 << 22)), ("Dog", "woof")]
    path = _written(tmp_path, "dump.bz2", bz2.compress(dump_files.xml("en", pages)))
    assert _read(path, max_page_bytes=1_000) == [
        dumps.DumpPage("Cat", "meow"),
        dumps.LostPage("page_too_large"),
        dumps.DumpPage("Dog", "woof"),
    ]


@pytest.mark.parametrize(
    "data, got",
    [
        (b"7z\xbc\xaf\x27\x1c....", "7-Zip"),
        (b"WARC/1.0\r\n", "without <mediawiki>"),
        (gzip.compress(b"en Cat 3 0\n"), "without <mediawiki>"),
        (bz2.compress(b"<html>"), "without <mediawiki>"),
        (b"", "without <mediawiki>"),
        (dump_files.xml("de", []), "'dewiki'"),
        (dump_files.xml("simple", []), "'simplewiki'"),
        (dump_files.head("en").replace("enwiki", "enwiktionary").encode(),
         "'enwiktionary'"),
        (b'<mediawiki xml:lang="fr"><page>', "'fr'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused(tmp_path, data, got):
    path = _written(tmp_path, "dump", data)
    with pytest.raises(ValueError, match=got):
        dumps.check(str(path), "en")


@pytest.mark.parametrize("code", ["zh_yue", "simple", "be_x_old", "als", "no"])
def test_the_database_names_the_wiki(tmp_path, code):
    path = _written(tmp_path, "dump", dump_files.multistream(code, []))
    dumps.check(str(path), code)


def test_a_file_that_is_no_dump_is_counted(tmp_path):
    assert _read(_written(tmp_path, "a", b"nothing")) == [LostFile("not_dump")]
    assert _read(_written(tmp_path, "b", b"")) == [LostFile("empty_file")]


def test_a_dump_on_a_web_server_is_read_in_ranges(monkeypatch):
    monkeypatch.setattr(remote, "_PACES", {})
    data = dump_files.multistream("en", MANY, per_stream=5)
    with serving({"/dump.bz2": data}) as (base, _):
        url = f"{base}/dump.bz2"
        found = dumps.check(url, "en").ranges(len(data), range_bytes=700)
        pages = [p for a, b in found for p in _read(url, start=a, stop=b)]
    assert pages == [dumps.DumpPage(*page) for page in MANY]
