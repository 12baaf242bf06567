"""The command of curation, from WARC files to counted matches, as the pool grows.

    python -m benchmarks.curation_scale                           # 1M and 5M texts
    python -m benchmarks.curation_scale --texts=5000000,20000000  # half an hour
    python -m benchmarks.curation_scale --texts=1000000 --workers=1

Generated pages of alt texts, half of them of a Zipf vocabulary and half file names, in
WARC files of 20,000 texts. `data_prep.curate --stop_after=match` parses them, matches
with 500,000 entries, identifies languages, and gathers the matches by image. For each
size and number of workers: seconds, CPU of all processes, and the peak of their memory
together (PSS, in which pages that processes share count once). config.memory_gib is set
to less than the pools, as on a machine whose pool is larger than its memory. The first
run of an installation, which compiles for 10 s and in 90 MiB more, is not measured.

HTML of ordinary pages is parsed in a run of its own, since its cost goes by bytes.
"""

import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.processes import Cost, measure
from data_prep import config as curation_config
from data_prep import language
from data_prep.sources import html, warc
from examples.quickstart import warc_file
from metaclip_jax.cli import command

_TEXTS_PER_FILE = 20_000
_IMAGES_PER_PAGE = 20
_IMAGES_PER_PARTITION = 20_000
_VOCABULARY = 1_000_000
_MEMORY_GIB = 0.4  # for the matches of all workers: less than those of a small pool
_JUNK = 0.5  # file names and the like: about half of all texts match nothing
_REPEATED = 0.05  # of the images occur again in the same file, with the same text
_SNAPSHOT_BYTES = 3e9 * 60e3  # a snapshot of Common Crawl: pages, bytes of HTML each
_DOLLARS_PER_CORE_HOUR = 0.04  # what cc2dataset's README paid: 2,800 for 70,000
_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Date", "Thu, 01 Jan 2026 00:00:00 GMT"),
)


def words(count: int) -> list[str]:
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
    return out


