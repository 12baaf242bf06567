"""Pairs are left out by lists of images and by scores, before matches are counted."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import config as config_lib
from data_prep import curate
from metaclip_jax.data import embeddings, records
from tests.data_prep import tiny_web

COUNT = 20
PATHS = [f"/{n}.jpg" for n in range(COUNT)]
ALTS = [(path, f"a cat of {path[1:-4]}") for path in PATHS]
ALTS += [(path, f"the red dog of {path[1:-4]}") for path in PATHS]
BODIES = {path: tiny_web.picture(n) for n, path in enumerate(PATHS)}
URLS = [f"http://{tiny_web.IMAGES}{path}" for path in PATHS]
IDS = [records.image_id(url) for url in URLS]


def curated(folder, **values):
    named = {f"selection.{key}": value for key, value in values.items()}
    return tiny_web.run(
        folder, ALTS, BODIES, **{"balance.rule": "online", "partitions": 2}, **named
    )


def kept(run):
    """Number of the image -> its texts."""
    dataset = records.open_dataset(run.output)
    found = [records.decode(r) for r in records.read(dataset, range(len(dataset)))]
    return {IDS.index(record.image_id): set(record.texts) for record in found}


def lost(run):
    card = records.open_dataset(run.output).data_card
    (row,) = [row for row in card["funnel"] if row["stage"] == "dedup"]
    return row["drops"]


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_listed_images_are_left_out_by_id_or_address(tmp_path):
    by_id = write(tmp_path / "ids.parquet", image_id=IDS[:3], more=[1, 2, 3])
    by_url = write(tmp_path / "urls.parquet", url=[f"{url}#x" for url in URLS[10:12]])
    run = curated(tmp_path, exclude=(by_id, by_url))
    assert sorted(kept(run)) == [*range(3, 10), *range(12, COUNT)]
    assert lost(run) == {"excluded": 10, "repeated_pair": 0}
    # They do not count towards the pool either.
    counts = pq.read_table(f"{run.output}/counts.parquet").to_pydict()
    assert counts["pool_count"] == [15, 15, 15]  # cat, dog, red


def test_the_top_share_of_images_by_score_is_kept(tmp_path):
    scores = np.random.default_rng(0).permutation(COUNT - 1)  # the last has none
    path = write(tmp_path / "x.parquet", image_id=IDS[:-1], clip=scores / 100)
    run = curated(tmp_path, scores=(path,), score="clip", top_share=0.3)
    best = np.argsort(-scores)[:6]  # 0.3 of 19, rounded up
    assert sorted(kept(run)) == sorted(best.tolist())
    assert lost(run) == {"low_score": 26, "no_score": 2, "repeated_pair": 0}


@pytest.mark.slow
def test_a_least_score_above_that_of_the_share_counts(tmp_path):
    scores = np.arange(COUNT)
    path = write(tmp_path / "x.parquet", image_id=IDS, clip=scores / 100)
    more = {"least_score": 0.17, "top_share": 0.9}
    run = curated(tmp_path, scores=(path,), score="clip", **more)
    assert sorted(kept(run)) == [17, 18, 19]


def test_scores_of_single_texts_are_those_that_embed_writes(tmp_path):
    """Even images' first texts and odd ones' second are good."""
    texts = [[text for at, text in ALTS if at == path] for path in PATHS]
    table = pa.table(
        {
            "image_id": IDS,
            "embedding": [[1.0, 0.0]] * COUNT,
            "text_keys": [
                records.text_keys([i] * 2, own)
                for i, own in zip(IDS, texts, strict=True)
            ],
            "text_scores": [
                [0.3, 0.1] if n % 2 == 0 else [0.1, 0.3] for n in range(20)
            ],
            "status": ["ok"] * COUNT,
        },
        schema=embeddings.schema(2),
    )
    path = embeddings.part_path(str(tmp_path), 0, 1)
    embeddings.write_part(path, table, inputs={})
    run = curated(tmp_path, scores=(f"{tmp_path}/part-*.parquet",), least_score=0.2)
    assert kept(run) == {n: {texts[n][n % 2]} for n in range(COUNT)}
    assert lost(run) == {"low_score": COUNT, "repeated_pair": 0}


@pytest.mark.slow
def test_scores_of_a_table_choose_its_rows(tmp_path):
    rows = [
        {"url": url, "text": f"a cat {n}", "similarity": n / 100 if n else None}
        for n, url in enumerate(URLS)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = config_lib.curate()
    config.update_from_flattened_dict(
        {
            "source.kind": "table",
            "source.paths": str(tmp_path / "t.jsonl"),
            "source.score_columns": ("similarity",),
            "selection.score": "similarity",
            "selection.least_score": 0.15,
            "matching.mode": "none",
        }
    )
    with tiny_web.serve(BODIES) as config.download.host_map:
        run = curate.plan(config, f"{tmp_path}/work", f"{tmp_path}/dataset", [])
        curate.run_stages(run)
    assert sorted(kept(run)) == list(range(15, COUNT))
    assert lost(run) == {"low_score": 14, "no_score": 1, "repeated_pair": 0}


@pytest.mark.parametrize("rule", ["v1", "v2"])
def test_inside_a_head_entry_high_scores_are_preferred(tmp_path, rule):
    """As many are kept as without scores, those with the highest."""
    scores = np.random.default_rng(1).permutation(COUNT) / 100
    path = write(tmp_path / "x.parquet", image_id=IDS, clip=scores)
    found = []
    for prefer in (False, True):
        run = tiny_web.run(
            tmp_path / str(prefer),
            [(path, alt) for path, alt in ALTS if "cat" in alt],
            BODIES,
            **{"balance.t": 6, "balance.rule": rule, "partitions": 1},
            **{"selection.scores": (path,), "selection.score": "clip"},
            **{"balance.prefer_high_scores": prefer},
        )
        found.append(sorted(kept(run)))
    plain, preferred = found
    best = np.argsort(-scores)[: len(plain)]
    assert 0 < len(plain) < COUNT and preferred == sorted(best.tolist()) != plain


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"exclude": ("no.parquet",)},
            "config.selection.exclude: wanted Parquet files",
        ),
        ({"score": "clip"}, "config.selection.score=.*: wanted a name in"),
        (
            {"least_score": 0.3},
            "config.selection.least_score=.*: wanted None, or files",
        ),
        ({"top_share": 0.3}, "config.selection.top_share=.*: wanted 1, or files"),
    ],
)
def test_a_selection_without_its_files_is_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        curated(tmp_path, **values)


def test_without_scores_none_can_be_preferred(tmp_path):
    message = "config.balance.prefer_high_scores=True: wanted False, or the rule v1"
    for more in ({}, {"source.score_columns": ("a",), "selection.score": "a"}):
        values = {"balance.prefer_high_scores": True} | more
        with pytest.raises(ValueError, match=message):
            # Of the second there are scores, but the trainer balances.
            rule = "online" if more else "v1"
            tiny_web.plan(tmp_path, ALTS, **values, **{"balance.rule": rule})


def test_a_file_of_other_columns_is_named(tmp_path):
    path = write(tmp_path / "x.parquet", id=IDS)
    with pytest.raises(Exception, match="x.parquet: wanted columns"):
        curated(tmp_path, exclude=(path,))


def test_another_selection_counts_again_without_matching_again(tmp_path):
    run = tiny_web.plan(tmp_path, ALTS)
    exclude = (write(tmp_path / "ids.parquet", image_id=IDS[:3]),)
    again = tiny_web.plan(tmp_path, ALTS, **{"selection.exclude": exclude})
    assert again.source_inputs == run.source_inputs
    assert again.match_inputs != run.match_inputs
