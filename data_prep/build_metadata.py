"""Builds metadata (the entries that texts are matched with).

    python -m data_prep.build_metadata --config=configs/metadata.py:en \\
        --wordnet=/usr/share/wordnet \\
        --wikipedia='enwiki-*-pages-articles-multistream*.xml*.bz2' \\
        --pageviews='pageviews-*.gz' --output=metadata

For each language, in this order: the names of WordNet's synsets; the frequent words of
Wikipedia's articles, or of web pages (--warc); bigrams with high pointwise mutual
information; titles with many page views. Each piece of the sources becomes a part of
counts in a working folder, by as many processes as --workers says; a killed run
continues after its last finished part. Then the parts are summed, within
config.memory_gib. Beam's pipeline options follow `--`.
"""

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags, logging
from apache_beam.options.pipeline_options import PipelineOptions
from ml_collections import ConfigDict

from data_prep import config as config_lib
from data_prep import drops
from data_prep.metadata import (
    counts,
    editions,
    inputs,
    ranking,
    segmentation,
    store,
)
from data_prep.metadata.pieces import KINDS, Options, Piece
from data_prep.report import metadata as report
from data_prep.stages import counting, outcomes, pipelines, sums
from metaclip_jax import files
from metaclip_jax.cli import command, config_flag
from metaclip_jax.data import machine

_PARTS = "parts"  # folder in the output, unless --workdir is given


@dataclass(frozen=True)
class Run:
    """What a run reads and writes."""

    config: ConfigDict
    pieces: Sequence[Piece]
    inputs: dict[str, Any]  # what decides the result
    options: PipelineOptions
    workdir: str
    output: str
    max_failed_sources: int


def main(argv: list[str]) -> None:
    """Builds the metadata unless it is finished, then prints its sources."""
    values = flags.FLAGS
    run = plan(
        values.config,
        values.output,
        values.workdir,
        argv[1:],
        sources={kind: getattr(values, kind) for kind in KINDS},
        workers=values.workers,
        max_failed_sources=values.max_failed_sources,
    )
    full = files.naming_full_disk(run.output)
    with full, files.lock(run.output):
        if files.finished(run.output, run.inputs) is not None:
            print(f"{run.output} is finished already; remove it to build it again\n")
        else:
            files.claim(run.output, run.inputs)
            with files.lock(run.workdir):
                save(run, choose(run, count(run)))
        remove_parts(run)
        manifest = files.read_json(files.path(run.output) / files.MANIFEST)
    print(report.as_text(manifest["metadata"], manifest["read"]))
    print(f"\n{files.path(run.output) / report.PAGE}")


def plan(
    config: ConfigDict,
    output: str | None,
    workdir: str | None,
    arguments: list[str],
    *,
    sources: Mapping[str, str | None],
    workers: str = "auto",
    max_failed_sources: int = 0,
) -> Run:
    """Checks the command line before anything is written; returns the run.

    `sources` has the path of each kind of source, for `inputs.find`.
    """
    command.refuse_missing({"--output": output})
    assert output
    if workdir:
        command.refuse_same_folder({"--output": output, "--workdir": workdir})
    config_lib.check_metadata(config)
    members = editions.members(config.languages)
    options = pipelines.options(arguments)
    user_agent = config.download.user_agent
    found = inputs.find(sources, config.languages, user_agent=user_agent)
    folder = workdir or os.path.join(output, _PARTS)
    places = [(f"--{piece.kind}", piece.path) for piece in found.pieces]
    pipelines.refuse_local(options, [("--workdir", folder), *places])
    values = config.to_dict()
    del values["memory_gib"], values["download"]
    decided: dict[str, Any] = {"config": values, "files": found.described}
    if any(map(segmentation.segmenter, itertools.chain(*members.values()))):
        decided["icu"] = segmentation.version()
    return Run(
        config=config,
        pieces=found.pieces,
        inputs=decided,
        options=pipelines.with_workers(options, workers, source_bytes=found.bytes),
        workdir=folder,
        output=output,
        max_failed_sources=max_failed_sources,
    )


def count(run: Run) -> list[counts.Part]:
    """Sources -> parts of counts, one per piece. Returns the parts."""
    folder, config = run.workdir, run.config
    if files.finished(folder, run.inputs) is None:
        files.claim(folder, run.inputs)
        workers = pipelines.worker_count(run.options)
        options = Options(
            languages=tuple(config.languages),
            max_page_bytes=config.pages.max_page_bytes,
            max_tree_bytes=config.pages.max_tree_bytes,
            user_agent=config.download.user_agent,
            max_count_bytes=int(config.memory_gib * 2**30 / workers),
        )
        counting.run(folder, run.pieces, options, run.options)
        outcomes.check_failed(folder, most=run.max_failed_sources)
        files.write_manifest(folder, inputs=run.inputs)
    return counting.read_parts(folder, len(run.pieces))


def choose(run: Run, parts: Sequence[counts.Part]) -> Iterator[ranking.Merged]:
    """Yields the metadata of each language, from the counts of all pieces.

    Of several languages, those without entries are left out. Raises ValueError, with
    what was read and lost, if none has entries. Holds the entries of one language.
    """
    place = run.workdir if files.is_local(run.workdir) else None
    with (
        tempfile.TemporaryDirectory(prefix=files.TEMPORARY_PREFIX, dir=place) as folder,
        counts.database(
            folder,
            memory_gib=run.config.memory_gib,
            threads=machine.cores(),
        ) as database,
    ):
        summed = counts.Sums(
            run.workdir, parts, database, mode=run.config.matching_mode
        )
        counted = {code for part in parts for code in part.codes}
        is_empty = True
        for code, members in editions.members(run.config.languages).items():
            read = [member for member in members if member in counted] or [code]
            if (merged := _merged(code, read, summed, run.config)) is not None:
                is_empty = False
                yield merged
                del merged  # frees it before the next is made
            elif len(run.config.languages) > 1:
                logging.warning("%s: no entries; its texts are those of other", code)
        if is_empty:
            raise ValueError(_without_entries(run))


