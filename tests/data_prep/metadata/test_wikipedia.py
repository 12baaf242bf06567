"""Metadata out of WordNet, dumps and page views, of languages of several scripts."""

import bz2
import gzip
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from absl import app

from data_prep import build_metadata
from data_prep import config as config_lib
from data_prep.metadata import inputs, store
from data_prep.sources import remote
from tests import stopping
from tests.data_prep.metadata import dump_files, test_wordnet
from tests.data_prep.sources.test_remote import serving

ROOT = Path(__file__).parents[3]
# Title, text, what entries come of it, and markup whose words are none.
ARTICLES = {
    "en": ("Red fox", "'''Red foxes''' eat [[mouse|small mice]].", {"small mice"}),
    "ar": ("ثعلب", "'''الثعلب الأحمر''' [[حيوان|حيوان بري]].", {"حيوان بري"}),
    "hi": ("लोमड़ी", "'''लाल लोमड़ी''' एक [[पशु|जंगली पशु]] है।", {"जंगली पशु"}),
    "ja": ("アカギツネ", "'''[[キツネ]]'''は日本の[[動物]]です。", {"動物", "日本"}),
    "ko": ("여우", "'''붉은여우'''는 [[동물|야생 동물]]이다.", {"야생"}),
    "th": ("แมว", "'''แมว'''เป็น[[สัตว์]]เลี้ยง", {"แมว", "สัตว์"}),
    "zh": ("赤狐", "'''赤狐'''是一種[[哺乳动物|动物]]，生活在森林。", {"动物", "森林"}),
}
NOISE = (
    "{{Infobox noise|noise=noise}}\n<ref>noise</ref>\n<!-- noise -->\n"
    "{| class=noise\n|-\n! noise\n|}\n[[File:Noise.jpg|thumb|noise]]\n"
    "{{noise never closes\n"
)
SETTINGS = {"unigram_min_count": 2, "bigram_min_count": 2, "bigram_min_score": -99.0}


def _pages(code):
    title, text, _ = ARTICLES[code]
    return [
        dump_files.page(title, text + "\n" + NOISE),
        dump_files.page(f"Redirect to {title}", "#REDIRECT noise", redirect=title),
        dump_files.page(f"Talk:{title}", "noise noise", namespace=1),
        *(dump_files.page(f"{title} {i}", text) for i in range(8)),
    ]


@pytest.fixture
def folder(tmp_path):
    for code in ARTICLES:
        dump = dump_files.multistream(code, _pages(code), per_stream=3)
        (tmp_path / f"{code}wiki-1-pages-articles-multistream.xml.bz2").write_bytes(
            dump
        )
    (tmp_path / "wordnet/wns/fra").mkdir(parents=True)
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"wordnet/data.{part}").write_text(
            getattr(test_wordnet, part.upper())
        )
    lines = [
        line
        for code, (title, *_) in ARTICLES.items()
        for line in (
            f"{code} {title.replace(' ', '_')} 40 0",
            f"{code}.m {title.replace(' ', '_')} 39 0",
            f"{code} Redirect_to_{title.replace(' ', '_')} 99 0",
            f"{code} No_such_article 99 0",
            f"{code}.zero {title.replace(' ', '_')}_0 99 0",
        )
    ]
    hours = "\n".join(lines).encode()
    (tmp_path / "pageviews-20240501-000000.gz").write_bytes(gzip.compress(hours))
    day = b"en.wikipedia Red_fox_0 12 desktop 69 A69\nen.wikipedia Red_fox_1 3 x 70 A70"
    (tmp_path / "pageviews-20240502-user.bz2").write_bytes(bz2.compress(day))
    return tmp_path


def _given(folder, pattern="{code}wiki-*.xml.bz2"):
    return {
        "wordnet": f"{folder}/wordnet",
        "wikipedia": f"{folder}/{pattern}",
        "warc": None,
        "pageviews": f"{folder}/pageviews-*",
    }


def _build(output, given, languages=tuple(ARTICLES)):
    changed = SETTINGS | {"languages": languages}
    config = config_lib.recipe(config_lib.metadata(), {"": changed}, "")
    run = build_metadata.plan(config, str(output), None, [], sources=given)
    merged = build_metadata.choose(run, build_metadata.count(run))
    chosen = {one.metadata.code: one.metadata for one in merged}
    return chosen, build_metadata.read_and_lost(run.workdir)


def _of(metadata, source):
    named = zip(metadata.entries, metadata.sources, strict=True)
    return [entry for entry, name in named if name == source]


