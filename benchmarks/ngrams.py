"""Counting words and bigrams: our kernel against nltk, in one run, on real text.

    python -m benchmarks.ngrams                  # a minute
    python -m benchmarks.ngrams --megabytes=50
    python -m benchmarks.ngrams --dump=enwiki-latest-pages-articles1.xml.bz2

The text is English: the docstrings of installed packages. nltk counts words that were
found before, by FreqDist and BigramCollocationFinder.from_words; we find and count
them. Rounds of the two alternate on one core, and the median counts; the counts must be
equal. Then DuckDB sums parts of the same text, and the rates are extrapolated to
Wikipedia. With --dump, an English dump or a piece of one is read to plain text
too; there is one in the tests of gensim.
"""

import ast
import re
import sysconfig
import tempfile
import time
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.matching import timed
from data_prep.metadata import counts, dumps, ngrams, pieces, titles, wikitext
from metaclip_jax.cli import command

_PARTS = 8
_LEAST_CHARS = 200  # of a docstring
# Words in billions: English Wikipedia's own count of 2023. For all Wikipedias four
# times as many are assumed, since no figure is published.
_WIKIPEDIAS = {"English Wikipedia": 4.4, "all Wikipedias": 17.6}


def docstrings(size: int) -> list[str]:
    """Returns docstrings of installed packages, of `size` characters in all."""
    known: dict[str, None] = {}
    left = size
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        if left <= 0:
            break
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            continue
        for text in map(_docstring, ast.walk(tree)):
            if len(text) >= _LEAST_CHARS and text not in known:
                known[text] = None
                left -= len(text)
    return list(known)


def _docstring(node: ast.AST) -> str:
    named = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    return ast.get_docstring(node) or "" if isinstance(node, named) else ""


def ours(texts: Sequence[str]) -> ngrams.Run:
    """Counts the words and bigrams of texts."""
    counter = ngrams.Counter()
    for text in texts:
        counter.add([text])
    return counter.take()


def words(texts: Sequence[str]) -> Iterator[str | None]:
    """Yields the words of texts, and None where two neighbours are no bigram."""
    marks = "".join(
        chr(code)
        for code in range(0x300, 0x10000)
        if unicodedata.category(chr(code))[0] == "M"
    )
    letters = r"[^\W_]+"
    word = re.compile(
        rf"{letters}(?:[{marks}]+(?:{letters})?|['\u2019\u200c\u200d-]{letters})*"
    )
    for text in texts:
        end = -2
        for match in word.finditer(text):
            if match.start() != end + 1 or text[end] != " ":
                yield None
            yield match[0]
            end = match.end()
        yield None


def check(run: ngrams.Run, nltk_counts: Any) -> None:
    """Ends the program if the counts are not nltk's."""
    keys, times = (column.to_pylist() for column in run.words)
    first, second, both = (column.to_pylist() for column in run.bigrams)
    pairs = {(keys[a], keys[b]): n for a, b, n in zip(first, second, both, strict=True)}
    counted = dict(zip(keys, times, strict=True))
    if counted != nltk_counts.word_fd or pairs != nltk_counts.ngram_fd:
        raise SystemExit("ngrams: the counts differ")


def sums(texts: Sequence[str], memory_gib: float) -> tuple[float, int, int]:
    """Sums parts; returns CPU seconds, rows of bigrams, and bytes of the parts."""
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for i in range(_PARTS):
            runs = pieces.count_texts(
                (("en", [text]) for text in texts[i::_PARTS]), 1 << 30
            )
            made.append(counts.Part(f"{i}", counts.write(folder, f"{i}", runs)))
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        place = Path(folder, "db")
        place.mkdir()
        start = time.process_time()
        with counts.database(place, memory_gib=memory_gib, threads=1) as database:
            summed = counts.Sums(folder, made, database)
            total = summed.sum_words("en")
            summed.frequent_words(least=100, most=251_465)
            summed.bigrams(
                "en",
                tokens=total,
                min_count=2,
                score="pmi",
                min_score=4.0,
                most=452_111,
            )
        return time.process_time() - start, total, size


def read(dump: str) -> tuple[float, int, int]:
    """Reads a dump to text; returns CPU seconds, its words, and bytes of wikitext."""
    namespaces = titles.link_prefixes("en")
    texts, size = [], 0
    start = time.process_time()
    for page in dumps.read_pages(dump, max_page_bytes=1 << 22):
        if isinstance(page, dumps.DumpPage):
            size += len(page.text.encode())
            texts.append(wikitext.plain_text(page.text, namespaces=namespaces))
    seconds = time.process_time() - start
    return seconds, sum(ours(texts).words["count"].to_pylist()), size


def main(argv: Sequence[str]) -> None:
    """Prints the ratios, then the rates and estimates."""
    from nltk.collocations import BigramCollocationFinder

    command.refuse_arguments(argv)
    values = flags.FLAGS
    texts = docstrings(values.megabytes * 1_000_000)
    nltk_words = list(words(texts))
    ours(texts[:10])  # compiles
    seconds: dict[str, list[float]] = {"ours": [], "nltk": []}
    for _ in range(values.rounds):
        took, run = timed(ours, texts)
        seconds["ours"].append(took)
        took, counted = timed(BigramCollocationFinder.from_words, nltk_words)
        seconds["nltk"].append(took)
    check(run, counted)
    mine, nltks = (float(np.median(times)) for times in seconds.values())
    total = sum(run.words["count"].to_pylist())
    print(
        f"ngrams: {nltks / mine:.1f}x the words/s of nltk on a core, with equal counts;"
        " nltk without the time to find the words"
    )
    print(
        f"ngrams: {total / mine / 1e6:.1f} million words/s, nltk"
        f" {total / nltks / 1e6:.2f}, of {total:,} words, {len(run.words):,} different,"
        f" {len(run.bigrams):,} bigrams"
    )
    took, _, size = sums(texts, values.memory_gib)
    print(
        f"ngrams: sums and choice of {_PARTS} parts take {took:.1f} s of CPU, with"
        f" {values.memory_gib} GiB; the parts have {size / total:.1f} bytes a word"
    )
    for name, billions in _WIKIPEDIAS.items():
        count, summed = (billions * 1e9 * s / total / 3600 for s in (mine, took))
        print(
            f"ngrams: {name} ({billions:g} billion words): {count:.2f} core-hours to"
            f" count, {summed:.2f} to sum, {billions * size / total:.0f} GB of parts at"
            " most"
        )
    if values.dump:
        took, total, size = read(values.dump)
        print(
            f"ngrams: reading a dump to text: {size / took / 1e6:.1f} MB of wikitext/s,"
            f" {total / took / 1e3:.0f} thousand words/s of a core"
        )
        for name, billions in _WIKIPEDIAS.items():
            print(
                f"ngrams: {name}: {billions * 1e9 / total * took / 3600:.0f} core-hours"
                " to read"
            )


if __name__ == "__main__":
    flags.DEFINE_integer(
        "megabytes", 20, "Millions of characters of text.", lower_bound=1
    )
    flags.DEFINE_string("dump", "", "An English dump; empty = reading is not timed.")
    flags.DEFINE_integer("rounds", 3, "Rounds; the median counts.", lower_bound=1)
    flags.DEFINE_integer("memory_gib", 4, "GiB for the sums.", lower_bound=1)
    command.run(main)
