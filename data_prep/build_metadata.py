"""Builds metadata (the entries that texts are matched with) from web pages.

    python -m data_prep.build_metadata --config=configs/metadata.py:quickstart \\
        --config.warc='crawl/*.warc.gz' --config.pageviews=pageviews.txt \\
        --output=metadata

For each language: the frequent words of its pages, bigrams with high pointwise mutual
information, and titles with many page views. One process; counts that exceed
config.memory_gib go to disk, in the output's folder if it is local.
"""

import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from absl import flags, logging
from ml_collections import ConfigDict
from tqdm import tqdm

from data_prep import config as config_lib
from data_prep import language
from data_prep.metadata import counts, ngrams, ranking, store, titles
from data_prep.sources import formats, html, warc
from metaclip_jax import files, patterns
from metaclip_jax.cli import command, config_flag

# Written without spaces between words, so a "word" would be a whole phrase.
_WITHOUT_SPACES = frozenset("bo dz ja km lo my th wuu yue zh".split())
_WANTED = {"warc": "WARC files", "pageviews": "lines of page views"}
_IDENTIFIED_CHARS = 1_000  # of a page's text, enough to identify its language


def main(argv: list[str]) -> None:
    """Builds the metadata unless it is finished, then prints its sources."""
    command.refuse_arguments(argv)
    config, output = flags.FLAGS.config, flags.FLAGS.output
    command.refuse_missing({"--output": output, "--config.warc": config.warc})
    config_lib.check_metadata(config)
    check_languages(config.languages)
    pages = find(config.warc, "warc")
    views = find(config.pageviews, "pageviews") if config.pageviews else []
    inputs = _inputs(config, pages, views)
    with files.lock(output):
        if files.finished(output, inputs) is None:
            metadata, read = build(config, pages, views, output)
            store.save(output, metadata, inputs=inputs, read=read)
        described = files.read_json(files.path(output) / files.MANIFEST)
    for code, facts in described["metadata"].items():
        sources = ", ".join(f"{n:,} {name}s" for name, n in facts["sources"].items())
        print(f"{code}: {facts['entries']:,} entries ({sources}) in {output}")


def build(
    config: ConfigDict, pages: Iterable[str], views: Iterable[str], output: str
) -> tuple[dict[str, store.Metadata], dict[str, int]]:
    """Returns the metadata of each language, and counts of what was read."""
    read: Counter[str] = Counter()
    place = output if files.is_local(output) else None
    with tempfile.TemporaryDirectory(
        prefix=files.TEMPORARY_PREFIX, dir=place
    ) as folder:
        spill = counts.Spill(Path(folder), config.memory_gib * 2**30)
        counted = count_pages(
            tqdm(pages, desc="pages", unit="file"),
            languages=config.languages,
            max_page_bytes=config.pages.max_page_bytes,
            max_tree_bytes=config.pages.max_tree_bytes,
            identify=language.Lid176(),
            read=read,
            spill=spill,
        )
        viewed = count_views(views, languages=config.languages, read=read, spill=spill)
        metadata = {
            code: select(code, counted[code], viewed[code], config, spill)
            for code in config.languages
        }
    return metadata, dict(read)


def check_languages(languages: Collection[str]) -> None:
    """Raises ValueError if a language cannot be built, or none is given."""
    unspaced = sorted(_WITHOUT_SPACES.intersection(languages))
    if unspaced or not languages:
        raise ValueError(
            "config.languages: wanted one or more languages that have spaces between "
            f"words, got {tuple(languages)}; "
            + (f"remove {', '.join(unspaced)}" if unspaced else "add one")
        )


def count_pages(
    paths: Iterable[str],
    *,
    languages: Collection[str],
    max_page_bytes: int,
    max_tree_bytes: int,
    identify: language.LanguageIdentifier,
    read: Counter[str],
    spill: counts.Spill,
) -> dict[str, ngrams.NgramCounts]:
    """Counts the words of the pages of each language.

    Args:
      paths: WARC files.
      languages: pages in other languages are skipped.
      max_page_bytes: as in `warc.read_pages`.
      max_tree_bytes: as in `html.page_text`.
      identify: for pages that declare no language.
      read: counts of what was read and lost, by reason; added to.
      spill: for the counts that do not fit the memory.
    """
    found = {code: ngrams.NgramCounts() for code in languages}
    counters = {f"{code} unigrams": found[code].unigrams for code in found}
    counters |= {f"{code} bigrams": found[code].bigrams for code in found}
    for text in _page_texts(paths, max_page_bytes, max_tree_bytes, read):
        (code,) = language.resolve(
            [text.text[:_IDENTIFIED_CHARS]],
            declared=[text.language],
            identified=[""],
            identify=identify,
        )
        if code in found:
            read["pages"] += 1
            ngrams.count_ngrams([text.title, text.text], into=found[code])
            spill.relieve(counters)
        else:
            read["page: other_language"] += 1
    logging.info("read %s", dict(sorted(read.items())))
    return found


