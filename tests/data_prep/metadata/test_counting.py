"""Metadata: words and bigrams are counted, summed and chosen exactly."""

import dataclasses
import gzip
import math
import re
import signal
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import build_metadata
from data_prep import config as config_lib
from data_prep.metadata import counts, ngrams, pieces, segmentation, store
from data_prep.report import metadata as report
from data_prep.sources import warc
from data_prep.stages import attempts
from metaclip_jax import files
from tests import stopping

TEXT = "The red fox, the red dog's bone. the T-shirt  of\nNew York"
LETTERS = r"[^\W_]+"
MARKS = "".join(
    chr(code)
    for code in range(0x300, 0x10000)
    if unicodedata.category(chr(code))[0] == "M"
)
WORD = re.compile(
    rf"{LETTERS}(?:[{MARKS}]+(?:{LETTERS})?|['\u2019\u200c\u200d-]{LETTERS})*"
)
TEXTS = st.lists(
    st.text("abA é3_½.,'-\n\t\u0301\u0903\u094d\u2019\u200c\u200d中ไ𝐀\U00010a01\ud800")
    | st.text(max_size=20),
    max_size=6,
)


def by_regex(texts):
    """The words and bigrams of texts by Python's re."""
    words, bigrams = Counter(), Counter()
    for text in texts:
        found = list(WORD.finditer(text))
        words.update(word[0] for word in found)
        bigrams.update(
            (a[0], b[0]) for a, b in pairwise(found) if text[a.end() : b.start()] == " "
        )
    return words, bigrams


def to_counters(run):
    keys, times = (run.words[name].to_pylist() for name in ("word", "count"))
    bigrams = zip(*(column.to_pylist() for column in run.bigrams), strict=True)
    return (
        Counter(dict(zip(keys, times, strict=True))),
        Counter({(keys[a], keys[b]): n for a, b, n in bigrams}),
    )


def count(texts):
    counter = ngrams.Counter()
    for text in texts:
        counter.add([text])
    return to_counters(counter.take())


def test_words_keep_their_case_hyphens_apostrophes_and_marks():
    words, _ = count([TEXT, "हिन्दी a_b 3D x-"])
    assert words == {
        "The": 1, "red": 2, "fox": 1, "the": 2, "dog's": 1, "bone": 1, "T-shirt": 1,
        "of": 1, "New": 1, "York": 1, "हिन्दी": 1, "a": 1, "b": 1, "3D": 1, "x": 1,
    }  # fmt: skip


def test_bigrams_are_words_with_one_space_between():
    _, bigrams = count([TEXT])
    assert sorted(map(" ".join, bigrams)) == [
        "New York", "The red", "dog's bone", "red dog's", "red fox", "the T-shirt",
        "the red",
    ]  # fmt: skip


@given(TEXTS)
def test_words_are_those_of_the_regular_expression(texts):
    assert count(texts) == by_regex(texts)


@pytest.mark.parametrize("size", [1, 50, 1 << 18])
def test_counts_stay_exact_while_tables_grow(monkeypatch, size):
    monkeypatch.setattr(ngrams, "_BUFFER_CHARS", size)
    monkeypatch.setattr(ngrams, "_FEWEST", 1)
    texts = [
        " ".join(f"w{(i * j) % 5_003}" for i in range(1, 90)) for j in range(1, 200)
    ]
    texts.append("long" * 10_000)
    assert count(texts) == by_regex(texts)


PAGES = [
    ("en", ("New York a", "New York b")),
    ("de", ("das Haus",)),
    ("en", ("a b", "a b a. York")),
    ("de", ("das Haus", "Haus das")),
] * 3


def summed(folder, *, max_bytes, parts):
    """The parts in which PAGES are counted."""
    made = []
    for i in range(parts):
        name = f"part-{i}.parquet"
        runs = pieces.count_texts(PAGES[i::parts], max_bytes)
        made.append(counts.Part(name, counts.write(str(folder), name, runs)))
    return made


@pytest.mark.parametrize("score", ["pmi", "worldwide"])
@pytest.mark.parametrize("max_bytes", [1, 1 << 30])
@pytest.mark.parametrize("parts", [1, 5])
def test_sums_of_parts_on_disk_are_the_counts_of_all_texts(
    tmp_path, parts, max_bytes, score
):
    made = summed(tmp_path, max_bytes=max_bytes, parts=parts)
    runs = sum(len(part.codes) for part in made)
    assert (runs == len(PAGES)) if max_bytes == 1 else (runs <= 2 * parts)
    (tmp_path / "db").mkdir()
    with counts.database(tmp_path / "db", memory_gib=0.1, threads=2) as database:
        sums = counts.Sums(str(tmp_path), made, database)
        for code in ("en", "de", "fr"):
            texts = [text for of, some in PAGES if of == code for text in some]
            words, bigrams = by_regex(texts)
            assert sums.sum_words(code) == words.total()
            frequent = sums.frequent_words(least=4, most=2)
            wanted = sorted((-n, word) for word, n in words.items() if n >= 4)
            assert frequent.ranked == [(word, -n) for n, word in wanted[:2]]
            assert frequent.offered == len(wanted)
            found = sums.bigrams(
                code,
                tokens=words.total(),
                min_count=6,
                score=score,
                min_score=1.0,
                most=2,
            )
            wanted = by_score(words, bigrams, score, least=6)
            wanted = [pair for pair in wanted if pair[1] >= 1]
            assert found.ranked == wanted[:2]
            assert found.offered == len(wanted)


