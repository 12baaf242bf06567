"""Inference: any kind of image in, unit norm out, few programs, no dependence on
batches or devices."""

import dataclasses
import io
import itertools
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metaclip_jax.data.images import Preprocess
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.evaluation.encoder import (
    make_encoder,
    padded_lengths,
    padded_rows,
    prepare_image,
)
from metaclip_jax.inference import model as inference
from metaclip_jax.models import clip, vit
from metaclip_jax.training import sharding
from tests import small_models

PREPROCESS = Preprocess(16)
TEXTS = [f"a picture of thing {n}" for n in range(23)]


def picture(seed, width=50, height=40):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image, kind="PNG"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_tokenizer(TEXTS, 600).to_str())
    return load_tokenizer(path, family="clip")


@pytest.fixture(scope="module")
def make_model(tokenizer):
    architecture = small_models.architecture(tokenizer, context_length=12)
    params = clip.init(architecture, jax.random.key(0))

    def make(
        *, devices=8, architecture=architecture, batch=16, class_cache="", **leaves
    ):
        mesh = sharding.make_mesh(
            data=devices, fsdp=1, tensor=1, devices=jax.devices()[:devices]
        )
        encoder = make_encoder(
            architecture=architecture,
            tokenizer=tokenizer,
            preprocess=PREPROCESS,
            mesh=mesh,
            batch=batch,
            params=params | leaves,
            class_cache=class_cache,
        )
        return inference.Model(encoder, name="tiny")

    return make


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture
def compiled():
    """Counts the programs that jax compiles while the test runs."""
    counted = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    jax.monitoring.unregister_event_duration_listener(listen)


def test_every_kind_of_image_gives_the_same_embedding(model, tmp_path):
    image = picture(0)
    (tmp_path / "a.png").write_bytes(encoded(image))
    same = [
        image,
        np.asarray(image),
        encoded(image),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
    ]
    found = model.embed_images(same)
    assert found.shape == (5, 16) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(found, found[:1].repeat(5, axis=0))
    stacked = np.stack([np.asarray(image)] * 2)
    np.testing.assert_allclose(model.embed_images(stacked), found[:2], atol=1e-6)


def test_results_do_not_depend_on_batch_or_devices(make_model):
    images = [picture(n, 20 + n, 30) for n in range(23)]
    one = make_model(devices=1, batch=4)
    found, texts = one.embed_images(images), one.embed_texts(TEXTS)
    for devices, batch in ((1, 64), (3, 5), (8, 16)):
        other = make_model(devices=devices, batch=batch)
        np.testing.assert_allclose(other.embed_images(images), found, atol=1e-6)
        np.testing.assert_allclose(other.embed_texts(TEXTS), texts, atol=1e-6)


def test_sizes_of_all_kinds_compile_few_programs(make_model, compiled):
    model = make_model(batch=64)
    pixels = np.zeros((200, 16, 16, 3), np.float32)
    tokens = np.zeros((200, 12), np.int32)
    model.embed_pixels(pixels[:1])
    start = len(compiled)
    for count in range(1, 200, 3):
        model.embed_pixels(pixels[:count])
    # 8 devices: portions of 8 (compiled above), 16, 32 and 64 rows.
    assert len(compiled) - start == 3
    start = len(compiled)
    for count, length in ((1, 12), (5, 3), (8, 12), (199, 7), (64, 12), (20, 5)):
        model.embed_tokens(tokens[:count, :length])
    # 8, 32 and 64 rows: 199 are four portions of 50. Texts without an end mark are
    # read at position 0, so all are cut to the first positions.
    assert len(compiled) - start == 3


@settings(max_examples=300, deadline=None)
@given(rows=st.integers(1, 5_000), shards=st.integers(1, 9))
def test_portions_are_padded_to_few_sizes_and_little(rows, shards):
    padded = padded_rows(rows, shards=shards)
    assert padded % shards == 0 and padded >= rows
    assert padded_rows(padded, shards=shards) == padded
    each = -(-rows // shards)
    if each > 16:
        assert padded < shards * (each + each / 8)
    sizes = {padded_rows(n, shards=1) for n in range(1, 257)}
    assert len(sizes) == 5 + 4 * 8


@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 77), min_size=1, max_size=40).map(sorted),
    copies=st.integers(1, 500),
    step=st.sampled_from([2, 8]),
)
def test_texts_are_padded_to_few_lengths_and_little(lengths, copies, step):
    lengths = np.repeat(lengths, copies)
    padded = padded_lengths(lengths, step=step)
    assert np.all(padded >= lengths) and np.all(np.diff(padded) >= 0)
    assert np.all(padded[lengths == lengths[-1]] < lengths[-1] + 8)
    # Each length saves 3,000 positions or more, and no other would.
    for shorter, longer in itertools.pairwise(np.unique(padded).tolist()):
        assert (longer - shorter) * np.count_nonzero(padded <= shorter) >= 3_000
    for length in range(step, 80, step):
        texts = padded[lengths <= length]
        if len(texts):
            assert (texts[-1] - length) * len(texts) < 3_000
    assert len(np.unique(padded_lengths(lengths[:3], step=step))) == 1


def test_nothing_in_gives_nothing_out(model):
    assert model.embed_images([]).shape == (0, 16)
    assert model.embed_texts([]).shape == (0, 16)