def _page_texts(
    paths: Iterable[str],
    max_page_bytes: int,
    max_tree_bytes: int,
    read: Counter[str],
) -> Iterator[html.PageText]:
    for path in paths:
        read["files"] += 1
        for page in warc.read_pages(path, max_page_bytes=max_page_bytes):
            if isinstance(page, warc.LostFile):
                logging.warning("%s: could not read to its end: %s", path, page.reason)
                read[f"file: {page.reason}"] += 1
                continue
            if isinstance(page, warc.Page):
                text = html.page_text(page, max_tree_bytes=max_tree_bytes)
            else:
                text = page
            if isinstance(text, warc.LostPage):
                read[f"page: {text.reason}"] += 1
            else:
                yield text


def count_views(
    paths: Iterable[str],
    *,
    languages: Collection[str],
    read: Counter[str],
    spill: counts.Spill,
) -> dict[str, Counter[str]]:
    """Sums the views of each language's titles over page view files.

    The titles of one file are in memory; `spill` is for those of all.
    """
    views: dict[str, Counter[str]] = {code: Counter() for code in languages}
    counters = {f"{code} titles": views[code] for code in views}
    for path in paths:
        found, malformed = titles.read_pageviews(path, languages=languages)
        if malformed:
            logging.warning("%s has %d malformed lines", path, malformed)
            read["page views: malformed_line"] += malformed
        for code, of_titles in found.items():
            views[code].update(of_titles)
        spill.relieve(counters)
    return views


def select(
    code: str,
    counted: ngrams.NgramCounts,
    views: Counter[str],
    config: ConfigDict,
    spill: counts.Spill,
) -> store.Metadata:
    """Returns the metadata of one language by the thresholds and caps of `config`."""
    caps = config.max_unigrams, config.max_bigrams, config.max_titles
    # Of the best of a source, earlier sources may have all that they may add.
    most_unigrams, most_bigrams, most_titles = itertools.accumulate(caps)
    least = min(config.unigram_min_count, config.bigram_min_count)
    words = pa.concat_tables(spill.sums(f"{code} unigrams", counted.unigrams, least))
    frequent = words.filter(pc.greater_equal(words["count"], config.unigram_min_count))
    bigrams = ngrams.select_bigrams(
        spill.sums(f"{code} bigrams", counted.bigrams, config.bigram_min_count),
        words,
        tokens=counted.tokens,
        min_pmi=config.bigram_min_pmi,
        most=most_bigrams,
    )
    if not bigrams and config.max_bigrams:
        logging.warning(
            "%s: no bigram reaches bigram_min_pmi=%g with %d words of text",
            code, config.bigram_min_pmi, counted.tokens,
        )  # fmt: skip
    popular = spill.sums(f"{code} titles", views, config.title_min_views)
    ranked = (
        ranking.select_frequent([frequent], most=most_unigrams),
        bigrams,
        ranking.select_frequent(popular, most=most_titles),
    )
    names = ("unigram", "bigram", "title")
    sources = list(map(ranking.Source, names, ranked, caps))
    return ranking.merge(code, sources).metadata


def find(pattern: str, key: str) -> list[str]:
    """Returns the files of a config key, "warc" or "pageviews".

    Raises ValueError if there are none, or the first is of a format that is not read.
    """
    found = patterns.find(pattern)
    if not found:
        got, cure = f"none for {pattern!r}", "correct the path"
        if files.path(pattern).is_dir():
            got, cure = f"the folder {pattern!r}", "add a name, such as /*.gz"
        raise ValueError(f"config.{key}: wanted files, got {got}; {cure}")
    if (got := formats.of(found[0])) not in ("", "WARC" if key == "warc" else ""):
        raise ValueError(
            f"config.{key}: wanted {_WANTED[key]}, got {got} in {found[0]}; correct the"
            " path"
        )
    return found


def _inputs(config: ConfigDict, *groups: list[str]) -> dict[str, Any]:
    """Returns what decides the result; files by name and size, in any folder."""
    values = config.to_dict()
    del values["warc"], values["pageviews"], values["memory_gib"]
    named = [[(os.path.basename(p), files.size(p)) for p in g] for g in groups]
    return {"config": values, "files": named}


if __name__ == "__main__":
    config_flag.define(config_lib.METADATA_RANGES)
    flags.DEFINE_string("output", None, "Folder for the metadata.")
    flags.mark_flags_as_required(["config", "output"])
    command.run(main)
