"""Wikitext to plain text: ours against public parsers, on the same articles.

    python -m benchmarks.wikitext --dumps=enwiki-*.bz2,bgwiki-*.bz2

Prints the rows of the table in docs/metadata.md. The dumps there are those in the tests
of gensim. Parsers that are not installed are left out; their licences (GPL, AGPL) keep
them out of our requirements: pip install wikitextparser wikiextractor. The speed is
relative to ours, the best of three rounds on each dump.
"""

import functools
import importlib.metadata
import itertools
import re
import time
from collections.abc import Callable, Container, Sequence

import mwparserfromhell
from absl import flags

from benchmarks.ngrams import ours
from data_prep.metadata import dumps, titles, wikitext
from metaclip_jax import patterns
from metaclip_jax.cli import command

_ROUNDS = 3
# What prose has not: options of files, links to categories, addresses.
_LEFT = re.compile(r"\bthumb\b|\b(?:Category|Категория):|https?://")
ToText = Callable[[str], str]


def parsers(namespaces: Container[str]) -> dict[str, tuple[str, ToText]]:
    """Returns name, licence and function of each parser that is installed."""
    found: dict[str, tuple[str, ToText]] = {
        "here (mwparserfromhell's tokens)": (
            "MIT",
            functools.partial(wikitext.plain_text, namespaces=namespaces),
        ),
        _named("mwparserfromhell", "strip_code"): (
            "MIT",
            lambda markup: mwparserfromhell.parse(markup).strip_code(),
        ),
    }
    try:
        import wikitextparser

        found[_named("wikitextparser", "remove_markup")] = (
            "GPL 3",
            wikitextparser.remove_markup,
        )
    except ImportError:
        pass
    try:
        from wikiextractor.extract import Extractor

        found[_named("wikiextractor", "clean_text")] = (
            "AGPL 3",
            lambda text: "\n".join(Extractor(0, 0, "", "", text).clean_text(text)),
        )
    except ImportError:
        pass
    return found


def _named(package: str, function: str) -> str:
    return f"{package} {importlib.metadata.version(package)}, `{function}`"


def main(argv: Sequence[str]) -> None:
    """Prints a row for each parser."""
    command.refuse_arguments(argv)
    articles = []
    for path in itertools.chain(*map(patterns.find, flags.FLAGS.dumps)):
        pages = dumps.read_pages(path, max_page_bytes=4 << 20)
        texts = [page.text for page in pages if isinstance(page, dumps.DumpPage)]
        articles.append(texts)
        print(f"{path}: {_size(texts) / 1e6:.2f} MB in {len(texts)} articles")
    namespaces = titles.link_prefixes("en") | titles.link_prefixes("bg")
    print("| | licence | speed | words kept | marks left |\n|---|---|---|---|---|")
    ours_rates: list[float] = []
    for name, (licence, to_text) in parsers(namespaces).items():
        rates, made = [], []
        for texts in articles:
            seconds = []
            for _ in range(_ROUNDS):
                start = time.process_time()
                found = [to_text(text) for text in texts]
                seconds.append(time.process_time() - start)
            rates.append(_size(texts) / min(seconds))
            made += found
        ours_rates = ours_rates or rates  # the first parser's
        speeds = (f"{r / o:.2f}x" for r, o in zip(rates, ours_rates, strict=True))
        words = sum(ours(made).words["count"].to_pylist())
        left = sum(len(_LEFT.findall(text)) for text in made)
        print(f"| {name} | {licence} | {', '.join(speeds)} | {words:,} | {left:,} |")


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


if __name__ == "__main__":
    flags.DEFINE_list("dumps", None, "Globs of dumps.", required=True)
    command.run(main)
