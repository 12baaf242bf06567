"""Builds metadata (the entries that texts are matched with) from web pages.

    python -m data_prep.build_metadata --config=configs/metadata.py:quickstart \\
        --warc='crawl/*.warc.gz' --pageviews=pageviews.txt --output=metadata

For each language: the frequent words of its pages, bigrams with high pointwise mutual
information, and titles with many page views. Each file of the sources becomes a part of
counts in a working folder, by as many processes as --workers says; a killed run
continues after its last finished part. Then the parts are summed, within
config.memory_gib. Beam's pipeline options follow `--`.
"""

import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
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
    pieces,
    ranking,
    segmentation,
    store,
)
from data_prep.sources import formats
from data_prep.stages import counting, outcomes, pipelines, sums
from metaclip_jax import files, patterns
from metaclip_jax.cli import command, config_flag

# Flag of a source, by kind of its pieces -> what its files hold, in an error, and their
# format in the words of `formats.of`.
SOURCES = {
    "warc": ("WARC files", "WARC"),
    "pageviews": ("lines of page views", ""),
}
_PARTS = "parts"  # folder in the output, unless --workdir is given


@dataclass(frozen=True)
class Run:
    """What a run reads and writes."""

    config: ConfigDict
    found: Sequence[pieces.Piece]
    inputs: dict[str, Any]  # what decides the result
    options: PipelineOptions
    workdir: str
    output: str
    max_failed_sources: int


def main(argv: list[str]) -> None:
    """Builds the metadata unless it is finished, then prints its sources."""
    values = flags.FLAGS
    run = plan(
        *(values.config, values.output, values.workdir, argv[1:]),
        patterns={flag: getattr(values, flag) for flag in SOURCES},
        workers=values.workers,
        max_failed_sources=values.max_failed_sources,
    )
    full = files.naming_full_disk(run.output)
    with full, files.lock(run.output):
        if files.finished(run.output, run.inputs) is None:
            files.claim(run.output, run.inputs)
            with files.lock(run.workdir):
                parts = count(run)
                metadata = choose(run, parts)
            read = read_and_lost(run.workdir)
            store.save(run.output, metadata, inputs=run.inputs, read=read)
        remove_parts(run)
        described = files.read_json(files.path(run.output) / files.MANIFEST)
    for code, facts in described["metadata"].items():
        named = ", ".join(f"{n:,} {name}s" for name, n in facts["sources"].items())
        print(f"{code}: {facts['entries']:,} entries ({named}) in {run.output}")


def plan(
    config: ConfigDict,
    output: str | None,
    workdir: str | None,
    arguments: list[str],
    *,
    patterns: Mapping[str, str | None],
    workers: str = "auto",
    max_failed_sources: int = 0,
) -> Run:
    """Checks the command line before anything is written; returns the run.

    `patterns` has the value of each flag of SOURCES.
    """
    command.refuse_missing({"--output": output})
    assert output
    if not any(patterns.values()):
        names = " or ".join(f"--{name}" for name in patterns)
        raise ValueError(f"wanted a source of metadata, got none; give {names}")
    config_lib.check_metadata(config)
    of = editions.members(config.languages)
    options = pipelines.options(arguments)
    found = [
        pieces.Piece(flag, path)
        for flag, pattern in patterns.items()
        if pattern
        for path in find(pattern, flag)
    ]
    described = [(p.kind, os.path.basename(p.path), files.size(p.path)) for p in found]
    values = config.to_dict()
    del values["memory_gib"]
    inputs: dict[str, Any] = {"config": values, "files": described}
    if any(map(segmentation.segmenter, itertools.chain(*of.values()))):
        inputs["icu"] = segmentation.version()
    return Run(
        config=config,
        found=found,
        inputs=inputs,
        options=pipelines.with_workers(
            options, workers, source_bytes=sum(size for *_, size in described)
        ),
        workdir=workdir or os.path.join(output, _PARTS),
        output=output,
        max_failed_sources=max_failed_sources,
    )


