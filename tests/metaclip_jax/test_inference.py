"""The same embeddings, however images come and batches are cut."""

import io
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from metaclip_jax import inference, loading, predict
from metaclip_jax.data import tokenizer as tokenizers
from metaclip_jax.models import clip

LABELS = ["red cat", "blue dog", "green bird"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A random model with a small tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tokenizers.train(LABELS * 3, vocab_size=560).to_str())
    tokenizer = tokenizers.load(path)
    architecture = clip.Architecture(
        image_size=32,
        patch_size=8,
        vision_width=32,
        vision_layers=2,
        vision_heads=2,
        vision_mlp_width=64,
        text_width=32,
        text_layers=2,
        text_heads=2,
        text_mlp_width=64,
        context_length=16,
        vocab_size=tokenizer.vocab_size,
        embed_dim=24,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    params = clip.init(architecture, jax.random.key(0))
    return loading.Loaded(
        name="small",
        architecture=architecture,
        params=jax.tree.map(np.asarray, params),
        tokenizer=tokenizer,
        preprocess=loading.Preprocess(32, squash=False),
    )


@pytest.fixture(scope="module")
def model(loaded):
    return inference.Model(loaded, batch=16)


def pictures(count, *, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 256, (*rng.integers(20, 60, 2), 3)).astype(np.uint8)
        for _ in range(count)
    ]


def test_portions_and_padding_change_nothing(model, loaded):
    images = pictures(37)
    whole = model.embed_images(images)
    assert whole.shape == (37, 24) and whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    single = np.concatenate([model.embed_images([image]) for image in images[:5]])
    np.testing.assert_allclose(single, whole[:5], atol=1e-6)
    larger = inference.Model(loaded, batch=64).embed_images(images)
    np.testing.assert_allclose(larger, whole, atol=1e-6)
    assert model.embed_images([]).shape == (0, 24)


def test_few_shapes_are_compiled(loaded):
    model = inference.Model(loaded, batch=32)
    for count in range(1, 70):
        model.embed_pixels(np.zeros((count, 32, 32, 3), np.uint8))
    assert model._encode_image._cache_size() == 3  # 8, 16 and 32 rows on 8 devices
    sizes = {inference.padded_size(n, devices=8, most=48) for n in range(1, 49)}
    assert sizes == {8, 16, 32, 48}


def test_paths_bytes_pictures_and_arrays_are_the_same_image(model, tmp_path):
    (array,) = pictures(1)
    picture = Image.fromarray(array)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    found = model.embed_images([path, str(path), buffer.getvalue(), picture, array])
    np.testing.assert_allclose(found, found[:1].repeat(5, axis=0), atol=1e-6)


def test_an_image_that_is_none_is_named(model, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image 1 \(.*no\.png\): not_an_image"):
        model.embed_images([pictures(1)[0], tmp_path / "no.png"])
    with pytest.raises(ValueError, match=r"image 0: wanted uint8\[H, W, 3\]"):
        model.embed_images([np.zeros((4, 4), np.uint8)])
    with pytest.raises(FileNotFoundError):
        model.embed_images([tmp_path / "nowhere.png"])


def test_probabilities_are_the_softmax_of_scaled_cosines(model):
    images = pictures(6)
    templates = ["a {}.", "{} here"]
    answers = model.classify(images, LABELS, templates=templates)
    prompts = [[t.replace("{}", label) for t in templates] for label in LABELS]
    means = [model.embed_texts(texts).mean(axis=0) for texts in prompts]
    classes = np.stack([mean / np.linalg.norm(mean) for mean in means])
    logits = model.logit_scale * model.embed_images(images) @ classes.T
    want = np.asarray(jax.nn.softmax(logits, axis=1))
    np.testing.assert_allclose(answers.probabilities, want, atol=1e-5)
    assert answers.labels == [LABELS[i] for i in want.argmax(axis=1)]


def test_ids_beyond_the_vocabulary_are_refused(model, loaded):
    tokens = np.full((1, 16), loaded.architecture.vocab_size, np.int32)
    with pytest.raises(ValueError, match="another model's tokenizer"):
        model.embed_tokens(tokens)


def test_bfloat16_is_near_float32(model, loaded):
    images = pictures(4)
    low = inference.Model(loaded, dtype="bfloat16", batch=16).embed_images(images)
    cosines = np.sum(low * model.embed_images(images), axis=1)
    assert low.dtype == np.float32 and cosines.min() > 0.99


def test_the_package_is_lazy():
    code = (
        "import sys, metaclip_jax; before = 'jax' in sys.modules;"
        "metaclip_jax.load; print(before, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_what_is_printed_cannot_steer_a_terminal():
    shown = predict.table(["\x1b[2Ja.png"], ["x\u202e", "b"], np.array([[0.25, 0.75]]))
    assert shown.splitlines() == [
        "\\x1b[2Ja.png",
        "   75.00%  b",
        "   25.00%  x\\u202e",
    ]