def test_entries_are_of_prose_and_titles_of_articles_in_the_papers_order(folder):
    chosen, read = _build(folder / "out", _given(folder))
    for code, (title, _, wanted) in ARTICLES.items():
        made = chosen[code]
        assert wanted <= set(made.entries)
        assert not any("noise" in entry.lower() for entry in made.entries)
        assert set(_of(made, "title")) <= {title, "Red fox 1"}
        assert title in made.entries
        order = [name for name, _ in itertools.groupby(made.sources)]
        assert order == [
            name for name in ("synset", "unigram", "bigram", "title") if name in order
        ]
    assert _of(chosen["en"], "synset")[0] == "cat"
    assert "st. louis" in chosen["en"].entries
    assert _of(chosen["zh"], "synset") == []
    assert read == {
        "files": 13, "names": 5, "ranges": 7, "pages": 63, "titles": 23,
        "page: other_namespace": 7, "page: redirect": 7,
    }  # fmt: skip


def test_any_ranges_and_a_web_server_give_the_same_entries(folder, monkeypatch):
    whole, _ = _build(folder / "out", _given(folder), ("en",))
    monkeypatch.setattr(inputs, "_RANGE_BYTES", 600)
    monkeypatch.setattr(remote, "_PACES", {})
    served = {f"/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*.*")
              if p.is_file()}  # fmt: skip
    with serving(served) as (base, _):
        days = "pageviews-20240501-000000.gz", "pageviews-20240502-user.bz2"
        name = "{code}wiki-1-pages-articles-multistream.xml.bz2"
        given = _given(base, name) | {
            "pageviews": ",".join(f"{base}/{day}" for day in days)
        }
        pieces, read = _build(folder / "web", given, ("en",))
    assert pieces["en"].fingerprint == whole["en"].fingerprint
    assert pieces["en"].scores == whole["en"].scores
    assert read["ranges"] > 2 and read["pages"] == 9


def test_a_truncated_dump_is_counted_and_the_rest_used(folder):
    (path,) = folder.glob("enwiki*")
    path.write_bytes(path.read_bytes()[:-90])
    chosen, read = _build(folder / "out", _given(folder, path.name), ("en",))
    assert read["range: truncated_dump"] == 1 and read["ranges"] == 0
    assert "small mice" in chosen["en"].entries


@pytest.mark.parametrize(
    "output, languages",
    [
        ("metadata", {"en"}),
        pytest.param("metadata_worldwide", {"en", "ja", "th"}, marks=pytest.mark.slow),
    ],
)
def test_the_commands_of_the_docs_run_as_they_stand(folder, output, languages):
    for kind, glob in (("dumps", "*.xml.bz2"), ("pageviews", "pageviews-*")):
        found = list(folder.glob(glob))
        (folder / kind).mkdir()
        for path in found:
            path.rename(folder / kind / path.name)
    (folder / "configs").symlink_to(ROOT / "configs")
    document = (ROOT / "docs/metadata.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", document, re.S)
    (commands,) = (block for block in blocks if f"--output={output}\n" in block)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    made = store.load(folder / output)
    assert set(made) == languages
    assert "cat" in made["en"].entries


def test_sources_and_metadata_may_be_in_a_bucket(
    folder, cloud_storage, tmp_path_factory
):
    base = tmp_path_factory.mktemp("buckets")
    command = [sys.executable, "-m", "data_prep.build_metadata", "--workers=1"]
    command += ["--config=configs/metadata.py:en", "--output=gs://bucket1/made"]
    command += [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    names = {"wordnet": "wordnet", "wikipedia": "en*.bz2", "pageviews": "page*"}
    command += [f"--{flag}=gs://bucket1/{name}" for flag, name in names.items()]
    with cloud_storage(base) as storage:
        storage.upload(*folder.iterdir())
        env = storage.environment | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=ROOT, env=env, check=True)
    made = store.load(base / "bucket1/made")["en"]
    here, _ = _build(folder / "out", _given(folder), ("en",))
    assert made.fingerprint == here["en"].fingerprint
    assert made.scores == here["en"].scores


@pytest.mark.parametrize(
    "languages, pattern, message",
    [
        (("de",), "{code}wiki-*.xml.bz2", "wanted files, got none for"),
        (("ja",), "zhwiki-*.xml.bz2", "wanted the dump of jawiki, got one of 'zhwiki'"),
        (("xx",), "{code}wiki-*.xml.bz2", "got 'xx'"),
        (("en",), "enwiki-*.xml.7z", "7-Zip"),
        (("en",), "pageviews-*.gz", "got a file without <mediawiki>"),
        (("en",), "pageviews-*.bz2", "got a file without <mediawiki>"),
    ],
)
def test_wrong_files_and_unknown_codes_are_refused(folder, languages, pattern, message):
    (folder / "enwiki-1.xml.7z").write_bytes(b"7z\xbc\xaf\x27\x1c....")
    with pytest.raises(ValueError, match=message):
        _build(folder / "out", _given(folder, pattern) | {"wordnet": ""}, languages)


