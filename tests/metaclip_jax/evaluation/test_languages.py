"""Images with texts of many languages, and texts that choose among a few images."""

import itertools
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.evaluation import (
    association,
    evaluator,
    examples,
    languages,
    plan,
    retrieval,
    suite,
    tasks,
)
from metaclip_jax.evaluation.encoder import prepare_image
from tests import image_layouts, small_models

IMAGES = 12
RNG = np.random.default_rng(0)
PICTURES = [
    image_layouts.png(RNG.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(30)
]
WORDS = {"de": "ein Bild von", "sw": "picha ya", "en": "a photo of"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "t.json"
    path.write_text(train_tokenizer([*WORDS.values()] * 9, 600).to_str())
    return small_models.random_encoder(load_tokenizer(path, family="clip"))


def captions(language, image):
    """One to three; the sixth image has none in Swahili."""
    if (language, image) == ("sw", 5):
        return []
    return [f"{WORDS[language]} {image} {n}" for n in range(1 + image % 3)]


def write_xm3600(root):
    """As the two archives hold it."""
    (root / "images").mkdir(parents=True)
    lines = []
    for number in range(IMAGES):
        key = f"{number:016x}"
        (root / "images" / f"{key}.jpg").write_bytes(PICTURES[number])
        line = {"image/key": key, "image/locale": "sw"}
        for language in WORDS:
            own = captions(language, number)
            line[language] = {"caption": own, "caption/tokenized": own}
        lines.append(json.dumps(line))
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")


def test_xm3600_is_retrieval_by_language_and_embeds_its_images_once(
    encoder, tmp_path, monkeypatch
):
    write_xm3600(tmp_path / "xm3600")
    read = []
    prepare = prepare_image
    monkeypatch.setattr(
        "metaclip_jax.evaluation.encoder.prepare_image",
        lambda *a, **k: read.append(1) or prepare(*a, **k),
    )
    asked = tasks.find(["xm3600/de", "xm3600/sw"])
    opened = suite.open_tasks(asked, str(tmp_path))
    assert [len(one.examples.names) for one in opened] == [IMAGES, IMAGES - 1]
    found = suite.run(encoder, opened, resamples=20, report=str)
    assert len(read) == IMAGES

    for language, kept in (("de", range(IMAGES)), ("sw", np.delete(range(IMAGES), 5))):
        texts = [captions(language, image) for image in kept]
        image_of_text = np.repeat(np.arange(len(kept)), [len(own) for own in texts])
        ranks = retrieval.ranks(
            encoder.encode_images(
                lambda rows, kept=kept: [PICTURES[kept[row]] for row in rows],
                names=str,
                total=len(kept),
            ),
            encoder.encode_texts([text for own in texts for text in own]),
            image_of_text,
        )
        expected = np.mean([np.mean(one < 1) for one in ranks])
        number = found["tasks"][f"xm3600/{language}"]
        assert number["value"] == pytest.approx(expected)
    means = found["averages"]["xm3600"]
    assert (means["tasks"], means["of"]) == (2, 36)
    assert means["mean"]["value"] == pytest.approx(
        np.mean([one["value"] for one in found["tasks"].values()])
    )


def test_what_is_missing_of_xm3600_is_named(tmp_path):
    (found,) = suite.open_tasks(tasks.find(["xm3600/de"]), str(tmp_path))
    assert found.examples is None
    assert (
        "3,600 images, size: about 190 MB (estimated), licence: CC BY 4.0, images CC BY"
        in found.why
    )
    several = suite.open_tasks(tasks.find(["xm3600", "babel/de"]), str(tmp_path))
    said = plan.describe(several)
    assert said.count("missing  xm3600 ") == 1 and "missing  xm3600/de" not in said
    assert re.search(
        "50,000 images, size: .*, licence: ImageNet's and BabelNet's", said
    )
    root = tmp_path / "xm3600"
    write_xm3600(root)
    with pytest.raises(ValueError, match="wanted captions in fr"):
        suite.open_tasks(tasks.find(["xm3600/fr"]), str(tmp_path))
    (root / "images" / f"{3:016x}.jpg").unlink()
    with pytest.raises(ValueError, match="1 are missing, the first 0000000000000003"):
        languages.open_suite("xm3600", str(tmp_path))
    (root / "captions.jsonl").write_text('{"image/key": "a"}\n{"de": {}}\n')
    with pytest.raises(
        ValueError, match="captions.jsonl:2: wanted an object with image"
    ):
        languages.open_suite("xm3600", str(tmp_path))


def write_imagenet(root, images_per_class=1):
    (imagenet,) = tasks.find(["clip26/imagenet"])
    names = [own[0] for own in tasks.paper_prompts(imagenet).class_names]
    labels = np.repeat(np.arange(1000), images_per_class)
    labels = np.random.default_rng(1).permutation(labels)  # no order may be relied on
    images = [PICTURES[label % len(PICTURES)] for label in labels]
    rows = [str(label).encode() for label in labels]
    image_layouts.write_webdataset(root / imagenet.folder, images, rows, names)
    return labels


def test_babel_imagenet_asks_for_a_language_s_classes_in_its_words(encoder, tmp_path):
    labels = write_imagenet(tmp_path)
    lists = tmp_path / "babel_imagenet"
    lists.mkdir()
    own = {"DE": [[7, 3, 999, 20], ["Hahn", "Tigerhai", "Klopapier", "Wasseramsel"]]}
    templates = {"DE": ["ein Bild von {}.", "{}"]}
    (lists / "babel_imagenet.json").write_text(json.dumps(own))
    (lists / "nllb_dist13b_prompts.json").write_text(json.dumps(templates))
    (task,) = tasks.find(["babel/de"])
    open_language = languages.open_suite("babel", str(tmp_path))
    with pytest.raises(ValueError, match="wanted lists of DE of the fingerprints"):
        open_language(task)
    fingerprints = tuple(tasks.fingerprint(one["DE"]) for one in (own, templates))
    shown = open_language(task._replace(fingerprints=fingerprints))
    assert shown.class_names == tuple((name,) for name in own["DE"][1])
    assert shown.templates == tuple(templates["DE"])
    of_class = [own["DE"][0][label] for label in shown.labels]
    assert of_class == [label for label in labels if label in own["DE"][0]]
    # The same number as of a data set that holds only these images.
    alone = shown._replace(whole=None)
    one, other = (evaluator.evaluate(encoder, e, resamples=20) for e in (shown, alone))
    assert one == other and one["zero_shot"]["classes"] == 4
    assert encoder.wholes["last"].embeddings.shape[0] == 1000


def test_broken_images_are_left_out_of_each_part(encoder, tmp_path):
    write_xm3600(tmp_path / "xm3600")
    (tmp_path / "xm3600" / "images" / f"{2:016x}.jpg").write_bytes(b"no image")
    opened = suite.open_tasks(tasks.find(["xm3600/de", "xm3600/sw"]), str(tmp_path))
    found = suite.run(encoder, opened, resamples=5, report=str, skip_broken=True)
    for number in found["tasks"].values():
        assert list(number["results"]["skipped"]) == [f"{2:016x}"]
    with pytest.raises(ValueError, match="0000000000000002.jpg cannot be used"):
        suite.run(encoder, opened, resamples=5, report=str)


# WinoGAViL.


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_the_jaccard_index_is_scikit_learn_s(seed, count):
    rng = np.random.default_rng(seed)
    right = np.zeros(count, bool)
    right[rng.permutation(count)[: rng.integers(1, count + 1)]] = True
    scores = rng.normal(size=count)
    answered = np.isin(np.arange(count), np.argsort(scores)[-right.sum() :])
    expected = jaccard_score(right, answered)
    assert association.jaccard(scores, right) == pytest.approx(expected)


@pytest.mark.parametrize(("images", "right"), [(5, 1), (5, 2), (6, 3), (4, 4)])
def test_chance_is_the_mean_over_all_answers(images, right):
    def index(answer):
        hits = len(set(answer) & set(range(right)))
        return hits / (2 * right - hits)

    every = [index(a) for a in itertools.combinations(range(images), right)]
    assert association.chance(images, right) == pytest.approx(np.mean(every))


def write_winogavil(root, items):
    """As the library datasets writes it: candidates, and a picture of each."""
    rows = [
        {
            "ID": number,
            "cue": cue,
            "candidates": [f"name {k}" for k in candidates],
            "associations": [f"name {k}" for k in right],
            "num_associations": len(right),
            "candidate_images": [
                {"bytes": PICTURES[k], "path": f"name {k}.jpg"} for k in candidates
            ],
        }
        for number, (cue, candidates, right) in enumerate(items)
    ]
    root.mkdir(parents=True)
    path = root / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return str(root)


def items():
    rng = np.random.default_rng(3)
    found = []
    for number, size in enumerate([5, 6, 10, 12, 10, 12, 5, 10]):
        candidates = rng.permutation(len(PICTURES))[:size].tolist()
        right = candidates[: int(rng.integers(1, 4))]
        found.append(
            (f"{'Owl' if number % 2 else 'photo'} {number}", candidates, right)
        )
    return found


def test_winogavil_is_datacomp_s_mean_over_ten_to_twelve_candidates(encoder, tmp_path):
    write_winogavil(tmp_path / "winogavil", items())
    opened = suite.open_tasks(tasks.find(["misc/winogavil"]), str(tmp_path))
    found = suite.run(encoder, opened, resamples=50, report=str)
    number = found["tasks"]["datacomp38/misc/winogavil"]
    assert number["images"] == 8
    embedded = encoder.encode_images(
        lambda rows: [PICTURES[row] for row in rows], names=str, total=len(PICTURES)
    )
    expected = {}
    for cue, candidates, right in items():
        text = f"{'An' if cue[0] in 'Oo' else 'A'} {cue.lower()}"
        scores = embedded[candidates] @ encoder.encode_texts([text])[0]
        answered = np.isin(range(len(scores)), np.argsort(scores)[-len(right) :])
        score = jaccard_score(np.isin(candidates, right), answered)
        expected.setdefault(len(candidates), []).append(score)
    large = np.mean(expected[10] + expected[12])
    assert number["value"] == pytest.approx(large)
    assert number["low"] <= large <= number["high"] and 0 < number["chance"] < 1
    results = number["results"]["association"]
    small = np.mean(expected[5] + expected[6])
    assert results["jaccard_5_6"]["value"] == pytest.approx(small)


def test_a_text_with_a_broken_candidate_is_left_out(encoder, tmp_path):
    folder = write_winogavil(tmp_path / "winogavil", items())
    shown = evaluator.open_data(folder)
    used = {name for name in shown.names}
    broken = sorted(used)[0]
    read = shown.read

    def damaged(rows):
        names = [shown.names[row] for row in rows.tolist()]
        return [
            b"x" if name == broken else image
            for name, image in zip(names, read(rows), strict=True)
        ]

    found = evaluator.embed_usable(
        encoder, shown._replace(read=damaged), skip_broken=True
    )
    assert list(found.skipped) == [broken]
    kept = [n for n, (_, c, _) in enumerate(items()) if broken not in map(name_of, c)]
    assert found.examples.texts == [shown.texts[n] for n in kept]
    for n, choice in zip(kept, found.examples.choices, strict=True):
        names = [found.examples.names[row] for row in choice.images]
        assert names == [name_of(k) for k in items()[n][1]]


def name_of(number):
    return f"name {number}"


def test_candidates_that_do_not_fit_are_refused(tmp_path):
    folder = write_winogavil(tmp_path / "a", [("owl", [1, 2, 3, 4, 5], [6])])
    with pytest.raises(
        ValueError, match="wanted associations among different cand.* 6"
    ):
        evaluator.open_data(folder)


def test_examples_of_one_kind_are_measured_by_one_evaluation(encoder, tmp_path):
    folder = write_winogavil(tmp_path / "winogavil", items())
    shown = evaluator.open_data(folder)
    assert set(evaluator.names(shown)) == set(association.SIZES)
    assert isinstance(shown.choices[0], examples.Choice)
