"""Curates web pages, or image-text pairs, to a balanced dataset of records.

    python -m data_prep.curate --config=configs/curate.py:quickstart \\
        --config.source.paths='crawl/*.warc.gz' --config.metadata=metadata \\
        --workdir=curation --output=dataset -- --runner=FnApiRunner

Beam's pipeline options follow `--`. Five pipelines run in turn, each from files to
files: match (keeps texts with an entry), gather (groups matches by image, drops
repeats), download (images that balancing can keep), compare (drops repeated images),
write. A killed run continues after its last finished part. With --stop_after=match it
stops before the download: then `data_prep.explain` predicts the size for each t, and
the same command continues.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags, logging

from data_prep import config as config_lib
from data_prep import data_card, schema
from data_prep.images import face_detection, request, safety
from data_prep.matching import words
from data_prep.sinks import array_record as sink
from data_prep.stages import (
    balancing,
    contamination,
    damage,
    downloads,
    embedded,
    image_dedup,
    matches,
    outcomes,
    parts,
    pipelines,
    rejects,
    selection,
    steps,
    sums,
)
from data_prep.stages.draws import Draws
from data_prep.stages.pipelines import progress, start, tagged
from data_prep.stages.planning import Run, plan, refuse_anonymous
from metaclip_jax import files
from metaclip_jax.cli import command, config_flag
from metaclip_jax.data import balance


def main(argv: list[str]) -> None:
    """Runs the stages that are not finished, then prints the funnel."""
    values = flags.FLAGS
    run = plan(
        values.config,
        values.workdir,
        values.output,
        argv[1:],
        workers=values.workers,
        max_failed_sources=values.max_failed_sources,
    )
    if values.stop_after != "match":
        refuse_anonymous(run.config, run.source)
    full = files.naming_full_disk(run.output)
    with full, files.lock(run.workdir), files.lock(run.output):
        run_stages(run, stop_after=values.stop_after, retry_failed=values.retry_failed)
    if values.stop_after == "write":
        outcomes.report(run.output)


def run_stages(
    run: Run, *, stop_after: str = "write", retry_failed: bool = False
) -> None:
    """Runs the stages that are not finished yet, up to `stop_after`.

    A damaged file of an earlier stage is rebuilt, once.
    """
    images = os.path.join(run.workdir, "images")
    if retry_failed and outcomes.any_to_retry(images, run.inputs):
        damage.reopen(run)
    damage.repairing(run, lambda: _run_stages(run, stop_after, retry_failed))


def _run_stages(run: Run, stop_after: str, retry_failed: bool) -> None:
    if files.finished(run.output, run.inputs) is not None:
        return
    pool, drawn = match(run)
    if stop_after == "match":
        return log_stop(run, "matches")
    t = thresholds(run, pool)
    thin = balance.keep_probabilities(pool, t, slack=run.config.balance.slack)
    accepted = download(run, thin, retry_failed=retry_failed)
    if stop_after == "download":
        return log_stop(run, "images")
    keep = steps.recount(accepted, thin, t, pool=pool, drawn_counts=drawn)
    write(run, t=t, thin=thin, keep=keep, pool=pool, accepted=accepted)


def log_stop(run: Run, name: str) -> None:
    """Logs what is finished after --stop_after, and how to continue."""
    folder = os.path.join(run.workdir, name)
    logging.info("%s is finished; without --stop_after the command continues", folder)


def match(run: Run) -> tuple[steps.Vectors, steps.Vectors]:
    """Source files -> parts of unique matches.

    Returns the entry counts of all texts, and of those that the rule draws.
    """
    folder = os.path.join(run.workdir, "matches")
    if files.finished(folder, run.match_inputs) is None:
        match_sources(run)
        gather(run, folder)
    total = sums.read_sum(folder, "counts.parquet")
    every = drawn = steps.to_vectors(total, run.sizes)
    if run.config.balance.rule == "v2":  # other rules draw all texts
        drawn = steps.to_vectors(sums.read_sum(folder, "drawn.parquet"), run.sizes)
    return every, drawn


def match_sources(run: Run) -> None:
    """Source files -> parts of matches, one per config.sources_per_part files."""
    folder, config = os.path.join(run.workdir, "matched"), run.config
    if files.finished(folder, run.source_inputs) is not None:
        return
    files.claim(folder, run.source_inputs)
    pieces = matches.pieces(run.source_files, config.sources_per_part)
    matchers = os.path.join(run.workdir, "matchers")
    matching = matches.Matching(
        folder,
        len(pieces),
        spec=run.source,
        tables=matches.save_matchers(run.metadata, config.matching.mode, matchers),
        engine=config.matching.engine,
    )
    bar = progress(folder, len(pieces), "match", stage="parse")
    with pipelines.new(run.options, bar) as pipeline:
        stage = tagged(matching.write, "rejects")
        matched = start(pipeline, pieces) | "match" >> stage
        rejects.write(matched.rejects, run.workdir, rejects.SOURCES)
        sums.write_sum(matched.flow, schema.FLOW, folder, "flow.parquet")
        sums.write_sum(matched.main, schema.TALLIES, folder, "sizes.parquet")
    outcomes.check_failed(folder, most=run.max_failed_sources)
    outcomes.check_texts(folder)
    files.write_manifest(folder, inputs=run.source_inputs, parts=len(pieces))


def gather(run: Run, folder: str) -> None:
    """Parts of matches by source -> parts by image id, each match once."""
    config, n = run.config, run.config.partitions
    matched = os.path.join(run.workdir, "matched")
    outcomes.check_partitions(matched, n)
    files.claim(folder, run.match_inputs)
    count = files.read_json(files.path(matched) / files.MANIFEST)["parts"]
    gathering = matches.Gathering(
        parts.Sorted(matched, count, partitions=n),
        folder,
        seed=config.seed,
        rule=config.balance.rule,
        sample_images=-(-config.sample_images // n),
        selected=selection.prepare(config, run.workdir, run.options),
        by_score=config.balance.prefer_high_scores,
        unsafe_words=words.read(config.safety.words) if config.safety.words else (),
    )
    sizes = sums.read_sum(matched, "sizes.parquet")["count"].to_pylist()
    ranges = pipelines.ranges(
        n, size=sum(sizes), memory_gib=config.memory_gib, options=run.options
    )
    bar = progress(folder, n, "gather", stage="dedup")
    with pipelines.new(run.options, bar) as pipeline:
        written = matches.gather(pipeline, gathering, ranges)
        sums.write_sum(written.flow, schema.FLOW, folder, "flow.parquet")
        sums.write_sum(written.main, schema.COUNTS, folder, "counts.parquet")
        sums.write_sum(written.drawn, schema.COUNTS, folder, "drawn.parquet")
    outcomes.check_failed(folder)
    files.write_manifest(folder, inputs=run.match_inputs)


def thresholds(run: Run, counts: steps.Vectors) -> dict[str, int]:
    """Returns t of each metadata: config.balance.t, or t from tail_share."""
    wanted = run.config.balance
    if wanted.rule == "online":
        return {}
    t = balance.thresholds(counts, t=wanted.t, tail_share=wanted.tail_share)
    shown = ", ".join(f"{code} {value:,}" for code, value in t.items())
    logging.info("t (accepted draws per entry): %s", shown)
    return t


def download(
    run: Run, thin: steps.Vectors, *, retry_failed: bool
) -> dict[str, np.ndarray]:
    """Matches -> screened images. Returns the survivors' accepted draws per entry."""
    folder = os.path.join(run.workdir, "images")
    if files.finished(folder, run.inputs) is None:
        files.claim(folder, run.inputs)
        draws = Draws.save(f"{run.workdir}/balance", thin, seed=run.config.seed)
        if sets := run.config.duplicates.evaluation_sets:
            screen = screening(run)
            contamination.read_sets(sets, folder, screen=screen, options=run.options)
        embeddings = embedded.prepare(run.config, run.workdir, run.options)
        fetch_images(run, folder, draws, retry_failed=retry_failed)
        compare_images(run, folder, draws, embeddings)
        files.write_manifest(folder, inputs=run.inputs)
    return steps.to_vectors(sums.read_sum(folder, "accepted.parquet"), run.sizes)


