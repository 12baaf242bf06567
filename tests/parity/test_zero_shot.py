"""clip_benchmark's own zero-shot code on our exports answers as we do, by image."""

import io

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from metaclip_jax import convert
from metaclip_jax.data.clean_up import clean
from metaclip_jax.evaluation import evaluator, prompts, zero_shot
from metaclip_jax.evaluation.examples import Examples
from metaclip_jax.evaluation.held_out import load_held_out
from metaclip_jax.inference import loading
from metaclip_jax.inference import model as inference
from tests import real_images

theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
TEMPLATES = ("a photo of a {}.", "a photo of a {}, a type of clothing.", "the {}")


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A trained run, and the folders of both its exports."""
    workdir, _ = finished
    folder = tmp_path_factory.mktemp("exported")
    for kind in ("huggingface", "open_clip"):
        convert.convert(loading.load(workdir / "run"), kind, str(folder / kind))
    return workdir, folder


def fashion_mnist(workdir):
    """All 10,000 test images."""
    images, labels, names = real_images.fashion_mnist(10_000)
    return Examples(
        source="Fashion-MNIST",
        names=[str(n) for n in range(len(images))],
        read=lambda rows: [images[row] for row in rows.tolist()],
        class_names=tuple((name,) for name in names),
        templates=TEMPLATES,
        labels=np.array(labels),
    )


SETS = {
    "held_out": lambda workdir: load_held_out(str(workdir / "held_out")),
    "fashion_mnist": fashion_mnist,
}


class OfTransformers(torch.nn.Module):
    """A model of transformers as clip_benchmark calls one."""

    def __init__(self, folder):
        super().__init__()
        self.model = transformers.AutoModel.from_pretrained(folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def tokens(self, texts):
        found = self.tokenizer(
            texts, padding=True, truncation=True, return_tensors="pt"
        )
        return found["input_ids"]

    def encode_text(self, tokens):
        return self.model.get_text_features(tokens).pooler_output

    def encode_image(self, pixels):
        return self.model.get_image_features(pixels).pooler_output


@pytest.fixture(params=["huggingface", "open_clip"])
def opened(request, exported):
    """An export as its own library opens it, and its tokenizer."""
    folder = exported[1] / request.param
    if request.param == "huggingface":
        model = OfTransformers(folder)
        return model, model.tokens
    open_clip = request.getfixturevalue("open_clip")
    name = f"local-dir:{folder}"
    return open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)


@pytest.mark.parametrize(
    "data", ["held_out", pytest.param("fashion_mnist", marks=pytest.mark.slow)]
)
def test_the_same_answer_for_every_image(data, opened, exported):
    workdir, folder = exported
    shown = SETS[data](workdir)
    shown = shown.take(shown.labelled)._replace(
        texts=[], image_of_text=np.zeros(0, int)
    )
    encoder = inference.load(workdir / "run").encoder
    embedded = evaluator.embed(encoder, shown)
    classes = zero_shot.encode_classes(encoder, shown.class_names, shown.templates)
    our_scores = embedded.image @ classes.T

    model, tokenize = opened
    # A class of several names has prompts of its own there; none is cleaned.
    texts = {
        names[0]: [clean(text) for text in prompts.prompts(names, shown.templates)]
        for names in shown.class_names
    }
    classifier = theirs.zero_shot_classifier(
        model, tokenize, list(texts), texts, "cpu", amp=False
    )
    processor = transformers.CLIPImageProcessorPil.from_pretrained(
        folder / "huggingface"
    )

    def batches():
        for start in range(0, len(shown.names), 250):
            rows = np.arange(start, min(start + 250, len(shown.names)))
            images = [
                Image.open(io.BytesIO(image)).convert("RGB")
                for image in shown.read(rows)
            ]
            pixels = processor(images, return_tensors="pt")["pixel_values"]
            yield pixels, torch.from_numpy(shown.labels[rows])

    logits, labels = theirs.run_classification(
        model, classifier, batches(), "cpu", amp=False
    )
    np.testing.assert_array_equal(labels.numpy(), shown.labels)
    scores = logits.numpy() / 100
    np.testing.assert_allclose(our_scores, scores, atol=3e-6)
    answers, our_answers = scores.argmax(axis=1), our_scores.argmax(axis=1)
    best = np.sort(scores, axis=1)
    sure = best[:, -1] - best[:, -2] > 6e-6  # no tie but of rounding
    np.testing.assert_array_equal(our_answers[sure], answers[sure])
    assert sure.mean() > 0.99 and (our_answers == answers).mean() > 0.999
