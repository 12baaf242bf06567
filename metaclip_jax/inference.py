"""A trained model for use: images and texts in, unit-norm NumPy embeddings out.

    model = metaclip_jax.load(NAME_OR_PATH)
    model.embed_images(images); model.embed_texts(texts)
    model.classify(images, labels)

Rows are split over all devices. A portion is padded to a power of two (times the
devices), so that any number of images compiles few programs, and a row's result does
not depend on what it was padded or batched with.
"""

import collections
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import xxhash
from jax.sharding import Mesh
from PIL import Image

from metaclip_jax import files, loading, sharding
from metaclip_jax.data import decoding
from metaclip_jax.data import images as decoders
from metaclip_jax.data import tokenizer as tokenizers
from metaclip_jax.evaluation import prompts, zero_shot
from metaclip_jax.models import clip

# An image: bytes of a file, the path of one (local or gs://), a Pillow image, or
# uint8[H, W, 3] (or [H, W]) in RGB.
ImageLike = bytes | str | os.PathLike | Image.Image | np.ndarray
# A class: its name, or all its names.
Label = str | Sequence[str]

DEFAULT_BATCH = 256
DEFAULT_TEMPLATES = ("a photo of a {}.",)
_DECODE_THREADS = 8
_CLASSIFIERS = 8  # class embeddings kept in memory


class Classification(NamedTuple):
    """`labels`: the K classes' first names; `probabilities`: f32[N, K]."""

    labels: list[str]
    probabilities: np.ndarray

    def best(self) -> list[str]:
        """The most probable label of each image."""
        return [self.labels[k] for k in self.probabilities.argmax(axis=1)]


