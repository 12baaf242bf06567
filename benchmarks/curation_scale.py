"""Curation at scale: texts/s of one core, and memory, as the pool grows.

    python -m benchmarks.curation_scale                      # 1M, 4M, 16M texts
    python -m benchmarks.curation_scale --texts=1000000

Generated alt texts, half with words of a Zipf vocabulary and half file names, pass
through curation's functions in the order in which a worker calls them: match with
500,000 entries, identify languages, partition by image; then, per partition, drop
repeats, count, sample, draw. Files replace the runner's shuffle between the two halves,
so this measures our functions and no runner. Each size runs in a separate process.
HTML parsing is measured separately, since its cost is proportional to bytes.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import flags

from data_prep import config as curation_config
from data_prep import language, schema
from data_prep.matching import Matcher
from data_prep.sources import html, warc
from data_prep.stages import dedup, parts, steps
from data_prep.stages.matches import by_partition
from examples.quickstart import warc_file
from metaclip_jax.cli import command
from metaclip_jax.data import balance

_BATCH = 16_384  # rows
_IMAGES_PER_PARTITION = 20_000
_TEXTS_PER_IMAGE = 1.25
_VOCABULARY = 1_000_000
_JUNK = 0.5  # file names and the like: about half of all texts match nothing
_TAIL_SHARE = 0.06
_SNAPSHOT_BYTES = 3e9 * 60e3  # a snapshot of Common Crawl: pages, bytes of HTML each
_DOLLARS_PER_CORE_HOUR = 0.04  # cc2dataset's README: $2,800 for 70,000 core-hours

Seconds = defaultdict[str, float]


def words(count: int) -> pa.Array:
    """Returns `count` different words, made of consonants and vowels."""
    consonants, vowels = list("bcdfghjklmnprstvwyz"), list("aeiou")
    syllables = [c + v for c in consonants for v in vowels]
    out = []
    for rank in range(count):
        word, left = "", rank
        while True:
            left, syllable = divmod(left, len(syllables))
            word += syllables[syllable]
            if not left:
                break
            left -= 1
        out.append(word)
    return pa.array(out)


def zipf(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns i64[size], ranks below the vocabulary with frequency 1 / (rank + 3)."""
    top = np.log(_VOCABULARY / 3 + 1)
    ranks = (3 * np.expm1(rng.random(size) * top)).astype(np.int64)
    return np.minimum(ranks, _VOCABULARY - 1)


def candidates(
    vocabulary: pa.Array, count: int, *, seed: int
) -> Iterator[pa.RecordBatch]:
    """Yields CANDIDATES with `count` texts; one in twenty repeats another's pair."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, _BATCH):
        n = min(_BATCH, count - start)
        lengths = 1 + rng.poisson(rng.gamma(2, 4, n))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        lists = pa.ListArray.from_arrays(
            pa.array(offsets), vocabulary.take(pa.array(zipf(rng, int(offsets[-1]))))
        )
        texts = pc.if_else(
            pa.array(rng.random(n) < _JUNK),
            pc.binary_join_element_wise(
                "IMG_",
                pa.array(rng.integers(0, 10**6, n)).cast(pa.string()),
                ".JPG",
                "",
            ),
            pc.binary_join(lists, " "),
        )
        digits = rng.bytes(12 * n).hex()
        image = np.minimum.accumulate(  # some images have several texts
            np.where(rng.random(n) < 1 / _TEXTS_PER_IMAGE, np.arange(n), n)[::-1]
        )[::-1]
        image = np.where(image == n, n - 1, image)
        ids = [digits[24 * i : 24 * i + 24] for i in image.tolist()]
        urls = [f"https://images.example/{image_id}.jpg" for image_id in ids]
        table = pa.Table.from_batches(
            [
                schema.from_columns(
                    {
                        "image_id": ids,
                        "image_url": urls,
                        "page_url": ["https://page.example/"] * n,
                        "text": texts,
                        "text_source": ["alt"] * n,
                        "language": ["en"] * n,
                        "page_language": [""] * n,
                        "stored_at": [""] * n,
                    },
                    schema.CANDIDATES,
                )
            ]
        )
        again = rng.choice(n, n // 20)
        rows = np.concatenate([np.arange(n - again.size), again])
        yield schema.one_batch(table.take(pa.array(rows)))


def timed(seconds: Seconds, name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Adds the CPU seconds of a call to `seconds[name]`; returns its result."""
    begin = time.process_time()
    result = function(*args)
    seconds[name] += time.process_time() - begin
    return result