@pytest.mark.parametrize("most", range(6))
def test_entries_that_never_match_take_no_place(tmp_path, most):
    names = ["A. B", "C: D", "E", "F", "G. H", "I", "J"]
    titles = pa.table([names, range(9, 2, -1)], schema=counts.SCHEMAS[counts.TITLES])
    made = counts.write(str(tmp_path), "part", [("en", {counts.TITLES: titles})])
    parts = [counts.Part("part", made)]
    for mode, wanted in (
        ("any", names[:most]),
        ("v1", names[: (0, 3, 4, 6, 7, 7)[most]]),
    ):
        (tmp_path / mode).mkdir()
        with counts.database(tmp_path / mode, memory_gib=0.1, threads=1) as database:
            sums = counts.Sums(str(tmp_path), parts, database, mode=mode)
            found = sums.frequent_titles("en", least=1, most=most)
        assert [entry for entry, _ in found.ranked][: len(wanted)] == wanted
        assert found.offered == len(names)


def test_sums_beyond_int64_count_as_its_largest_number(tmp_path):
    most = (1 << 63) - 1
    many = pieces._scored({"a": 1 << 70, "b": 2, "c": most - 1}, counts.TITLES)
    for name in ("one", "two"):
        counts.write(str(tmp_path), name, [("en", {counts.TITLES: many})])
    with counts.database(tmp_path, memory_gib=1.0, threads=1) as database:
        read = [counts.Part(name, ["en"]) for name in ("one", "two")]
        sums = counts.Sums(str(tmp_path), read, database)
        found = sums.frequent_titles("en", least=1, most=9)
    assert found.ranked == [("a", float(most)), ("c", float(most)), ("b", 4.0)]


def by_score(words, bigrams, score, *, least):
    total = words.total()
    pmi = {
        pair: math.log2(n * total / (words[pair[0]] * words[pair[1]]))
        for pair, n in bigrams.items()
        if n >= least
    }
    if score == "worldwide" and pmi:
        values = sorted(pmi.values())
        at = 0.3 * (len(values) - 1)
        low, high = values[int(at)], values[min(int(at) + 1, len(values) - 1)]
        base = low + (at - int(at)) * (high - low)
        pmi = {pair: (bigrams[pair] + 1) ** 0.7 * (v - base) for pair, v in pmi.items()}
    scored = [(" ".join(pair), round(value, 9)) for pair, value in pmi.items()]
    return sorted(scored, key=lambda one: (-one[1], one[0]))


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from(["en", "de", "fr"]), TEXTS), max_size=8))
def test_runs_of_a_language_add_up_whatever_the_memory(pages):
    for max_bytes in (1, 200_000, 1 << 30):
        total = {}
        for code, tables in pieces.count_texts(pages, max_bytes):
            run = ngrams.Run(tables[counts.WORDS], tables[counts.BIGRAMS])
            words, bigrams = to_counters(run)
            all_words, all_bigrams = total.setdefault(code, (Counter(), Counter()))
            all_words.update(words)
            all_bigrams.update(bigrams)
        for code in {code for code, _ in pages}:
            texts = [text for of, some in pages if of == code for text in some]
            assert total[code] == by_regex(texts)


def record(page, name):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
    return gzip.compress(
        b"WARC/1.0\r\nWARC-Type: response\r\n"
        b"WARC-Target-URI: http://%s.example/\r\n"
        b"WARC-Record-ID: <urn:uuid:1>\r\n"
        b"WARC-Date: 2024-01-01T00:00:00Z\r\n"
        b"Content-Type: application/http; msgtype=response\r\n"
        b"Content-Length: %d\r\n\r\n%s\r\n\r\n" % (name, len(head + page), head + page)
    )


def build(folder, *flags):
    command = [sys.executable, "-m", "data_prep.build_metadata", *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory, request):
    """The folder of the sources, and flags for them without --output."""
    folder = tmp_path_factory.mktemp("sources")
    pages = [b"<html lang=en><title>Red fox</title>A red fox. a red fox.",
             b"<html lang=de>Ein roter Fuchs."]  # fmt: skip
    records = b"".join(record(page, b"a") for page in pages)
    (folder / "a.warc.gz").write_bytes(records)
    more = b"<html lang=en>the red fox, the blue fox and the blue sky"
    (folder / "b.warc.gz").write_bytes(record(more, b"b"))
    (folder / "broken.warc.gz").write_bytes(b"no gzip")
    (folder / "views.txt").write_text("en Fox_hunting 99 0\nen Rare 1 0\n")
    recipe = request.config.rootpath / "configs" / "metadata.py:quickstart"
    return folder, [
        f"--config={recipe}",
        "--warc=*.warc.gz",
        "--pageviews=views.txt",
        "--config.unigram_min_count=3",
        "--config.bigram_min_count=2",
        "--config.bigram_min_score=0.0",
    ]


