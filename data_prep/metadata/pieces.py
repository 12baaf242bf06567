"""Pieces of the sources of metadata, and how each piece is counted.

A new source is a row of KINDS. What it needs is a function that yields the texts of a
piece, each with its language:

    def read(piece: Piece, options: Options, tally: Tally)
        -> Iterator[tuple[str, Sequence[str]]]

The pair is an edition of `options.editions` and the texts of a page or an article; no
bigram crosses from one text to the next. Once all of the piece is read, `tally` has
what was read and what was lost, by reason. An exception means that the storage failed:
the piece is read again, from its start.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, TypeVar

import pyarrow as pa
from absl import logging

from data_prep import drops, language
from data_prep.metadata import (
    counts,
    dumps,
    editions,
    ngrams,
    segmentation,
    titles,
    wikitext,
    wordnet,
)
from data_prep.sources import html, warc
from data_prep.sources.archive import LostFile
from data_prep.sources.warc import LostPage

_IDENTIFIED_CHARS = 1_000  # of a page's text, enough to identify its language


class Piece(NamedTuple):
    """A piece of a source: a file, or a range of its bytes if `stop` is not 0."""

    kind: str  # a row of KINDS
    path: str
    start: int = 0
    stop: int = 0
    code: str = ""  # of the Wikipedia or wordnet, if the whole piece is of one
    main_page: str = ""  # title of a page to leave out of a dump


@dataclass(frozen=True)
class Options:
    """What all pieces are read with, from the keys of the same names in config.py."""

    languages: tuple[str, ...]  # codes of metadata
    max_page_bytes: int
    max_tree_bytes: int
    user_agent: str = ""  # the header that web servers get
    max_count_bytes: int = 1 << 30  # of counts in the memory of a worker

    @property
    def editions(self) -> tuple[str, ...]:
        """The editions that all metadata is built from."""
        return tuple(itertools.chain(*editions.members(self.languages).values()))


@dataclass
class Tally:
    """What was read of a piece, and what was lost of it, by reason."""

    kept: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    lost_files: Counter[str] = field(default_factory=Counter)


Texts = Iterator[tuple[str, Sequence[str]]]
Runs = Iterator[tuple[str, Mapping[str, pa.Table]]]
_Item = TypeVar("_Item")


def _unlost(
    items: Iterable[_Item | LostPage | LostFile], piece: Piece, tally: Tally
) -> Iterator[_Item]:
    """Yields the items that are not lost; counts the others, and logs a lost file."""
    for item in items:
        if isinstance(item, LostFile):
            logging.warning("--%s: %s: %s", piece.kind, piece.path, item.reason)
            tally.lost_files[item.reason] += 1
        elif isinstance(item, LostPage):
            tally.lost[item.reason] += 1
        else:
            yield item


def _read_warc(piece: Piece, options: Options, tally: Tally) -> Texts:
    """Yields title and text of the pages whose language has metadata."""
    identify = language.shared_identifier("lid176")
    pages = warc.read_pages(
        piece.path,
        max_page_bytes=options.max_page_bytes,
        user_agent=options.user_agent,
    )
    for page in _unlost(pages, piece, tally):
        text = html.page_text(page, max_tree_bytes=options.max_tree_bytes)
        if isinstance(text, LostPage):
            tally.lost[text.reason] += 1
            continue
        (identified,) = language.resolve(
            [text.text[:_IDENTIFIED_CHARS]],
            declared=[text.language],
            identified=[""],
            identify=identify,
        )
        if code := language.metadata_code(identified, options.languages):
            tally.kept += 1
            yield code, (text.title, text.text)
        else:
            tally.lost["other_language"] += 1


def count_texts(texts: Iterable[tuple[str, Sequence[str]]], max_bytes: int) -> Runs:
    """Yields the counts of words and bigrams of each language.

    Args:
      texts: as a reader yields them; segmented here where no spaces part words.
      max_bytes: of the counts in memory. Where they would exceed it, those of the
        language with the most bytes are yielded, and it begins another run.
    """
    counters: dict[str, ngrams.Counter] = {}
    segment = cache(segmentation.segmenter)
    total = 0
    for code, page in texts:
        if put_spaces := segment(code):
            page = list(map(put_spaces, page))
        if code not in counters:
            counters[code] = ngrams.Counter()
            total += counters[code].nbytes
        before = counters[code].nbytes
        counters[code].add(page)
        total += counters[code].nbytes - before
        # While a table is enlarged there are two; a run is a copy.
        while 3 * total > max_bytes and total > 0:
            largest = max(counters, key=lambda code: counters[code].nbytes)
            counter = counters.pop(largest)
            total -= counter.nbytes
            yield largest, counter.take()._asdict()
    for code in sorted(counters):
        yield code, counters[code].take()._asdict()


def _count_warc(piece: Piece, options: Options, tally: Tally) -> Runs:
    return count_texts(_read_warc(piece, options, tally), options.max_count_bytes)


def _count_views(piece: Piece, options: Options, tally: Tally) -> Runs:
    """Yields the views of titles in a page view file."""
    found = titles.read_pageviews(
        piece.path,
        languages=options.editions,
        lost=tally.lost,
        user_agent=options.user_agent,
    )
    for views in _unlost(found, piece, tally):
        tally.kept += sum(map(len, views.values()))
        for code in sorted(views):
            if views[code]:
                yield code, {counts.TITLES: _scored(views[code], counts.TITLES)}


def _count_wikipedia(piece: Piece, options: Options, tally: Tally) -> Runs:
    """Yields the words of a range of a dump, and the titles of its articles."""
    namespaces = titles.link_prefixes(piece.code)
    pages = dumps.read_pages(
        piece.path,
        start=piece.start,
        stop=piece.stop,
        max_page_bytes=options.max_page_bytes,
        main_page=piece.main_page,
        user_agent=options.user_agent,
    )
    read_titles: list[str] = []  # of the articles of the next run

    def texts() -> Texts:
        for page in _unlost(pages, piece, tally):
            tally.kept += 1
            read_titles.append(page.title)
            text = wikitext.plain_text(page.text, namespaces=namespaces)
            yield piece.code, (page.title, text)

    for code, tables in count_texts(texts(), options.max_count_bytes):
        articles = pa.table([read_titles], schema=counts.SCHEMAS[counts.ARTICLES])
        yield code, {**tables, counts.ARTICLES: articles}
        read_titles.clear()


def _count_wordnet(piece: Piece, options: Options, tally: Tally) -> Runs:
    """Yields the names of synsets in a file of a wordnet."""
    names = wordnet.read_names(
        piece.path, lost=tally.lost, user_agent=options.user_agent
    )
    tally.kept = len(names)
    yield piece.code, {counts.SYNSETS: _scored(names, counts.SYNSETS)}


def _scored(scores: Mapping[str, int], table: str) -> pa.Table:
    capped = [min(score, counts.MOST) for score in scores.values()]
    return pa.table([list(scores), capped], schema=counts.SCHEMAS[table])


class Kind(NamedTuple):
    """A kind of source: how a piece of it is counted, and in what."""

    runs: Callable[[Piece, Options, Tally], Runs]
    unit: str
    has_ranges: bool = False


KINDS = {
    "wordnet": Kind(_count_wordnet, "names"),
    "wikipedia": Kind(_count_wikipedia, "pages", has_ranges=True),
    "warc": Kind(_count_warc, "pages"),
    "pageviews": Kind(_count_views, "titles"),
}


def count(piece: Piece, options: Options, flow: list[pa.RecordBatch]) -> Runs:
    """Yields language and tables of counts of each run of a piece; see `counts.write`.

    Args:
      piece: what to read.
      options: how to read it.
      flow: gets the FLOW rows of the piece, once all of it is read: of the stage
        "read", by unit, what was read and what was lost.

    Raises OSError where the storage fails. Damage is counted, in `flow`.
    """
    kind, tally = KINDS[piece.kind], Tally()
    yield from kind.runs(piece, options, tally)
    whole = "ranges" if kind.has_ranges else "files"
    rows = [(whole, 1 - tally.lost_files.total(), tally.lost_files)]
    rows.append((kind.unit, tally.kept, tally.lost))
    if kind.has_ranges and not piece.start:  # the range that every file has
        rows.append(("files", 1, Counter()))
    flow += [
        drops.flow("read", unit=unit, entered=n + lost.total(), left=n, drops=lost)
        for unit, n, lost in rows
    ]
