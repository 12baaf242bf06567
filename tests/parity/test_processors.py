"""Images and texts are prepared as transformers prepares them, and answers agree."""

import io
import json
import re

import cv2
import jax
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metaclip_jax import convert
from metaclip_jax.conversion import processor
from metaclip_jax.data import images as image_data
from metaclip_jax.data.clean_up import clean
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.inference import loading
from metaclip_jax.inference import model as inference
from metaclip_jax.models import clip, vit
from tests import small_models

LABELS = ["red cat", "blue dog", "green bird", "an old house"]


def pictures(count):
    """Smooth pictures of any shape; noise alone would hide differences."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        small = rng.integers(0, 256, (*rng.integers(3, 9, 2), 3)).astype(np.uint8)
        size = tuple(rng.integers(33, 300, 2).tolist())
        yield Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def transparent(picture, kind):
    """The PNG of a picture whose colours go on where nobody sees them."""
    ramp = np.linspace(-64, 320, picture.width).clip(0, 255).astype(np.uint8)
    alpha = Image.fromarray(np.tile(ramp, (picture.height, 1)))
    if kind == "RGBA 16":
        picture.putalpha(alpha)
        pixels = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGBA2BGRA)
        return cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes()
    if kind == "P":
        picture = picture.quantize(16)
        picture.info["transparency"] = bytes(range(0, 256, 16))
    elif kind == "RGB":
        picture.info["transparency"] = picture.getpixel((0, 0))
    else:
        picture = picture.convert(kind)
        picture.putalpha(alpha)
    return png(picture)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("kind", ["opaque", "RGBA", "LA", "P", "RGB", "RGBA 16"])
def test_images_equal_the_processor(kind, squash):
    square = {"height": 64, "width": 64}
    processor = transformers.CLIPImageProcessorPil(
        size=square if squash else {"shortest_edge": 64},
        do_center_crop=not squash,
        crop_size=square,
    )
    for picture in pictures(100 if kind == "opaque" else 20):
        data = png(picture) if kind == "opaque" else transparent(picture, kind)
        stored = Image.open(io.BytesIO(data))
        assert stored.has_transparency_data == (kind != "opaque")
        want = processor(stored, return_tensors="np")["pixel_values"][0]
        pixels = image_data.decode_eval(data, image_data.Preprocess(64, squash))
        got = (pixels.astype(np.float32) / 255 - vit.IMAGE_MEAN) / vit.IMAGE_STD
        np.testing.assert_allclose(got.transpose(2, 0, 1), want, atol=1e-5)


SIZE = 32
SQUARE = {"height": SIZE, "width": SIZE}
# What files have been seen to hold, and what they might.
FIELDS = {
    "do_resize": [True, True, False],
    "size": [
        {"shortest_edge": SIZE},
        {"shortest_edge": 37},
        {"shortest_edge": 30},
        SQUARE,
        {"height": 40, "width": 40},
        {"height": 40, "width": 36},
        {"longest_edge": SIZE},
        {"shortest_edge": SIZE, "longest_edge": 64},
        SIZE,
        36,
        [SIZE, SIZE],
    ],
    "default_to_square": [False, True],
    "resample": [0, 1, 2, 3, 3, 4, 5],
    "do_center_crop": [True, True, False],
    "crop_size": [SQUARE, SIZE, {"height": SIZE, "width": 28}, 30, [SIZE, SIZE]],
    "do_rescale": [True, True, False],
    "rescale_factor": [1 / 255, 1 / 127.5, 0.00392156862745098],
    "do_normalize": [True, True, False],
    "image_mean": [vit.IMAGE_MEAN.tolist(), [0.5] * 3, 0.5],
    "image_std": [vit.IMAGE_STD.tolist(), [0.5] * 3, 0.5],
    "do_convert_rgb": [True, False],
    "do_pad": [False, True],
    "pad_size": [{"height": 40, "width": 40}],
    "image_processor_type": [
        "CLIPImageProcessor",
        "CLIPImageProcessorFast",
        "SiglipImageProcessor",
        "ViTImageProcessor",
    ],
    "feature_extractor_type": ["CLIPFeatureExtractor"],
    "processor_class": ["CLIPProcessor"],
    "crop_pct": [0.9],
    "data_format": ["channels_first"],
}
# Most fields are as they should be: otherwise nearly all examples are refused.
USUAL = {
    "size": SIZE,
    "crop_size": SIZE,
    "image_mean": vit.IMAGE_MEAN.tolist(),
    "image_std": vit.IMAGE_STD.tolist(),
    "image_processor_type": "CLIPImageProcessor",
}


@st.composite
def processors(draw):
    """The fields of a preprocessor_config.json, a few of them changed, null or gone."""
    fields = dict(USUAL)
    changed = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True))
    for name in changed:
        fields[name] = draw(st.sampled_from([*FIELDS[name], None]))
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=1)):
        fields.pop(name)
    return fields


SMALL = clip.Architecture(
    image_size=SIZE,
    patch_size=8,
    vision_width=8,
    vision_layers=2,
    vision_heads=1,
    vision_mlp_width=8,
    text_width=8,
    text_layers=2,
    text_heads=1,
    text_mlp_width=8,
    context_length=8,
    vocab_size=8,
    embed_dim=8,
    eos_id=1,
    pad_id=0,
)
SHOWN = list(pictures(4))


def ours(folder):
    preprocess = loading.read_preprocess(folder, SMALL)
    fitted = [image_data.fit_eval(one, preprocess) for one in SHOWN]
    pixels = np.stack(fitted).astype(np.float32) / 255
    return ((pixels - vit.IMAGE_MEAN) / vit.IMAGE_STD).transpose(0, 3, 1, 2)


def theirs(folder):
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return np.stack(processor(SHOWN, return_tensors="np")["pixel_values"])


def write_processor(folder, fields, *, nested):
    for file in folder.glob("*"):
        file.unlink()
    config = {"model_type": "clip", "architectures": ["CLIPModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    if nested:  # and that of the older form says something else
        written = {"image_processor": fields, "processor_class": "CLIPProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(written))
        fields = {"resample": 0}
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))


@settings(max_examples=300, derandomize=True)
@given(fields=processors(), nested=st.booleans())
def test_every_field_is_honoured_as_transformers_does_or_refused(
    tmp_path_factory, fields, nested
):
    folder = tmp_path_factory.mktemp("processor")
    write_processor(folder, fields, nested=nested)
    try:
        got = ours(folder)
    except ValueError as error:
        name = re.search(r"wanted (\w+) ", str(error))
        assert name and (name[1] in fields or name[1] in FIELDS), error
        return
    np.testing.assert_allclose(got, theirs(folder), atol=1e-5)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"size": {"shortest_edge": 37}},
        {"size": {"height": 40, "width": 40}},
        {"size": SQUARE, "do_center_crop": False},
        {"size": SQUARE, "image_processor_type": "SiglipImageProcessor"},
        {"size": [36, 36], "do_convert_rgb": None},
        *({"resample": number} for number in range(6)),
    ],
)
def test_shapes_and_filters_are_those_of_transformers(tmp_path, changed, nested):
    write_processor(tmp_path, USUAL | changed, nested=nested)
    np.testing.assert_allclose(ours(tmp_path), theirs(tmp_path), atol=1e-5)


@pytest.mark.parametrize(
    "preprocess",
    [
        image_data.Preprocess(SIZE),
        image_data.Preprocess(SIZE, squash=True),
        image_data.Preprocess(SIZE, shortest=40, resample=2),
        image_data.Preprocess(SIZE, squash=True, shortest=36),
    ],
)
@pytest.mark.parametrize("saved_anew", [False, True])
def test_a_preprocess_is_written_as_transformers_reads_it(
    tmp_path, preprocess, saved_anew
):
    fields = processor.write_huggingface(preprocess, SMALL)
    write_processor(tmp_path, fields, nested=False)
    if saved_anew:  # with all that the library adds
        processor_ = transformers.AutoImageProcessor.from_pretrained(
            tmp_path, backend="pil"
        )
        processor_.save_pretrained(tmp_path)
    assert loading.read_preprocess(tmp_path, SMALL) == preprocess
    np.testing.assert_allclose(ours(tmp_path), theirs(tmp_path), atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with a tokenizer of ours, and its folder for transformers."""
    folder = tmp_path_factory.mktemp("exported")
    path = folder / "own.json"
    path.write_text(train_tokenizer([*LABELS, "a photo of"] * 3, 600).to_str())
    tokenizer = load_tokenizer(path, family="clip")
    architecture = small_models.architecture(
        tokenizer,
        image_size=32,
        vision_width=48,
        vision_heads=3,
        vision_mlp_width=80,
        embed_dim=24,
    )
    params = clip.init(architecture, jax.random.key(1))
    loaded = loading.Loaded(
        name="small",
        architecture=architecture,
        params=jax.tree.map(np.asarray, params),
        tokenizer=tokenizer,
        preprocess=loading.Preprocess(32, squash=False),
        licence="cc-by-nc-4.0",
    )
    convert.convert(loaded, "huggingface", str(folder / "hf"))
    return loaded, folder / "hf"