def fetch_images(run: Run, folder: str, draws: Draws, *, retry_failed: bool) -> None:
    """Downloads and screens images; writes a sum of outcomes into `folder`.

    Raises RuntimeError where too many downloads failed.
    """
    n, fetching = run.config.partitions, os.path.join(run.workdir, "downloads")
    keys = run.config.download.to_dict()
    most_failed = keys.pop("max_failed_share")
    downloading = downloads.Downloading(
        run.workdir,
        n,
        draws=draws,
        source=run.source,
        max_failed_share=most_failed,
        retry_failed=retry_failed,
        processes=pipelines.worker_count(run.options),
        fetch=request.Limits(**keys),
        screen=screening(run),
    )
    bar = progress(fetching, n, "download", stage="thin")
    with pipelines.new(run.options, bar) as pipeline:
        stage = tagged(downloading.download, each="downloads of partition")
        fetched = start(pipeline, range(n)) | "download" >> stage
        sums.write_sum(fetched.flow, schema.FLOW, fetching, "flow.parquet")
        sums.write_sum(fetched.main, schema.TALLIES, folder, outcomes.PART)
    outcomes.check_failed(fetching)
    outcomes.check(folder, most_failed)


def screening(run: Run) -> dict[str, Any]:
    """Returns the keyword arguments of screening."""
    screen = run.config.images.to_dict() | safety.keywords(run.config)
    del screen["max_moved_texts"]
    return screen


