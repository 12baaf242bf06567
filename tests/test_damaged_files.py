"""A damaged Parquet, JSON or Arrow file is read, or an error names it: nothing else."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import schema as tables
from data_prep.metadata import store
from data_prep.report import load
from data_prep.stages import parts
from metaclip_jax import files, metric_rows
from metaclip_jax.data import embeddings, online, records
from metaclip_jax.training import run_config
from tests import metadata_folders

TEXTS = ("cat", "Łódź", "a red apple", "東京") * 30
FLOW = pa.RecordBatch.from_pylist(
    [{"stage": "read", "unit": "pages", "reason": "<out", "count": 7}], tables.FLOW
)
COUNTS = {
    "metadata": ["en", "fr"] * 60,
    "entry_id": range(120),
    "entry": TEXTS,
    **dict.fromkeys(
        ("pool_count", "survivor_count", "kept_count", "accepted_draws"), range(120)
    ),
}
CARD = {
    "name": "tiny",
    "version": "0.1",
    "records": 2,
    "texts": 3,
    "config": {"seed": 0},
    "metadata": {"en": {"entries": 4}},
    "balanced": {"t": {"en": 20.0}},
    "funnel": [
        {"stage": "read", "unit": "pages", "in": 3, "out": 2, "drops": {"a": 1}}
    ],
    "languages": {},
    "text_sources": {},
    "license": "none",
}


def metadata(folder):
    n = len(TEXTS)
    entries = tuple(f"{text} {i}" for i, text in enumerate(TEXTS))
    one = store.Metadata("en", entries, ("title",) * n, tuple(map(float, range(n))))
    metadata_folders.save(folder, {"en": one})
    return folder


def metadata_parquet(folder):
    return metadata(folder) / "en.parquet", lambda: store.load(folder)


def metadata_manifest(folder):
    return metadata(folder) / files.MANIFEST, lambda: store.load(folder)


def metadata_list(folder):
    path = folder / "metadata.json"
    path.write_text(json.dumps([f"{t} {i}" for i, t in enumerate(TEXTS)]))
    return path, lambda: store.load(path)


def part(folder):
    columns = {"text": TEXTS, "ids": [[i, i + 1] for i in range(len(TEXTS))]}
    parts.write(str(folder), "part-00000", pa.table(columns), FLOW)

    def read():
        parts.read(str(folder), "part-00000").to_pydict()
        parts.read_flow(str(folder), "part-00000").to_pylist()

    return folder / "part-00000", read


def sorted_part(folder):
    ids = [f"{i:024x}" for i in range(400)]
    rows = pa.RecordBatch.from_pydict({"image_id": ids, "text": ["a cat"] * 400})
    parts.write_sorted(str(folder), "part", [rows], rows.schema, flow=lambda: FLOW)

    def read():
        parts.read_range(str(folder), "part", ids[9], ids[20])

    return folder / "part", read


def counts(folder):
    pq.write_table(pa.table(COUNTS), folder / "counts.parquet")
    dataset = records.Dataset(str(folder), "tiny", (), (), {})

    def read():
        load.entry_counts(str(folder), {"en": 5.0})
        online.read_counts(dataset)

    return folder / "counts.parquet", read


def data_card(folder):
    files.write_json(folder / "data_card.json", CARD)
    return folder / "data_card.json", lambda: load.card(str(folder))


def dataset(folder):
    info = {"name": "tiny", "splits": [{"name": "train", "shardLengths": ["2", "1"]}]}
    files.write_json(folder / records.DATASET_INFO, info)
    files.write_json(folder / records.DATA_CARD, CARD)
    files.write_manifest(folder, inputs={}, shards=[{"bytes": 9}, {"bytes": 8}])
    return folder


def dataset_info(folder):
    path = dataset(folder) / records.DATASET_INFO
    return path, lambda: records.open_dataset(str(folder), verify=False)


def dataset_card(folder):
    path = dataset(folder) / records.DATA_CARD
    return path, lambda: records.open_dataset(str(folder), verify=False)


def dataset_manifest(folder):
    path = dataset(folder) / files.MANIFEST
    return path, lambda: records.read_shards(str(folder))


def sidecar(folder):
    row = {"image_id": "x", "text_keys": [1, 2], "metadata": ["en", "fr"]}
    row |= {"entry_ids": [[1], [2, 3]], "text_sources": ["alt", "title"]}
    rows = pa.Table.from_pylist([row] * 50, records.ENTRIES)
    shard = str(folder / records.shard_name("tiny", 0, 1))
    path = records.entries_path(shard)
    with pa.ipc.new_file(path, records.ENTRIES) as writer:
        writer.write_table(rows)
    found = records.Dataset(str(folder), "tiny", (shard,), (50,), {})
    return path, lambda: records.read_entries(found, 0).to_pydict()


def embeddings_part(folder):
    rows = {
        "image_id": ["x", "y"],
        "embedding": [[0.6, 0.8], [0.0, 1.0]],
        "text_keys": [[1], [2]],
        "text_scores": [[0.5], None],
        "status": ["ok", "bad"],
    }
    path = embeddings.part_path(str(folder), 0, 1)
    table = pa.table(rows, embeddings.schema(2))
    embeddings.write_part(path, table, inputs={"model": "m"})
    files.write_manifest(folder, inputs={}, shards=1, embed_dim=2)

    def read():
        list(embeddings.read_parts(str(folder)))
        embeddings.read_status(path)
        embeddings.has_part(path, inputs={"model": "m"}, rows=2)

    return path, read


def embeddings_manifest(folder):
    embeddings_part(folder)
    return folder / files.MANIFEST, lambda: list(embeddings.read_parts(str(folder)))


def config(folder):
    path = folder / "config.json"
    files.write_json(path, {"seed": 3, "optimizer": {"peak_lr": 0.1}})
    return path, lambda: run_config.read(str(folder))


def rows(folder):
    (folder / "metrics").mkdir()
    path = folder / "metrics" / "part-000000.jsonl"
    path.write_text(
        "".join(json.dumps({"step": i, "loss": 0.5}) + "\n" for i in (1, 2))
    )
    return path, lambda: metric_rows.read(folder)


READERS = (
    metadata_parquet, metadata_manifest, metadata_list, part, sorted_part, counts,
    data_card, dataset_info, dataset_card, dataset_manifest, sidecar, embeddings_part,
    embeddings_manifest, config, rows,
)  # fmt: skip


def damaged(data, rng):
    """Changes, removes or inserts a few bytes; or cuts the file."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        position = rng.randrange(len(data))
        kind = rng.random()
        if kind < 0.6:
            data[position] = rng.randrange(256)
        elif kind < 0.75:
            data[position : position + rng.randrange(9)] = rng.randbytes(
                rng.randrange(9)
            )
        elif kind < 0.9:
            digit = rng.choice(b'0123456789-[]{}",:.en\\')
            data[position : position + 1] = bytes([digit])
        else:
            del data[position:]
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_the_error_names_the_file(tmp_path, make, mutations=300):
    path, read = make(tmp_path)
    read()
    whole = files.path(path).read_bytes()
    rng = random.Random(make.__name__)
    refused = 0
    for _ in range(mutations):
        files.path(path).write_bytes(damaged(whole, rng))
        try:
            read()
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            # A manifest may also promise what another file does not hold.
            folder = str(path).rpartition("/")[0]
            named = folder if "manifest" in make.__name__ else path
            assert f"{named}" in str(error), repr(error)
    assert refused > 20