def test_token_ids_are_those_of_the_exported_tokenizer(exported):
    loaded, folder = exported
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [
        *LABELS,
        "",
        "a " * 40,
        "naïve café 東京 😀",
        "x<|endoftext|>y",
        "ab\u0301",
    ]
    cleaned = [clean(text) for text in texts]
    want, _ = loaded.tokenizer(cleaned, 16)
    plain = [i for i, text in enumerate(texts) if "<|" not in text]
    got = theirs(
        [cleaned[i] for i in plain],
        padding="max_length",
        truncation=True,
        max_length=16,
        return_tensors="np",
    )["input_ids"]
    np.testing.assert_array_equal(got, want[plain])


def test_answers_agree_image_by_image(exported):
    """Through transformers' own model, processor and tokenizer, and through ours."""
    loaded, folder = exported
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    shown = list(pictures(40))
    with torch.no_grad():
        out = model(
            **tokenizer(LABELS, padding=True, return_tensors="pt"),
            pixel_values=processor(shown, return_tensors="pt")["pixel_values"],
        )
    ours = inference.load(folder, batch=16)
    assert ours.licence == "cc-by-nc-4.0"  # it travels along
    found = ours.classify([png(picture) for picture in shown], LABELS, templates=["{}"])
    want = out.logits_per_image.softmax(dim=1).numpy()
    np.testing.assert_allclose(found.probabilities, want, atol=1e-4)
    assert found.best() == [LABELS[i] for i in want.argmax(axis=1)]
    np.testing.assert_allclose(
        ours.embed_images(shown), out.image_embeds.numpy(), atol=1e-4
    )
    np.testing.assert_allclose(
        ours.embed_texts(LABELS), out.text_embeds.numpy(), atol=1e-4
    )
