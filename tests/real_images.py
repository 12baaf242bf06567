"""Real pictures that come with installed packages."""

import gzip
import importlib.util
import io
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from tests import image_layouts

# Where Debian's package dataset-fashion-mnist puts its four files.
FASHION = Path("/usr/share/datasets/fashion-mnist")
GARMENTS = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


class Labelled(NamedTuple):
    """Bytes of N image files, their labels, and the K class names."""

    images: list[bytes]
    labels: list[int]
    class_names: tuple[str, ...]


def fashion_mnist(count: int) -> Labelled:
    """The first of the 10,000 test images as PNG; skips where they are missing."""
    if not FASHION.is_dir():
        pytest.skip("no Fashion-MNIST: apt-get install dataset-fashion-mnist")
    pixels = _idx("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:count]
    labels = _idx("t10k-labels-idx1-ubyte.gz", 8)[:count]
    return Labelled(
        [image_layouts.png(image) for image in pixels], labels.tolist(), GARMENTS
    )


def _idx(name: str, head: int) -> np.ndarray:
    with gzip.open(FASHION / name) as file:
        return np.frombuffer(file.read(), np.uint8, offset=head)


def digits(count: int) -> Labelled:
    """scikit-learn's handwritten digits, 8 x 8, as PNG."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8)[:count] * 15.9).astype(np.uint8)
    names = tuple("0123456789")
    return Labelled(
        [image_layouts.png(image) for image in images], labels[:count].tolist(), names
    )


def whole_photos() -> list[Image.Image]:
    """scikit-learn's two photos, of 640 x 427 pixels: a temple and a flower."""
    folder = resources.files("sklearn.datasets").joinpath("images")
    return [
        Image.open(io.BytesIO(folder.joinpath(f"{name}.jpg").read_bytes()))
        for name in ("china", "flower")
    ]


def astronaut() -> Image.Image:
    """scikit-image's portrait of Eileen Collins, 512 x 512 (NASA, public domain).

    Skips where the package is missing.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        pytest.skip("no scikit-image: make test-parity installs it")
    folder = Path(package.submodule_search_locations[0])
    return Image.open(io.BytesIO((folder / "data/astronaut.png").read_bytes()))


def photos(count: int) -> Labelled:
    """Crops of scikit-learn's two photos, of odd sizes and shapes, as JPEG."""
    return _crops(count, dict(zip(("china", "flower"), whole_photos(), strict=True)))


def pictures(count: int) -> Labelled:
    """Crops like `photos`, also of scikit-image's pictures where it is installed.

    Some are grey, and one has an alpha channel.
    """
    whole = dict(zip(("china", "flower"), whole_photos(), strict=True))
    if importlib.util.find_spec("skimage"):
        data = resources.files("skimage").joinpath("data")
        for name in ("astronaut", "camera", "chelsea", "coffee", "coins", "logo"):
            picture = data.joinpath(f"{name}.png").read_bytes()
            whole[name] = Image.open(io.BytesIO(picture))
    return _crops(count, whole)


def _crops(count: int, pictures: dict[str, Image.Image]) -> Labelled:
    names, whole = tuple(pictures), list(pictures.values())
    rng = np.random.default_rng(0)
    images = []
    for number in range(count):
        photo = whole[number % len(whole)]
        width, height = (int(rng.integers(40, side)) for side in photo.size)
        left = int(rng.integers(0, photo.width - width + 1))
        top = int(rng.integers(0, photo.height - height + 1))
        out = io.BytesIO()
        crop = photo.crop((left, top, left + width, top + height))
        crop.save(out, "PNG" if crop.mode == "RGBA" else "JPEG")
        images.append(out.getvalue())
    return Labelled(images, [number % len(whole) for number in range(count)], names)
