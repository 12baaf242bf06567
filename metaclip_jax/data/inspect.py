"""Shows what the trainer will see of its data: crops, texts, lengths, speed.

    python -m metaclip_jax.data.inspect --config=configs/FILE.py --output=sheet.png
    python -m metaclip_jax.data.inspect DIR --config.tokenizer=FILE --output=sheet.html

prints a summary and renders a contact sheet. It takes the trainer's config with the
same overrides and opens the batches by the trainer's own function, so orders, mixtures,
text sources, online balancing and augmentation are those of the run. DIR replaces
config.dataset; without --config all keys have their defaults.
"""

import collections
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import simplejpeg
from absl import app, flags, logging
from ml_collections import ConfigDict

from metaclip_jax import config as keys
from metaclip_jax import files
from metaclip_jax.cli import command, config_flag
from metaclip_jax.data import (
    batch,
    clean_up,
    mixture,
    options,
    pipeline,
    records,
    sheet,
    tokenizer,
    workers,
)

_RECORDS_FOR_LENGTHS = 10_000
_RECORDS_FOR_TOKENIZER = 20_000


@dataclass(frozen=True)
class Example:
    """One row of a batch: `image` uint8[H, W, 3], the text as the model gets it
    (cleaned, cut), the texts of its record as they are stored, and where it is from.
    """

    image: np.ndarray
    text: str
    stored: tuple[str, ...]
    dataset: str
    # Of the text: alt; "alt or title" if two texts look the same once cleaned.
    source: str


@dataclass(frozen=True)
class Look:
    """The findings.

    `facts` are (what, figure) rows, `lengths` int64[n] tokens of single texts without
    marks, of records spread evenly over the datasets.
    """

    title: str
    facts: list[tuple[str, str]]
    examples: list[Example]
    lengths: np.ndarray


def get_config() -> ConfigDict:
    """Returns the config that is looked at without a recipe."""
    return keys.default()


def first_examples(
    stream: pipeline.Batches,
    datasets: Sequence[records.Dataset],
    tokenize: tokenizer.Tokenizer,
    *,
    count: int,
) -> list[Example]:
    """Returns the first `count` rows that a stream hands to the model."""
    names = batch.names(datasets) if len(datasets) > 1 else [""]
    examples: list[Example] = []
    for rows in stream:
        members, numbers = rows["dataset"].tolist(), rows["record"].tolist()
        for image, tokens, member, number in zip(
            np.array(rows["image"]), rows["tokens"], members, numbers, strict=True
        ):
            record = records.decode(records.read(datasets[member], [number])[0])
            text = tokenize.decode(tokens.tolist())
            pairs = zip(record.texts, record.text_sources, strict=True)
            sources = {source for one, source in pairs if is_shown(one, text)}
            source = " or ".join(sorted(sources))
            examples.append(Example(image, text, record.texts, names[member], source))
        if len(examples) >= count:
            break
    return examples[:count]


