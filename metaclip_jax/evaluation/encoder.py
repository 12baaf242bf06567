"""From images and texts to embeddings: the only way, for inference and evaluation.

So a model gives the same numbers wherever it is measured: in training, by its workdir,
by its name. What prepares its inputs (tokenizer, `Preprocess`, dtype) comes with it.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import xxhash
from jax.sharding import Mesh
from PIL import Image

from metaclip_jax import files
from metaclip_jax.data import decoding
from metaclip_jax.data import images as decoders
from metaclip_jax.data import tokenizer as tokenizers
from metaclip_jax.models import clip
from metaclip_jax.training import sharding

# An image: bytes of a file, the path of one (local or gs://), a Pillow image, or
# uint8[H, W, 3] (or [H, W]) in RGB.
ImageLike = bytes | str | os.PathLike | Image.Image | np.ndarray
# Rows int64[n], ascending, to what they hold.
ReadImages = Callable[[np.ndarray], Sequence[ImageLike]]

_DECODE_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Both towers on a mesh, with what prepares their inputs; see `make_encoder`.

    Rows are split over the mesh's data and fsdp axes; each process prepares those that
    its devices hold. A portion is padded to a power of two (times the devices), so that
    any number of rows compiles few programs, and a row's result does not depend on what
    it is padded or batched with.
    """

    architecture: clip.Architecture
    tokenizer: tokenizers.Tokenizer
    preprocess: decoders.Preprocess
    mesh: Mesh
    batch: int  # most rows at a time, over all devices and processes
    class_cache: str  # folder that keeps embeddings of classes; "" = none
    params: clip.Params
    _encode_image: Callable[..., jax.Array]
    _encode_text: Callable[..., jax.Array]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex hash of all that decides an embedding: parameters and preparation."""
        digest = xxhash.xxh3_128()
        facts = dataclasses.asdict(self.architecture)
        for how in clip.WAYS:
            facts.pop(how)
        facts |= {"preprocess": tuple(self.preprocess)}
        facts |= {"tokenizer": self.tokenizer.fingerprint}
        digest.update(repr(sorted(facts.items())).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(f"{sharding.path_name(path)} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        return digest.hexdigest()

    def with_params(self, params: clip.Params) -> "Encoder":
        """The same model with other parameters, without compiling anything again."""
        return dataclasses.replace(self, params=_place(self.mesh, params))

    def encode_images(
        self, read: ReadImages, *, names: Callable[[int], str], total: int
    ) -> np.ndarray:
        """Embeds `total` images, f32[total, E], unit norm.

        Args:
          read: gives the images of some rows.
          names: what a row is called in errors.
          total: how many there are.

        Raises:
          ValueError: an image cannot be used; says which.
          FileNotFoundError: a path leads nowhere.
        """
        with ThreadPoolExecutor(_DECODE_THREADS) as pool:

            def pixels(rows: np.ndarray) -> np.ndarray:
                prepared = pool.map(
                    lambda row, image: prepare_image(
                        image, self.preprocess, name=names(row)
                    ),
                    rows.tolist(),
                    read(rows),
                )
                return np.stack(list(prepared))

            return self.encode_pixels(pixels, total=total)

    def encode_pixels(
        self, make: Callable[[np.ndarray], np.ndarray], *, total: int
    ) -> np.ndarray:
        """Embeds `total` prepared images, f32[total, E], unit norm.

        `make` gives those of rows int64[n]: uint8[n, size, size, 3], or normalised f32.
        """
        return self._encode(self._encode_image, make, total=total)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds n texts, f32[n, E], unit norm; what does not fit is cut at the end."""

        def tokens(rows: np.ndarray) -> np.ndarray:
            chosen = [texts[row] for row in rows]
            return self.tokenizer(chosen, self.architecture.context_length)[0]

        return self.encode_tokens(tokens, total=len(texts))

    def encode_tokens(
        self, make: Callable[[np.ndarray], np.ndarray], *, total: int
    ) -> np.ndarray:
        """Embeds `total` rows of tokens, f32[total, E]; `make` gives int32[n, T]."""
        return self._encode(self._encode_text, make, total=total)

    def _encode(
        self,
        encode: Callable[..., jax.Array],
        make: Callable[[np.ndarray], np.ndarray],
        *,
        total: int,
    ) -> np.ndarray:
        result = np.empty((total, self.architecture.embed_dim), np.float32)
        parts = _parts(self.mesh)

        def portions() -> Iterator[tuple[int, np.ndarray]]:
            for start in range(0, total, self.batch):
                count = padded_rows(min(self.batch, total - start), parts=parts)
                own = start + sharding.process_rows(self.mesh, count)
                # Padding repeats the last row, which is made once.
                rows, place = np.unique(np.minimum(own, total - 1), return_inverse=True)
                yield start, make(rows)[place]

        for start, own in one_ahead(portions()):
            batch = sharding.put_batch(self.mesh, {"rows": own})
            embedded = jax.device_get(encode(self.params, batch["rows"]))
            result[start : start + self.batch] = embedded[: total - start]
        return result


def make_encoder(
    *,
    architecture: clip.Architecture,
    tokenizer: tokenizers.Tokenizer,
    preprocess: decoders.Preprocess,
    mesh: Mesh,
    batch: int,
    params: clip.Params,
    class_cache: str = "",
) -> Encoder:
    """Puts the parameters on the devices; compiles nothing yet.

    Args:
      architecture: what `params` belong to.
      tokenizer: of the text tower.
      preprocess: how an image is fitted.
      mesh: whose data and fsdp axes split the rows.
      batch: most rows at a time; rounded up to the devices times a power of two.
      params: host or device arrays.
      class_cache: folder that keeps embeddings of classes; "" = none.
    """
    if batch < 1:
        raise ValueError(f"the batch must be at least 1, got {batch}")
    if preprocess.size != architecture.image_size:
        raise ValueError(
            f"images must be prepared to {architecture.image_size} pixels, which the"
            f" model takes, got {preprocess.size}"
        )
    whole = sharding.replicated(mesh)

    def compiled(encode: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return jax.jit(functools.partial(encode, architecture), out_shardings=whole)

    return Encoder(
        architecture=architecture,
        tokenizer=tokenizer,
        preprocess=preprocess,
        mesh=mesh,
        batch=padded_rows(batch, parts=_parts(mesh)),
        class_cache=class_cache,
        params=_place(mesh, params),
        _encode_image=compiled(clip.encode_image),
        _encode_text=compiled(clip.encode_text),
    )


def _place(mesh: Mesh, params: clip.Params) -> clip.Params:
    return jax.device_put(params, sharding.tree_shardings(mesh, params))


def _parts(mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)


def padded_rows(rows: int, *, parts: int) -> int:
    """The rows that a portion is padded to: `parts` times a power of two."""
    return parts * 2 ** max(0, math.ceil(math.log2(max(rows, 1) / parts)))


def prepare_image(
    image: ImageLike, preprocess: decoders.Preprocess, *, name: str
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
            return decoders.decode_eval(image, **preprocess._asdict())
        if isinstance(image, np.ndarray):
            image = _from_array(image)
        if not isinstance(image, Image.Image):
            raise ValueError(
                "want bytes, a path, a Pillow image or a uint8 array, got"
                f" {type(image).__name__}"
            )
        decoding.check_size(*image.size)
        return decoders.fit_eval(decoding.upright_rgb(image), **preprocess._asdict())
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


def one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items; while one is used, a thread makes the next."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