def test_a_file_without_views_and_impossible_numbers_are_counted(folder):
    (folder / "pageviews-empty").write_bytes(b"")
    (folder / "pageviews-huge").write_bytes(b"en Red_fox 99999999999999 0\n" * 9)
    _, read = _build(folder / "out", _given(folder), ("en",))
    assert read["file: no_page_views"] == 2
    assert read["title: malformed_line"] == 9


def test_a_file_with_two_names_is_read_once(folder, caplog):
    (hour,) = folder.glob("pageviews-*.gz")
    (dump,) = folder.glob("enwiki-*")
    once = inputs.find(_given(folder), ("en",))
    (folder / "more").symlink_to(folder)
    for path in (hour, dump):
        path.with_name(path.name.replace("-", "-0-", 1)).symlink_to(path)
    twice = inputs.find(
        _given(folder, "**/{code}wiki-*.bz2")
        | {"pageviews": f"{folder}/*/pageviews-*"},
        ("en",),
    )
    assert twice.bytes == once.bytes
    assert [piece.kind for piece in twice.pieces] == [p.kind for p in once.pieces]
    assert caplog.text.count("are one file") == 2


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(["part-00004"], id="dump"),
        pytest.param(
            ["part-00000", "part-00003", "part-00004", "part-00005", "part-00006"],
            id="all",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_command_that_is_killed_in_any_source_gives_the_same_bytes(folder, parts):
    given = {kind: path for kind, path in _given(folder).items() if path}
    config = config_lib.recipe(config_lib.metadata(), {"": SETTINGS}, "")
    run = build_metadata.plan(config, str(folder / "whole"), None, [], sources=given)
    build_metadata.save(run, build_metadata.choose(run, build_metadata.count(run)))
    build_metadata.remove_parts(run)

    flags = [f"--config={ROOT}/configs/metadata.py:en", "--workers=1"]
    flags += [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    flags += [f"--{kind}={path}" for kind, path in given.items()]
    flags += ["--output=again", "--workdir=counts"]
    for part in parts:
        killed = stopping.command(
            *("data_prep.build_metadata", *flags),
            function="data_prep.stages.parts.write",
            argument=part,
        )
        assert subprocess.run(killed, cwd=folder).returncode == -signal.SIGKILL
    done = sorted((folder / "counts").glob("part-*.parquet"))
    assert [path.name[:10] for path in done] == [
        f"part-{i:05}" for i in range(int(parts[-1][-1]) + 1)
    ]
    kept = [path.stat().st_ino for path in done]
    command = [sys.executable, "-m", "data_prep.build_metadata", *flags]
    subprocess.run(command, cwd=folder, check=True)
    assert [path.stat().st_ino for path in done] == kept
    names = {path.name for path in (folder / "whole").iterdir()}
    assert names == {path.name for path in (folder / "again").iterdir()}
    for name in names:
        one, other = (folder / each / name for each in ("whole", "again"))
        assert one.read_bytes() == other.read_bytes(), name


def test_moved_files_are_the_same_inputs(folder):
    def described():
        given = _given(folder, "{code}wiki-*.xml.bz2") | {
            "pageviews": f"{folder}/*/pageviews-*"
        }
        return inputs.find(given, ("en", "ja")).described

    hour, day = sorted(folder.glob("pageviews-*"))
    for name, path in (("a", hour), ("b", day)):
        (folder / name).mkdir()
        path.rename(folder / name / path.name)
    before = described()
    (folder / "a").rename(folder / "z")
    assert described() == before


def test_the_folder_of_parts_is_not_the_output(folder):
    config = config_lib.recipe(config_lib.metadata(), {"": SETTINGS}, "")
    with pytest.raises(app.UsageError, match="wanted two folders"):
        build_metadata.plan(config, "out", "./out", [], sources=_given(folder))


def test_a_language_without_text_is_refused(folder):
    (folder / "dewiki-1.xml").write_bytes(dump_files.xml("de", []))
    with pytest.raises(ValueError, match="of de, got none above .* 0 pages, 1 ranges"):
        given = _given(folder, "dewiki-*") | {"wordnet": ""}
        _build(folder / "out", given, ("de",))
