"""Which bigrams a score keeps, on real text; writes docs/bigrams.md.

    apt-get download PACKAGE ...; dpkg -x PACKAGE.deb texts    # for each of them
    python -m benchmarks.bigrams --texts=texts                 # two minutes

First remove texts in other languages: some packages have translated manuals.

The text is that of all files in the folder: HTML, and plain text, also if compressed
with gzip; repeated paragraphs are left out. It is counted at five sizes, each twice the
one before, and the number of bigrams that a score keeps is extrapolated to the size of
English Wikipedia from the growth over the last three doublings.
"""

import gzip
import os
import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from numpy.typing import NDArray

from data_prep.metadata import ngrams
from data_prep.sources import html, warc
from metaclip_jax.cli import command

_ROOT = Path(__file__).resolve().parents[1]
_WIKIPEDIA = 4.4e9  # words of English Wikipedia in 2023, by its own count
_PAPER = 100_646  # bigrams that the paper keeps
_HALVINGS = 4
_LEAST_CHARS = 40  # of a paragraph
_MOST_CHARS = 4_000  # a longer one is a table or dictionary, taken line by line
_SHOWN = 10
_SHARE_SHOWN = 0.02  # 100,646 of the bigrams that occur 100 times on Wikipedia, about

Floats = NDArray[np.float64]


class Counted(NamedTuple):
    """The bigrams of a text, f64[n] each but `words`."""

    total: float  # number of words
    both: Floats  # count of each bigram
    first: Floats  # count of its first word
    second: Floats
    words: list[str]  # the bigrams

    @property
    def pmi(self) -> Floats:
        """nltk's pointwise mutual information, bits."""
        return np.log2(self.both * self.total / (self.first * self.second))

    @property
    def likelihood_ratio(self) -> Floats:
        """Dunning's statistic, 0 where a bigram is rarer than by chance."""
        a, b, n, total = self.first, self.second, self.both, self.total
        cells = (
            (n, a * b / total),
            (a - n, a * (total - b) / total),
            (b - n, b * (total - a) / total),
            (total - a - b + n, (total - a) * (total - b) / total),
        )
        terms = [
            np.where(seen > 0, seen * np.log(np.maximum(seen, 1) / by_chance), 0)
            for seen, by_chance in cells
        ]
        return np.where(n * total > a * b, 2 * np.sum(terms, axis=0), 0)

    def worldwide(self, least: int) -> Floats:
        """MetaCLIP 2's score, of bigrams with `least` occurrences; -inf for others."""
        enough = self.both >= least
        base = np.quantile(self.pmi[enough], 0.3) if enough.any() else 0
        return np.where(enough, (self.both + 1) ** 0.7 * (self.pmi - base), -np.inf)


# What a threshold of 30 on English Wikipedia may mean. PMI is compared with its largest
# value, log2(words), since that differs between texts.
_BELOW_LARGEST = np.log2(_WIKIPEDIA) - 30
READINGS: dict[str, Callable[[Counted], NDArray[np.bool_]]] = {
    "PMI in bits": lambda c: c.pmi >= np.log2(c.total) - _BELOW_LARGEST,
    "PMI in bits, 5 occurrences": lambda c: (
        (c.pmi >= np.log2(c.total) - _BELOW_LARGEST) & (c.both >= 5)
    ),
    "PMI² in bits, 5 occurrences": lambda c: (
        (c.pmi + np.log2(c.both) >= np.log2(c.total) - _BELOW_LARGEST) & (c.both >= 5)
    ),
    "PMI³ in bits, 5 occurrences": lambda c: (
        (c.pmi + 2 * np.log2(c.both) >= np.log2(c.total) - _BELOW_LARGEST)
        & (c.both >= 5)
    ),
    "likelihood ratio": lambda c: c.likelihood_ratio >= 30,
    "MetaCLIP 2's score, 5 occurrences": lambda c: c.worldwide(5) >= 30,
    "100 occurrences, any score": lambda c: c.both >= 100,
}
LISTS: dict[str, Callable[[Counted], Floats]] = {
    "PMI": lambda c: c.pmi,
    "PMI, 5 occurrences": lambda c: np.where(c.both >= 5, c.pmi, -np.inf),
    "PMI, 20 occurrences": lambda c: np.where(c.both >= 20, c.pmi, -np.inf),
    "likelihood ratio": lambda c: c.likelihood_ratio,
    "MetaCLIP 2's score, 20 occurrences": lambda c: c.worldwide(20),
}


def paragraphs(folder: str) -> Iterator[str]:
    """Yields the paragraphs of all texts in a folder, each once."""
    known: set[int] = set()
    for root, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(root, name) for name in sorted(names)):
            for text in [] if path.is_symlink() else _text(path):
                lines = text.split("\n") if len(text) > _MOST_CHARS else [text]
                for line in (" ".join(line.split()) for line in lines):
                    if _is_prose(line) and hash(line) not in known:
                        known.add(hash(line))
                        yield line


def _is_prose(line: str) -> bool:
    """Whether most words are of lower-case letters, unlike in tables and code."""
    words = line.split()
    lower = sum(word.isascii() and word.isalpha() and word.islower() for word in words)
    return len(line) >= _LEAST_CHARS and 2 * lower >= len(words)