def find(pattern: str, flag: str) -> list[str]:
    """Returns the files of a flag of SOURCES.

    Raises ValueError if there are none, or the first is of a format that is not read.
    """
    wanted, of = SOURCES[flag]
    found = patterns.find(pattern)
    if not found:
        got, cure = f"none for {pattern!r}", "correct the path"
        if files.path(pattern).is_dir():
            got, cure = f"the folder {pattern!r}", "add a name, such as /*.gz"
        raise ValueError(f"--{flag}: wanted files, got {got}; {cure}")
    if (got := formats.of(found[0])) not in ("", of):
        raise ValueError(
            f"--{flag}: wanted {wanted}, got {got} in {found[0]}; correct the path"
        )
    return found


def count(run: Run) -> list[counts.Part]:
    """Sources -> parts of counts, one per piece. Returns the parts."""
    folder, config = run.workdir, run.config
    if files.finished(folder, run.inputs) is None:
        files.claim(folder, run.inputs)
        workers = pipelines.worker_count(run.options)
        options = pieces.Options(
            languages=tuple(config.languages),
            max_page_bytes=config.pages.max_page_bytes,
            max_tree_bytes=config.pages.max_tree_bytes,
            max_count_bytes=int(config.memory_gib * 2**30 / workers),
        )
        counting.run(folder, run.found, options, run.options)
        outcomes.check_failed(folder, most=run.max_failed_sources)
        files.write_manifest(folder, inputs=run.inputs)
    return counting.read_parts(folder, len(run.found))


def choose(run: Run, parts: Sequence[counts.Part]) -> dict[str, store.Metadata]:
    """Returns the metadata of each language, from the counts of all pieces."""
    place = run.workdir if files.is_local(run.workdir) else None
    with (
        tempfile.TemporaryDirectory(prefix=files.TEMPORARY_PREFIX, dir=place) as folder,
        counts.database(
            folder,
            memory_gib=run.config.memory_gib,
            threads=os.cpu_count() or 1,
        ) as database,
    ):
        summed = counts.Sums(run.workdir, parts, database)
        counted = {code for part in parts for code in part.codes}
        metadata = {}
        for code, members in editions.members(run.config.languages).items():
            some = [each for each in members if each in counted] or [code]
            sources = [
                ranking.limit(
                    select(each, summed, run.config),
                    unigram_share=run.config.unigram_share,
                    bigrams_per_unigram=run.config.bigrams_per_unigram,
                    title_share=run.config.title_share,
                )
                for each in some
            ]
            merged = ranking.merge(code, ranking.union(code, sources))
            metadata[code] = merged.metadata
        return metadata


def select(code: str, summed: counts.Sums, config: ConfigDict) -> list[ranking.Source]:
    """Returns the sources of an edition by the thresholds and caps of `config`."""
    caps = config.max_unigrams, config.max_bigrams, config.max_titles
    # Of the best of a source, earlier sources may have all that they may add.
    most_unigrams, most_bigrams, most_titles = itertools.accumulate(caps)
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
    chosen = words, bigrams, titles
    names = "unigram", "bigram", "title"
    least = config.unigram_min_count, config.bigram_min_score, config.title_min_views
    return [
        ranking.Source(name, one.ranked, cap, threshold, one.offered)
        for name, one, cap, threshold in zip(names, chosen, caps, least, strict=True)
    ]


def read_and_lost(folder: str) -> dict[str, int]:
    """Returns what was read of the sources, and what was lost by reason.

    Args:
      folder: of the parts.
    """
    found: dict[str, int] = {}
    for row in drops.funnel(sums.read_sum(folder, counting.FLOW), ("read",)):
        found[row["unit"]] = row["out"]
        for reason, lost in row["drops"].items():
            found[f"{row['unit'].removesuffix('s')}: {reason}"] = lost
    return found


def remove_parts(run: Run) -> None:
    """Removes the parts in the output's folder, which is finished."""
    if run.workdir == os.path.join(run.output, _PARTS):
        folder = files.path(run.workdir)
        if folder.exists():
            folder.rmtree()


def define_flags() -> None:
    """Defines the command's flags; importing the module defines none."""
    config_flag.define(config_lib.METADATA_RANGES)
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