def _merged(
    code: str, members: Sequence[str], summed: counts.Sums, config: ConfigDict
) -> ranking.Merged | None:
    """Returns the metadata of a language from its editions, None without entries."""
    mode = config.matching_mode
    sources = [select(member, summed, config) for member in members]
    return ranking.merge(code, ranking.union(code, sources, mode=mode), mode=mode)


def _without_entries(run: Run) -> str:
    """Returns the message of an error: what was read and lost, and what to do."""
    read = read_and_lost(run.workdir)
    listed = ", ".join(f"{number:,} {name}" for name, number in read.items())
    got, cure = "none above the thresholds", "lower them or give more text"
    if not any(number for name, number in read.items() if ": " not in name):
        got, cure = "none, since nothing could be read", "correct the paths"
    return (
        f"wanted entries of {inputs.in_short(run.config.languages)}, got {got};"
        f" {cure}. Read and lost: {listed}"
    )


def select(code: str, summed: counts.Sums, config: ConfigDict) -> list[ranking.Source]:
    """Returns the sources of an edition by the thresholds and caps of `config`."""
    caps = (
        config.max_synsets,
        config.max_unigrams,
        config.max_bigrams,
        config.max_titles,
    )
    # The best entries of a source may all be in the sources before it.
    _, most_unigrams, most_bigrams, most_titles = itertools.accumulate(caps)
    synsets = summed.synsets(code, most=config.max_synsets)
    tokens = summed.sum_words(code)
    words = summed.frequent_words(least=config.unigram_min_count, most=most_unigrams)
    bigrams = summed.bigrams(
        code,
        tokens=tokens,
        min_count=config.bigram_min_count,
        score=config.bigram_score,
        min_score=config.bigram_min_score,
        most=most_bigrams,
    )
    if tokens and not bigrams.ranked and config.max_bigrams:
        logging.warning(
            "%s: no bigram reaches bigram_min_score=%g with %d words of text",
            code, config.bigram_min_score, tokens,
        )  # fmt: skip
    titles = summed.frequent_titles(
        code, least=config.title_min_views, most=most_titles
    )
    chosen = (
        ("synset", synsets, 1.0),
        ("unigram", words, config.unigram_min_count),
        ("bigram", bigrams, config.bigram_min_score),
        ("title", titles, config.title_min_views),
    )
    return ranking.limit(
        [
            ranking.Source(name, best.ranked, cap, least, best.offered)
            for (name, best, least), cap in zip(chosen, caps, strict=True)
        ],
        unigram_share=config.unigram_share,
        bigrams_per_unigram=config.bigrams_per_unigram,
        title_share=config.title_share,
    )


def save(run: Run, merged: Iterable[ranking.Merged]) -> None:
    """Writes each metadata when it is ready, the page that shows all, the manifest."""
    described = {}
    for each in merged:
        summary = store.write(run.output, each.metadata)
        described[each.metadata.code] = ranking.describe(each) | summary
        del each  # frees it before the next is made
    read = read_and_lost(run.workdir)
    if empty := len(run.config.languages) - len(described):
        read["language: no_entries"] = empty
    page = report.as_page(described, read)
    files.write_bytes(files.path(run.output) / report.PAGE, page)
    files.write_manifest(run.output, inputs=run.inputs, metadata=described, read=read)


def read_and_lost(folder: str) -> dict[str, int]:
    """Returns how much was read ("pages") and lost ("page: reason") of the sources.

    Args:
      folder: of the parts.
    """
    numbers: dict[str, int] = {}
    for row in drops.funnel(sums.read_sum(folder, counting.FLOW), ("read",)):
        numbers[row["unit"]] = row["out"]
        for reason, lost in row["drops"].items():
            numbers[f"{row['unit'].removesuffix('s')}: {reason}"] = lost
    return numbers


def remove_parts(run: Run) -> None:
    """Removes the parts in the output's folder, which is finished."""
    if run.workdir == os.path.join(run.output, _PARTS):
        folder = files.path(run.workdir)
        if folder.exists():
            folder.rmtree()


def define_flags() -> None:
    """Defines the command's flags; importing the module defines none."""
    config_flag.define(config_lib.METADATA_RANGES)
    flags.DEFINE_string(
        "wordnet", None, "Folder of Princeton's WordNet or of OMW's tab files."
    )
    flags.DEFINE_string(
        "wikipedia", None, "Glob of dumps of Wikipedia; {code} for several languages."
    )
    flags.DEFINE_string("warc", None, "Glob of WARC files: pages to count words of.")
    flags.DEFINE_string("pageviews", None, "Glob of Wikimedia's page view files.")
    flags.DEFINE_string("output", None, "Folder for the metadata.")
    flags.DEFINE_string(
        "workdir", None, "Folder for counts; kept. By default OUTPUT/parts; removed."
    )
    pipelines.define_flags()
    flags.mark_flags_as_required(["config", "output"])


if __name__ == "__main__":
    define_flags()
    command.run(main)
