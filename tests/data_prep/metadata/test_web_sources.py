"""Sources of metadata on web servers, which learn whom to write to."""

import bz2
import gzip

import pytest

from data_prep import build_metadata, curate
from data_prep import config as config_lib
from tests.data_prep import tiny_web
from tests.data_prep.metadata import dump_files, test_wordnet
from tests.data_prep.sources.test_remote import serving

OURS = "metadata builder me@my.example"


def plan(output, given, **changed):
    keys = {"unigram_min_count": 1, "title_min_views": 1} | changed
    config = config_lib.recipe(config_lib.metadata(), {"": keys}, "")
    return build_metadata.plan(config, str(output), None, [], sources=given)


def test_each_request_says_who_we_are(tmp_path):
    tiny_web.write_warc(tmp_path / "a.warc.gz", {"http://site.example/": "a cat"})
    dump = dump_files.head() + dump_files.page("Cat", "a cat") + dump_files.END
    content = {
        "/dump.xml.bz2": bz2.compress(dump.encode()),
        "/views.gz": gzip.compress(b"en Cat 3 0\nen Dog 9 0\n"),
        "/a.warc.gz": (tmp_path / "a.warc.gz").read_bytes(),
    }
    for part in ("noun", "verb", "adj", "adv"):
        content[f"/data.{part}"] = getattr(test_wordnet, part.upper()).encode()
    with serving(content) as (base, asked):
        given = {"wordnet": base, "wikipedia": f"{base}/dump.xml.bz2"}
        given |= {"warc": f"{base}/a.warc.gz", "pageviews": f"{base}/views.gz"}
        run = plan(tmp_path / "out", given, **{"download.user_agent": OURS})
        assert {path for path, _, _ in asked} == set(content)
        planned = len(asked)
        (merged,) = build_metadata.choose(run, build_metadata.count(run))
    assert {path for path, _, _ in asked[planned:]} == set(content)
    assert {user_agent for _, _, user_agent in asked} == {OURS}
    assert {"cat", "galore", "Cat"} <= set(merged.metadata.entries)


@pytest.mark.parametrize("kind", ["wordnet", "wikipedia", "warc", "pageviews"])
def test_a_strangers_server_is_not_asked_by_an_anonymous(tmp_path, kind):
    given = {kind: "https://dumps.example/enwiki.gz"}
    with pytest.raises(ValueError, match="user_agent: wanted your name and an e-mail"):
        plan(tmp_path / "out", given)
    config = config_lib.curate()
    config.source.paths, config.matching.mode = given[kind], "none"
    with pytest.raises(ValueError, match="user_agent: wanted your name and an e-mail"):
        curate.plan(config, str(tmp_path / "work"), str(tmp_path / "out"), [])
    assert not list(tmp_path.iterdir())


def test_another_contact_is_the_same_run(tmp_path):
    (tmp_path / "views").write_text("en Cat 3 0\n")
    given = {"pageviews": f"{tmp_path}/views"}
    renamed = plan(tmp_path / "out", given, **{"download.user_agent": OURS})
    assert renamed.inputs == plan(tmp_path / "out", given).inputs