def compare_images(
    run: Run, folder: str, draws: Draws, embeddings: embedded.Embedded | None
) -> None:
    """Drops images for what others are, into `folder`, and counts accepted draws."""
    config, n = run.config, run.config.partitions
    wanted = config.duplicates
    comparing = image_dedup.Comparing(
        run.workdir,
        n,
        draws=draws,
        moves=config.balance.rule != "v2",
        max_moved_texts=config.images.max_moved_texts,
        near_bits=wanted.near_bits,
        placeholder_texts=wanted.placeholder_texts,
        evaluation_bits=wanted.evaluation_bits if wanted.evaluation_sets else None,
        embeddings=embeddings,
    )
    size = sum(outcomes.read(folder).values()) * image_dedup.ROW_BYTES
    ranges = pipelines.ranges(
        n, size=size, memory_gib=config.memory_gib, options=run.options
    )
    with pipelines.new(run.options) as pipeline:
        compared = image_dedup.add(pipeline, comparing, ranges)
        sums.write_sum(compared["flow"], schema.FLOW, folder, "flow.parquet")
        sums.write_sum(compared["accepted"], schema.COUNTS, folder, "accepted.parquet")
        if wanted.evaluation_sets or wanted.evaluation_embeddings:
            listed = compared["evaluated"]
            sums.write_sum(listed, schema.EVALUATED, folder, contamination.LIST)
    outcomes.check_failed(folder)


def write(
    run: Run,
    *,
    t: Mapping[str, int],
    thin: steps.Vectors,
    keep: steps.Vectors,
    pool: steps.Vectors,
    accepted: steps.Vectors,
) -> None:
    """Survivors -> the balanced dataset with its counts and its data card."""
    config, n = run.config, run.config.partitions
    folder = os.path.join(run.workdir, "balance")
    writing = balancing.Writing(
        run.workdir,
        run.output,
        config.name,
        n,
        draws=Draws.save(folder, keep, seed=config.seed),
        scores=run.source.score_columns,
        faces=face_detection.chosen(config) is not None,
    )
    files.claim(run.output, run.inputs)
    with pipelines.new(run.options, progress(run.output, n, "write")) as pipeline:
        stage = tagged(
            writing.write_shard,
            *("accepted", "shards", "tallies", "rejects"),
            each="file shard of partition",
        )
        shards = start(pipeline, range(n)) | "balance" >> stage
        rejects.write(shards.rejects, run.workdir)
        sums.write_sum(shards.flow, schema.FLOW, folder, "flow.parquet")
        sums.write_sum(shards.main, schema.COUNTS, folder, "kept.parquet")
        sums.write_sum(shards.accepted, schema.COUNTS, folder, "accepted.parquet")
        sums.write_sum(shards.tallies, schema.TALLIES, folder, "tallies.parquet")
        sums.write_sum(shards.shards, schema.SHARDS, folder, "shards.parquet")
    outcomes.check_failed(folder)
    vectors = {"pool_count": pool, "survivor_count": steps.survivors(accepted, thin)}
    for column, part in (("kept_count", "kept"), ("accepted_draws", "accepted")):
        total = sums.read_sum(folder, f"{part}.parquet")
        vectors[column] = steps.to_vectors(total, run.sizes)
    entries = {code: m.entries for code, m in run.metadata.items()}
    counts = steps.counts_table(entries, vectors)
    if config.duplicates.evaluation_sets or config.duplicates.evaluation_embeddings:
        contamination.copy_list(os.path.join(run.workdir, "images"), run.output)
    shards = sums.read_sum(folder, "shards.parquet")
    facts = [json.loads(text) for text in shards["facts"].to_pylist()]
    sink.write_dataset(
        run.output,
        name=config.name,
        shard_facts=facts,
        data_card=data_card.build(
            config=run.inputs["config"],
            t=t,
            metadata=run.metadata,
            funnel=sums.funnel(run.workdir),
            shares=sums.read_tallies(folder, "tallies.parquet"),
            n_records=sum(each["count"] for each in facts),
            counts=counts,
            models=safety.models(config),
        ),
        counts=counts,
        inputs=run.inputs,
    )


def define_flags() -> None:
    """Defines the command's flags; importing the module defines none."""
    config_flag.define(config_lib.CURATE_RANGES)
    flags.DEFINE_string("workdir", None, "Folder for intermediate files.")
    flags.DEFINE_string("output", None, "Folder for the dataset, which TFDS can read.")
    flags.DEFINE_enum(
        "stop_after", "write", ("match", "download", "write"), "The last stage to run."
    )
    pipelines.define_flags()
    flags.DEFINE_bool(
        "retry_failed",
        False,
        "Download images again whose failure may be temporary, and redo the stages "
        "that ran without them.",
    )
    flags.mark_flags_as_required(["config", "workdir", "output"])


if __name__ == "__main__":
    define_flags()
    command.run(main)
