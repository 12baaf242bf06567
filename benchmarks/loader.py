"""Loading: our pipeline against two Pillow loaders, in one run on one core.

    python -m benchmarks.loader                  # under a minute

All read the same generated 640 x 480 JPEGs and texts, make random 224 x 224 crops and
tokenise with CLIP's clean-up. The first Pillow loader does what torchvision does, in
torch's DataLoader: decode the whole image, crop, resize bicubic, convert to normalised
floats with channels first; one text at a time. Ours leaves the conversion to floats to
the device, so a plain Pillow loop without it is timed too. The second loader reads a
tar file with webdataset, shuffles in its buffer and prepares images the same way. If
torchvision is installed, its own transforms are timed as well; they also draw the
crops. The best round's CPU time counts, since other programs may share the machine.
benchmarks/loader_scale.py measures workers, large datasets and online balancing.
"""

import importlib.util
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import simplejpeg
import torch
import webdataset
from absl import flags
from PIL import Image

from benchmarks import photographs
from metaclip_jax.cli import command
from metaclip_jax.data import images, pipeline, records, tokenizer, workers
from metaclip_jax.data.options import DataOptions
from metaclip_jax.models import vit

_SIZE, _CONTEXT = 224, 77


def load_with_pillow(
    dataset: records.Dataset, tokenize: tokenizer.Tokenizer, *, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Loads a batch by a plain loop: uint8[count, H, W, 3] and int32[count, T]."""
    pixels, tokens = [], []
    for number in np.random.default_rng(seed).permutation(count):
        image, ids = load_pair(dataset, tokenize, int(number))
        pixels.append(crop_with_pillow(image, key=int(number)))
        tokens.append(ids)
    return np.stack(pixels), np.stack(tokens)


def load_pair(
    dataset: records.Dataset, tokenize: tokenizer.Tokenizer, number: int
) -> tuple[Image.Image, np.ndarray]:
    """Returns a record's image, decoded by Pillow, and its text as int32[T]."""
    record = records.decode(records.read(dataset, [number])[0])
    image = Image.open(io.BytesIO(record.image)).convert("RGB")
    return image, tokenize([record.texts[0]], _CONTEXT)[0][0]


def crop_with_pillow(image: Image.Image, *, key: int) -> np.ndarray:
    """Returns a random crop as uint8[H, W, 3]."""
    box = images.crop_box(image.width, image.height, key=key)
    image = image.crop(box).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def load_with_torch(
    dataset: records.Dataset,
    tokenize: tokenizer.Tokenizer,
    prepare: Callable[[Image.Image, int], torch.Tensor],
    *,
    count: int,
) -> Iterator[list[torch.Tensor]]:
    """Yields batches of torch's DataLoader: [f32[count, 3, H, W], int32[count, T]]."""

    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return count

        def __getitem__(self, number: int) -> tuple[torch.Tensor, np.ndarray]:
            image, tokens = load_pair(dataset, tokenize, number)
            return prepare(image, number), tokens

    while True:
        yield from torch.utils.data.DataLoader(Pairs(), batch_size=count, shuffle=True)


def prepare_like_torchvision(image: Image.Image, key: int) -> torch.Tensor:
    """Returns f32[3, H, W], with the operations of ToTensor and Normalize."""
    pixels = torch.from_numpy(np.array(crop_with_pillow(image, key=key)))
    scaled = pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    mean, std = map(torch.as_tensor, (vit.IMAGE_MEAN, vit.IMAGE_STD))
    return scaled.clone().sub_(mean[:, None, None]).div_(std[:, None, None])


def torchvision_transforms() -> Callable[[Image.Image, int], torch.Tensor]:
    """Returns torchvision's own transforms, as its examples compose them."""
    from torchvision import transforms

    composed = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                _SIZE,
                scale=images.CROP_SCALE,
                interpolation=transforms.InterpolationMode.BICUBIC,
            ),
            transforms.ToTensor(),
            transforms.Normalize(vit.IMAGE_MEAN, vit.IMAGE_STD),
        ]
    )
    return lambda image, key: composed(image)