def run_once(count: int) -> dict[str, Any]:
    """Curates `count` texts up to the draws; returns seconds by step, rows, memory."""
    seconds: Seconds = defaultdict(float)
    vocabulary = words(_VOCABULARY)
    matcher = Matcher(vocabulary[: flags.FLAGS.entries])
    Matcher(["a"]).match(["a"])
    model = language.Lid176()

    def identify(texts: Any, /, *, expected: Any) -> list[str]:
        # Generated words belong to no language, so only the time is used.
        timed(seconds, "language", lambda: model(texts, expected=expected))
        return ["en"] * len(texts)

    partitions = max(1, round(count / _TEXTS_PER_IMAGE / _IMAGES_PER_PARTITION))
    rows_in = rows_matched = 0
    with tempfile.TemporaryDirectory() as folder:
        shuffle = Shuffle(Path(folder), partitions)
        for batch in candidates(vocabulary, count, seed=count):
            rows_in += batch.num_rows
            before = seconds["language"]
            matches, _ = timed(
                seconds,
                "match",
                lambda b=batch: steps.match(
                    b, matchers={"en": matcher}, identify=identify
                ),
            )
            seconds["match"] -= seconds["language"] - before
            rows_matched += matches.num_rows
            split = timed(
                seconds,
                "partition",
                lambda m=matches: list(by_partition(m, partitions)),
            )
            for partition, rows in split:
                shuffle.add(partition, rows)
        counts = np.zeros(len(matcher), np.uint64)
        sampled = 0
        for partition in range(partitions):
            table = shuffle.read(partition)
            unique = timed(seconds, "dedup", dedup.sort_and_drop_repeats, table)
            unique = timed(
                seconds,
                "keys",
                lambda u=unique: steps.to_matches(u, seed=0, rule="v1"),
            )
            counted = timed(seconds, "count", steps.count, unique)
            counts += steps.to_vectors(counted, {"en": len(matcher)})["en"]
            part = timed(
                seconds,
                "sample",
                lambda u=unique, p=partition: steps.sample(
                    u, images=1_000_000 // partitions + 1, partition=p
                ),
            )
            sampled += part.num_rows
            parts.write(folder, parts.name(partition, partitions), unique, _NO_FLOW)
        vectors = {"en": counts.astype(np.float64)}
        t = balance.thresholds(vectors, t=0, tail_share=_TAIL_SHARE)
        keep = balance.keep_probabilities(vectors, t)
        kept = 0
        for partition in range(partitions):
            unique = parts.read(folder, parts.name(partition, partitions))
            mask, _ = timed(
                seconds,
                "draw",
                lambda u=unique: steps.draw(u, seed=0, keep_probability=keep),
            )
            kept += int(mask.sum())
    return {
        "texts": rows_in,
        "matched": rows_matched,
        "kept": kept,
        "sampled": sampled,
        "seconds": dict(seconds),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


_NO_FLOW = schema.one_batch(schema.FLOW.empty_table())


class Shuffle:
    """Replaces a runner's shuffle: one file per partition."""

    def __init__(self, folder: Path, partitions: int) -> None:
        self._paths = [folder / f"shuffle-{i}" for i in range(partitions)]

    def add(self, partition: int, rows: pa.RecordBatch) -> None:
        """Appends rows, preceded by their length in bytes."""
        data = rows.serialize()
        with self._paths[partition].open("ab") as file:
            file.write(len(data).to_bytes(8, "little"))
            file.write(data)

    def read(self, partition: int) -> pa.Table:
        """Returns the rows of one partition."""
        path = self._paths[partition]
        data = path.read_bytes() if path.exists() else b""
        batches, at = [], 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            body = pa.py_buffer(data[at + 8 : at + 8 + size])
            batches.append(pa.ipc.read_record_batch(body, schema.MATCHED))
            at += 8 + size
        return pa.Table.from_batches(batches, schema=schema.MATCHED)


def parse_rate() -> tuple[float, float]:
    """Returns MB of HTML and texts that one core parses per second of a .warc.gz file.

    A page has 60 kB of text, links and scripts, and 20 images, about as in Common
    Crawl.
    """
    vocabulary = words(2_000).to_pylist()
    rng = np.random.default_rng(0)
    answers = []
    for page in range(100):
        blocks = []
        for i in range(20):
            text = " ".join(rng.choice(vocabulary, 250).tolist())
            blocks.append(
                f'<div class="row"><h2 id="h{i}">{text[:40]}</h2><p>{text}'
                f'<a href="/page/{i}.html">{text[:20]}</a></p>'
                f'<img src="/images/{i}.jpg" alt="{text[:60]}" width="640">'
                f"<script>var x{i} = {json.dumps(text[:400])};</script></div>"
            )
        body = f"<html lang=en><body>{''.join(blocks)}</body></html>".encode()
        headers = (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Date", "Thu, 01 Jan 2026 00:00:00 GMT"),
        )
        answers.append(
            warc_file.Answer(f"https://page.example/{page}", 200, headers, body)
        )
    size = sum(len(answer.body) for answer in answers)
    limits = curation_config.curate().pages.to_dict()
    limits["identify"] = language.Lid176()
    max_page_bytes = limits.pop("max_page_bytes")

    def parse(path: str) -> int:
        texts = 0
        for page in warc.read_pages(path, max_page_bytes=max_page_bytes):
            parsed = html.parse_page(page, **limits)
            assert not isinstance(parsed, warc.LostPage)
            texts += len(parsed[0])
        return texts

    texts = rounds = 0
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pages.warc.gz")
        warc_file.write(path, answers, software="benchmark")
        parse(path)  # compiles
        begin = time.process_time()
        while time.process_time() - begin < 3:
            texts += parse(path)
            rounds += 1
        took = time.process_time() - begin
    return rounds * size / 1e6 / took, texts / took


def print_estimates(*, texts_per_second: float, megabytes_per_second: float) -> None:
    """Prints the core-hours for MetaCLIP's pools as a Markdown table."""
    print("| work | amount | core-hours | dollars |")
    print("|---|---|---|---|")
    for work, amount, unit, rate in (
        ("parse one snapshot", _SNAPSHOT_BYTES / 1e6, "MB", megabytes_per_second),
        ("match ... draw, pool 1", 2 * 1.6e9, "texts", texts_per_second),
        ("match ... draw, pool 2", 2 * 10.7e9, "texts", texts_per_second),
        ("match ... draw, all", 300e9, "texts", texts_per_second),
    ):
        hours = amount / rate / 3600
        print(
            f"| {work} | {amount:.3g} {unit} | {hours:,.0f} "
            f"| {hours * _DOLLARS_PER_CORE_HOUR:,.0f} |"
        )


def main(argv: list[str]) -> None:
    """Prints a line per size, one for the parser, and largest to smallest."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    if values.one:
        print(json.dumps(run_once(values.one)))
        return
    rates, peaks = [], []
    for count in map(int, values.texts):
        once = [sys.executable, __file__, f"--one={count}"]
        done = subprocess.run(
            [*once, f"--entries={values.entries}"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        found = json.loads(done.stdout)
        seconds = found["seconds"]
        rates.append(found["texts"] / sum(seconds.values()))
        peaks.append(found["peak_bytes"])
        each = ", ".join(
            f"{name} {1e6 * took / found['texts']:.2f}"
            for name, took in seconds.items()
        )
        print(
            f"curation_scale: {count / 1e6:g}M texts: {rates[-1]:,.0f} texts/s of one "
            f"core, peak {peaks[-1] / 2**30:.2f} GiB; {found['matched']:,} matched, "
            f"{found['kept']:,} kept; microseconds per text: {each}",
            flush=True,
        )
    megabytes, pairs = parse_rate()
    print(
        f"curation_scale: parse {megabytes:.0f} MB of HTML/s and {pairs:,.0f} texts/s "
        "of one core (60 kB and 20 images per page)"
    )
    print(
        f"curation_scale: {rates[-1] / rates[0]:.2f}x the texts/s of the smallest pool "
        f"with the largest\n"
        f"curation_scale: {peaks[-1] / peaks[0]:.2f}x the memory of the smallest pool "
        "with the largest"
    )
    print_estimates(texts_per_second=rates[-1], megabytes_per_second=megabytes)


if __name__ == "__main__":
    flags.DEFINE_list("texts", ["1000000", "4000000", "16000000"], "Pool sizes.")
    flags.register_validator(
        "texts",
        lambda sizes: sizes and all(n.isdecimal() and int(n) for n in sizes),
        "wanted numbers of texts above 0, separated by commas",
    )
    flags.DEFINE_integer("entries", 500_000, "Number of entries.", lower_bound=10)
    flags.DEFINE_integer(
        "one", 0, "Internal: run this size, print its seconds.", lower_bound=0
    )
    command.run(main)