def measure_texts(
    datasets: Sequence[records.Dataset],
    shares: Sequence[float],
    tokenize: tokenizer.Tokenizer,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (int64[n] tokens of each text, int64[m] texts of each image).

    Each dataset gives as many images as its share asks for.
    """
    texts = [
        record.texts
        for dataset, share in zip(datasets, shares, strict=True)
        for record in records.evenly_spaced(
            dataset, round(_RECORDS_FOR_LENGTHS * share)
        )
    ]
    flat = [text for of_image in texts for text in of_image]
    lengths = np.array([len(ids) for ids in tokenize.ids(flat)], np.int64)
    return lengths, np.array([len(of_image) for of_image in texts], np.int64)


def measure_speed(stream: pipeline.Batches, *, seconds: float) -> float:
    """Returns images per second of a stream, after its first batch."""
    next(stream)
    images, start = 0, time.perf_counter()
    for rows in stream:
        images += len(rows["image"])
        if time.perf_counter() - start > seconds:
            break
    return images / max(time.perf_counter() - start, 1e-9)


def dataset_facts(
    datasets: Sequence[records.Dataset],
    shares: Sequence[float],
    progress: dict[str, float],
) -> list[tuple[str, str]]:
    """Returns (what, figure) rows about each dataset.

    `progress` is a stream's: from it follows how many records an epoch keeps.
    """
    rows = []
    names = batch.names(datasets)
    for name, dataset, share in zip(names, datasets, shares, strict=True):
        epochs = progress[f"epochs/{name}"]
        kept = progress[f"examples_seen/{name}"] / epochs if epochs else np.nan
        rows += [
            ("dataset", f"{name}, {share:.3g} of the examples"),
            ("  records", f"{len(dataset):,} in {len(dataset.shards):,} files"),
            ("  records an epoch", f"{kept:,.0f}"),
            ("  balanced", _balanced(dataset.data_card)),
        ]
    return rows


def text_facts(
    lengths: np.ndarray,
    texts_per_image: np.ndarray,
    examples: Sequence[Example],
    *,
    room: int,
) -> list[tuple[str, str]]:
    """Returns (what, figure) rows about texts; `room` is the tokens that fit."""
    middle, high, most = np.percentile(lengths if lengths.size else [0], [50, 95, 100])
    sources = collections.Counter(example.source or "unknown" for example in examples)
    shown = ", ".join(
        f"{name} {count / len(examples):.0%}" for name, count in sources.most_common()
    )
    return [
        ("texts per image", f"{texts_per_image.mean():.2f}"),
        ("text sources shown", shown),
        ("tokens a text", f"median {middle:.0f}, 95% {high:.0f}, most {most:.0f}"),
        (
            f"texts longer than {room} tokens",
            f"{(lengths > room).sum() / max(lengths.size, 1):.2%}",
        ),
    ]


def look(config: ConfigDict, *, examples: int, seconds: float) -> Look:
    """Opens the batches of a config as the trainer does, and describes them."""
    data = options.DataOptions.from_config(config)
    datasets = [records.open_dataset(folder) for folder in data.folders]
    shares = mixture.shares(data.weights)
    tokenize = tokenizer.load(config.tokenizer, family=config.model.family)
    with workers.Prefetcher(
        worker_count=config.data.worker_count, prefetch=config.data.prefetch
    ) as prefetcher:
        stream = pipeline.batches(data, tokenize, prefetcher=prefetcher)
        shown = first_examples(stream, datasets, tokenize, count=examples)
        speed = measure_speed(stream, seconds=seconds)
        progress = stream.progress(max(stream.examples // data.global_batch, 1))
    lengths, texts_per_image = measure_texts(datasets, shares, tokenize)
    marks = 1 if tokenize.bos_id is None else 2
    room = config.model.context_length - marks
    return Look(
        title=", ".join(batch.names(datasets)),
        facts=[
            *dataset_facts(datasets, shares, progress),
            ("order", _order(config.data)),
            ("augmentation", _augmentation(config.data)),
            *text_facts(lengths, texts_per_image, shown, room=room),
            ("images that cannot be decoded", f"{stream.replaced.total():,} met"),
            ("loader speed", f"{speed:,.0f} images/s"),
        ],
        examples=shown,
        lengths=lengths,
    )


def to_sheet(shown: Look) -> sheet.Sheet:
    """Returns the contact sheet of a look at the data."""
    return sheet.Sheet(
        title=f"What training sees of {shown.title}",
        facts=shown.facts,
        lengths=shown.lengths,
        note="Cropped and resized; the text as the model reads it, and below it the"
        " others of the image.",
        cells=[_cell(example) for example in shown.examples],
    )


def _cell(example: Example) -> sheet.Cell:
    pixels = np.ascontiguousarray(example.image)
    return sheet.Cell(
        jpeg=simplejpeg.encode_jpeg(pixels, quality=90),
        text=example.text,
        note=" ".join(filter(None, (example.dataset, example.source))),
        others=[text for text in example.stored if not is_shown(text, example.text)],
    )


def is_shown(stored: str, shown: str) -> bool:
    """Returns whether the model was shown this text, perhaps cut."""
    # Tokens come back with spaces around punctuation.
    cleaned, shown = (t.replace(" ", "") for t in (clean_up.clean(stored), shown))
    return cleaned == shown or (len(shown) > 20 and cleaned.startswith(shown))


def _order(data: ConfigDict) -> str:
    if data.order == "global":
        return "global"
    return f"{data.order} of {data.block_records} in windows of {data.window_blocks}"


def _augmentation(data: ConfigDict) -> str:
    low, high = data.crop_scale
    parts = [f"crops of {low:g} to {high:g} of the area"]
    parts += ["mirrored at random"] if data.flip else []
    parts += [f"colours changed by up to {data.colour:g}"] if data.colour else []
    return ", ".join(parts)


def _balanced(data_card: dict[str, Any]) -> str:
    balanced = data_card.get("balanced")
    if not balanced:
        return "no"
    thresholds = ", ".join(f"{code} {t:,}" for code, t in sorted(balanced["t"].items()))
    return f"by rule {balanced['rule']}, t: {thresholds}"


def _tokenizer_path(config: ConfigDict, folder: str) -> str:
    """Trains a tokenizer for a dataset that has none yet."""
    folders, _ = mixture.members(config.dataset, config.data.mixture)
    texts = [
        text
        for dataset in map(records.open_dataset, folders)
        for record in records.evenly_spaced(dataset, _RECORDS_FOR_TOKENIZER)
        for text in record.texts
    ]
    path = Path(folder) / "tokenizer.json"
    path.write_text(tokenizer.train(texts, 8_192).to_str())
    logging.warning("config.tokenizer is empty: lengths are by a tokenizer trained now")
    return str(path)


def main(argv: Sequence[str]) -> None:
    """Prints the summary of the data and writes its contact sheet."""
    values = flags.FLAGS
    config: ConfigDict = values.config.copy_and_resolve_references().unlock()
    if len(argv) > 2:
        raise app.UsageError(
            f"wanted one dataset folder at most, got {' '.join(argv[1:])}; name one"
        )
    command.check_output("--output", values.output, ".html", ".png")
    if len(argv) == 2:
        config.dataset, config.data.mixture = argv[1], ()
    keys.check(config)
    # The order is the same for any size of batches, and it never ends.
    config.global_batch = values.batch
    config.total_steps = 1_000_000_000
    config.data.max_replaced_share = 1.0
    logging.set_verbosity(logging.WARNING)  # what the pipeline logs is about training
    jax.config.update("jax_platforms", "cpu")  # leave accelerators to their users
    with tempfile.TemporaryDirectory() as folder:
        if not config.tokenizer:
            config.tokenizer, config.vocabulary = _tokenizer_path(config, folder), ""
        shown = look(config, examples=values.examples, seconds=values.seconds)
    for what, figure in shown.facts:
        print(f"{what:32} {figure}")
    if values.output:
        png = values.output.endswith(".png")
        files.write_bytes(values.output, sheet.render(to_sheet(shown), png=png))
        print(f"{'contact sheet':32} {values.output}")


if __name__ == "__main__":
    config_flag.define(keys.RANGES, default=__file__)
    flags.DEFINE_string("output", "", ".png or .html to write; empty = print only.")
    flags.DEFINE_integer(
        "batch", 256, "Images at a time, instead of global_batch.", lower_bound=1
    )
    flags.DEFINE_integer("examples", 96, "Images on the sheet.", lower_bound=1)
    flags.DEFINE_float("seconds", 5.0, "How long to measure the speed.")
    flags.register_validator(
        "seconds", lambda n: 0 <= n <= 3_600, "wanted 0 to 3600 seconds"
    )
    command.run(main)
