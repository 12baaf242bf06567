"""Data cards: how a dataset was made and what it holds; and merged cards.

    python -m data_prep.data_card --datasets=run1/dataset,run2/dataset --output=both

merges the data cards and entry counts of several datasets. Images may repeat between
datasets; their metadata must be the same.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from absl import flags

from data_prep import drops, schema
from data_prep.metadata import store
from data_prep.sinks import array_record as sink
from metaclip_jax import files
from metaclip_jax.cli import command
from metaclip_jax.data import records

_KEYS = ("metadata", "entry_id", "entry")  # of counts.parquet; others are summed
_TOP = 20  # entries named in the card

Card = dict[str, Any]


def build(
    *,
    config: Mapping[str, Any],
    t: Mapping[str, int],
    metadata: Mapping[str, store.Metadata],
    funnel: Sequence[Mapping[str, Any]],
    shares: Mapping[str, Mapping[str, int]],
    n_records: int,
    counts: pa.Table,
    models: Mapping[str, Any],
) -> Card:
    """Returns the content of data_card.json.

    Args:
      config: all values that decide its content.
      t: accepted draws per entry, of each metadata.
      metadata: code -> metadata.
      funnel: drops.funnel of the whole run.
      shares: kept texts by value, for "language", "text_source" and "metadata".
      n_records: images.
      counts: steps.counts_table with pool_count and kept_count, as in counts.parquet.
      models: that dropped images, by their key, with name and threshold.
    """
    card = {
        "name": config["name"],
        "version": files.version(),
        "records": n_records,
        "texts": funnel[-1]["out"],
        "config": dict(config),
        "balanced": _balanced(config, t),
        "metadata": {
            code: {
                "entries": len(m.entries),
                "fingerprint": m.fingerprint,
                "sources": dict(sorted(Counter(m.sources).items())),
            }
            for code, m in metadata.items()
        },
        "entries": entry_summary(counts),
        "funnel": list(funnel),
        "languages": dict(shares["language"]),
        "text_sources": dict(shares["text_source"]),
        "texts_by_metadata": dict(shares["metadata"]),
    }
    return card | {"models": dict(models)} if models else card


def _balanced(config: Mapping[str, Any], t: Mapping[str, int]) -> dict[str, Any] | None:
    """Returns None if nothing was thinned. A trainer refuses to balance twice."""
    wanted = config["balance"]
    if wanted["rule"] == "online":
        return None
    kept = {key: wanted[key] for key in ("rule", "slack")}
    return {**kept, "t": dict(t), "seed": config["seed"]}


def entry_summary(counts: pa.Table) -> dict[str, Any]:
    """Returns, per metadata, matches before and after balancing, and the top entries.

    Names the file with the counts of all entries, which may be millions.
    """
    summary: dict[str, Any] = {"file": sink.COUNTS}
    for code in pc.unique(counts["metadata"]).to_pylist():
        table = counts.filter(pc.equal(counts["metadata"], code))
        both = {name: table[f"{name}_count"].to_numpy() for name in ("pool", "kept")}
        top = np.argsort(-both["pool"].astype(np.int64), kind="stable")[:_TOP]
        summary[code] = {
            "matches": {name: int(n.sum()) for name, n in both.items()},
            "without_match": {name: int((n == 0).sum()) for name, n in both.items()},
            "top": [
                {"entry": table["entry"][i].as_py()}
                | {name: int(n[i]) for name, n in both.items()}
                for i in top
            ],
        }
    return summary


def merge(cards: Sequence[Card], counts: Sequence[pa.Table]) -> tuple[Card, pa.Table]:
    """Returns the data card and the entry counts of several datasets together.

    Sums do not depend on the order; configs and t are listed under `merged_from`.
    Images that occur in several datasets are counted in each.

    Raises:
      ValueError: their metadata differ, so entry ids mean different entries.
    """
    first = cards[0]
    for card in cards[1:]:
        if _fingerprints(card) != _fingerprints(first):
            raise ValueError(
                f"wanted datasets of one metadata, but {first['name']} has "
                f"{_fingerprints(first)} and {card['name']} {_fingerprints(card)}; "
                "curate them with the same one"
            )
    total = _sum_columns(counts)
    kept = ("name", "records", "balanced", "config")
    rows = sorted(({key: card[key] for key in kept} for card in cards), key=repr)
    merged: Card = {
        "name": "+".join(row["name"] for row in rows),
        "version": files.version(),
        "merged_from": rows,
        "metadata": first["metadata"],
        "entries": entry_summary(total),
        "funnel": _sum_funnels([card["funnel"] for card in cards]),
    }
    for key in ("records", "texts"):
        merged[key] = sum(card[key] for card in cards)
    for key in ("languages", "text_sources", "texts_by_metadata"):
        shares = sum((Counter(card[key]) for card in cards), Counter[str]())
        merged[key] = dict(sorted(shares.items()))
    return merged, total


def _fingerprints(card: Card) -> dict[str, str]:
    return {code: m["fingerprint"] for code, m in card["metadata"].items()}


def _sum_columns(tables: Sequence[pa.Table]) -> pa.Table:
    total = tables[0]
    for i, name in enumerate(total.column_names):
        if name in _KEYS:
            continue
        column = np.sum([table[name].to_numpy() for table in tables], axis=0)
        total = total.set_column(i, name, pa.array(column, total[name].type))
    return total


def _sum_funnels(funnels: Sequence[Sequence[Mapping]]) -> list[dict]:
    """Sums the funnels of runs by stage and unit, and drops by reason."""
    rows = [row for funnel in funnels for row in funnel]
    flows = [
        drops.flow(
            row["stage"],
            unit=row["unit"],
            entered=row["in"],
            left=row["out"],
            drops=row["drops"],
        )
        for row in rows
    ]
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    return drops.funnel(schema.sum_counts(flows, schema.FLOW), stages)


def main(argv: Sequence[str]) -> None:
    """Merges the cards of finished datasets."""
    command.refuse_arguments(argv)
    folders = flags.FLAGS.datasets
    cards = [dict(records.open_dataset(folder).data_card) for folder in folders]
    counts = [files.read_parquet(os.path.join(f, sink.COUNTS)) for f in folders]
    card, total = merge(cards, counts)
    output = flags.FLAGS.output
    with files.staged(os.path.join(output, sink.COUNTS)) as local:
        pq.write_table(total, local)
    files.write_json(os.path.join(output, records.DATA_CARD), card)
    print(drops.render(card["funnel"]))
    print(
        f"{card['records']:,} records, {card['texts']:,} texts in {len(cards)} datasets"
    )


if __name__ == "__main__":
    flags.DEFINE_list("datasets", None, "Dataset folders, comma-separated.")
    flags.DEFINE_string("output", None, "Folder for the merged card and counts.")
    flags.mark_flags_as_required(["datasets", "output"])
    command.run(main)