def zipf(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns i64[size], ranks below the vocabulary with frequency 1 / (rank + 3)."""
    top = np.log(_VOCABULARY / 3 + 1)
    ranks = (3 * np.expm1(rng.random(size) * top)).astype(np.int64)
    return np.minimum(ranks, _VOCABULARY - 1)


def write_crawl(folder: Path, vocabulary: list[str], count: int) -> None:
    """Writes WARC files with `count` texts."""
    for number, start in enumerate(range(0, count, _TEXTS_PER_FILE)):
        rng = np.random.default_rng([count, number])
        n = min(_TEXTS_PER_FILE, count - start)
        lengths = 1 + rng.poisson(rng.gamma(2, 4, n))
        ranks = iter(zipf(rng, int(lengths.sum())).tolist())
        images = np.arange(start, start + n)
        again = rng.random(n) < _REPEATED
        images[1:][again[1:]] = images[:-1][again[1:]]
        junk = rng.random(n) < _JUNK
        tags: list[str] = []
        for image, length, is_junk, repeats in zip(
            images.tolist(),
            lengths.tolist(),
            junk.tolist(),
            again.tolist(),
            strict=True,
        ):
            text = " ".join(
                vocabulary[rank] for rank in itertools.islice(ranks, length)
            )
            if is_junk:
                text = f"IMG_{image}.JPG"
            tag = f'<img src="https://images.example/{image}.jpg" alt="{text}">'
            tags.append(tags[-1] if repeats and tags else tag)
        pages = [tags[i : i + _IMAGES_PER_PAGE] for i in range(0, n, _IMAGES_PER_PAGE)]
        answers = [
            warc_file.Answer(
                f"https://pages.example/{number}/{i}",
                200,
                _HEADERS,
                f"<html lang=en><body>{''.join(page)}</body></html>".encode(),
            )
            for i, page in enumerate(pages)
        ]
        warc_file.write(folder / f"{number:05d}.warc.gz", answers, software="benchmark")


def english() -> language.LanguageIdentifier:
    """Identifies as curation does, and says English.

    Generated words belong to no language: the answer is not used, its cost is.
    """
    identify = language.Lid176()

    def answer(texts: list[str], /, *, expected: list[str]) -> list[str]:
        identify(texts, expected=expected)
        return ["en"] * len(texts)

    return answer


def curate(crawl: Path, metadata: Path, count: int, workers: str) -> Cost:
    """Measures the command on a crawl of `count` texts."""
    partitions = max(1, count // 2 // _IMAGES_PER_PARTITION)
    with tempfile.TemporaryDirectory() as folder:
        return measure(
            [
                *(sys.executable, "-m", "data_prep.curate"),
                "--config=configs/curate.py:400m",
                f"--config.source.paths={crawl}/*.warc.gz",
                f"--config.metadata={metadata}",
                f"--config.partitions={partitions}",
                f"--config.memory_gib={_MEMORY_GIB}",
                "--config.language.identifier=benchmarks.curation_scale:english",
                f"--workdir={folder}/work",
                f"--output={folder}/dataset",
                "--stop_after=match",
                f"--workers={workers}",
                "--verbosity=-1",
            ],
            shown=True,
        )


def parse_rate() -> tuple[float, float]:
    """Returns MB of HTML and texts that one core parses per second of a .warc.gz file.

    A page has 60 kB of text, links and scripts, and 20 images, about as in Common
    Crawl.
    """
    vocabulary = words(2_000)
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
        answers.append(
            warc_file.Answer(f"https://page.example/{page}", 200, _HEADERS, body)
        )
    size = sum(len(answer.body) for answer in answers)
    limits = curation_config.curate().pages.to_dict()
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
    """Prints the core-hours of MetaCLIP's pools as a table in Markdown."""
    print("| work | amount | core-hours | dollars |")
    print("|---|---|---|---|")
    for work, amount, unit, rate in (
        ("parse one snapshot", _SNAPSHOT_BYTES / 1e6, "MB", megabytes_per_second),
        ("match and gather, pool 1", 2 * 1.6e9, "texts", texts_per_second),
        ("match and gather, pool 2", 2 * 10.7e9, "texts", texts_per_second),
        ("match and gather, all", 300e9, "texts", texts_per_second),
    ):
        hours = amount / rate / 3600
        print(
            f"| {work} | {amount:.3g} {unit} | {hours:,.0f} "
            f"| {hours * _DOLLARS_PER_CORE_HOUR:,.0f} |"
        )


def main(argv: list[str]) -> None:
    """Prints a line for each size and number of workers, one for the parser, ratios."""
    command.refuse_arguments(argv)
    sizes, workers = sorted(map(int, flags.FLAGS.texts)), flags.FLAGS.workers
    vocabulary = words(_VOCABULARY)
    costs: dict[tuple[int, str], Cost] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        metadata = folder / "metadata.json"
        metadata.write_text(json.dumps(vocabulary[: flags.FLAGS.entries]))
        first = folder / "first"
        first.mkdir()
        write_crawl(first, vocabulary, 1_000)
        curate(first, metadata, 1_000, "1")  # compiles
        for count in sizes:
            crawl = folder / str(count)
            crawl.mkdir()
            write_crawl(crawl, vocabulary, count)
            for number in workers:
                cost = curate(crawl, metadata, count, number)
                costs[count, number] = cost
                print(
                    f"curation_scale: {count / 1e6:g}M texts, {number} workers:"
                    f" {cost.seconds:.0f} s, {cost.cpu_seconds:.0f} s of CPU,"
                    f" {count / cost.cpu_seconds:,.0f} texts/s of one core,"
                    f" peak {cost.peak_bytes / 2**20:,.0f} MiB",
                    flush=True,
                )
            shutil.rmtree(crawl)
    megabytes, pairs = parse_rate()
    print(
        f"curation_scale: parse {megabytes:.0f} MB of HTML/s and {pairs:,.0f} texts/s "
        "of one core (60 kB and 20 images a page)"
    )
    one = [costs[count, workers[0]] for count in sizes]
    for number in workers:
        small, large = costs[sizes[0], number], costs[sizes[-1], number]
        print(
            f"curation_scale: {large.peak_bytes / small.peak_bytes:.2f}x the memory of"
            f" the smallest pool in the largest, with {number} workers"
        )
    for number in workers[1:]:
        many, single = costs[sizes[-1], number], one[-1]
        print(
            f"curation_scale: {single.seconds / many.seconds:.2f}x the texts/s of one"
            f" worker with {number}"
        )
        print(
            f"curation_scale: {many.cpu_seconds / single.cpu_seconds:.2f}x the CPU of"
            f" one worker with {number}"
        )
    print_estimates(
        texts_per_second=sizes[-1] / one[-1].cpu_seconds,
        megabytes_per_second=megabytes,
    )


if __name__ == "__main__":  # the command imports this module for `english`
    flags.DEFINE_list("texts", ["1000000", "5000000"], "Pool sizes.")
    flags.DEFINE_list("workers", ["1", "2"], "Numbers of worker processes.")
    flags.DEFINE_integer("entries", 500_000, "How many entries.", lower_bound=10)
    command.run(main)
