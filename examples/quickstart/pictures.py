"""Renders and encodes drawings, and finds those that look the same.

Everything is a function of the drawing, so that runs give the same bytes.
"""

import functools
import io
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import resvg_py
from PIL import Image
from tqdm import tqdm

from examples.quickstart import names

SIDE = 96  # pixels of a rendered picture
_THUMBNAIL_SIDE = 24
# Two thumbnails (0..255) with a smaller root mean square difference count as the same
# picture. In almost all drawings two skin tones differ by more.
SAME_PICTURE = 2.5


class Drawing(NamedTuple):
    """A rendered picture: transparent PNG, JPEG on white, f32[2, S, S, 3] thumbnail."""

    png: bytes
    jpg: bytes
    thumbnail: np.ndarray


def render(code: str) -> Drawing:
    """Renders a drawing at SIDE x SIDE pixels."""
    png = resvg_py.svg_to_bytes(
        svg_string=names.read_drawing(code), width=SIDE, skip_system_fonts=True
    )
    image = on_white(Image.open(io.BytesIO(png)))
    return Drawing(png, _to_bytes(image, "jpg"), thumbnail(image))


def render_all(codes: Sequence[str], *, processes: int) -> dict[str, Drawing]:
    """Returns the drawing of each code; shows a progress bar."""
    bar = functools.partial(tqdm, desc="Drawings", total=len(codes), unit="image")
    if processes <= 1:
        return dict(zip(codes, bar(map(render, codes)), strict=True))
    with ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),)
    ) as pool:
        rendered = pool.map(render, codes, chunksize=64)
        return dict(zip(codes, bar(rendered), strict=True))


def encode(drawing: Drawing, kind: str, *, side: int = SIDE) -> bytes:
    """Returns a drawing as jpg, webp, gif (all three on white) or transparent png."""
    if side == SIDE and kind == "jpg":
        return drawing.jpg
    if side == SIDE and kind == "png":
        return drawing.png
    image: Image.Image = Image.open(io.BytesIO(drawing.png))
    if side != SIDE:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    return _to_bytes(image if kind == "png" else on_white(image), kind)


def on_white(image: Image.Image) -> Image.Image:
    """Returns an RGBA image as RGB on a white background."""
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(page, image).convert("RGB")


def flat(kind: str, size: tuple[int, int], colour: tuple[int, int, int]) -> bytes:
    """Returns an image file of one colour: spacers, tracking pixels, banners."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG" if kind == "jpg" else kind)
    return buffer.getvalue()


def thumbnail(image: Image.Image) -> np.ndarray:
    """Returns f32[2, S, S, 3] in 0..255: a small copy of an RGB image, its mirror."""
    small = image.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32)
    return np.stack([pixels, pixels[:, ::-1]])


def look_alikes(
    thumbnails: np.ndarray, *, mirrored: bool, difference: float = SAME_PICTURE
) -> Iterator[tuple[int, int]]:
    """Yields pairs i < j of pictures that look the same; f32[n, 2, S, S, 3].

    With `mirrored`, a picture and its mirror image look the same too.
    """
    count = len(thumbnails)
    flat_pixels = thumbnails.reshape(count, 2, -1)
    size = flat_pixels.shape[2]
    squares = (flat_pixels[:, 0] ** 2).sum(1)
    for start in range(0, count, 512):  # bounds the memory
        rows = slice(start, start + 512)
        close = np.zeros((len(squares[rows]), count - start), bool)
        for side in (0, 1) if mirrored else (0,):
            products = flat_pixels[rows, side] @ flat_pixels[start:, 0].T
            distances = squares[rows, None] + squares[start:] - 2 * products
            close |= distances < size * difference**2
        for i, j in np.argwhere(close):
            if i < j:
                yield int(i + start), int(j + start)


def components(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Returns, for each of `count` nodes, the smallest node of its component."""
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for i, j in pairs:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    return [root(node) for node in range(count)]


def _to_bytes(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "jpg":
        image.save(buffer, "JPEG", quality=90)
    elif kind == "webp":
        image.save(buffer, "WEBP", quality=90, method=0)
    elif kind == "gif":
        image.quantize(64, dither=Image.Dither.NONE).save(buffer, "GIF")
    elif kind == "png":
        image.save(buffer, "PNG")
    else:
        raise ValueError(f"wanted jpg, webp, png or gif, got {kind!r}")
    return buffer.getvalue()


def _end_with(parent: int) -> None:
    """Ends this worker when its parent ends, so that a killed build leaves none."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
