"""Parsing pages: ours against a bare loop over the same libraries, in CPU time.

    apt-get install gimp-help-en python3.11-doc     # or other -doc packages
    python -m benchmarks.crawl
    python -m benchmarks.crawl --pages='site/**/*.html' --heavy=

The pages are put into a WARC file, and their links into a WAT file as Common Crawl
writes it. The bare loop is what one would write: fastwarc, lexbor, css("img[alt]"),
urljoin; nothing is bounded, cleaned or counted. Rounds alternate, and the median of
each counts. What the WAT file lacks is printed by reason.

Pages without pictures are not parsed by ours; "illustrated" ones are the others, here
with nine pictures in 12 kB each. Heavy pages are long and have few pictures, as Sphinx
writes them.

It also prints where our time goes, each part timed alone. Most of it is the parser, as
in the bare loop. The bare loop does not bound the tree: a page of a few kB can fill the
memory, or stop the parser for hours. Our bound follows each tag. Identifying the
language of pages that declare none is a part of matching, only for pages with a matched
text; it is timed alone too.
"""

import glob
import gzip
import html
import json
import os
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import urljoin

import pyarrow as pa
import pyarrow.compute as pc
from absl import flags
from fastwarc.warc import ArchiveIterator, WarcRecordType
from selectolax.lexbor import LexborHTMLParser

from data_prep import config, language, schema
from data_prep.sources import charset, kinds, tree_cost, warc
from data_prep.sources.warc import Page
from examples.quickstart import warc_file
from metaclip_jax.cli import command

_PAGES = "/usr/share/doc/**/*.html,/usr/share/gimp/**/*.html"
_HEAVY = "/usr/share/doc/python3*/**/*.html"
_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Date", "Thu, 01 Jan 2026 00:00:00 GMT"),
)
_MAX_BYTES = 64 << 20  # of pages in all


def find_pages(patterns: str, *, without: str = "") -> list[tuple[str, bytes]]:
    """Returns (address, content) of the pages, sorted, up to _MAX_BYTES of them.

    A file with several names, as Debian's links give, is as many pages. `without` are
    patterns of files to leave out.
    """
    found, left_out = (
        {
            path
            for pattern in some.split(",")
            for path in glob.glob(pattern, recursive=True)
            if os.path.isfile(path)
        }
        for some in (patterns, without)
    )
    pages, size = [], 0
    for path in sorted(found - left_out):
        content = Path(path).read_bytes()
        size += len(content)
        if size > _MAX_BYTES:
            break
        pages.append((f"https://pages.example{os.path.abspath(path)}", content))
    return pages


def write_wat(path: str, pages: Iterable[tuple[str, bytes]]) -> None:
    """Writes what webarchive-commons says of pages: <img>, <base>, <meta>, the title.

    It gives attributes as they are written, so their values are escaped here.
    """
    with open(path, "wb") as file:
        for url, content in pages:
            tree = LexborHTMLParser(content)
            head: dict[str, object] = {"Metas": [_written(m) for m in tree.css("meta")]}
            if (title := tree.css_first("title")) is not None:
                head["Title"] = html.escape(title.text())
            if (base := tree.css_first("base[href]")) is not None:
                head["Base"] = _written(base)["href"]
            links = [
                {"path": "IMG@/src", "url": written.pop("src")}
                | {k: written[k] for k in ("alt", "title") if k in written}
                for written in map(_written, tree.css("img[src]"))
            ]
            links += [
                {"path": "A@/href", "url": _written(a)["href"], "text": a.text()[:100]}
                for a in tree.css("a[href]")
            ]
            of_page = {"Head": head, "Links": links}
            answer = {"Response-Message": {"Status": "200"}, "HTML-Metadata": of_page}
            payload = {"HTTP-Response-Metadata": answer}
            about = {"Envelope": {"Payload-Metadata": payload}}
            data = json.dumps(about).encode()
            record = (
                f"WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Target-URI: {url}\r\n"
                "Content-Type: application/json\r\n"
                f"Content-Length: {len(data)}\r\n\r\n"
            )
            file.write(gzip.compress(record.encode() + data + b"\r\n\r\n"))


def _written(node: object) -> dict[str, str]:
    attributes = node.attributes.items()  # type: ignore[attr-defined]
    return {name: html.escape(value or "") for name, value in attributes}


def bare(path: str) -> int:
    """Reads a WARC file as one would without thinking; returns the number of pairs."""
    rows = []
    with open(path, "rb") as file:
        for record in ArchiveIterator(
            file, record_types=WarcRecordType.response, parse_http=True
        ):
            url = record.headers["WARC-Target-URI"]
            for image in LexborHTMLParser(record.reader.read()).css("img[alt]"):
                attributes = image.attributes
                if attributes.get("src") and attributes["alt"]:
                    rows.append(
                        (urljoin(url, attributes["src"]), url, attributes["alt"])
                    )
    return len(rows)


