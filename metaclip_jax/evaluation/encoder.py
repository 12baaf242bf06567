"""Embeds images and texts, for inference and evaluation.

All evaluations use this code, so a model has the same scores during training, by its
workdir and by its name. An encoder includes the tokenizer, the preprocessing and the
dtype.
"""

import collections
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import xxhash
from jax.sharding import Mesh
from PIL import Image

from metaclip_jax import files
from metaclip_jax.data import containers, decoding, machine
from metaclip_jax.data.images import Preprocess, decode_eval, fit_eval
from metaclip_jax.data.tokenizer import Tokenizer
from metaclip_jax.evaluation.examples import ReadImages
from metaclip_jax.models import clip
from metaclip_jax.training import sharding, watchdog

# An image: bytes of a file, the path of one (local or gs://), a Pillow image, or
# uint8[H, W, 3] (or [H, W]) in RGB.
ImageLike = bytes | str | os.PathLike | Image.Image | np.ndarray
# Called with the row of an unusable image and the error, whose cause is the decoder's.
OnBroken = Callable[[int, Exception], None]

_MOST_DECODE_THREADS = 32
_READ = 16  # images read at a time
_TEXTS = 1 << 16  # texts tokenised at a time
# Positions of all rows that cost a CPU core as much as compiling another program, about
# a second with the text tower of a ViT-B.
_COMPILING = 3_000


class _Portion(NamedTuple):
    """The rows of one call of the model, from start to end.

    `own` int64[n] are the rows that this process prepares; padding repeats the last
    row.
    """

    start: int
    end: int
    own: np.ndarray


def _length_step() -> int:
    """Returns the step of lengths of texts: accelerators compute 8 positions a time."""
    return 2 if jax.default_backend() == "cpu" else 8