def decode_smallest(dataset: records.Dataset) -> None:
    """Decodes all images at an eighth of their size: mostly entropy decoding.

    Every loader has to do that part.
    """
    for data in records.read(dataset, range(len(dataset))):
        image = records.decode(data).image
        simplejpeg.decode_jpeg(
            image, min_width=photographs.WIDTH // 8, min_height=photographs.HEIGHT // 8
        )


def write_tar(path: str, dataset: records.Dataset) -> None:
    """Writes the dataset's images and texts as one webdataset tar."""
    with webdataset.TarWriter(path) as writer:
        for number, data in enumerate(records.read(dataset, range(len(dataset)))):
            record = records.decode(data)
            writer.write(
                {"__key__": f"{number}", "jpg": record.image, "txt": record.texts[0]}
            )


def load_with_webdataset(
    path: str, tokenize: tokenizer.Tokenizer, *, count: int
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Yields batches of a tar file: (f32[count, 3, H, W], int32[count, T]).

    As in webdataset's own examples: shuffled in a buffer, decoded by Pillow.
    """
    dataset = (
        webdataset.WebDataset(path, shardshuffle=False)
        .repeat()
        .shuffle(count)
        .decode("pilrgb")
        .to_tuple("jpg", "txt", "__key__")
        .map(
            lambda row: (
                prepare_like_torchvision(row[0], int(row[2])),
                tokenize([row[1]], _CONTEXT)[0][0],
            )
        )
        .batched(count, partial=False)
    )
    return iter(dataset)


def seconds(work: Callable[[], object]) -> float:
    """Returns the CPU seconds of `work`, over all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main(argv: Sequence[str]) -> None:
    """Prints the ratio to each loader, and what bounds ours."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    # Pins all threads that start later to one core.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    count = values.images
    with tempfile.TemporaryDirectory() as folder:
        photographs.write_dataset(folder, count=count, seed=values.seed)
        path = photographs.write_tokenizer(folder)
        tokenize = tokenizer.load(path, family="clip")
        dataset = records.open_dataset(folder)
        stream = pipeline.batches(
            DataOptions(
                folders=(folder,),
                global_batch=count,
                image_size=_SIZE,
                context_length=_CONTEXT,
                seed=values.seed,
                total_steps=values.rounds + 1,
                read_threads=1,
            ),
            tokenize,
            prefetcher=workers.Prefetcher(prefetch=0),
        )
        tar = f"{folder}/bench.tar"
        write_tar(tar, dataset)
        load = partial(load_with_torch, dataset, tokenize, count=count)
        loaders = {
            "ours": stream,
            "usual": load(prepare_like_torchvision),
            "webdataset": load_with_webdataset(tar, tokenize, count=count),
        }
        if importlib.util.find_spec("torchvision"):
            loaders["torchvision"] = load(torchvision_transforms())
        taken: dict[str, list[float]] = {name: [] for name in [*loaders, "loop"]}
        for loader in loaders.values():
            next(loader)
        for seed in range(values.rounds):
            for name, loader in loaders.items():
                taken[name].append(seconds(partial(next, loader)))
            loop = partial(load_with_pillow, dataset, tokenize, count=count, seed=seed)
            taken["loop"].append(seconds(loop))
        texts = [
            records.decode(d).texts[0] for d in records.read(dataset, range(count))
        ]
        tokenising = min(seconds(lambda: tokenize(texts, _CONTEXT)) for _ in range(5))
        entropy = min(seconds(lambda: decode_smallest(dataset)) for _ in range(5))
    least = {name: min(times) for name, times in taken.items()}
    best = least["ours"]

    for name, what in (
        ("usual", "Pillow in torch's DataLoader"),
        ("torchvision", "torchvision's own transforms in torch's DataLoader"),
        ("webdataset", "webdataset and Pillow"),
        ("loop", "a plain Pillow loop without floats"),
    ):
        if name in least:
            print(
                f"loader: {least[name] / best:.1f}x the images/s of {what},"
                f" {count / best:,.0f} against {count / least[name]:,.0f} per core"
            )
    print(
        f"loader: tokenising takes {tokenising / best:.1%} of loading, JPEG entropy"
        f" decoding {entropy / best:.0%}"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("images", 256, "Images per round.", lower_bound=1)
    flags.DEFINE_integer("rounds", 6, "Timed rounds per loader.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of images, texts and crops.", lower_bound=0)
    command.run(main)