def ours(path: str, kind: str) -> pa.Table:
    """Reads a WARC or WAT file as curation does."""
    keys = config.curate()
    keys.source.kind = kind
    batches = kinds.read(path, kinds.spec_of(keys), [])
    return pa.Table.from_batches(batches, schema=schema.CANDIDATES)


def cpu_seconds(functions: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Returns the median CPU time of each, in turn, after a round to warm up."""
    took: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, times in zip(functions, took, strict=True):
            begin = time.process_time()
            function()
            if number:
                times.append(time.process_time() - begin)
    return [statistics.median(times) for times in took]


def parts_of(path: str) -> dict[str, Callable[[], object]]:
    """Returns what ours does with a WARC file, in parts, as functions to time."""
    most = config.curate().pages.max_page_bytes
    pages = [
        p for p in warc.read_pages(path, max_page_bytes=most) if isinstance(p, Page)
    ]
    written = [p.html for p in pages if b"<im" in p.html]
    texts = pc.unique(ours(path, "warc")["page_text"]).to_pylist()
    identify = language.shared_identifier("lid176")

    def parse() -> None:
        for html_ in written:
            LexborHTMLParser(html_).tags("img")

    return {
        "the WARC file": lambda: deque(warc.read_pages(path, max_page_bytes=most), 0),
        "UTF-8": lambda: [charset.to_parseable(p.html, p.content_type) for p in pages],
        "the bound of the tree": lambda: [tree_cost.estimate(one) for one in written],
        "the parser": parse,
        "languages": lambda: language.of_pages(texts, identify),
    }


def compare(pages: Sequence[tuple[str, bytes]], kind: str) -> None:
    """Measures pages, and prints; `kind` says in the ratios which they are."""
    rounds = flags.FLAGS.rounds
    with tempfile.TemporaryDirectory() as folder:
        crawl, wat = (
            os.path.join(folder, f"pages.{kind}.gz") for kind in ("warc", "wat")
        )
        answers = [warc_file.Answer(url, 200, _HEADERS, body) for url, body in pages]
        warc_file.write(crawl, answers, software="benchmark")
        write_wat(wat, pages)
        of_pages, of_links = ours(crawl, "warc"), ours(wat, "wat")
        loop, from_warc, from_wat = cpu_seconds(
            [
                lambda: bare(crawl),
                lambda: ours(crawl, "warc"),
                lambda: ours(wat, "wat"),
            ],
            rounds,
        )
        pairs = bare(crawl)
        parts = parts_of(crawl)
        took = dict(zip(parts, cpu_seconds(list(parts.values()), rounds), strict=True))
    size = sum(len(body) for _, body in pages) / 1e6
    print(
        f"{len(pages):,} {kind}pages, {size:.1f} MB of HTML; CPU: bare loop {loop:.2f}"
        f" s ({pairs:,} alts), ours {from_warc:.2f} s ({of_pages.num_rows:,} texts), "
        f"from WAT {from_wat:.2f} s ({of_links.num_rows:,} texts)"
    )
    for seconds, form in ((from_warc, "WARC"), (from_wat, "WAT")):
        ratio = seconds / loop
        print(f"crawl: {ratio:.2f}x the bare loop's CPU, {kind}{form} to candidates")
    languages = took.pop("languages")
    took["the rest"] = from_warc - sum(took.values())
    said = ", ".join(f"{seconds:.3f} s {part}" for part, seconds in took.items())
    print(f"of ours: {said}; identifying the pages' languages: {languages:.3f} s more")
    lost = _by_source(of_pages) - _by_source(of_links)
    said = ", ".join(f"{count:,} of {source}" for source, count in lost.most_common())
    print(f"texts that the WAT file lacks: {said or 'none'}")


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    command.refuse_arguments(argv)
    pages = find_pages(flags.FLAGS.pages, without=flags.FLAGS.heavy)
    if not pages:
        raise FileNotFoundError(
            f"wanted HTML files, got none by --pages={flags.FLAGS.pages}; install a"
            " -doc package with pictures, such as Debian's gimp-help-en, or name others"
        )
    compare(pages, "")
    pictures = [(url, body) for url, body in pages if b"<img" in body]
    if pictures != pages:
        compare(pictures, "illustrated ")
    if heavy := find_pages(flags.FLAGS.heavy):
        compare(heavy, "heavy ")


def _by_source(table: pa.Table) -> Counter[str]:
    return Counter(table["text_source"].to_pylist())


if __name__ == "__main__":
    flags.DEFINE_string("pages", _PAGES, "globs of HTML files, comma-separated")
    flags.DEFINE_string("heavy", _HEAVY, "the same of heavy ones; none may be there")
    flags.DEFINE_integer("rounds", 5, "timed rounds of each", lower_bound=1)
    command.run(main)
