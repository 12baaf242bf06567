"""A trained model for inference: images and texts in, unit-norm NumPy embeddings out.

    model = metaclip_jax.load(NAME_OR_PATH)
    model.embed_images(images); model.embed_texts(texts)
    model.classify(images, labels)

metaclip_jax/evaluation/encoder.py preprocesses and encodes the inputs.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from metaclip_jax.evaluation import prompts, zero_shot
from metaclip_jax.evaluation.encoder import (
    Encoder,
    ImageLike,
    make_encoder,
)
from metaclip_jax.evaluation.prompts import DEFAULT_TEMPLATES
from metaclip_jax.inference import loading
from metaclip_jax.models import clip
from metaclip_jax.training import sharding

# A class: its name, or several names of the same class.
Label = str | Sequence[str]


class Classification(NamedTuple):
    """`labels`: the K classes' first names; `probabilities`: f32[N, K]."""

    labels: list[str]
    probabilities: np.ndarray

    def best(self) -> list[str]:
        """Returns the most probable label of each image."""
        return [self.labels[k] for k in self.probabilities.argmax(axis=1)]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model on the devices, with its tokenizer and preprocessing.

    Attributes:
      encoder: embeds images and texts; it has the tokenizer and the preprocessing.
      name: the path or hub name that it was loaded from.
      licence: of the weights, "" if unknown.
    """

    encoder: Encoder
    name: str
    licence: str = ""

    @property
    def architecture(self) -> clip.Architecture:
        """The model's hyperparameters."""
        return self.encoder.architecture

    @property
    def batch(self) -> int:
        """The most rows encoded at a time, over all devices."""
        return self.encoder.batch

    @property
    def probability(self) -> str:
        """Either "softmax" over the labels (CLIP), or "sigmoid" of each (SigLIP)."""
        return "sigmoid" if "logit_bias" in self.encoder.params else "softmax"

    @property
    def logit_scale(self) -> float:
        """The factor of cosines before the softmax or sigmoid."""
        return float(np.exp(np.float32(self.encoder.params["log_logit_scale"])))

    @property
    def logit_bias(self) -> float:
        """The summand of scaled cosines before the sigmoid; 0 for a softmax."""
        return float(self.encoder.params.get("logit_bias", 0.0))

    @property
    def fingerprint(self) -> str:
        """The hex hash of everything that affects an embedding."""
        return self.encoder.fingerprint

    def embed_images(self, images: Sequence[ImageLike] | np.ndarray) -> np.ndarray:
        """Embeds n images, f32[n, E], unit norm.

        Args:
          images: bytes, paths, Pillow images or uint8[H, W, 3] arrays, in any mixture
            and of any size; or uint8[n, H, W, 3].

        Raises:
          ValueError: an image cannot be decoded, or is larger than
            decoding.MAX_PIXELS; the message has its path or index.
          FileNotFoundError: a path does not exist.
        """
        if isinstance(images, bytes | str | os.PathLike | Image.Image) or (
            isinstance(images, np.ndarray) and images.ndim != 4
        ):
            raise ValueError(
                "wanted a list of images (or uint8[n, H, W, 3]), got one"
                f" {type(images).__name__}; write [image]"
            )
        size, total = self.architecture.image_size, len(images)
        if isinstance(images, np.ndarray) and images.shape[1:] == (size, size, 3):
            if images.dtype == np.uint8:  # already of the model's size
                return self.encoder.encode_pixels(images)
        return self.encoder.encode_images(
            lambda rows: [images[row] for row in rows],
            names=lambda row: f"image {row}",
            total=total,
        )

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds n texts, f32[n, E], unit norm; long texts are truncated."""
        if isinstance(texts, str):
            raise ValueError(f"wanted a list of texts, got one; write [{texts[:40]!r}]")
        return self.encoder.encode_texts(texts)

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Embeds f32[B, H, W, 3] as f32[B, E], unit norm.

        H = W = architecture.image_size, RGB, normalised by the model's mean and
        standard deviation. `embed_images` takes uint8 images.

        Raises:
          ValueError: the dtype or the shape is another.
        """
        if np.asarray(pixels).dtype.kind != "f":
            raise ValueError(
                f"wanted normalised float pixels, got {np.asarray(pixels).dtype}; use"
                " embed_images for images"
            )
        pixels = np.asarray(pixels, np.float32)
        size = self.architecture.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
            raise ValueError(f"wanted f32[B, {size}, {size}, 3], got {pixels.shape}")
        return self.encoder.encode_pixels(pixels)

    def embed_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Embeds i32[B, T] as f32[B, E], unit norm; T is at most the context length.

        Rows must contain the model's marks; they are padded to the context length.

        Raises:
          ValueError: the dtype, the shape or an id is not the model's.
        """
        tokens = np.asarray(tokens)
        longest = self.architecture.context_length
        vocabulary = self.architecture.vocab_size
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"wanted integers [B, T], got {tokens.dtype}{list(tokens.shape)}"
            )
        if tokens.shape[1] > longest:
            raise ValueError(
                f"wanted at most {longest} tokens a row, got {tokens.shape[1]};"
                " truncate them before the end mark"
            )
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary:
            raise ValueError(
                f"wanted ids from 0 to {vocabulary - 1}, got {tokens.min()} to"
                f" {tokens.max()}; use the model's tokenizer"
            )
        tokens = np.pad(
            tokens.astype(np.int32),
            [(0, 0), (0, longest - tokens.shape[1])],
            constant_values=self.architecture.pad_id,
        )
        return self.encoder.encode_tokens(tokens)

    def embed_classes(
        self, labels: Sequence[Label], *, templates: Sequence[str] = DEFAULT_TEMPLATES
    ) -> np.ndarray:
        """Embeds K classes, f32[K, E], unit norm; see `zero_shot.class_embeddings`.

        `zero_shot.encode_classes` caches the result.
        """
        asked = prompts.make_prompts(labels, templates)
        return zero_shot.encode_classes(
            self.encoder, asked.class_names, asked.templates
        )

    def classify(
        self,
        images: Sequence[ImageLike] | np.ndarray,
        labels: Sequence[Label],
        *,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> Classification:
        """Classifies images zero-shot: the probability of each label for each image.

        CLIP's probabilities are a softmax over the labels: they sum to 1 and answer
        "which of these". SigLIP's are independent sigmoids: each answers "is it this",
        and all may be small.

        Args:
          images: see `embed_images`.
          labels: K names, or lists of names of the same class.
          templates: prompts with {} for the name; a class is the mean of its prompts.
        """
        classes = self.embed_classes(labels, templates=templates)
        cosines = self.embed_images(images) @ classes.T  # [N, K]
        names = [label if isinstance(label, str) else label[0] for label in labels]
        return Classification(names, self.probabilities(cosines))

    def probabilities(self, cosines: np.ndarray) -> np.ndarray:
        """Returns the probabilities f32[N, K] for cosines f32[N, K]."""
        logits = cosines.astype(np.float64) * self.logit_scale + self.logit_bias
        if self.probability == "sigmoid":
            return (0.5 * (1 + np.tanh(0.5 * logits))).astype(np.float32)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def load(
    name_or_path: str | os.PathLike,
    *,
    dtype: str = "",
    batch: int = 0,
    mesh: Mesh | None = None,
    step: int | None = None,
    class_cache: str = "",
    preset: str = "",
    trust_pickle: bool = False,
    image_size: int | None = None,
    position_resize: str = "open_clip",
) -> Model:
    """Loads a model for inference.

    Args:
      name_or_path: a folder of Hugging Face or open_clip, a weight file, a name on the
        hub, or a run's workdir: see `loading.load`.
      dtype: of the towers' matrix products: float32, or bfloat16 (faster on
        accelerators; embeddings agree to about two digits); "" = that of a run's
        training, float32 for other models.
      batch: most rows at a time; 0 = by the device, see `encoder.default_batch`.
      mesh: None = all devices.
      step: which checkpoint of a run; None = the newest.
      class_cache: folder for class embeddings; "" = only in memory.
      preset: architecture of a weight file.
      trust_pickle: whether torch files may run their author's code.
      image_size: pixels; None = as trained. Another size resizes the position
        embeddings.
      position_resize: "open_clip" or "metaclip": see models/positions.py.

    Raises:
      FileNotFoundError: there is no such model.
      ValueError: the model is not supported, or has no tokenizer.
    """
    loaded = loading.load(
        name_or_path,
        preset=preset,
        trust_pickle=trust_pickle,
        step=step,
        image_size=image_size,
        position_resize=position_resize,
    )
    if loaded.tokenizer is None:
        raise ValueError(
            f"{loaded.name} needs a tokenizer.json, got none; copy the model's "
            "tokenizer.json into its folder"
        )
    if mesh is None:
        mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    architecture = loaded.architecture
    encoder = make_encoder(
        architecture=dataclasses.replace(
            architecture, dtype=dtype or architecture.dtype
        ),
        tokenizer=loaded.tokenizer,
        preprocess=loaded.preprocess,
        mesh=mesh,
        batch=batch,
        params=loaded.params,
        class_cache=class_cache,
    )
    return Model(encoder, loaded.name, loaded.licence)
