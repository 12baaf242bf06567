"""Unsafe texts are dropped, and counted with their reason."""

import json

import pyarrow as pa
import pytest

from data_prep import curate
from data_prep.matching import words
from metaclip_jax.data import records
from tests.data_prep import tiny_web

ALTS = [
    ("/0.jpg", "a nice cat"),
    ("/0.jpg", "a XXX-rated cat"),
    ("/1.jpg", "a cat, very  Rude Word!"),
    ("/2.jpg", "a cat of Essex"),
]
BODIES = {path: tiny_web.picture(int(path[1])) for path, _ in ALTS}


def funnel(run):
    dataset = records.open_dataset(run.output)
    drops = {row["stage"]: row["drops"] for row in dataset.data_card["funnel"]}
    found = [records.decode(r) for r in records.read(dataset, range(len(dataset)))]
    return drops, sorted(text for record in found for text in record.texts)


def test_texts_with_a_listed_word_are_dropped_before_the_download(tmp_path):
    listed = tmp_path / "words.txt"
    listed.write_text("# not for children\nxxx\n\nRude Word\nsex\n")
    values = {"balance.rule": "online", "safety.words": str(listed)}
    run = tiny_web.run(tmp_path, ALTS, BODIES, **values)
    drops, texts = funnel(run)
    assert drops["dedup"] == {"repeated_pair": 0, "unsafe_text": 2}
    assert texts == ["a cat of Essex", "a nice cat"]
    # Other words in the file are another run.
    listed.write_text("essex\n")
    again = curate.plan(run.config, run.workdir, run.output, [])
    assert again.match_inputs != run.match_inputs
    assert json.dumps(again.source_inputs) == json.dumps(run.source_inputs)


@pytest.mark.parametrize("content", ["", "# none\n\n"])
def test_a_list_without_words_is_refused(tmp_path, content):
    (tmp_path / "words.txt").write_text(content)
    with pytest.raises(ValueError, match="words.txt: wanted a word a line"):
        words.read(str(tmp_path / "words.txt"))


def test_words_are_found_whole_in_any_case_and_script():
    texts = pa.array(["SEX!", "Essex", "a sex-ed", "裸の写真", "", "nu\u0308de"])
    assert words.contains(texts, ("sex", "裸")).tolist() == [
        *(True, False, True, True),
        *(False, False),
    ]