def default_batch() -> int:
    """Returns the rows at a time with about the highest throughput of the device."""
    return 32 if jax.default_backend() == "cpu" else 256


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Both towers on a mesh, with tokenizer and preprocessing; see `make_encoder`.

    Rows are sharded over the mesh's data and fsdp axes; each process prepares the rows
    of its devices. Rows are embedded in portions of equal size, and a row's embedding
    does not depend on padding or on the other rows.
    """

    architecture: clip.Architecture
    tokenizer: Tokenizer
    preprocess: Preprocess
    mesh: Mesh
    batch: int  # most rows at a time, over all devices and processes
    class_cache: str  # folder for class embeddings; "" = none
    params: clip.Params
    _encode_image: Callable[..., jax.Array]
    _encode_text: Callable[..., jax.Array]

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hex hash of everything that affects an embedding."""
        digest = xxhash.xxh3_128()
        facts = dataclasses.asdict(self.architecture)
        for field in clip.EXECUTION_FIELDS:
            facts.pop(field)
        if self.architecture.eos_id == self.architecture.vocab_size - 1:
            facts["text_pool"] = "eos"  # the end mark is the largest id
        facts |= {"preprocess": tuple(self.preprocess)}
        facts |= {"tokenizer": self.tokenizer.fingerprint}
        digest.update(repr(sorted(facts.items())).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            name, leaf = sharding.path_name(path), jax.device_get(leaf)
            if name == "text/token_embedding":
                leaf = leaf[: self.architecture.vocab_size]  # without padding
            digest.update(f"{name} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def wholes(self) -> dict[str, "Whole"]:
        """A cache of the embeddings of image sets of which subsets are measured."""
        return {}

    @functools.cached_property
    def classes(self) -> dict[Any, np.ndarray]:
        """A cache of class embeddings, by class names and templates."""
        return {}

    def with_params(self, params: clip.Params) -> "Encoder":
        """Returns the encoder with other parameters, without compiling again."""
        return dataclasses.replace(self, params=_place(self.mesh, params))

    def encode_images(
        self,
        read: ReadImages,
        *,
        names: Callable[[int], str],
        total: int,
        on_broken: OnBroken | None = None,
    ) -> np.ndarray:
        """Embeds `total` images, f32[total, E], unit norm.

        Args:
          read: returns the images of some rows; one thread calls it, a few rows ahead
            of those that are embedded.
          names: returns a row's name for messages.
          total: the number of images.
          on_broken: called with the row of an image that cannot be used, and the error;
            its embedding is meaningless. None = raise the error.

        Raises:
          ValueError: an image cannot be used; the message names it.
          FileNotFoundError: a path does not exist.
        """
        size = self.preprocess.size

        def prepare(row: int, image: ImageLike) -> np.ndarray:
            try:
                return prepare_image(image, self.preprocess, name=names(row))
            except (ValueError, FileNotFoundError, PermissionError) as error:
                if on_broken is None:
                    raise
                on_broken(row, error)
                return np.zeros((size, size, 3), np.uint8)

        portions = self._portions(total)
        threads = min(_MOST_DECODE_THREADS, max(2, machine.cores()))
        with ThreadPoolExecutor(threads) as pool:
            asked = [row for portion in portions for row in np.unique(portion.own)]
            chunks = np.split(
                np.array(asked, np.int64), range(_READ, len(asked), _READ)
            )

            def decoded() -> Iterator[np.ndarray]:
                # Decode ahead across portions, so that no thread waits.
                coming: collections.deque[Future] = collections.deque()
                for chunk in chunks:
                    while len(coming) > 2 * threads:
                        yield coming.popleft().result()
                    for row, image in zip(chunk.tolist(), read(chunk), strict=True):
                        coming.append(pool.submit(prepare, row, image))
                while coming:
                    yield coming.popleft().result()

            pixels = decoded()

            def make(portion: _Portion) -> np.ndarray:
                rows, place = np.unique(portion.own, return_inverse=True)
                return np.stack([next(pixels) for _ in rows])[place]

            return self._encode(self._encode_image, make, total=total)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Embeds uint8[n, size, size, 3] or normalised f32 as f32[n, E], unit norm."""
        return self._encode(
            self._encode_image, lambda portion: pixels[portion.own], total=len(pixels)
        )

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds n texts, f32[n, E], unit norm; long texts are truncated."""
        result = np.empty((len(texts), self.architecture.embed_dim), np.float32)
        for start in range(0, len(texts), _TEXTS):
            rows = slice(start, start + _TEXTS)
            tokens, _ = self.tokenizer(texts[rows], self.architecture.context_length)
            result[rows] = self.encode_tokens(tokens)
        return result

    def encode_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Embeds tokens int32[n, context length] as f32[n, E], unit norm.

        A causal tower does not depend on what follows a text's end mark. So texts are
        sorted by length, and portions are truncated to their longest text.
        """
        total, pool = len(tokens), self.architecture.text_pool
        if pool == "last":  # SigLIP's tower is not causal
            return self._encode(
                self._encode_text, lambda portion: tokens[portion.own], total=total
            )
        ends = tokens if pool == "argmax" else tokens == self.architecture.eos_id
        lengths = ends.argmax(axis=1) + 1
        order = np.argsort(lengths, kind="stable")
        positions = padded_lengths(lengths[order], step=_length_step())

        def make(portion: _Portion) -> np.ndarray:
            # The longest over all processes, so that all run the same program.
            return tokens[order[portion.own], : positions[portion.end - 1]]

        result = np.empty((total, self.architecture.embed_dim), np.float32)
        result[order] = self._encode(self._encode_text, make, total=total)
        return result

    def _encode(
        self,
        encode: Callable[..., jax.Array],
        make: Callable[[_Portion], np.ndarray],
        *,
        total: int,
    ) -> np.ndarray:
        """Embeds the inputs that `make` returns, and makes the next ones meanwhile."""
        result = np.empty((total, self.architecture.embed_dim), np.float32)
        portions = self._portions(total)
        made = one_ahead(map(make, portions))
        for portion, own in zip(portions, made, strict=True):
            watchdog.alive(f"embedding rows {portion.start:,} to {portion.end:,}")
            batch = sharding.put_batch(self.mesh, {"rows": own})
            embedded = jax.device_get(encode(self.params, batch["rows"]))
            rows = slice(portion.start, portion.end)
            result[rows] = embedded[: portion.end - portion.start]
        return result

    def _portions(self, total: int) -> list[_Portion]:
        """Splits `total` rows into equal portions, so that one program embeds all."""
        if not total:
            return []
        shards = _batch_shards(self.mesh)
        size = padded_rows(-(-total // -(-total // self.batch)), shards=shards)
        held = sharding.process_rows(self.mesh, size)
        return [
            _Portion(
                start, min(start + size, total), np.minimum(start + held, total - 1)
            )
            for start in range(0, total, size)
        ]


class Whole(NamedTuple):
    """Embeddings f32[N, E] of the images `key`; `broken`: errors by row."""

    key: Any
    embeddings: np.ndarray
    broken: dict[int, Exception]


def make_encoder(
    *,
    architecture: clip.Architecture,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    mesh: Mesh,
    batch: int,
    params: clip.Params,
    class_cache: str = "",
) -> Encoder:
    """Puts the parameters on the devices; nothing is compiled.

    Args:
      architecture: of `params`.
      tokenizer: of the text tower.
      preprocess: of the images.
      mesh: its data and fsdp axes shard the rows.
      batch: most rows at a time, rounded up by `padded_rows`; 0 = `default_batch`.
      params: host or device arrays.
      class_cache: folder for class embeddings; "" = none.

    Raises:
      ValueError: the batch is negative, or `preprocess` has another image size.
    """
    if batch < 0:
        raise ValueError(f"wanted a batch of at least 1, or 0, got {batch}")
    if preprocess.size != architecture.image_size:
        raise ValueError(
            f"preprocess.size must be the model's {architecture.image_size} pixels, got"
            f" {preprocess.size}"
        )
    whole = sharding.replicated(mesh)

    def compiled(encode: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return jax.jit(functools.partial(encode, architecture), out_shardings=whole)

    return Encoder(
        architecture=architecture,
        tokenizer=tokenizer,
        preprocess=preprocess,
        mesh=mesh,
        batch=padded_rows(batch or default_batch(), shards=_batch_shards(mesh)),
        class_cache=class_cache,
        params=_place(mesh, params),
        _encode_image=compiled(clip.encode_image),
        _encode_text=compiled(clip.encode_text),
    )


def _place(mesh: Mesh, params: clip.Params) -> clip.Params:
    return jax.device_put(params, sharding.tree_shardings(mesh, params))


def _batch_shards(mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)


def padded_rows(rows: int, *, shards: int) -> int:
    """Returns the size that a portion is padded to: `shards` times one of few sizes.

    These are the powers of two up to 16, and then eight sizes between each power of two
    and the next. So few programs are compiled for any number of rows, and at most an
    eighth of a large portion is padding.
    """
    each = -(-max(rows, 1) // shards)
    bits = (each - 1).bit_length()  # each is at most 2**bits
    step = 1 << bits if bits <= 4 else 1 << (bits - 4)
    return shards * -(-each // step) * step


def padded_lengths(lengths: np.ndarray, *, step: int) -> np.ndarray:
    """Returns the lengths that texts are padded to, so that few programs are compiled.

    The longest texts are padded to a multiple of 8. Shorter ones get a length of their
    own if it saves more positions than compiling for it costs, see `_COMPILING`.

    Args:
      lengths: int64[n], positive and ascending.
      step: a length of its own is a multiple of it, which divides 8.

    Returns:
      int64[n], ascending, at least `lengths`.
    """
    padded = -(-lengths[-1:] // 8) * 8
    own = -(-lengths // step) * step
    result = own.copy()
    for length in np.unique(own)[::-1]:
        saved = (padded - length) * np.count_nonzero(own <= length)
        padded = np.where(saved >= _COMPILING, length, padded)
        result[own == length] = padded
    return result


def prepare_image(image: ImageLike, preprocess: Preprocess, *, name: str) -> np.ndarray:
    """Decodes and preprocesses one image: uint8[size, size, 3], RGB.

    Raises:
      ValueError: it cannot be used; the message has its path, or else `name`.
      FileNotFoundError: the path does not exist.
    """
    if isinstance(image, str | os.PathLike):
        name, image = os.fspath(image), _read_file(image)
    try:
        if isinstance(image, bytes):
            return decode_eval(image, preprocess)
        if isinstance(image, np.ndarray):
            image = _from_array(image)
        if not isinstance(image, Image.Image):
            raise ValueError(
                "wanted bytes, a path, a Pillow image or a uint8 array, got"
                f" {type(image).__name__}"
            )
        decoding.check_size(*image.size)
        return fit_eval(decoding.upright_rgb(image), preprocess)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} cannot be used: {error}") from error


def check_image(image: ImageLike) -> None:
    """Checks that an image file is complete, if possible by its structure.

    Only a file without an end marker, or of a format that is not parsed, is decoded.

    Raises:
      ValueError: it is not an image, truncated or too large.
      FileNotFoundError: the path does not exist.
    """
    if isinstance(image, str | os.PathLike):
        image = _read_file(image)
    if not isinstance(image, bytes):
        return
    file = containers.strip(image)
    decoding.check_size(*decoding.open_image(file).size)
    ends = {
        "JPEG": file.structure is not None and file.structure.ended,
        "PNG": file.data.endswith(b"IEND\xaeB`\x82"),
        "GIF": file.data.endswith(b";"),
        "WEBP": True,  # its length is in its header, and `strip` checks it
        "AVIF": True,
    }
    if not ends.get(file.kind, False):
        decoding.decode(image)


def _read_file(name: str | os.PathLike) -> bytes:
    path = files.path(name)
    # Reading a pipe or device might never end.
    is_there = os.path.isfile(path) if files.is_local(path) else path.exists()
    if not is_there:
        raise FileNotFoundError(f"there is no image {os.fspath(name)}; check the path")
    return path.read_bytes()


def _from_array(pixels: np.ndarray) -> Image.Image:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3):
        raise ValueError(
            f"wanted uint8[H, W, 3] or [H, W], got {pixels.dtype}{list(pixels.shape)};"
            " use embed_pixels for normalised floats"
        )
    if not pixels.size:
        raise ValueError(
            f"wanted at least one pixel, got the shape {list(pixels.shape)}"
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yields the items; a thread computes the next one while one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