def test_the_level_below_agrees_with_the_level_above(model, tokenizer):
    images = [picture(n) for n in range(3)]
    fitted = [prepare_image(image, PREPROCESS, name="x") for image in images]
    pixels = (np.stack(fitted) / 255 - vit.IMAGE_MEAN) / vit.IMAGE_STD
    np.testing.assert_allclose(
        model.embed_pixels(pixels), model.embed_images(images), atol=1e-5
    )
    tokens, _ = tokenizer(TEXTS, 12)
    np.testing.assert_allclose(
        model.embed_tokens(tokens), model.embed_texts(TEXTS), atol=1e-6
    )
    short, _ = tokenizer(["a"], 5)
    np.testing.assert_allclose(
        model.embed_tokens(short), model.embed_texts(["a"]), atol=1e-6
    )


def test_bfloat16_is_near_float32(make_model, model):
    halved = dataclasses.replace(model.architecture, dtype="bfloat16")
    other = make_model(architecture=halved)
    images = [picture(n) for n in range(3)]
    assert other.embed_images(images).dtype == np.float32
    np.testing.assert_allclose(
        other.embed_images(images), model.embed_images(images), atol=0.03
    )
    assert other.fingerprint != model.fingerprint


def test_probabilities_are_a_softmax_of_scaled_cosines(model):
    images = [picture(n) for n in range(3)]
    found = model.classify(images, ["cat", ("dog", "hound"), "car"])
    assert found.labels == ["cat", "dog", "car"]
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)
    prompts = ["a photo of a cat.", "a photo of a dog.", "a photo of a hound."]
    texts = model.embed_texts([*prompts, "a photo of a car."])
    dog = texts[1] + texts[2]
    classes = np.stack([texts[0], dog / np.linalg.norm(dog), texts[3]])
    logits = model.embed_images(images) @ classes.T / 0.07
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    best = [found.labels[k] for k in expected.argmax(axis=1)]
    assert found.best() == best


def test_sigmoid_probabilities_stand_for_themselves(make_model):
    model = make_model(logit_bias=np.float32(-2))
    images = [picture(0)]
    alone = model.classify(images, ["cat"]).probabilities
    among = model.classify(images, ["cat", "dog"]).probabilities
    np.testing.assert_allclose(alone[:, 0], among[:, 0], atol=1e-6)
    cosine = model.embed_images(images) @ model.embed_texts(["a photo of a cat."]).T
    logit = cosine[0, 0] / 0.07 - 2
    assert alone[0, 0] == pytest.approx(1 / (1 + math.exp(-logit)), 1e-5)


def test_class_embeddings_are_kept_by_fingerprint(make_model, tmp_path, compiled):
    first = make_model(class_cache=str(tmp_path))
    classes = first.embed_classes(["cat", "dog"])
    (kept,) = tmp_path.iterdir()
    start = len(compiled)
    again = make_model(class_cache=str(tmp_path))
    np.testing.assert_array_equal(again.embed_classes(["cat", "dog"]), classes)
    assert len(compiled) == start  # read, not computed
    again.embed_classes(["cat", "dog"], templates=["{}"])
    assert len(list(tmp_path.iterdir())) == 2
    kept.write_bytes(kept.read_bytes()[:50])
    with pytest.raises(ValueError, match="is damaged.*remove it"):
        make_model(class_cache=str(tmp_path)).embed_classes(["cat", "dog"])


def test_what_cannot_be_used_is_named(model, tmp_path):
    (tmp_path / "page.jpg").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.jpg cannot be used: not_an_image"):
        model.embed_images([picture(0), tmp_path / "page.jpg"])
    with pytest.raises(ValueError, match="image 1 cannot be used: truncated_image"):
        model.embed_images([picture(0), encoded(picture(1))[:200]])
    with pytest.raises(FileNotFoundError, match=r"no image .*nothing\.png"):
        model.embed_images([tmp_path / "nothing.png"])
    huge = Image.new("L", (9_000, 9_000))
    with pytest.raises(ValueError, match="image 0 cannot be used: too_many_pixels"):
        model.embed_images([huge])
    with pytest.raises(ValueError, match="image 0 .* use embed_pixels"):
        model.embed_images([np.zeros((8, 8, 3), np.float32)])
    with pytest.raises(ValueError, match=r"write \[image\]"):
        model.embed_images(picture(0))
    with pytest.raises(ValueError, match=r"write \['a cat'\]"):
        model.embed_texts("a cat")
    with pytest.raises(ValueError, match="at most 12 tokens a row, got 13"):
        model.embed_tokens(np.zeros((1, 13), np.int32))
    with pytest.raises(ValueError, match="use the model's tokenizer"):
        model.embed_tokens(np.full((1, 5), 10**6))
    with pytest.raises(ValueError, match="normalised float pixels, got uint8"):
        model.embed_pixels(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"prompts.* must hold \{\}"):
        model.classify([picture(0)], ["cat"], templates=["a photo"])
    with pytest.raises(ValueError, match="at least 1 classes"):
        model.classify([picture(0)], [])


def test_the_package_loads_no_jax_until_a_model_is_asked_for():
    code = (
        "import sys, metaclip_jax\n"
        "assert not {'jax', 'flax', 'apache_beam'} & set(sys.modules)\n"
        "assert metaclip_jax.load.__name__ == 'load' and 'jax' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
