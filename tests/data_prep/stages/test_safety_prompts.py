"""Images are dropped by prompts of a CLIP model, and the data card names them."""

import numpy as np
import pytest

import metaclip_jax
from data_prep.images import safety
from metaclip_jax import convert
from metaclip_jax.data import records
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.inference import loading
from tests import small_models
from tests.data_prep import tiny_web

UNSAFE, SAFE = ("a red drawing", "blood"), ("a photo", "a blue cat", "a dog")
COUNT = 12
PATHS = [f"/{n}.jpg" for n in range(COUNT)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder in the form of the hub, with random weights."""
    folder = tmp_path_factory.mktemp("model")
    own = folder / "own.json"
    own.write_text(train_tokenizer([*UNSAFE, *SAFE] * 3, 600).to_str())
    tokenizer = load_tokenizer(own, family="clip")
    architecture = small_models.architecture(tokenizer, image_size=32)
    params = small_models.random_params(architecture)
    params["log_logit_scale"] = np.float32(np.log(100))  # as trained models have it
    loaded = loading.Loaded(
        name="small",
        architecture=architecture,
        params=params,
        tokenizer=tokenizer,
        preprocess=loading.Preprocess(32, squash=True),
        licence="",
    )
    convert.convert(loaded, "huggingface", str(folder / "hub"))
    return str(folder / "hub")


def test_images_above_the_score_of_the_prompts_are_dropped(model, tmp_path):
    bodies = {path: tiny_web.picture(n) for n, path in enumerate(PATHS)}
    loaded = metaclip_jax.load(model)
    answers = loaded.classify(list(bodies.values()), [UNSAFE, SAFE], templates=("{}",))
    scores = answers.probabilities[:, 0]
    ascending = np.sort(scores)
    at = int(np.argmax(np.diff(ascending)))  # the widest gap
    most = float(ascending[at : at + 2].mean())
    assert ascending[at + 1] - most > 1e-3
    run = tiny_web.run(
        tmp_path,
        [(path, f"a cat {path}") for path in PATHS],
        bodies,
        **{"balance.rule": "online", "safety.image_scorer": "clip"},
        **{"safety.clip_model": model, "safety.max_image_score": most},
        **{"safety.unsafe_prompts": UNSAFE, "safety.safe_prompts": SAFE},
    )
    dataset = records.open_dataset(run.output)
    found = [records.decode(r) for r in records.read(dataset, range(len(dataset)))]
    assert sorted(text for record in found for text in record.texts) == sorted(
        f"a cat {PATHS[n]}" for n in np.flatnonzero(scores < most)
    )
    card = dataset.data_card
    (screen,) = [row for row in card["funnel"] if row["stage"] == "screen"]
    assert screen["drops"] == {"unsafe_image": COUNT - 1 - at}
    assert card["models"] == {
        "image_scorer": {
            "name": f"{model} {loaded.fingerprint}",
            "max_score": most,
            "unsafe_prompts": list(UNSAFE),
            "safe_prompts": list(SAFE),
        }
    }


def test_exchanging_the_prompts_gives_the_other_probability(model):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    one = safety.load(safety.Choice("clip", model, UNSAFE, SAFE)).score(pixels)
    other = safety.load(safety.Choice("clip", model, SAFE, UNSAFE)).score(pixels)
    assert one + other == pytest.approx(1) and one != other


@pytest.mark.parametrize(
    "values",
    [
        {"image_scorer": "clip"},
        {"image_scorer": "clip", "clip_model": "m", "unsafe_prompts": UNSAFE},
        {"image_scorer": "opennsfw", "safe_prompts": SAFE},
        {"clip_model": "m"},
    ],
)
def test_model_and_prompts_belong_together(tmp_path, values):
    named = {f"safety.{key}": value for key, value in values.items()}
    with pytest.raises(
        ValueError, match="config.safety.image_scorer=.*: wanted 'clip'"
    ):
        tiny_web.plan(tmp_path, [(PATHS[0], "a cat")], **named)
