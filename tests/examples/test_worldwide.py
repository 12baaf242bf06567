"""Worldwide, small: twelve languages, each with its own metadata, t and evaluation."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from data_prep import language, schema
from data_prep.matching import Matcher
from data_prep.metadata import dumps as dump_reader
from data_prep.metadata import store, wikitext
from data_prep.sources import html, warc
from data_prep.stages import steps
from examples.quickstart import pictures, tags
from examples.quickstart.held_out import HeldOut
from examples.worldwide import build, dumps, names, run, site
from metaclip_jax import files
from metaclip_jax.data import balance
from tests import waiting

PICTURES = 120
T_ENGLISH = 15
RUN = {"pictures": PICTURES, "t": T_ENGLISH, "steps": 100}


@pytest.fixture(scope="module")
def everything():
    return names.choose(PICTURES, seed=0)


@pytest.fixture(scope="module")
def world(everything, tmp_path_factory):
    """A folder with the dumps and page views, as `build` writes them."""
    folder = tmp_path_factory.mktemp("world") / "dumps"
    folder.mkdir()
    for code in names.LANGUAGES:
        path = folder / build.DUMP.format(code=code)
        path.write_bytes(dumps.dump(everything, code, seed=0))
    (folder / build.PAGEVIEWS).write_bytes(dumps.views(everything, seed=0))
    return folder


def articles(path):
    read = dump_reader.read_pages(str(path), max_page_bytes=1 << 20)
    found, lost = {}, []
    for page in read:
        if isinstance(page, dump_reader.DumpPage):
            found[page.title] = wikitext.plain_text(page.text, namespaces={"category"})
        else:
            lost.append(page.reason)
    return found, lost


def test_pictures_have_names_in_every_language(everything):
    for code in names.LANGUAGES:
        every = [names.name(picture, code) for picture in everything]
        assert all(every)
        assert len(set(every)) > 0.9 * len(every)
    woman = next(p for p in everything if p.tones)
    for code in ("he", "hi", "th", "sw"):
        assert names.name(woman, code).count(": ") == 1


@pytest.mark.parametrize("code", names.LANGUAGES)
def test_a_dump_has_an_article_per_drawing_and_what_is_none(code, everything, world):
    found, lost = articles(world / build.DUMP.format(code=code))
    assert sorted(lost) == ["other_namespace", "redirect"]
    text = "\n".join(found.values())
    assert "Xyzzy" not in text and "{{" not in text and "[[" not in text
    for picture in everything:
        assert names.name(picture, code) in text


@pytest.fixture(scope="module")
def metadata(world, tmp_path_factory):
    """The metadata of all languages, by the command."""
    output = tmp_path_factory.mktemp("metadata") / "metadata"
    (stage,) = [
        stage
        for stage in run.stages(world.parent.parent, run.quickstart.recipes(), **RUN)
        if stage.module == "data_prep.build_metadata"
    ]
    arguments = {**stage.arguments, "output": output}
    arguments |= {"wikipedia": world / build.DUMP, "pageviews": world / build.PAGEVIEWS}
    command = [f"--{name}={value}" for name, value in arguments.items()]
    result = subprocess.run(
        [sys.executable, "-m", stage.module, *command, "--workers=1"],
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return store.load(str(output))


@pytest.fixture(scope="module")
def candidates(everything):
    """The texts of the site's pages, as curation reads them."""
    white = pictures.flat("png", (8, 8), (255, 255, 255))
    drawing = pictures.Drawing(white, b"", np.zeros(0))
    drawings = {picture.code: drawing for picture in everything}
    made = site.make(everything, drawings, HeldOut([], frozenset()), seed=0)
    rows = []
    for place, data in sorted(made.contents.items()):
        if place.startswith(f"{tags.HOST}/") and place.endswith(".html"):
            page = warc.Page(f"http://{place}", data, "text/html; charset=utf-8")
            found, _ = html.parse_page(
                page,
                max_texts_per_page=1_000,
                max_text_chars=2_000,
                max_url_chars=2_048,
                max_tree_bytes=64 << 20,
            )
            rows += found
    assert len(rows) == 14 * len(everything)
    return schema.from_rows(rows, schema.CANDIDATES)


def page_of(row):
    """The code of the language that the row's page is written in."""
    return row["page_url"].split("/")[3]


@pytest.fixture(scope="module")
def matched(metadata, candidates):
    """Rows that the step of curation matched."""
    matchers = {code: Matcher(own.entries, mode="v2") for code, own in metadata.items()}
    identify = language.shared_identifier("lid176")
    found, _ = steps.match(
        candidates, matchers, matchers.__getitem__, identify=identify
    )
    return found.to_pylist()


@pytest.fixture(scope="module")
def counts(metadata, matched):
    """Matches by metadata code and entry."""
    found = {code: np.zeros(len(own.entries), int) for code, own in metadata.items()}
    for row in matched:
        found[row["metadata"]][row["entry_ids"]] += 1
    return found


def test_each_language_has_its_own_metadata_and_matches_it(
    metadata, candidates, matched
):
    assert set(metadata) == set(names.LANGUAGES)
    assert len({own.fingerprint for own in metadata.values()}) == len(names.LANGUAGES)
    written = Counter(map(page_of, candidates.to_pylist()))
    own = Counter(page_of(row) for row in matched if row["metadata"] == page_of(row))
    for code in names.LANGUAGES:
        # A title begins with a capital, which a rare name in small letters lacks.
        assert own[code] > 0.8 * written[code], code


def test_entries_of_a_language_are_words_of_its_pages(metadata, matched):
    for row in matched:
        entries = metadata[row["metadata"]].entries
        shown = row["text"].casefold()
        assert all(entries[i].casefold() in shown for i in row["entry_ids"])


def test_t_leaves_the_tail_share_of_english_in_each_tail(counts):
    t = balance.thresholds(counts, t=T_ENGLISH, tail_share=0.0)
    english = counts["en"]
    share = english[english < T_ENGLISH].sum() / english.sum()
    assert t["en"] == T_ENGLISH and 0.02 < share < 0.5
    for code in set(counts) - {"en"}:
        own = counts[code]
        ascending = sorted(own.tolist())
        gaps = [abs(total / own.sum() - share) for total in np.cumsum(ascending)]
        assert t[code] == max(1, ascending[int(np.argmin(gaps))]), code
    assert len(set(t.values())) > 3


@pytest.mark.slow
def test_from_the_web_to_an_evaluation_in_each_language(tmp_path):
    page = tmp_path / "worldwide.md"
    flags = ["--pictures=300", "--steps=100", f"--page={page}"]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "examples.worldwide.run"),
            f"--workdir={tmp_path / 'run'}",
            *flags,
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    card = files.read_json(tmp_path / "run/dataset/data_card.json")
    assert set(card["texts_by_metadata"]) == set(names.LANGUAGES)
    own = run.pool_counts(tmp_path / "run/dataset")
    t = card["balanced"]["t"]
    assert t == balance.thresholds(own, t=t["en"], tail_share=0.0)
    found = json.loads((tmp_path / "run/evaluation.json").read_text())["tasks"]
    for code in names.LANGUAGES:
        task = found[f"xm3600/{code}"]
        assert task["value"] > 2 * task["chance"], code
    assert page.read_text().count("\n| ") == 1 + 12