def _text(path: Path) -> list[str]:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return []
    if re.search(r"\.x?html?(\.en|\.gz)*$", path.name):
        page = html.page_text(warc.Page("", data, ""), max_tree_bytes=1 << 30)
        return page.text.split("\n") if isinstance(page, html.PageText) else []
    if b"\0" in data:
        return []
    return re.split(r"\n\s*\n", data.decode("utf-8", "replace"))


def count(texts: Sequence[str]) -> Counted:
    """Counts the bigrams of texts."""
    counter = ngrams.Counter()
    for text in texts:
        counter.add([text])
    run = counter.take()
    times = run.words["count"].to_numpy().astype(float)
    first, second, both = (run.bigrams[i].to_numpy() for i in range(3))
    words = run.words["word"].to_pylist()
    named = [f"{words[a]} {words[b]}" for a, b in zip(first, second, strict=True)]
    return Counted(times.sum(), both.astype(float), times[first], times[second], named)


def carried_on(numbers: Sequence[int], total: float) -> float:
    """Returns what the last number of a row of doublings is at Wikipedia's size."""
    early, late = numbers[-4], numbers[-1]
    if not early:
        return late
    exponent = np.log2(late / early) / 3
    return late * (_WIKIPEDIA / total) ** exponent


def examples(counted: Counted, scores: Floats) -> list[str]:
    """Returns bigrams from the best to the last that is kept, evenly spread."""
    kept = int(np.isfinite(scores).sum() * _SHARE_SHOWN)
    best = np.argsort(-scores, kind="stable")[: max(kept, 1)]
    picked = best[np.linspace(0, len(best) - 1, _SHOWN).astype(int)]
    return [f"{counted.words[i]} ({counted.both[i]:.0f})" for i in picked]


def page(sizes: Sequence[Counted], packages: Sequence[str]) -> str:
    """Returns the page, of the same text at growing sizes."""
    last = sizes[-1]
    out = [
        "# Which bigrams a score keeps",
        "",
        "Written by `python -m benchmarks.bigrams`. The paper keeps"
        f" {_PAPER:,} bigrams of English Wikipedia (about {_WIKIPEDIA / 1e9:g} billion"
        ' words) with "PMI ≥ 30"; [metadata.md](metadata.md) says what that may mean,'
        " and what is done here.",
        "",
        f"The text: {last.total:,.0f} words of documentation, dictionaries and books,"
        f" from Debian's {', '.join(packages)}, without translated manuals.",
        "",
        "Bigrams that reach 30 by each reading; PMI has to be as far below its largest"
        f" value, log2(words), as 30 is on Wikipedia ({_BELOW_LARGEST:.1f} bits). The"
        " last column continues the growth over the last three doublings.",
        "",
        f"| reading | {' | '.join(f'{c.total / 1e6:.1f}M' for c in sizes)} words |"
        " Wikipedia, about |",
        "|---" * (len(sizes) + 2) + "|",
    ]
    for name, keeps in READINGS.items():
        row = [int(keeps(c).sum()) for c in sizes]
        cells = [f"{n:,}" for n in row]
        out.append(
            f"| {name} | {' | '.join(cells)} | {carried_on(row, last.total):.1g} |"
        )
    thresholds = range(0, 26, 2)
    out += [
        "",
        "Thousands of bigrams of the whole text that reach a PMI, in bits:",
        "",
        f"| occurrences | {' | '.join(f'≥ {t}' for t in thresholds)} |",
        "|---" * (len(thresholds) + 1) + "|",
    ]
    for least in (1, 2, 5, 20, 100):
        pmi = last.pmi[last.both >= least]
        cells = [f"{(pmi >= t).sum() / 1e3:.1f}" for t in thresholds]
        out.append(f"| {least} or more | {' | '.join(cells)} |")
    out += [
        "",
        f"Bigrams from the best to the last of the first {_SHARE_SHOWN:.0%} by"
        " each score, with their counts:",
        "",
    ]
    for name, score in LISTS.items():
        out.append(f"- {name}: {', '.join(examples(last, score(last)))}.")
    return "\n".join(out) + "\n"


def main(argv: Sequence[str]) -> None:
    """Counts, and writes the page."""
    command.refuse_arguments(argv)
    texts = list(paragraphs(flags.FLAGS.texts))
    random.Random(0).shuffle(texts)
    ends = np.cumsum([len(text) for text in texts])
    cuts = [
        int(np.searchsorted(ends, ends[-1] >> halved)) + 1
        for halved in range(_HALVINGS, -1, -1)
    ]
    sizes = [count(texts[:cut]) for cut in cuts]
    copyrights = Path(flags.FLAGS.texts).glob("usr/share/doc/*/copyright")
    packages = sorted(path.parent.name for path in copyrights)
    Path(flags.FLAGS.output).write_text(page(sizes, packages))
    print(f"wrote {flags.FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_string("texts", None, "Folder with texts.", required=True)
    flags.DEFINE_string("output", str(_ROOT / "docs/bigrams.md"), "Page to write.")
    command.run(main)
