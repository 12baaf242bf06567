"""Perceptual hashes on changed copies of real pictures: precision and recall.

    pip install -c constraints.txt scikit-image ImageHash
    python -m benchmarks.near_duplicates

The pictures are tiles, which do not overlap, of those that scikit-image and
scikit-learn install with. Copies are recompressed, scaled, recoloured, cropped. A
hash's threshold is six standard deviations below the mean distance of different
pictures, so that about one comparison in a billion is wrong if distances are normal;
here that is about the least distance among 5,000 pairs, or below it. With it, the
recall of each change is printed; and the time of one hash of decoded pixels, in CPU
time.

Then `data_prep.images.similarity` groups all pictures by bands, as curation does, and
its recall is printed next to that of comparing all pairs.
"""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from data_prep.images import fingerprint, similarity
from metaclip_jax.cli import command

_TILE = 192  # pixels
_DEVIATIONS = 6
_NEAR_BITS = 40  # of docs/curation.md
# They show what another file shows.
_SKIPPED = ("motorcycle_right.png", "no_time_for_that_tiny.gif", "chessboard_RGB.png")
_ENDINGS = (".png", ".jpg")
Hash = Callable[[Image.Image], np.ndarray]


def _recompressed(kind: str, quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        out = io.BytesIO()
        image.save(out, kind, quality=quality)
        return Image.open(out).convert("RGB")

    return change


def _scaled(width: float, height: float) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        size = round(image.width * width), round(image.height * height)
        return image.resize(size, Image.Resampling.BICUBIC)

    return change


def _cropped(
    left: float, top: float, right: float, bottom: float
) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        w, h = image.size
        return image.crop(
            (
                round(w * left),
                round(h * top),
                round(w * (1 - right)),
                round(h * (1 - bottom)),
            )
        )

    return change


def _brighter(image: Image.Image) -> Image.Image:
    return image.point(lambda value: min(255, value * 1.2 + 10))


def _captioned(image: Image.Image) -> Image.Image:
    out = image.copy()
    out.paste("white", (0, image.height * 11 // 12, *image.size))
    return out


CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 75": _recompressed("JPEG", 75),
    "JPEG, quality 30": _recompressed("JPEG", 30),
    "WebP, quality 50": _recompressed("WEBP", 50),
    "half the size": _scaled(1 / 2, 1 / 2),
    "a quarter of the size": _scaled(1 / 4, 1 / 4),
    "1.5 times the size": _scaled(3 / 2, 3 / 2),
    "height 10% less": _scaled(1, 0.9),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "brighter": _brighter,
    "crop, 2% of each side's length": _cropped(0.01, 0.01, 0.01, 0.01),
    "crop, 5%": _cropped(0.025, 0.025, 0.025, 0.025),
    "crop, 10%": _cropped(0.05, 0.05, 0.05, 0.05),
    "cut off at the right, 5%": _cropped(0, 0, 0.05, 0),
    "a white strip over the lowest 8%": _captioned,
}


def _pdq(image: Image.Image) -> np.ndarray:
    grey = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY)
    data = np.frombuffer(fingerprint.fingerprint(grey), np.uint8)
    return np.unpackbits(data)


def hashes() -> dict[str, Hash]:
    """Returns the hashes by name, that of curation first."""
    import imagehash  # which only this benchmark needs

    def of(function: Callable, **options: int) -> Hash:
        return lambda image: function(image, **options).hash.ravel()

    return {
        "PDQ, as curation has it": _pdq,
        "ImageHash phash, 64 bits": of(imagehash.phash),
        "ImageHash phash, 256 bits": of(imagehash.phash, hash_size=16),
        "ImageHash dhash, 64 bits": of(imagehash.dhash),
        "ImageHash dhash, 256 bits": of(imagehash.dhash, hash_size=16),
        "ImageHash whash, 64 bits": of(imagehash.whash),
    }


def pictures() -> list[Image.Image]:
    """Returns the tiles that PDQ finds features in."""
    images = []
    for folder in (
        resources.files("skimage").joinpath("data"),
        resources.files("sklearn.datasets").joinpath("images"),
    ):
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            if path.name.endswith(_ENDINGS) and path.name not in _SKIPPED:
                data = io.BytesIO(path.read_bytes())
                images.append(Image.open(data).convert("RGB"))
    tiles = [
        image.crop((x, y, x + _TILE, y + _TILE))
        for image in images
        for y in range(0, image.height - _TILE + 1, _TILE)
        for x in range(0, image.width - _TILE + 1, _TILE)
    ]
    return [image for image in tiles if _pdq(image).size]


def _recall(hashed: np.ndarray, copies: Sequence[np.ndarray], threshold: int) -> float:
    near = [
        copy.size and (copy != own).sum() <= threshold
        for own, copy in zip(hashed, copies, strict=True)
    ]
    return float(np.mean(near))


def _measure(name: str, hash_of: Hash, images: Sequence[Image.Image]) -> float:
    """Prints a hash's threshold, time and recalls; returns the mean recall."""
    start = time.process_time()
    hashed = np.stack([hash_of(image) for image in images])
    spent = (time.process_time() - start) / len(images)
    distances = (hashed[:, None] != hashed[None]).sum(-1)
    others = distances[np.triu_indices(len(images), 1)]
    threshold = max(0, int(others.mean() - _DEVIATIONS * others.std()))
    recalls = {
        change: _recall(hashed, [hash_of(apply(image)) for image in images], threshold)
        for change, apply in CHANGES.items()
    }
    mean = float(np.mean(list(recalls.values())))
    print(
        f"{name}: threshold {threshold} of {hashed.shape[1]} bits (least distance"
        f" {others.min()}), {spent * 1e3:.2f} ms, mean recall {mean:.3f}"
    )
    for change, recall in recalls.items():
        print(f"    {change:32} {recall:.2f}")
    return mean


def _measure_bands(images: Sequence[Image.Image]) -> None:
    """Prints precision and recall of curation's own search, at its threshold."""
    copies = [
        (number, _pdq(change(image)))
        for number, image in enumerate(images)
        for change in (lambda image: image, *CHANGES.values())
    ]
    copies = [(number, bits) for number, bits in copies if bits.size]
    numbers = np.array([number for number, _ in copies])
    bits = np.stack([bits for _, bits in copies])
    prints = pa.array([np.packbits(row).tobytes() for row in bits], pa.binary())
    fingerprints = similarity.Fingerprints.of(prints)
    rank = np.arange(len(numbers))
    by_bands = np.full(len(numbers), -1)
    for band in range(similarity.BANDS):
        better = similarity.better_like(
            fingerprints, rank, band=band, most_bits=_NEAR_BITS
        )
        by_bands = np.where(by_bands < 0, better, by_bands)
    near = np.tril((bits[:, None] != bits[None]).sum(-1) <= _NEAR_BITS, -1).any(1)
    hits = by_bands >= 0
    right = numbers[by_bands[hits]] == numbers[hits]
    wanted = len(numbers) - len(images)
    print(
        f"curation, {_NEAR_BITS} bits: of {wanted:,} copies of {len(images)} pictures,"
        f" {hits.sum() / wanted:.3f} are dropped, {right.mean():.4f} of them rightly"
    )
    ratio = hits.sum() / near.sum()
    print(f"near_duplicates: {ratio:.3f}x the copies that comparing all with all finds")


def main(argv: Sequence[str]) -> None:
    """Measures each hash on the same pictures, then the search."""
    command.refuse_arguments(argv)
    images = pictures()
    pairs = len(images) * (len(images) - 1) // 2
    print(f"{len(images)} pictures, {pairs:,} pairs of different ones")
    means = {
        name: _measure(name, hash_of, images) for name, hash_of in hashes().items()
    }
    ours, *others = means.values()
    ratio = ours / max(others)
    print(f"near_duplicates: {ratio:.2f}x the mean recall of the best ImageHash")
    _measure_bands(images)


if __name__ == "__main__":
    command.run(main)