@pytest.fixture(scope="module")
def built(sources):
    """A folder of metadata."""
    folder, flags = sources
    done = build(folder, *flags, "--output=out")
    assert done.returncode == 0, done.stderr
    return folder / "out"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_command_builds_metadata_and_says_what_it_read(built):
    made = store.load(built)["en"]
    assert made.entries == ("fox", "red", "the", "the blue", "red fox", "Fox hunting")
    assert made.sources == ("unigram",) * 3 + ("bigram",) * 2 + ("title",)
    manifest = files.read_json(built / "manifest.json")
    assert manifest["read"] == {
        "file: not_warc": 1, "files": 3, "page: other_language": 1, "pages": 2,
        "titles": 2,
    }  # fmt: skip
    assert not (built / "parts").exists()
    shares = manifest["metadata"]["en"]["shares"]
    assert [share["threshold"] for share in shares] == [1, 3, 0, 70]
    assert [share["added"] for share in shares] == [0, 3, 2, 1]
    for share in shares:
        lost = share["already"] + share["never_matching"] + share["cut"]
        assert share["offered"] == share["added"] + lost
    page = report.as_page(manifest["metadata"], manifest["read"])
    assert (built / report.PAGE).read_bytes() == page


def test_a_finished_output_is_shown_and_said_to_be_finished(sources, built):
    folder, flags = sources
    before = contents(built)
    again = build(folder, *flags, "--output=out")
    first = "out is finished already; remove it to build it again\n"
    assert again.returncode == 0 and again.stdout.startswith(first)
    assert contents(built) == before


def test_a_killed_command_reads_no_finished_piece_again(sources, built):
    folder, flags = sources
    flags = [*flags, "--config.memory_gib=1e-9", "--output=again", "--workdir=counts"]
    killed = stopping.command(
        *("data_prep.build_metadata", *flags),
        function="data_prep.stages.parts.write",
        argument="part-00001",
    )
    assert subprocess.run(killed, cwd=folder).returncode == -signal.SIGKILL
    done = list((folder / "counts").glob("part-*.parquet"))
    assert 0 < len(done) < 4
    kept = {path: path.stat().st_ino for path in done}
    again = build(folder, *flags, "--workers=2")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_ino for path in done} == kept
    assert contents(built) == contents(folder / "again")


def planned(folder, **changed):
    config = config_lib.recipe(config_lib.metadata(), {"": changed}, "")
    given = {"warc": f"{folder}/*.warc.gz", "pageviews": None}
    return build_metadata.plan(config, str(folder / "x"), None, [], sources=given)


def test_another_config_is_refused_in_the_folder_and_an_unknown_language(sources):
    folder, _ = sources
    run = planned(folder)
    files.claim(folder / "x", run.inputs)
    assert planned(folder, memory_gib=1.0).inputs == run.inputs
    other = planned(folder, unigram_min_count=3).inputs
    with pytest.raises(ValueError, match="config.unigram_min_count: wanted 3, found"):
        files.claim(folder / "x", other)
    with pytest.raises(ValueError, match="config.languages: .*did you mean 'zh_yue'"):
        planned(folder, languages=("en", "yue"))


def test_another_dictionary_is_another_run_where_words_are_segmented(
    sources, monkeypatch
):
    folder, _ = sources
    runs = [planned(folder, languages=of).inputs for of in (("en",), ("en", "zh"))]
    monkeypatch.setattr(segmentation, "version", lambda: "1.0")
    again = [planned(folder, languages=of).inputs for of in (("en",), ("en", "zh"))]
    assert again[0] == runs[0]
    assert again[1] == runs[1] | {"icu": "1.0"}


def test_a_piece_that_fails_three_times_is_counted_and_named(
    tmp_path, sources, monkeypatch
):
    folder, _ = sources
    tried = Counter()
    read = warc.read_pages

    def fail(path, **limits):
        tried[Path(path).name] += 1
        if path.endswith("a.warc.gz"):
            raise OSError("no such disk")
        return read(path, **limits)

    monkeypatch.setattr(pieces.warc, "read_pages", fail)
    monkeypatch.setattr(attempts.time, "sleep", lambda seconds: None)
    run = dataclasses.replace(planned(folder), workdir=str(tmp_path))
    with pytest.raises(RuntimeError, match="a.warc.gz: OSError: no such disk"):
        build_metadata.count(run)
    assert tried == {"a.warc.gz": 3, "b.warc.gz": 1, "broken.warc.gz": 1}
    parts = build_metadata.count(dataclasses.replace(run, max_failed_sources=1))
    assert tried == {"a.warc.gz": 6, "b.warc.gz": 1, "broken.warc.gz": 1}
    assert [part.codes for part in parts] == [[], ["en"], []]
    assert build_metadata.read_and_lost(str(tmp_path)) == {
        "file: failed_OSError": 1, "file: not_warc": 1, "files": 1, "pages": 1,
    }  # fmt: skip
