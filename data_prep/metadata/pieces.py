"""Pieces of the sources of metadata, and how each piece is counted.

A new source is a row of KINDS. What it needs is a function that yields the texts of a
piece, each with its language:

    def read(piece: Piece, options: Options, flow: list[pa.RecordBatch])
        -> Iterator[tuple[str, Sequence[str]]]

The pair is an edition of `options.editions` and the texts of a page or an article; no
bigram crosses from one text to the next. Once all of the piece is read, FLOW rows of
the stage "read" are appended to `flow`: what was read and what was lost, by reason. An
exception means that the storage failed: the piece is read again, from its start.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

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


Texts = Iterator[tuple[str, Sequence[str]]]
Runs = Iterator[tuple[str, Mapping[str, pa.Table]]]
_Flow = list[pa.RecordBatch]


def _read_warc(piece: Piece, options: Options, flow: _Flow) -> Texts:
    """Yields title and text of the pages whose language has metadata."""
    identify = language.shared_identifier("lid176")
    lost_files: Counter[str] = Counter()
    lost_pages: Counter[str] = Counter()
    kept = 0
    for page in warc.read_pages(
        piece.path,
        max_page_bytes=options.max_page_bytes,
        user_agent=options.user_agent,
    ):
        text: html.PageText | warc.LostPage | LostFile
        if isinstance(page, warc.Page):
            text = html.page_text(page, max_tree_bytes=options.max_tree_bytes)
        else:
            text = page
        if isinstance(text, LostFile):
            lost_files[_logged(piece, text)] += 1
        elif isinstance(text, warc.LostPage):
            lost_pages[text.reason] += 1
        else:
            (identified,) = language.resolve(
                [text.text[:_IDENTIFIED_CHARS]],
                declared=[text.language],
                identified=[""],
                identify=identify,
            )
            code = language.metadata_code(identified, options.languages)
            if code:
                kept += 1
                yield code, (text.title, text.text)
            else:
                lost_pages["other_language"] += 1
    flow += _read_flow("files", 1 - lost_files.total(), lost_files)
    flow += _read_flow("pages", kept, lost_pages)


def _read_wikipedia(
    piece: Piece, options: Options, flow: _Flow, read_titles: list[str]
) -> Texts:
    """Yields title and text of the articles that begin in a range of a dump.

    Appends the title of each to `read_titles` before it is yielded.
    """
    namespaces = titles.link_prefixes(piece.code)
    lost_ranges: Counter[str] = Counter()
    lost_pages: Counter[str] = Counter()
    kept = 0
    for page in dumps.read_pages(
        piece.path,
        start=piece.start,
        stop=piece.stop,
        max_page_bytes=options.max_page_bytes,
        main_page=piece.main_page,
        user_agent=options.user_agent,
    ):
        if isinstance(page, LostFile):
            lost_ranges[_logged(piece, page)] += 1
        elif isinstance(page, dumps.LostPage):
            lost_pages[page.reason] += 1
        else:
            kept += 1
            read_titles.append(page.title)
            text = wikitext.plain_text(page.text, namespaces=namespaces)
            yield piece.code, (page.title, text)
    if not piece.start:  # the range that every dump has
        flow += _read_flow("files", 1, {})
    flow += _read_flow("ranges", 1 - lost_ranges.total(), lost_ranges)
    flow += _read_flow("pages", kept, lost_pages)


def _read_flow(unit: str, kept: int, lost: Mapping[str, int]) -> _Flow:
    """Returns the FLOW rows of what was read of a piece, by unit ("files", "pages")."""
    entered = kept + sum(lost.values())
    return [drops.flow("read", unit=unit, entered=entered, left=kept, drops=lost)]


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
            yield largest, _tables(counter)
    for code in sorted(counters):
        yield code, _tables(counters[code])


def _tables(counter: ngrams.Counter) -> dict[str, pa.Table]:
    run = counter.take()
    return {counts.WORDS: run.words, counts.BIGRAMS: run.bigrams}


def _count_warc(piece: Piece, options: Options, flow: _Flow) -> Runs:
    return count_texts(_read_warc(piece, options, flow), options.max_count_bytes)


def _count_views(piece: Piece, options: Options, flow: _Flow) -> Runs:
    """Yields the views of titles in a page view file."""
    lost_files: Counter[str] = Counter()
    lost_lines: Counter[str] = Counter()
    kept = 0
    for views in titles.read_pageviews(
        piece.path,
        languages=options.editions,
        lost=lost_lines,
        user_agent=options.user_agent,
    ):
        if isinstance(views, LostFile):
            lost_files[_logged(piece, views)] += 1
            continue
        kept += sum(map(len, views.values()))
        for code in sorted(views):
            if views[code]:
                yield code, {counts.TITLES: _scored(views[code], counts.TITLES)}
    flow += _read_flow("files", 1 - lost_files.total(), lost_files)
    flow += _read_flow("titles", kept, lost_lines)


def _count_wikipedia(piece: Piece, options: Options, flow: _Flow) -> Runs:
    """Yields the words of a range of a dump, and the titles of its articles."""
    read_titles: list[str] = []
    texts = _read_wikipedia(piece, options, flow, read_titles)
    for code, tables in count_texts(texts, options.max_count_bytes):
        articles = pa.table([read_titles], schema=counts.SCHEMAS[counts.ARTICLES])
        yield code, {**tables, counts.ARTICLES: articles}
        read_titles.clear()


def _count_wordnet(piece: Piece, options: Options, flow: _Flow) -> Runs:
    """Yields the names of synsets in a file of a wordnet."""
    names, malformed = wordnet.read_names(piece.path, user_agent=options.user_agent)
    lost = {"malformed_line": malformed} if malformed else {}
    flow += [*_read_flow("files", 1, {}), *_read_flow("names", len(names), lost)]
    yield piece.code, {counts.SYNSETS: _scored(names, counts.SYNSETS)}


def _logged(piece: Piece, lost: LostFile) -> str:
    """Logs which file was lost and why; returns why."""
    logging.warning("--%s: %s: %s", piece.kind, piece.path, lost.reason)
    return lost.reason


def _scored(scores: Mapping[str, int], table: str) -> pa.Table:
    capped = [min(score, counts.MOST) for score in scores.values()]
    return pa.table([list(scores), capped], schema=counts.SCHEMAS[table])


# Kind -> how a piece of it is counted.
KINDS: dict[str, Callable[[Piece, Options, _Flow], Runs]] = {
    "wordnet": _count_wordnet,
    "wikipedia": _count_wikipedia,
    "warc": _count_warc,
    "pageviews": _count_views,
}


def count(piece: Piece, options: Options, flow: _Flow) -> Runs:
    """Yields language and tables of counts of each run of a piece; see `counts.write`.

    Args:
      piece: what to read.
      options: how to read it.
      flow: gets the FLOW rows of the piece, once all of it is read.

    Raises OSError where the storage fails. Damage is counted, in `flow`.
    """
    yield from KINDS[piece.kind](piece, options, flow)
