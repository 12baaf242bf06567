"""A model that the quick start trained, through transformers, open_clip and ours."""

import io

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from metaclip_jax import convert
from metaclip_jax.data.clean_up import clean
from metaclip_jax.evaluation import held_out as held_outs
from metaclip_jax.inference import loading
from metaclip_jax.inference import model as inference


@pytest.fixture(scope="module")
def seen(finished, tmp_path_factory):
    """Our embeddings of the held-out images and of the zero-shot classes."""
    workdir, _ = finished
    held_out = held_outs.load_held_out(str(workdir / "held_out"))
    images = held_out.read(np.arange(len(held_out.names)))
    folder = tmp_path_factory.mktemp("exported")
    loaded = loading.load(workdir / "run")
    for to in ("huggingface", "open_clip"):
        convert.convert(loaded, to, str(folder / to))
    model = inference.load(workdir / "run")
    task = held_out
    classes = model.embed_classes(task.class_names, templates=task.templates)
    return folder, images, task, model.embed_images(images), classes


def prompts(task):
    """[K][prompts], cleaned as transformers' tokenizer does not by itself."""
    return [
        [clean(template.format(name)) for name in names for template in task.templates]
        for names in task.class_names
    ]


def unit(x):
    x = np.asarray(x)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def assert_same_answers(seen, encode_images, encode_texts, folder):
    _, images, task, ours, our_classes = seen
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    shown = [Image.open(io.BytesIO(image)) for image in images]
    with torch.no_grad():
        pixels = processor(shown, return_tensors="pt")["pixel_values"]
        theirs = unit(encode_images(pixels))
        classes = unit(
            np.stack(
                [
                    unit(encode_texts(each)).mean(axis=0, dtype=np.float64)
                    for each in prompts(task)
                ]
            )
        )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(our_classes, classes, atol=1e-4)
    scores, our_scores = theirs @ classes.T, ours @ our_classes.T
    np.testing.assert_allclose(our_scores, scores, atol=2e-6)
    best = np.sort(scores, axis=1)
    sure = best[:, -1] - best[:, -2] > 4e-6  # no tie but of rounding
    assert sure.mean() > 0.9
    answers, our_answers = scores.argmax(axis=1), our_scores.argmax(axis=1)
    np.testing.assert_array_equal(our_answers[sure], answers[sure])


def test_transformers_gives_the_same_answers_image_by_image(seen):
    folder = seen[0] / "huggingface"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def encode_texts(texts):
        encoded = tokenizer(
            texts, padding=True, truncation=True, return_tensors="pt"
        ).data
        encoded.pop("token_type_ids", None)
        return model.get_text_features(**encoded).pooler_output

    assert_same_answers(
        seen,
        lambda pixels: model.get_image_features(pixels).pooler_output,
        encode_texts,
        folder,
    )


def test_open_clip_gives_the_same_answers_image_by_image(seen, open_clip):
    folder = seen[0] / "open_clip"
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    assert_same_answers(
        seen,
        model.encode_image,
        lambda texts: model.encode_text(tokenizer(texts)),
        seen[0] / "huggingface",
    )
