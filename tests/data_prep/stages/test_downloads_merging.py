"""Images with the same bytes at several addresses become one, with all their texts."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from data_prep import curate, schema
from data_prep.stages import parts, steps, sums
from metaclip_jax.data import balance, records
from tests.data_prep import tiny_web

# 30 addresses of 5 pictures. Texts repeat between addresses of one picture.
ALTS = [(f"/{n}.jpg", f"a cat number {n % 9}") for n in range(30)]
ALTS += [(f"/{n}.jpg", f"a red dog number {n % 4}") for n in range(0, 30, 2)]
BODIES = {path: tiny_web.picture(int(path[1:-4]) % 5) for path, _ in ALTS}
GROUPS = defaultdict(set)
for path, text in ALTS:
    image = records.image_id(f"http://{tiny_web.IMAGES}{path}")
    GROUPS[BODIES[path]].add((image, text))

FEW = {"balance.t": 6, "balance.slack": 2.0}
RULES = {"v1": FEW, "v2": FEW, "online": {}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs by rule and partitions."""
    made = {}

    def run(rule, partitions):
        if (rule, partitions) not in made:
            values = RULES[rule] | {"balance.rule": rule, "partitions": partitions}
            folder = tmp_path_factory.mktemp("merged")
            made[rule, partitions] = tiny_web.run(folder, ALTS, BODIES, **values)
        return made[rule, partitions]

    return run


def dataset_of(run):
    dataset = records.open_dataset(run.output)
    found = map(records.decode, records.read(dataset, range(len(dataset))))
    return {record.image_id: record for record in found}, dataset.data_card


def stage(card, name, unit):
    (row,) = [r for r in card["funnel"] if (r["stage"], r["unit"]) == (name, unit)]
    return row


def test_where_all_is_kept_the_smallest_id_has_the_texts_of_all_addresses(runs):
    found, card = dataset_of(runs("online", 3))
    wanted = {
        min(image for image, _ in pairs): sorted({text for _, text in pairs})
        for pairs in GROUPS.values()
    }
    assert {image: list(record.texts) for image, record in found.items()} == wanted
    assert stage(card, "image_dedup", "images") == {
        "stage": "image_dedup",
        "unit": "images",
        "in": 30,
        "out": 5,
        "drops": {"repeated_image": 25},
    }
    texts = stage(card, "image_dedup", "texts")
    assert texts["in"] == len(set(ALTS)) == 45
    assert texts["drops"] == {"repeated_pair": 45 - sum(map(len, wanted.values()))}


def whole(run, folder):
    n = run.config.partitions
    names = [parts.name(i, n) for i in range(n)]
    return pa.concat_tables(
        [parts.read(f"{run.workdir}/{folder}", name) for name in names]
    )


@pytest.mark.parametrize("rule", ["v1", "v2", "online"])
def test_the_draws_are_those_of_the_texts_at_their_own_addresses(runs, rule):
    """Worked out once more, from the matches and the bytes, without partitions."""
    run = runs(rule, 3)
    matches = whole(run, "matches")
    pool, drawn = curate.match(run)
    t = curate.thresholds(run, pool)
    thin = balance.keep_probabilities(pool, t, slack=run.config.balance.slack)
    kept, _ = steps.draw(matches, seed=0, keep_probability=thin)
    thinned = matches.filter(pa.array(kept)).to_pylist()

    digest = {
        records.image_id(f"http://{tiny_web.IMAGES}{path}"): body
        for path, body in BODIES.items()
    }
    unique = {}
    for row in sorted(thinned, key=lambda row: row["image_id"]):
        unique.setdefault((digest[row["image_id"]], row["text"]), row)
    lead = {}
    for body, _ in unique:
        of_body = [r["image_id"] for r in thinned if digest[r["image_id"]] == body]
        lead[body] = min(of_body)
    rows = [
        row
        for (body, _), row in unique.items()
        if rule != "v2" or row["image_id"] == lead[body]
    ]
    table = pa.Table.from_pylist(rows, schema=schema.MATCHES)
    _, accepted = steps.draw(table, seed=0, keep_probability=thin)
    accepted = steps.to_vectors(accepted, run.sizes)
    stored = sums.read_sum(f"{run.workdir}/images", "accepted.parquet")
    assert np.array_equal(steps.to_vectors(stored, run.sizes)["en"], accepted["en"])

    keep = steps.recount(accepted, thin, t, pool=pool, drawn_counts=drawn)
    last, _ = steps.draw(table, seed=0, keep_probability=keep)
    wanted = defaultdict(set)
    for row, stays in zip(rows, last, strict=True):
        if stays:
            wanted[lead[digest[row["image_id"]]]].add(row["text"])
    found, _ = dataset_of(run)
    assert {image: set(record.texts) for image, record in found.items()} == wanted


@pytest.mark.parametrize("rule", ["v1", "online"])
def test_partitions_do_not_change_what_is_merged(runs, rule):
    def content(run):
        found, card = dataset_of(run)
        texts = [(r.image_id, r.texts, r.page_url) for r in found.values()]
        return texts, card["funnel"], card["entries"]

    assert content(runs(rule, 1)) == content(runs(rule, 3))


def test_each_repeated_image_names_the_one_that_is_kept(runs):
    images = whole(runs("online", 3), "images")
    repeated = images.filter(pc.equal(images["status"], "repeated_image")).to_pylist()
    assert len(repeated) == 25
    ok = images.filter(pc.equal(images["status"], "ok")).to_pylist()
    by_id = {row["image_id"]: row["sha256"] for row in ok}
    assert all(by_id[row["kept_as"]] == row["sha256"] for row in repeated)
    assert all(row["kept_as"] == "" for row in ok)
    assert all(row["kept_as"] < row["image_id"] for row in repeated)


def test_an_image_takes_over_no_more_texts_than_asked(tmp_path):
    values = {"balance.rule": "online", "images.max_moved_texts": 2}
    run = tiny_web.run(tmp_path, ALTS, BODIES, **values)
    found, card = dataset_of(run)
    for pairs in GROUPS.values():
        first = min(image for image, _ in pairs)
        own = {text for image, text in pairs if image == first}
        assert len(found[first].texts) == len(own) + 2
    assert stage(card, "image_dedup", "texts")["drops"]["too_many_texts"] > 0
