"""Predicted sizes against the sizes that come out."""

import numpy as np
import pyarrow as pa
import pytest

from data_prep import explain, schema
from data_prep.report import dataset_size
from data_prep.stages import parts, steps
from metaclip_jax.data import balance, records

PARTITIONS = 4
ENTRIES = 300


@pytest.fixture(scope="module")
def matches():
    """MATCHED of 12,000 images with one to three texts, Zipf-like entries."""
    rng = np.random.default_rng(0)
    weights = 1 / (np.arange(ENTRIES) + 2)
    weights /= weights.sum()
    rows = []
    for i in range(12_000):
        url = f"http://a.example/{i}.jpg"
        for j in range(rng.integers(1, 4)):
            ids = np.unique(rng.choice(ENTRIES, rng.integers(1, 5), p=weights))
            rows.append((records.image_id(url), url, f"text {j}", ids.tolist()))
    rows.sort()
    n = len(rows)
    table = schema.from_columns(
        {
            "image_id": [row[0] for row in rows],
            "image_url": [row[1] for row in rows],
            "page_url": ["http://a.example/"] * n,
            "text": [row[2] for row in rows],
            "text_source": ["alt"] * n,
            "language": ["en"] * n,
            "stored_at": [""] * n,
            "scores": [""] * n,
            "metadata": ["en"] * n,
            "entry_ids": [row[3] for row in rows],
        },
        schema.MATCHED,
    )
    return pa.Table.from_batches([table])


def counts_of(matches):
    counts = steps.to_vectors(steps.count(matches), {"en": ENTRIES})
    return {"en": counts["en"].astype(np.float64)}


def sample_of(matches, *, images):
    numbers = parts.partition_of(matches["image_id"].combine_chunks(), PARTITIONS)
    return pa.Table.from_batches(
        [
            steps.sample(
                matches.filter(pa.array(numbers == i)).combine_chunks(),
                images=images // PARTITIONS,
                partition=i,
            )
            for i in range(PARTITIONS)
        ]
    )


@pytest.mark.parametrize("rule", ["v1", "v2"])
@pytest.mark.parametrize("images", [1_200, 100_000])
def test_the_actual_size_is_within_three_sigma(matches, rule, images):
    matches = steps.to_matches(matches, seed=0, rule=rule)
    keep = balance.keep_probabilities(counts_of(matches), {"en": 60})
    sample = sample_of(matches, images=images)
    chance = steps.text_probabilities(sample, keep) * sample["drawn"].to_numpy()
    size = dataset_size.size(sample, chance)
    kept, _ = steps.draw(matches, seed=0, keep_probability=keep)
    kept_images = len(set(matches.filter(pa.array(kept))["image_id"].to_pylist()))
    for estimate, actual in ((size.texts, kept.sum()), (size.images, kept_images)):
        sigma = (estimate.high - estimate.value) / 1.96
        assert abs(actual - estimate.value) < 3 * sigma
        assert 0 < sigma < 0.1 * actual
    assert size.pool_images == pytest.approx(12_000)
    whole = images > 12_000
    assert size.pool_texts == pytest.approx(matches.num_rows, rel=0 if whole else 0.05)


def test_a_sample_holds_all_texts_of_its_images(matches):
    matches = steps.to_matches(matches, seed=0, rule="v1")
    sample = sample_of(matches, images=400)
    ids = set(sample["image_id"].to_pylist())
    assert len(ids) == 400
    assert sample.num_rows == sum(i in ids for i in matches["image_id"].to_pylist())


def test_each_language_is_predicted_of_its_own_texts(matches):
    """The whole pool as its sample: the pools of the parts are exact."""
    code = np.where(np.arange(matches.num_rows) % 5 < 2, "de", "en")
    at = matches.column_names.index("metadata")
    mixed = matches.set_column(at, "metadata", pa.array(code))
    mixed = steps.to_matches(mixed, seed=0, rule="v1")
    sample = sample_of(mixed, images=100_000)
    counts = steps.to_vectors(steps.count(mixed), {"de": ENTRIES, "en": ENTRIES})
    pool = explain.Pool({}, counts, sample, mode="v1", rule="v1")
    t = {"de": 30, "en": 60}
    total, parts_of = explain.expected(pool, t)
    keep = balance.keep_probabilities(counts, t)
    kept, _ = steps.draw(mixed, seed=0, keep_probability=keep)
    for name, size in parts_of.items():
        own = code == name
        assert size.pool_texts == own.sum()
        assert size.pool_images == len(set(mixed.filter(own)["image_id"].to_pylist()))
        sigma = (size.texts.high - size.texts.value) / 1.96
        assert abs(kept[own].sum() - size.texts.value) < 3 * sigma
    sums = sum(size.pool_texts for size in parts_of.values())
    assert sums == total.pool_texts == mixed.num_rows


def test_nothing_matched_predicts_nothing():
    size = dataset_size.size(schema.SAMPLE.empty_table(), np.zeros(0))
    assert size.texts.value == size.images.high == size.pool_texts == 0
