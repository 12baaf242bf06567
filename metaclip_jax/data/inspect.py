"""Shows what the trainer will see of a dataset: crops, texts, lengths, speed.

    python -m metaclip_jax.data.inspect DIR --tokenizer=FILE --output=sheet.html

prints a summary and renders a contact sheet, one HTML file that needs nothing else.
Images and texts come out of the same pipeline as in training, for the same seed.
"""

import base64
import html
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from absl import app, flags, logging

from metaclip_jax import files
from metaclip_jax.data import images, pipeline, records, tokenizer

_RECORDS_FOR_LENGTHS = 10_000
_TEXTS_FOR_TOKENIZER = 20_000
_BARS = 24

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 74rem;
  padding: 0 1rem; color: #1d2733; background: #fff; }
table { border-collapse: collapse; } td { padding: .15rem 1.2rem .15rem 0; }
.sheet { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { margin: 0; } figure img { width: 100%; border-radius: 4px; }
figcaption { overflow-wrap: anywhere; } .other { color: #5d6b7a; font-size: 13px; }
.bars { display: flex; align-items: flex-end; height: 9rem; gap: 2px; }
.bars div { flex: 1; background: #35618e; min-height: 1px; }
.axis { display: flex; justify-content: space-between; color: #5d6b7a; }
"""


@dataclass(frozen=True)
class Example:
    """One row of a batch: `image` uint8[H, W, 3], the text as the model gets it
    (cleaned, cut), and the texts of its record as they are stored.
    """

    image: np.ndarray
    text: str
    stored: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What the sheet shows.

    `lengths` are int64[n], tokens of single texts without marks; `texts_per_image`
    int64[m]; both of records spread evenly over the dataset.
    """

    dataset: records.Dataset
    examples: list[Example]
    lengths: np.ndarray
    texts_per_image: np.ndarray
    context_length: int
    images_per_second: float
    replaced: dict[str, int]


def first_examples(
    stream: pipeline.Batches,
    dataset: records.Dataset,
    tokenize: tokenizer.Tokenizer,
    *,
    count: int,
) -> list[Example]:
    """Returns the first `count` rows that a stream hands to the model."""
    examples: list[Example] = []
    for batch in stream:
        stored = records.read(dataset, batch["record"])
        for image, tokens, data in zip(
            batch["image"], batch["tokens"], stored, strict=True
        ):
            texts = records.decode(data).texts
            examples.append(Example(image, tokenize.decode(tokens.tolist()), texts))
        if len(examples) >= count:
            break
    return examples[:count]


def measure_texts(
    dataset: records.Dataset, tokenize: tokenizer.Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (int64[n] tokens of each text, int64[m] texts of each image)."""
    texts = [decoded.texts for decoded in _spread(dataset, _RECORDS_FOR_LENGTHS)]
    flat = [text for of_image in texts for text in of_image]
    lengths = np.array([len(ids) for ids in tokenize.ids(flat)], np.int64)
    return lengths, np.array([len(of_image) for of_image in texts], np.int64)


def measure_speed(stream: pipeline.Batches, *, seconds: float) -> float:
    """Returns images per second of a stream, after its first batch."""
    next(stream)
    images, start = 0, time.perf_counter()
    for batch in stream:
        images += len(batch["image"])
        if time.perf_counter() - start > seconds:
            break
    return images / max(time.perf_counter() - start, 1e-9)


def summary(report: Report) -> list[tuple[str, str]]:
    """Returns (what, figure) rows for the terminal and the sheet."""
    lengths = report.lengths
    room = report.context_length - 2
    middle, high, most = np.percentile(lengths if lengths.size else [0], [50, 95, 100])
    return [
        ("dataset", report.dataset.name),
        ("records", f"{len(report.dataset):,}"),
        ("files", f"{len(report.dataset.shards):,}"),
        ("balanced", _balanced(report.dataset.data_card)),
        ("texts per image", f"{report.texts_per_image.mean():.2f}"),
        ("tokens a text", f"median {middle:.0f}, 95% {high:.0f}, most {most:.0f}"),
        (
            f"texts longer than {room} tokens",
            f"{(lengths > room).sum() / max(lengths.size, 1):.2%}",
        ),
        ("images that cannot be decoded", f"{sum(report.replaced.values()):,} met"),
        ("loader speed", f"{report.images_per_second:,.0f} images/s"),
    ]


def render(report: Report) -> str:
    """Returns the contact sheet as HTML; all that strangers wrote is escaped."""
    rows = "".join(
        f"<tr><td>{html.escape(what)}</td><td>{html.escape(figure)}</td></tr>"
        for what, figure in summary(report)
    )
    name = html.escape(report.dataset.name)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{name}</title><style>{_STYLE}</style>"
        f"<h1>What training sees of {name}</h1><table>{rows}</table>"
        f"<h2>Tokens a text</h2>{_histogram(report.lengths)}"
        "<h2>Examples</h2><p>Cropped and resized; the text as the model reads it, and "
        "below it the others of the image.</p>"
        f'<div class="sheet">{"".join(map(_figure, report.examples))}</div></html>\n'
    )


def _balanced(data_card: dict[str, Any]) -> str:
    balanced = data_card.get("balanced")
    if not balanced:
        return "no"
    thresholds = ", ".join(f"{code} {t:,}" for code, t in sorted(balanced["t"].items()))
    return f"by rule {balanced['rule']}, t: {thresholds}"


def _figure(example: Example) -> str:
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(example.image), quality=90)
    source = base64.b64encode(jpeg).decode()
    # Tokens come back with spaces around punctuation.
    shown = example.text.replace(" ", "")
    others = [
        text
        for text in example.stored
        if tokenizer.clean(text).replace(" ", "") != shown
    ]
    listed = "".join(f"<div>{html.escape(text)}</div>" for text in others)
    return (
        f'<figure><img alt="" src="data:image/jpeg;base64,{source}">'
        f"<figcaption>{html.escape(example.text)}"
        f'<div class="other">{listed}</div></figcaption></figure>'
    )


def _histogram(lengths: np.ndarray) -> str:
    most = int(lengths.max(initial=0))
    bars = min(_BARS, most + 1)
    counts, edges = np.histogram(lengths, bins=bars, range=(0, most + 1))
    columns = "".join(
        f'<div style="height:{100 * count / max(counts.max(), 1):.1f}%" '
        f'title="{low:.0f} to {high:.0f}: {count}"></div>'
        for count, low, high in zip(counts, edges, edges[1:], strict=False)
    )
    return (
        f'<div class="bars">{columns}</div>'
        f'<div class="axis"><span>0</span><span>{most}</span></div>'
    )


def _spread(dataset: records.Dataset, count: int) -> list[records.Record]:
    """Returns at most `count` records, spread evenly over the dataset."""
    count = min(count, len(dataset))
    positions = np.arange(count) * len(dataset) // max(count, 1)
    return [records.decode(data) for data in records.read(dataset, positions)]


def _tokenizer_path(dataset: records.Dataset, folder: str) -> str:
    """Trains a tokenizer for the look at a dataset that has none yet."""
    texts = [
        t for record in _spread(dataset, _TEXTS_FOR_TOKENIZER) for t in record.texts
    ]
    path = Path(folder) / "tokenizer.json"
    path.write_text(tokenizer.train(texts, 8_192).to_str())
    logging.warning("no --tokenizer given: the lengths are by one made for this look")
    return str(path)


def main(argv: Sequence[str]) -> None:
    """Prints the summary of a dataset and writes its contact sheet."""
    if len(argv) != 2:
        raise app.UsageError("name one dataset folder, like: inspect DIR --output=FILE")
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)  # the pipeline's plan is no plan of ours
    dataset = records.open_dataset(argv[1])
    with tempfile.TemporaryDirectory() as folder:
        path = values.tokenizer or _tokenizer_path(dataset, folder)
        tokenize = tokenizer.load(path)
        stream = pipeline.batches(
            argv[1],
            tokenizer_path=path,
            global_batch=values.batch,
            image_size=values.image_size,
            context_length=values.context_length,
            seed=values.seed,
            total_steps=1_000_000_000,
            augmentation=images.Augmentation(
                (values.crop_scale, 1.0), flip=values.flip, colour=values.colour
            ),
            online_t=values.online_t,
            worker_count=values.workers,
            read_threads=values.threads,
            max_replaced_share=1.0,
        )
        examples = first_examples(stream, dataset, tokenize, count=values.examples)
        speed = measure_speed(stream, seconds=values.seconds)
        stream.close()
    lengths, texts_per_image = measure_texts(dataset, tokenize)
    report = Report(
        dataset=dataset,
        examples=examples,
        lengths=lengths,
        texts_per_image=texts_per_image,
        context_length=values.context_length,
        images_per_second=speed,
        replaced=dict(stream.replaced),
    )
    for what, figure in summary(report):
        print(f"{what:32} {figure}")
    if values.output:
        files.write_bytes(values.output, render(report).encode())
        print(f"{'contact sheet':32} {values.output}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "", "HTML file to write; empty = print only.")
    flags.DEFINE_string("tokenizer", "", "tokenizer.json; empty = one for this look.")
    flags.DEFINE_integer("image_size", 224, "Pixels, height and width.")
    flags.DEFINE_integer("context_length", 77, "Tokens, marks included.")
    flags.DEFINE_integer("seed", 0, "Of order, texts and crops, as in training.")
    flags.DEFINE_integer("batch", 256, "Images at a time.")
    flags.DEFINE_integer("examples", 96, "Images on the sheet.")
    flags.DEFINE_float("crop_scale", 0.9, "Least share of an image that a crop keeps.")
    flags.DEFINE_bool("flip", False, "Mirror every second image.")
    flags.DEFINE_float("colour", 0.0, "Most change of colours, as a share.")
    flags.DEFINE_integer("online_t", 0, "Balance online at this t; 0 = no.")
    flags.DEFINE_integer("workers", 0, "Loader processes; 0 = threads only.")
    flags.DEFINE_integer("threads", 2, "Threads that decode, in each process.")
    flags.DEFINE_float("seconds", 5.0, "How long to measure the speed.")
    app.run(main)
