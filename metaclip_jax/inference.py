"""A model to use: images and texts in, embeddings and answers out, as numpy arrays.

model = metaclip_jax.load("facebook/metaclip-b32-400m")
model.embed_images(["cat.jpg"]) @ model.embed_texts(["a cat", "a dog"]).T
model.classify(["cat.jpg"], ["cat", "dog"], templates=["a photo of a {}."])
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaclip_jax import files, loading, sharding
from metaclip_jax.data import images as image_data
from metaclip_jax.evaluation import prompts, zero_shot
from metaclip_jax.models import clip

ImageLike = str | os.PathLike | bytes | Image.Image | NDArray[np.uint8]

_DECODE_THREADS = 8


class Answers(NamedTuple):
    """What `classify` finds: probabilities f32[N, K], and each image's best label."""

    probabilities: NDArray[np.float32]
    labels: list[str]


class Model:
    """A loaded model on all devices: parameters copied, batches split.

    Batches are padded to a power of two (times the devices), so that few shapes are
    ever compiled. Methods may be called from several threads.
    """

    def __init__(
        self, loaded: loading.Loaded, *, dtype: str = "float32", batch: int = 256
    ) -> None:
        """Puts the parameters on the devices; compiles nothing yet.

        Args:
          loaded: from `loading.load`.
          dtype: of the towers' matrix products, "float32" or "bfloat16".
          batch: rows encoded at a time, over all devices; rounded up to them.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.name, self.licence = loaded.name, loaded.licence
        self.preprocess, self.tokenizer = loaded.preprocess, loaded.tokenizer
        self.architecture = dataclasses.replace(loaded.architecture, dtype=dtype)
        self._mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
        self._batch = -(-batch // self._mesh.size) * self._mesh.size
        whole = sharding.replicated(self._mesh)
        self._params = jax.device_put(loaded.params, whole)
        self._encode_image, self._encode_text = (
            jax.jit(functools.partial(encode, self.architecture), out_shardings=whole)
            for encode in (clip.encode_image, clip.encode_text)
        )

    @property
    def logit_scale(self) -> float:
        """The factor between cosines and logits."""
        return float(np.exp(jax.device_get(self._params["log_logit_scale"])))

    def embed_images(self, images: Sequence[ImageLike]) -> NDArray[np.float32]:
        """Returns f32[N, E] of unit norm.

        Args:
          images: paths, bytes, PIL images or uint8[H, W, 3] arrays, of any size.

        Raises:
          ValueError: an image cannot be decoded; says which.
        """
        with ThreadPoolExecutor(_DECODE_THREADS) as pool:
            read = functools.partial(
                read_image, size=self.preprocess.size, squash=self.preprocess.squash
            )
            portions = (
                np.stack(list(pool.map(read, range(start, stop), images[start:stop])))
                for start, stop in self._portions(len(images))
            )
            return self._encode(self._encode_image, portions)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns f32[N, E] of unit norm; a text that is too long loses its end."""
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} came without a tokenizer.json; put the model's into its "
                "folder, or give token ids to embed_tokens"
            )
        tokens, _ = self.tokenizer(texts, self.architecture.context_length)
        return self.embed_tokens(tokens)

    def embed_pixels(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Returns f32[B, E] for images [B, H, W, 3]: uint8, or normalised f32."""
        portions = (pixels[a:b] for a, b in self._portions(len(pixels)))
        return self._encode(self._encode_image, portions)

    def embed_tokens(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Returns f32[B, E] for token ids int32[B, T], T at most the context length."""
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < (
            self.architecture.vocab_size
        ):
            raise ValueError(
                f"token ids must be below {self.architecture.vocab_size}, got "
                f"{tokens.min()} to {tokens.max()}; is it another model's tokenizer?"
            )
        portions = (tokens[a:b] for a, b in self._portions(len(tokens)))
        return self._encode(self._encode_text, portions)

    def class_embeddings(
        self, labels: Sequence[str], templates: Sequence[str] = ("{}",)
    ) -> NDArray[np.float32]:
        """Returns f32[K, E]: the mean of each label's prompts, of unit norm."""
        task = prompts.Task(
            class_names=tuple((label,) for label in labels),
            templates=tuple(templates),
            labels={},
        )
        return zero_shot.class_embeddings(self.embed_texts, task)

    def classify(
        self,
        images: Sequence[ImageLike],
        labels: Sequence[str],
        *,
        templates: Sequence[str] = ("{}",),
    ) -> Answers:
        """Returns how probable each label is for each image: a softmax over labels.

        Args:
          images: as in `embed_images`.
          labels: K names.
          templates: prompts with {} for the name; a label is the mean of its prompts.
        """
        if not labels:
            raise ValueError("wanted at least one label")
        cosines = self.embed_images(images) @ self.class_embeddings(labels, templates).T
        logits = self.logit_scale * cosines
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        best = [labels[i] for i in probabilities.argmax(axis=1)]
        return Answers(probabilities.astype(np.float32), best)

    def _portions(self, total: int) -> Iterator[tuple[int, int]]:
        return (
            (start, min(start + self._batch, total))
            for start in range(0, total, self._batch)
        )

    def _encode(
        self, encode: Callable[..., jax.Array], portions: Iterator[NDArray[Any]]
    ) -> NDArray[np.float32]:
        found = [np.zeros((0, self.architecture.embed_dim), np.float32)]
        for rows in portions:
            size = padded_size(len(rows), devices=self._mesh.size, most=self._batch)
            padding = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
            batch = sharding.put_batch(self._mesh, {"rows": np.pad(rows, padding)})
            embedded = jax.device_get(encode(self._params, batch["rows"]))
            found.append(embedded[: len(rows)])
        return np.concatenate(found)


def load(
    source: str | os.PathLike,
    *,
    dtype: str = "float32",
    batch: int = 256,
    preset: str = "",
    trust_pickle: bool = False,
    step: int | None = None,
) -> Model:
    """Loads a model to use; arguments as in `loading.load` and `Model`."""
    loaded = loading.load(source, preset=preset, trust_pickle=trust_pickle, step=step)
    return Model(loaded, dtype=dtype, batch=batch)


def read_image(
    index: int, image: ImageLike, *, size: int, squash: bool
) -> NDArray[np.uint8]:
    """Returns uint8[size, size, 3] of image number `index`, as the processors do.

    Raises:
      ValueError: it cannot be decoded, or is no image; names it.
      FileNotFoundError: there is no such file.
    """
    name = f"image {index}"
    try:
        if isinstance(image, str | os.PathLike):
            name += f" ({os.fspath(image)})"
            image = files.path(image).read_bytes()
        if isinstance(image, bytes):
            return image_data.decode_eval(image, size=size, squash=squash)
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"wanted uint8[H, W, 3], got {image.dtype}{list(image.shape)}"
                )
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"wanted a path, bytes, a PIL image or an array, got {type(image)}"
            )
        return image_data.resize_eval(image, size=size, squash=squash)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def padded_size(rows: int, *, devices: int, most: int) -> int:
    """Returns the rows that a batch is padded to: a power of two times the devices."""
    size = devices
    while size < rows:
        size *= 2
    return min(size, most)