class Model:
    """Both towers on the devices, their tokenizer and their preprocessing.

    Attributes:
      name: where it was loaded from.
      architecture: its shape.
      tokenizer: texts to ids.
      squash: whether images are resized without keeping their ratio.
      probability: "softmax" over the labels (CLIP), or "sigmoid" of each (SigLIP).
      licence: of the weights, "" where nobody said.
      batch: rows encoded at a time, over all devices.
    """

    def __init__(
        self,
        *,
        name: str,
        architecture: clip.Architecture,
        params: clip.Params,
        tokenizer: tokenizers.Tokenizer,
        mesh: Mesh | None = None,
        batch: int = DEFAULT_BATCH,
        squash: bool = False,
        probability: str = "softmax",
        licence: str = "",
        class_cache: str = "",
    ) -> None:
        """Puts the parameters on the devices; compiles nothing yet.

        Args:
          name: for messages and outputs.
          architecture: what `params` belong to.
          params: host or device arrays.
          tokenizer: of the text tower.
          mesh: whose data and fsdp axes split the rows; None = all devices.
          batch: most rows at a time; rounded up to the devices times a power of two.
          squash: see `images.fit_eval`.
          probability: "softmax" or "sigmoid".
          licence: of the weights.
          class_cache: folder that keeps class embeddings; "" = only in memory.
        """
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if probability not in ("softmax", "sigmoid"):
            raise ValueError(
                f"probability must be softmax or sigmoid, got {probability!r}"
            )
        if mesh is None:
            mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
        self.name, self.architecture, self.tokenizer = name, architecture, tokenizer
        self.squash, self.probability, self.licence = squash, probability, licence
        self._mesh, self._class_cache = mesh, class_cache
        self._parts = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
        self.batch = padded_rows(batch, parts=self._parts)
        self._params = jax.device_put(params, sharding.tree_shardings(mesh, params))
        whole = sharding.replicated(mesh)

        def compiled(encode: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
            return jax.jit(functools.partial(encode, architecture), out_shardings=whole)

        self._encode_image = compiled(clip.encode_image)
        self._encode_text = compiled(clip.encode_text)
        self._classifiers: collections.OrderedDict[Any, np.ndarray] = (
            collections.OrderedDict()
        )

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before the softmax or sigmoid."""
        return float(np.exp(np.float32(self._params["log_logit_scale"])))

    @property
    def logit_bias(self) -> float:
        """What is added to scaled cosines before the sigmoid; 0 for a softmax."""
        return float(self._params.get("logit_bias", 0.0))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex hash of all that decides an embedding: parameters, shape, tokenizer."""
        digest = xxhash.xxh3_128()
        facts = dataclasses.asdict(self.architecture)
        for how in ("attention", "remat"):
            facts.pop(how)
        facts |= {"squash": self.squash, "tokenizer": self.tokenizer.fingerprint}
        digest.update(repr(sorted(facts.items())).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._params):
            digest.update(f"{sharding.path_name(path)} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        return digest.hexdigest()

    def embed_images(self, images: Sequence[ImageLike] | np.ndarray) -> np.ndarray:
        """Embeds n images, f32[n, E], unit norm.

        Args:
          images: bytes, paths, Pillow images or uint8[H, W, 3] arrays, in any mixture
            and of any size; or uint8[n, H, W, 3].

        Raises:
          ValueError: one cannot be decoded, or is larger than decoding.MAX_PIXELS;
            names it by its path or place.
          FileNotFoundError: a path leads nowhere.
        """
        if isinstance(images, bytes | str | os.PathLike | Image.Image) or (
            isinstance(images, np.ndarray) and images.ndim != 4
        ):
            raise ValueError(
                "want a list of images (or uint8[n, H, W, 3]), got one"
                f" {type(images).__name__}; write [image]"
            )
        size, squash = self.architecture.image_size, self.squash
        if isinstance(images, np.ndarray) and images.shape[1:] == (size, size, 3):
            if images.dtype == np.uint8:  # fitted already
                fitted = (images[rows] for rows in _portions(len(images), self.batch))
                return self._encode(self._encode_image, fitted, total=len(images))

        def prepared(place: int) -> np.ndarray:
            name = f"image {place}"
            return prepare_image(images[place], size=size, squash=squash, name=name)

        with ThreadPoolExecutor(_DECODE_THREADS) as pool:
            portions = (
                np.stack(list(pool.map(prepared, range(rows.start, rows.stop))))
                for rows in _portions(len(images), self.batch)
            )
            return self._encode(self._encode_image, portions, total=len(images))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds n texts, f32[n, E], unit norm; what does not fit is cut at the end."""
        if isinstance(texts, str):
            raise ValueError(f"want a list of texts, got one; write [{texts[:40]!r}]")
        portions = (
            self.tokenizer(texts[rows], self.architecture.context_length)[0]
            for rows in _portions(len(texts), self.batch)
        )
        return self._encode(self._encode_text, portions, total=len(texts))

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Embeds f32[B, H, W, 3] as f32[B, E], unit norm.

        H = W = architecture.image_size, RGB, normalised by the model's mean and
        standard deviation. For uint8 pictures there is `embed_images`.
        """
        if np.asarray(pixels).dtype.kind != "f":
            raise ValueError(
                f"want normalised float pixels, got {np.asarray(pixels).dtype}; use"
                " embed_images for pictures"
            )
        pixels = np.asarray(pixels, np.float32)
        size = self.architecture.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
            raise ValueError(f"want f32[B, {size}, {size}, 3], got {pixels.shape}")
        portions = (pixels[rows] for rows in _portions(len(pixels), self.batch))
        return self._encode(self._encode_image, portions, total=len(pixels))

    def embed_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Embeds i32[B, T] as f32[B, E], unit norm; T at most the context length.

        Rows hold the model's marks; shorter ones are padded with its pad id.
        """
        tokens = np.asarray(tokens)
        longest = self.architecture.context_length
        vocabulary = self.architecture.vocab_size
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"want integers [B, T], got {tokens.dtype}{list(tokens.shape)}"
            )
        if tokens.shape[1] > longest:
            raise ValueError(
                f"want at most {longest} tokens a row, got {tokens.shape[1]}; cut them,"
                " and keep the end mark"
            )
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary:
            raise ValueError(
                f"want ids from 0 to {vocabulary - 1}, got {tokens.min()} to"
                f" {tokens.max()}; is this the model's tokenizer?"
            )
        tokens = np.pad(
            tokens.astype(np.int32),
            [(0, 0), (0, longest - tokens.shape[1])],
            constant_values=self.architecture.pad_id,
        )
        portions = (tokens[rows] for rows in _portions(len(tokens), self.batch))
        return self._encode(self._encode_text, portions, total=len(tokens))

    def embed_classes(
        self, labels: Sequence[Label], *, templates: Sequence[str] = DEFAULT_TEMPLATES
    ) -> np.ndarray:
        """Embeds K classes, f32[K, E], unit norm; see `zero_shot.class_embeddings`.

        They are kept in memory, and in the folder `class_cache` where there is one.
        """
        task = prompts.make_task(labels, templates)
        key = (task.class_names, task.templates)
        if key in self._classifiers:
            self._classifiers.move_to_end(key)
            return self._classifiers[key]
        if self._class_cache:
            classes = zero_shot.cached_class_embeddings(
                self.embed_texts,
                task,
                folder=self._class_cache,
                fingerprint=self.fingerprint,
            )
        else:
            classes = zero_shot.class_embeddings(self.embed_texts, task)
        classes.setflags(write=False)
        self._classifiers[key] = classes
        if len(self._classifiers) > _CLASSIFIERS:
            self._classifiers.popitem(last=False)
        return classes

    def classify(
        self,
        images: Sequence[ImageLike] | np.ndarray,
        labels: Sequence[Label],
        *,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> Classification:
        """Says how probable each label is for each image, without training on them.

        For CLIP the probabilities are a softmax over the labels: they sum to 1 and
        mean "which of these". For SigLIP each is a sigmoid of its own: "is it this",
        and all may be small.

        Args:
          images: see `embed_images`.
          labels: K names, or lists of names that mean the same.
          templates: texts with {} for the name; a class is the mean of all its prompts.
        """
        classes = self.embed_classes(labels, templates=templates)
        cosines = self.embed_images(images) @ classes.T  # [N, K]
        names = [label if isinstance(label, str) else label[0] for label in labels]
        return Classification(names, self.probabilities(cosines))

    def probabilities(self, cosines: np.ndarray) -> np.ndarray:
        """Turns cosines of images with K labels, f32[N, K], into probabilities."""
        logits = cosines.astype(np.float64) * self.logit_scale + self.logit_bias
        if self.probability == "sigmoid":
            return (0.5 * (1 + np.tanh(0.5 * logits))).astype(np.float32)
        grown = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (grown / grown.sum(axis=1, keepdims=True)).astype(np.float32)

    def _encode(
        self,
        encode: Callable[..., jax.Array],
        portions: Iterator[np.ndarray],
        *,
        total: int,
    ) -> np.ndarray:
        """Encodes portions of at most `batch` rows; the next is made meanwhile."""
        result = np.empty((total, self.architecture.embed_dim), np.float32)
        start = 0
        for rows in one_ahead(portions):
            wanted = padded_rows(len(rows), parts=self._parts)
            padding = [(0, wanted - len(rows))] + [(0, 0)] * (rows.ndim - 1)
            batch = sharding.put_batch(self._mesh, {"rows": np.pad(rows, padding)})
            embedded = jax.device_get(encode(self._params, batch["rows"]))
            result[start : start + len(rows)] = embedded[: len(rows)]
            start += len(rows)
        return result


def padded_rows(rows: int, *, parts: int) -> int:
    """The rows that a portion is padded to: `parts` times a power of two."""
    return parts * 2 ** max(0, math.ceil(math.log2(max(rows, 1) / parts)))


def prepare_image(
    image: ImageLike, *, size: int, squash: bool, name: str
) -> np.ndarray:
    """Decodes and fits one image: uint8[size, size, 3], RGB.

    Raises:
      ValueError: it cannot be; says which by its path, or else by `name`.
      FileNotFoundError: the path leads nowhere.
    """
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        path = files.path(image)
        if not path.exists():
            raise FileNotFoundError(f"there is no image {name}")
        image = path.read_bytes()
    try:
        if isinstance(image, bytes):
            return decoders.decode_eval(image, size=size, squash=squash)
        if isinstance(image, np.ndarray):
            image = _from_array(image)
        if not isinstance(image, Image.Image):
            raise ValueError(
                "want bytes, a path, a Pillow image or a uint8 array, got"
                f" {type(image).__name__}"
            )
        decoding.check_size(*image.size)
        rgb = decoding.upright_rgb(image)
        return decoders.fit_eval(rgb, size=size, squash=squash)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} cannot be used: {error}") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3):
        raise ValueError(
            f"want uint8[H, W, 3] or [H, W], got {pixels.dtype}{list(pixels.shape)};"
            " use embed_pixels for normalised floats"
        )
    if not pixels.size:
        raise ValueError(f"want at least one pixel, got {list(pixels.shape)}")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _portions(total: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, total)) for i in range(0, total, size))


def one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items; while one is used, a thread makes the next."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def load(
    name_or_path: str | os.PathLike,
    *,
    dtype: str = "float32",
    batch: int = DEFAULT_BATCH,
    mesh: Mesh | None = None,
    step: int | None = None,
    class_cache: str = "",
    preset: str = "",
    trust_pickle: bool = False,
    image_size: int | None = None,
    position_resize: str = "open_clip",
) -> Model:
    """Loads a model for use.

    Args:
      name_or_path: a folder of Hugging Face or open_clip, a weight file, a name on the
        hub, or a run's workdir: see `loading.load`.
      dtype: of the towers' matrix products: float32, or bfloat16 (faster on
        accelerators; embeddings agree to about two digits).
      batch: most rows at a time.
      mesh: None = all devices.
      step: which checkpoint of a run; None = the newest.
      class_cache: folder that keeps class embeddings; "" = only in memory.
      preset: architecture of a weight file.
      trust_pickle: read torch files that may run code of their maker.
      image_size: pixels; None = as trained. Another size interpolates the positions.
      position_resize: how, "open_clip" or "metaclip": see models/positions.py.

    Raises:
      FileNotFoundError: there is no model of this name.
      ValueError: it is none that this package knows, or has no tokenizer.
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
            f"{loaded.name} has no tokenizer.json; put the one of its model into the "
            "folder"
        )
    return Model(
        name=loaded.name,
        architecture=dataclasses.replace(loaded.architecture, dtype=dtype),
        params=loaded.params,
        tokenizer=loaded.tokenizer,
        mesh=mesh,
        batch=batch,
        squash=loaded.preprocess.squash,
        probability="sigmoid" if "logit_bias" in loaded.params else "softmax",
        licence=loaded.licence,
        class_cache=class_cache,
    )
