"""Datasets of generated photographs and short texts, for the loader benchmarks."""

import numpy as np
import simplejpeg

from data_prep.sinks import array_record
from metaclip_jax.data import records, tokenizer

WIDTH, HEIGHT = 640, 480  # pixels
WORDS = "a photo of the red green old new house cat dog woman man street sea".split()


def photograph(rng: np.random.Generator) -> bytes:
    """Returns a JPEG like a photograph: 1 / f amplitudes, correlated colours."""
    frequency = np.hypot(
        np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None, :]
    )
    falling = 1 / np.maximum(frequency, 1 / WIDTH) ** 1.4
    noise = rng.normal(size=(2, 3, *falling.shape))
    waves = np.fft.irfft2((noise[0] + 1j * noise[1]) * falling, (HEIGHT, WIDTH))
    waves /= waves.std()
    planes = (0.95 * waves[:1] + 0.3 * waves) * 45 + 128
    pixels = np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=85, colorsubsampling="420"
    )


def write_dataset(folder: str, *, count: int, seed: int) -> None:
    """Writes a dataset of `count` photographs with one text of ten words each."""
    rng = np.random.default_rng(seed)
    photographs = [photograph(rng) for _ in range(min(count, 32))]

    def record(number: int) -> records.Record:
        url = f"http://images.example/{number}"
        return records.Record(
            image=photographs[number % len(photographs)],
            image_id=records.image_id(url),
            image_url=url,
            page_url=url,
            sha256="",
            width=WIDTH,
            height=HEIGHT,
            texts=(" ".join(rng.choice(WORDS, 10)),),
            text_sources=("alt",),
            languages=("en",),
            metadata=("en",),
            entry_ids=np.zeros(0, np.int32),
            entry_offsets=np.zeros(2, np.int64),
        )

    shard = f"{folder}/{records.shard_name('bench', 0, 1)}"
    array_record.write_dataset(
        folder,
        name="bench",
        shard_facts=[array_record.write_shard(shard, map(record, range(count)))],
        data_card={},
        counts=None,
        inputs={},
    )


def write_tokenizer(folder: str) -> str:
    """Writes a tokenizer trained on the texts' words; returns its path."""
    path = f"{folder}/tokenizer.json"
    with open(path, "w") as file:
        file.write(tokenizer.train([" ".join(WORDS)] * 2, 2_048).to_str())
    return path
