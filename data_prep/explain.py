"""Predicts the dataset's size at a threshold, before anything is downloaded.

    python -m data_prep.explain --counts=curation/matches --metadata=metadata --t=20000
    python -m data_prep.explain --counts=curation/matches --metadata=metadata \\
        --tail_share=0.06 --plot=explain.html

Reads the entry counts and the sample of images that `data_prep.curate
--stop_after=match` wrote. Counts alone do not determine how many texts are kept, since
a text matches many entries and is kept if one of its matches is accepted; hence the
sample. The prediction does not include failed downloads.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import app, flags

from data_prep.matching import spacing
from data_prep.metadata import store
from data_prep.report import dataset_size, explanation
from data_prep.stages import matches, steps, sums
from metaclip_jax import files
from metaclip_jax.cli import command
from metaclip_jax.data import balance

_CURVE_POINTS = 25


@dataclass(frozen=True)
class Pool:
    """All matched texts, as the match stage counted and sampled them."""

    metadata: Mapping[str, store.Metadata]
    counts: Mapping[str, np.ndarray]  # f64[entries] for each code
    sample: pa.Table  # schema.SAMPLE
    mode: str
    rule: str


def load(folder: str, metadata: str) -> Pool:
    """Reads the finished folder of matches.

    Raises:
      FileNotFoundError: the match stage has not finished there.
      ValueError: it was made with other metadata.
    """
    manifest = files.path(folder) / files.MANIFEST
    if not manifest.exists():
        raise FileNotFoundError(
            f"--counts={folder}: wanted the folder of a finished match stage, got one "
            f"without {files.MANIFEST}; run data_prep.curate --stop_after=match and "
            "give the folder 'matches' of its --workdir"
        )
    with files.naming(manifest, "the manifest of a match stage"):
        inputs = files.read_json(manifest)["inputs"]
        matched_with = inputs["metadata"]
        config = inputs["config"]
        mode, rule = config["matching"]["mode"], config["rule"]
        partitions = config["partitions"]
    loaded = store.load(metadata)
    fingerprints = {code: m.fingerprint for code, m in loaded.items()}
    if fingerprints != matched_with:
        raise ValueError(
            f"--metadata={metadata}: wanted the metadata of {folder}, {matched_with}, "
            f"got {fingerprints}; give the one it was matched with"
        )
    sizes = {code: len(m.entries) for code, m in loaded.items()}
    counts = steps.to_vectors(sums.read_sum(folder, "counts.parquet"), sizes)
    return Pool(
        metadata=loaded,
        counts={code: vector.astype(np.float64) for code, vector in counts.items()},
        sample=matches.read_sample(folder, partitions),
        mode=mode,
        rule=rule,
    )


def chances(pool: Pool, t: Mapping[str, int]) -> np.ndarray:
    """Returns f64[n], the probability that each text of the sample is kept."""
    keep = balance.keep_probabilities(pool.counts, t)
    chance = steps.text_probabilities(pool.sample, keep)
    return chance * pool.sample["drawn"].to_numpy()


def expected(
    pool: Pool, t: Mapping[str, int]
) -> tuple[dataset_size.Size, dict[str, dataset_size.Size]]:
    """Returns the predicted size in total, and per metadata."""
    chance, codes = chances(pool, t), pool.sample["metadata"]
    by_code = {
        code: dataset_size.size(pool.sample, chance, pc.equal(codes, code).to_numpy())
        for code in pool.counts
    }
    return dataset_size.size(pool.sample, chance), by_code


def curve(pool: Pool, t: Mapping[str, int]) -> list[explanation.Point]:
    """Returns t, tail share and predicted size over the useful range of t."""
    lead = balance.lead(pool.counts)
    highest = max(10.0, float(pool.counts[lead].max(initial=0)))
    grid = np.unique(np.geomspace(1, highest, _CURVE_POINTS).round().astype(int))
    values = sorted({*grid.tolist(), t[lead]})
    points = []
    for value in values:
        t_of_all = balance.thresholds(pool.counts, t=value, tail_share=0.0)
        size = dataset_size.size(pool.sample, chances(pool, t_of_all))
        share = balance.share_below(pool.counts[lead], value)
        points.append(explanation.Point(value, share, size))
    return points


def entry_table(pool: Pool, t: Mapping[str, int]) -> list[explanation.EntryRow]:
    """Returns, per metadata, its entries and matches in head and tail at t."""
    rows = []
    for code, counts in pool.counts.items():
        entries = pool.metadata[code].entries
        reasons = [(e, spacing.why_never_matches(e, mode=pool.mode)) for e in entries]
        never = [(entry, reason) for entry, reason in reasons if reason]
        order = np.argsort(-counts, kind="stable")[: explanation.TOP]
        tail = (counts > 0) & (counts < t[code])
        rows.append(
            explanation.EntryRow(
                code=code,
                t=t[code],
                never=len(never),
                never_examples=tuple(never[:5]),
                unmatched=int(np.sum(counts == 0)) - len(never),
                tail=int(np.sum(tail)),
                head=int(np.sum(counts >= t[code])),
                tail_matches=float(counts[tail].sum()),
                head_matches=float(counts[counts >= t[code]].sum()),
                top=tuple((entries[i], float(counts[i])) for i in order if counts[i]),
            )
        )
    return rows


def main(argv: Sequence[str]) -> None:
    """Prints the prediction, and writes plots with --plot."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    command.check_output("--plot", values.plot, ".html")
    if (values.t is None) == (values.tail_share is None):
        raise app.UsageError(
            "wanted one of --t and --tail_share, got"
            f" {'neither' if values.t is None else 'both'}; give one"
        )
    pool = load(values.counts, values.metadata)
    t = balance.thresholds(
        pool.counts, t=values.t or 0, tail_share=values.tail_share or 0.0
    )
    total, by_code = expected(pool, t)
    predicted = explanation.Explanation(
        rule=pool.rule,
        total=total,
        by_code=by_code,
        entries=entry_table(pool, t),
        curve=curve(pool, t),
        sampled_images=len(pc.unique(pool.sample["image_id"])),
    )
    print(explanation.as_text(predicted))
    if values.plot:
        page = explanation.as_page(predicted, counts=pool.counts)
        files.write_bytes(values.plot, page)
        print(f"\nplots: {os.path.abspath(values.plot)}")


if __name__ == "__main__":
    flags.DEFINE_string("counts", None, "Folder 'matches' of a curation's workdir.")
    flags.DEFINE_string("metadata", None, "The metadata of that run.")
    flags.DEFINE_integer("t", None, "Accepted draws per entry.", lower_bound=1)
    flags.DEFINE_float("tail_share", None, "Tail's part of all matches.", 0.0, 1.0)
    flags.register_validator(
        "tail_share", lambda share: share is None or share >= 0, "wanted 0 to 1"
    )  # nan passes the bounds
    flags.DEFINE_string("plot", None, "HTML file to write plots to.")
    flags.mark_flags_as_required(["counts", "metadata"])
    command.run(main)
