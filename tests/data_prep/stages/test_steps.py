"""The steps of curation on small tables whose answers are known."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import schema
from data_prep.matching import Matcher
from data_prep.stages import dedup, parts, steps
from metaclip_jax.data import balance, records

ENTRIES = ("cat", "dog", "the", "zebra")


def candidates(texts, languages=None):
    n = len(texts)
    ids = [records.image_id(f"http://a.example/{i}.jpg") for i in range(n)]
    columns = {
        "image_id": ids,
        "image_url": [f"http://a.example/{i}.jpg" for i in range(n)],
        "page_url": ["http://a.example/"] * n,
        "text": texts,
        "text_source": ["alt"] * n,
        "language": languages or ["en"] * n,
        "page_text": [""] * n,
        "stored_at": [""] * n,
        "scores": [""] * n,
    }
    return schema.from_columns(columns, schema.CANDIDATES)


def says(code):
    """A language identifier that hears one language in everything."""
    return lambda texts, expected: [code] * len(texts)


def match(texts, matchers, languages=None, identify=None):
    batch = candidates(texts, languages)
    return steps.match(
        batch, matchers, matchers.__getitem__, identify=identify or says("en")
    )


def test_unmatched_texts_and_other_languages_are_counted():
    texts = ["the cat", "nothing", "dog", "the the dog"]
    matches, drops = match(texts, {"en": Matcher(ENTRIES)}, ["en", "en", "de", "en"])
    assert matches.schema == schema.MATCHED
    assert matches["text"].to_pylist() == ["the cat", "the the dog"]
    assert matches["entry_ids"].to_pylist() == [[0, 2], [1, 2]]
    assert +drops == {"no_match": 1, "other_language": 1}


def test_with_several_metadata_the_language_decides():
    matchers = {"de": Matcher(["Hund"]), "en": Matcher(ENTRIES)}
    texts = ["the cat", "der Hund", "the dog", "le chat"]
    matches, drops = match(texts, matchers, ["en", "de", "de", "fr"])
    found = {row["text"]: row["metadata"] for row in matches.to_pylist()}
    assert found == {"the cat": "en", "der Hund": "de"}
    assert +drops == {"no_match": 1, "other_language": 1}


def test_a_text_is_expected_to_be_in_the_language_of_its_page():
    batch = candidates(["the cat", "the dog", "a cat"], ["", "en", ""])
    at = batch.schema.get_field_index("page_text")
    page = "Hunde und Katzen im Schnee und im Garten"
    batch = batch.set_column(at, batch.schema.field(at), pa.array([page, "", page]))
    asked = []

    def identify(texts, expected):
        asked.extend(texts)
        return [code or "de" for code in expected]

    matchers = {"de": Matcher(ENTRIES), "en": Matcher(ENTRIES)}
    matches, _ = steps.match(batch, matchers, matchers.__getitem__, identify=identify)
    assert matches["metadata"].to_pylist() == ["de", "de", "en"]
    assert matches["language"].to_pylist() == ["de", "de", "en"]
    assert asked == [page, "the cat", "a cat"]  # the page once


def test_with_one_metadata_pages_without_matched_texts_are_not_identified():
    batch = candidates(["the cat", "nothing"], ["", ""])
    at = batch.schema.get_field_index("page_text")
    pages = [f"A page with letters enough to identify, number {i}" for i in range(2)]
    batch = batch.set_column(at, batch.schema.field(at), pa.array(pages))
    asked = []

    def identify(texts, expected):
        asked.extend(texts)
        return ["en"] * len(texts)

    matcher = Matcher(ENTRIES)
    steps.match(batch, ["en"], lambda code: matcher, identify=identify)
    assert asked == [pages[0], "the cat"]


def test_a_batch_of_no_rows_stays_typed():
    matches, drops = match([], {"en": Matcher(ENTRIES)})
    assert matches.num_rows == 0 and matches.schema == schema.MATCHED
    assert not +drops


@pytest.fixture
def pool():
    rng = np.random.default_rng(0)
    texts = []
    for i in range(20_000):
        words = ["the"] if rng.random() < 0.9 else []
        words += ["cat"] if rng.random() < 0.5 else []
        words += ["zebra"] if rng.random() < 0.01 else []
        texts.append(" ".join([*words, str(i)]))
    matches, _ = match(texts, {"en": Matcher(ENTRIES)})
    return steps.to_matches(pa.Table.from_batches([matches]), seed=0, rule="v1")


def vectors(counts):
    counted = steps.to_vectors(counts, {"en": len(ENTRIES)})
    return {code: vector.astype(np.int64) for code, vector in counted.items()}


def test_counts_are_texts_per_entry(pool):
    counts = vectors(steps.count(pool))["en"]
    for entry_id, entry in enumerate(ENTRIES):
        want = sum(entry in text.split() for text in pool["text"].to_pylist())
        assert counts[entry_id] == want


def test_counts_survive_the_sparse_form():
    dense = {"en": np.array([0, 3, 0, 7], np.uint64)}
    back = vectors(steps.to_counts(dense))
    assert back["en"].tolist() == dense["en"].tolist()


SOME_COUNTS = st.dictionaries(
    st.sampled_from(["de", "en", "zh"]), st.lists(st.integers(0, 9), max_size=5)
)


@given(st.lists(SOME_COUNTS, max_size=4))
def test_counts_are_added_as_rows_of_any_table_are(some):
    batches = [
        steps.to_counts({code: np.array(n, np.uint64) for code, n in each.items()})
        for each in some
    ]
    assert steps.add_counts(batches) == schema.sum_counts(batches, schema.COUNTS)


def test_accepted_draws_are_about_t_and_the_tail_is_kept(pool):
    counts = vectors(steps.count(pool))
    t = 1_000
    keep = balance.keep_probabilities(counts, {"en": t})
    kept, accepted = steps.draw(pool, seed=0, keep_probability=keep)
    draws = vectors(accepted)["en"]
    head = counts["en"] > t
    sigma = np.sqrt(t * (1 - t / counts["en"][head]))
    assert np.all(np.abs(draws[head] - t) < 4 * sigma)
    assert np.array_equal(draws[~head], counts["en"][~head])
    zebras = ["zebra" in text.split() for text in pool["text"].to_pylist()]
    assert np.all(kept[zebras])


def test_a_text_does_not_feel_which_batch_it_is_drawn_in(pool):
    counts = vectors(steps.count(pool))
    keep = balance.keep_probabilities(counts, {"en": 500})
    whole, _ = steps.draw(pool, seed=3, keep_probability=keep)
    some = pool.slice(1_234, 2_000)
    part, _ = steps.draw(some, seed=3, keep_probability=keep)
    assert np.array_equal(part, whole[1_234:3_234])


def test_after_losses_the_recount_brings_accepted_draws_back_to_t(pool):
    """Thin at slack * t, lose a fifth of the images, recount, balance at t."""
    counts, t = vectors(steps.count(pool)), {"en": 1_000}
    thin = balance.keep_probabilities(counts, t, slack=1.5)
    lost = np.random.default_rng(1).random(pool.num_rows) < 0.2
    alive = pool.filter(pa.array(~lost))
    _, accepted = steps.draw(alive, seed=0, keep_probability=thin)
    keep = steps.recount(vectors(accepted), thin, t, pool=counts, drawn_counts=counts)
    kept, final = steps.draw(alive, seed=0, keep_probability=keep)
    fetched, _ = steps.draw(alive, seed=0, keep_probability=thin)
    assert np.all(fetched[kept])  # nothing is kept that was not fetched
    draws = vectors(final)["en"]
    head = counts["en"] > 2_000
    assert np.all(np.abs(draws[head] - 1_000) < 4 * np.sqrt(1_000))
    survivors = steps.survivors(vectors(accepted), thin)["en"]
    alive_counts = vectors(steps.count(alive))["en"]
    assert np.all(np.abs(survivors - alive_counts) < 4 * np.sqrt(alive_counts + 1))


def several_texts(images=6_000):
    """MATCHES under v2 of images with one to three texts each."""
    rng = np.random.default_rng(2)
    rows = []
    for i in range(images):
        for j in range(rng.integers(1, 4)):
            words = ["the"] if rng.random() < 0.8 else ["zebra"]
            rows.append((f"http://a.example/{i}.jpg", " ".join([*words, str(j)])))
    matches, _ = match([text for _, text in rows], {"en": Matcher(ENTRIES)})
    table = pa.Table.from_batches([matches])
    urls = pa.array([url for url, _ in rows])
    ids = pa.array([records.image_id(url) for url, _ in rows])
    for name, values in (("image_url", urls), ("image_id", ids)):
        table = table.set_column(table.column_names.index(name), name, values)
    table = dedup.sort_and_drop_repeats(table)
    return steps.to_matches(table, seed=0, rule="v2")


def test_v2_draws_one_text_an_image_and_gives_the_law_of_the_pool():
    """Also where a fifth of the images was lost between thinning and balancing."""
    table = several_texts()
    chosen = table["drawn"].to_numpy()
    ids = np.array(table["image_id"].to_pylist())
    assert chosen.sum() == len(set(ids)) == len(set(ids[chosen]))
    counts, t = vectors(steps.count(table)), {"en": 800}
    of_chosen = vectors(steps.count(table.filter(pa.array(chosen))))
    thin = balance.keep_probabilities(counts, t, slack=1.5)
    alive = table.filter(pa.array([int(i[-1], 16) >= 3 for i in ids]))
    _, accepted = steps.draw(alive, seed=0, keep_probability=thin)
    keep = steps.recount(
        vectors(accepted), thin, t, pool=counts, drawn_counts=of_chosen
    )
    kept, final = steps.draw(alive, seed=0, keep_probability=keep)
    assert not np.any(kept & ~alive["drawn"].to_numpy())
    the = ENTRIES.index("the")
    want = 800 / counts["en"][the] * of_chosen["en"][the]
    assert abs(vectors(final)["en"][the] - want) < 4 * np.sqrt(want)


def test_an_entry_that_lost_more_than_the_slack_is_told_of(pool, caplog):
    counts, t = vectors(steps.count(pool)), {"en": 1_000}
    thin = balance.keep_probabilities(counts, t, slack=1.5)
    few = pool.slice(0, pool.num_rows // 3)
    _, accepted = steps.draw(few, seed=0, keep_probability=thin)
    with caplog.at_level("WARNING", logger="absl"):
        steps.recount(vectors(accepted), thin, t, pool=counts, drawn_counts=counts)
    assert "lost more than the slack" in caplog.text


def test_other_languages_get_the_tail_share_of_english():
    en = np.array([1, 2, 7, 10])
    t = balance.thresholds(
        {"en": en, "de": np.array([1, 3, 6, 10])}, t=5, tail_share=0.5
    )
    assert t == {"en": 5, "de": 3}  # tail share 3 / 20; see test_balance


def test_tallies_count_kept_texts():
    matches, _ = match(["cat", "dog"], {"en": Matcher(ENTRIES)})
    rows = steps.tally(pa.Table.from_batches([matches])).to_pylist()
    assert {"column": "language", "value": "en", "count": 2} in rows
    assert {"column": "text_source", "value": "alt", "count": 2} in rows


def test_records_join_texts_with_their_image():
    matches, _ = match(["cat", "dog", "the cat"], {"en": Matcher(ENTRIES)})
    rows = matches.to_pylist()
    rows[1] |= {k: rows[0][k] for k in ("image_id", "image_url")}
    rows.sort(key=lambda row: (row["image_id"], row["text"]))
    table = pa.Table.from_pylist(rows, schema=schema.MATCHED)
    images = steps.images_of(table)
    for name in ("width", "height"):
        images = images.append_column(name, pa.array([8, 8], pa.int32()))
    images = images.append_column("sha256", pa.array(["", ""]))
    made = list(steps.to_records(table, images, [b"x", b"y"]))
    assert [r.image for r in made] == [b"x", b"y"]
    assert sorted(len(r.texts) for r in made) == [1, 2]
    for record in made:
        for i, text in enumerate(record.texts):
            start, stop = record.entry_offsets[i : i + 2]
            found = [ENTRIES[e] for e in record.entry_ids[start:stop]]
            assert found == [e for e in ENTRIES if e in text.split()]


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abcdefgh"))),
    rule=st.sampled_from(["v1", "v2"]),
    partitions=st.integers(1, 5),
    p=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_neither_order_nor_partitions_nor_repeats_change_what_is_kept(
    texts, rule, partitions, p, order
):
    """Texts are (image, letter); a letter's entries are given by its number."""

    def kept_of(rows, partitions):
        columns = {name: [""] * len(rows) for name in schema.MATCHED.names}
        urls = [f"http://a.example/{image}.jpg" for image, _ in rows]
        columns |= {
            "image_id": [records.image_id(url) for url in urls],
            "text": [text for _, text in rows],
            "metadata": ["en"] * len(rows),
            "entry_ids": [
                [e for e in range(4) if ord(text) >> e & 1] for _, text in rows
            ],
        }
        table = pa.Table.from_batches([schema.from_columns(columns, schema.MATCHED)])
        number = parts.partition_of(table["image_id"].combine_chunks(), partitions)
        kept, counts = set(), np.zeros(4, int)
        for i in range(partitions):
            own = dedup.sort_and_drop_repeats(table.filter(pa.array(number == i)))
            own = steps.to_matches(own, seed=1, rule=rule)
            mask, accepted = steps.draw(
                own, seed=1, keep_probability={"en": np.array(p)}
            )
            for row in own.filter(pa.array(mask)).to_pylist():
                key = records.text_key(row["image_id"], row["text"])
                assert row["text_key"] == key and row["drawn"]
                kept.add(key)
            counts += vectors(accepted)["en"]
        return kept, counts.tolist()

    whole = kept_of(texts, 1)
    shuffled = texts + texts[:3]
    order.shuffle(shuffled)
    assert kept_of(shuffled, partitions) == whole
