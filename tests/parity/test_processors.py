"""Images and texts are prepared as transformers prepares them, and answers agree."""

import io

import cv2
import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from metaclip_jax import convert, inference, loading
from metaclip_jax.data import images as image_data
from metaclip_jax.data import tokenizer as tokenizers
from metaclip_jax.models import clip, vit

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
        pixels = image_data.decode_eval(data, size=64, squash=squash)
        got = (pixels.astype(np.float32) / 255 - vit.IMAGE_MEAN) / vit.IMAGE_STD
        np.testing.assert_allclose(got.transpose(2, 0, 1), want, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with a tokenizer of ours, and its folder for transformers."""
    folder = tmp_path_factory.mktemp("exported")
    path = folder / "own.json"
    path.write_text(tokenizers.train([*LABELS, "a photo of"] * 3, 600).to_str())
    tokenizer = tokenizers.load(path)
    architecture = clip.Architecture(
        image_size=32,
        patch_size=8,
        vision_width=48,
        vision_layers=2,
        vision_heads=3,
        vision_mlp_width=80,
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
    cleaned = [tokenizers.clean(text) for text in texts]
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
