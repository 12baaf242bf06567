"""Balancing keeps the tail, cuts the head to t, and depends on nothing but its keys."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaclip_jax.data import balance, records


@pytest.fixture(scope="module")
def pool():
    """A pool of 100,000 texts with Zipf entries: (text_keys, offsets, entry_ids)."""
    rng = np.random.default_rng(7)
    texts, entries = 100_000, 2_000
    weights = np.cumsum(1 / np.arange(1, entries + 1) ** 1.1)
    wanted = rng.integers(0, 7, texts)
    drawn = np.searchsorted(weights, rng.random(wanted.sum()) * weights[-1])
    rows = np.repeat(np.arange(texts), wanted)
    pairs = np.unique(rows * entries + drawn)  # each entry once per text, ascending
    offsets = np.searchsorted(pairs // entries, np.arange(texts + 1))
    text_keys = rng.integers(0, 2**64, texts, dtype=np.uint64)
    return text_keys, offsets, (pairs % entries).astype(np.int32)


def keep(seed, keys, offsets, entry_ids, p):
    """Which texts are kept, and which matches accepted."""
    of_matches = balance.match_probabilities(p, entry_ids)
    accepted = balance.accepted_draws(seed, keys, offsets, entry_ids, of_matches)
    return balance.kept_texts(offsets, accepted), accepted


def chance(offsets, entry_ids, p):
    """Of each text to be kept."""
    of_matches = balance.match_probabilities(p, entry_ids)
    return balance.text_probability(offsets, of_matches)


def reordered(order, keys, offsets, entry_ids):
    """The same texts in another order."""
    parts = np.split(entry_ids, offsets[1:-1])
    lengths = np.diff(offsets)[order]
    new_ids = np.concatenate([parts[i] for i in order])
    return keys[order], np.concatenate([[0], np.cumsum(lengths)]), new_ids


def test_keep_probability_of_the_vectors():
    assert balance.keep_probability([6, 10], 3).tolist() == [0.5, 0.3]
    assert balance.keep_probability([0, 1, 3, 4], 3).tolist() == [1, 1, 1, 0.75]
    assert balance.keep_probability([6], 4.5).tolist() == [0.75]


def test_a_text_of_two_entries_is_kept_with_one_minus_the_product():
    p = balance.keep_probability([6, 10], 3)
    offsets, entry_ids = np.array([0, 2, 2, 3]), np.array([0, 1, 1], np.int32)
    kept = chance(offsets, entry_ids, p)
    assert kept == pytest.approx([0.65, 0, 0.3])


def test_tail_share_and_threshold_of_the_vectors():
    assert balance.share_below([1, 2, 7, 10], 5) == 0.15
    assert balance.threshold([1, 3, 6, 10], 0.15) == 3
    assert balance.share_below([1, 3, 6, 10], 3) == 0.05  # not an exact inverse
    assert balance.threshold([10, 1, 6, 3], 0.15) == 3  # any order
    assert balance.threshold([1, 3, 6, 10], 1.0) == 10


def test_a_small_language_is_not_dropped():
    counts = [0, 0, 100]
    t = balance.threshold(counts, 0.06)
    assert t == 1
    assert balance.keep_probability(counts, t).tolist() == [1, 1, 0.01]


@pytest.mark.parametrize("counts", [[], [0, 0, 0]])
def test_a_language_without_matches_is_handled(counts):
    assert balance.threshold(counts, 0.06) == 1
    assert balance.share_below(counts, 5) == 0
    assert balance.keep_probability(counts, 5).tolist() == [1] * len(counts)
    nothing = np.empty(0, np.int32)
    kept, _ = keep(
        0, np.array([1], np.uint64), np.array([0, 0]), nothing, np.ones(len(counts))
    )
    assert kept.tolist() == [False]


@pytest.mark.parametrize("t", [0, 0.5, -1, float("nan")])
def test_t_below_one_is_refused(t):
    with pytest.raises(ValueError, match="t must be at least 1, got"):
        balance.keep_probability([1, 2], t)
    with pytest.raises(ValueError, match="t must be at least 1, got"):
        balance.share_below([1, 2], t)


def test_draws_are_uniform_and_of_53_bits(pool):
    u = balance.match_draws(3, *pool)
    assert u.min() >= 0
    assert u.max() < 1
    assert (u * 2**53 % 1 == 0).all()
    in_bins = np.histogram(u, 20, (0, 1))[0]
    sigma = np.sqrt(u.size * 0.05 * 0.95)
    assert np.abs(in_bins - u.size / 20).max() < 4 * sigma


def test_neighbouring_keys_ids_and_seeds_draw_independently():
    n = 100_000
    one_each, zeros = np.arange(n + 1), np.zeros(n, np.int32)
    keys = np.arange(n, dtype=np.uint64)
    by_key = balance.match_draws(0, keys, one_each, zeros)
    by_id = balance.match_draws(
        0, keys[:1], np.array([0, n]), np.arange(n, dtype=np.int32)
    )
    by_seed = balance.match_draws(1, keys, one_each, zeros)
    pairs = [(by_key[1:], by_key[:-1]), (by_id[1:], by_id[:-1]), (by_key, by_seed)]
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(n)


def test_draws_never_change():
    """These values are a contract: a data set can be made again years later."""
    keys = np.array([0, 2**64 - 1], np.uint64)
    u = balance.match_draws(17, keys, np.array([0, 2, 3]), np.array([0, 499_999, 5]))
    assert u.tolist() == [
        0.7918838663530724,
        0.6888749792474786,
        0.4963424576973976,
    ]


def test_tail_is_kept_and_head_is_cut_to_t(pool):
    _, offsets, entry_ids = pool
    counts = np.bincount(entry_ids, minlength=2_000)
    t = 100
    p = balance.keep_probability(counts, t)
    kept, accepted = keep(5, *pool, p)
    draws = np.bincount(entry_ids[accepted], minlength=2_000)
    tail, head = counts <= t, counts > t
    assert tail.sum() > 100
    assert head.sum() > 100
    assert (draws[tail] == counts[tail]).all()
    sigma = np.sqrt(counts * p * (1 - p))[head]
    assert (np.abs(draws[head] - t) < 4 * sigma + 1e-9).mean() > 0.999
    assert np.abs(draws[head] - t).sum() > 0
    tail_texts = np.unique(
        np.repeat(np.arange(kept.size), np.diff(offsets))[tail[entry_ids]]
    )
    assert kept[tail_texts].all()


def test_the_kept_number_is_as_predicted(pool):
    p = balance.keep_probability(np.bincount(pool[2], minlength=2_000), 50)
    q = chance(*pool[1:], p)
    kept, _ = keep(11, *pool, p)
    assert abs(kept.sum() - q.sum()) < 3 * np.sqrt((q * (1 - q)).sum())
    assert not kept[np.diff(pool[1]) == 0].any()
    again, _ = keep(12, *pool, p)
    assert 0 < (kept != again).sum()


def test_a_smaller_t_keeps_a_subset(pool):
    counts = np.bincount(pool[2], minlength=2_000)
    previous = np.diff(pool[1]) > 0
    for t in (400, 100.5, 100, 20, 1):
        kept, _ = keep(5, *pool, balance.keep_probability(counts, t))
        assert not (kept & ~previous).any()
        assert kept.sum() < previous.sum()
        previous = kept


def test_the_fate_of_a_text_does_not_depend_on_order_or_workers(pool):
    keys, offsets, entry_ids = (
        pool[0][:5000],
        pool[1][:5001],
        pool[2][: pool[1][5000]],
    )
    p = balance.keep_probability(np.bincount(pool[2], minlength=2_000), 50)
    whole, _ = keep(5, keys, offsets, entry_ids, p)
    order = np.random.default_rng(1).permutation(5000)
    shuffled, _ = keep(5, *reordered(order, keys, offsets, entry_ids), p)
    assert (shuffled == whole[order]).all()
    for workers in (2, 7, 5000):
        cuts = np.linspace(0, 5000, workers + 1).astype(int)
        parts = [
            keep(
                5,
                keys[a:b],
                offsets[a : b + 1] - offsets[a],
                entry_ids[offsets[a] : offsets[b]],
                p,
            )[0]
            for a, b in zip(cuts[:-1], cuts[1:], strict=True)
        ]
        assert (np.concatenate(parts) == whole).all()


def own_entries(offsets, entry_ids):
    """The rarest entry of each text, -1 for a text without one."""
    counts = np.bincount(entry_ids)
    return np.array(
        [
            min(entry_ids[a:b], key=lambda e: (counts[e], e), default=-1)
            for a, b in itertools.pairwise(offsets)
        ]
    )


def test_by_score_an_entry_accepts_as_many_of_its_texts_but_the_best(pool):
    n = 20_000
    keys, offsets = pool[0][:n], pool[1][: n + 1]
    entry_ids = pool[2][: offsets[-1]]
    scores = np.random.default_rng(3).random(n)
    scores[::50] = np.nan
    by_score = balance.keys_by_score(5, keys, offsets, entry_ids, scores)
    assert np.array_equal(np.sort(by_score), np.sort(keys))
    none = np.isnan(scores)
    assert np.array_equal(by_score[none], keys[none])
    p = balance.keep_probability(np.bincount(entry_ids, minlength=2_000), 50)
    own = own_entries(offsets, entry_ids)
    text = np.repeat(np.arange(n), np.diff(offsets))
    of_own = entry_ids == own[text]  # one match of each text that has any
    before, after = (
        keep(5, k, offsets, entry_ids, p)[1][of_own] for k in (keys, by_score)
    )
    text = text[of_own]
    scored = ~none[text]
    for entry in np.unique(own[own >= 0]):
        here = scored & (own[text] == entry)
        assert before[here].sum() == after[here].sum()
        best, others = scores[text[here & after]], scores[text[here & ~after]]
        assert not best.size or not others.size or best.min() > others.max()


@pytest.mark.parametrize("t", [20, 400])
def test_by_score_the_expected_size_is_the_same_and_the_tail_is_whole(pool, t):
    keys, offsets, entry_ids = pool
    p = balance.keep_probability(np.bincount(entry_ids, minlength=2_000), t)
    q = chance(offsets, entry_ids, p)
    scores = np.random.default_rng(4).random(keys.size)
    head = (q > 0) & (q < 1)
    seeds = range(4)
    sizes = []
    for seed in seeds:
        exchanged = balance.keys_by_score(seed, keys, offsets, entry_ids, scores)
        kept, _ = keep(seed, exchanged, offsets, entry_ids, p)
        assert kept[q == 1].all() and not kept[q == 0].any()
        assert scores[kept & head].mean() > scores[head].mean() + 0.1
        sizes.append(kept.sum())
    sigma = np.sqrt((q * (1 - q)).sum() / len(seeds))
    assert abs(np.mean(sizes) - q.sum()) < 4 * sigma


def test_by_score_the_order_of_the_texts_does_not_matter(pool):
    n = 5_000
    small = pool[0][:n], pool[1][: n + 1], pool[2][: pool[1][n]]
    scores = np.random.default_rng(5).integers(0, 9, n) / 9  # many are equal
    whole = balance.keys_by_score(5, *small, scores)
    order = np.random.default_rng(1).permutation(n)
    again = balance.keys_by_score(5, *reordered(order, *small), scores[order])
    assert np.array_equal(again, whole[order])


def test_blocks_do_not_show(pool, monkeypatch):
    whole = balance.match_draws(5, *pool)
    monkeypatch.setattr(balance, "_BLOCK", 3)
    small = (pool[0][:500], pool[1][:501], pool[2][: pool[1][500]])
    assert (balance.match_draws(5, *small) == whole[: small[2].size]).all()


@settings(max_examples=100)
@given(
    texts=st.lists(
        st.tuples(
            st.integers(0, 2**64 - 1),
            st.lists(st.integers(0, 9), max_size=4, unique=True),
        ),
        max_size=8,
    ),
    p=st.lists(st.floats(0, 1), min_size=10, max_size=10),
    seed=st.integers(0, 2**63),
)
def test_a_text_is_kept_where_any_of_its_draws_is_below_p(texts, p, seed):
    keys = np.array([key for key, _ in texts], np.uint64)
    offsets = np.cumsum([0, *(len(ids) for _, ids in texts)])
    entry_ids = np.array([i for _, ids in texts for i in ids], np.int32)
    kept, _ = keep(seed, keys, offsets, entry_ids, np.array(p))
    for (key, ids), is_kept in zip(texts, kept, strict=True):
        alone = [
            balance.match_draws(
                seed, np.array([key], np.uint64), np.array([0, 1]), np.array([i])
            )[0]
            for i in ids
        ]
        assert is_kept == any(u < p[i] for u, i in zip(alone, ids, strict=True))


@settings(max_examples=40)
@given(
    matches=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    t=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_an_entry_gets_as_many_accepted_draws_as_the_law_promises(matches, t, seed):
    """Over many seeds; the bound is passed by chance once in 30 million times."""
    rounds = 200
    entry_ids = np.repeat(np.arange(len(matches)), matches).astype(np.int32)
    keys = np.random.default_rng(seed).integers(0, 2**64, entry_ids.size, np.uint64)
    counts = np.array(matches)
    p = balance.keep_probability(counts, t)
    found = np.zeros(len(matches))
    for number in range(rounds):
        args = seed + number, keys, np.arange(entry_ids.size + 1), entry_ids
        found += np.bincount(entry_ids[keep(*args, p)[1]], minlength=len(matches))
    sigma = np.sqrt(rounds * counts * p * (1 - p))
    wanted = rounds * np.minimum(counts, t)
    assert (np.abs(found - wanted) <= 6 * sigma + 12 * (sigma > 0)).all()


@settings(max_examples=200)
@given(
    counts=st.dictionaries(
        st.sampled_from(["de", "en", "other", "zh"]),
        st.lists(st.integers(0, 1_000), max_size=12),
        min_size=1,
    ),
    t=st.integers(0, 1_200),
    share=st.floats(0, 1),
)
def test_thresholds_follow_the_tail_share_of_the_lead(counts, t, share):
    found = balance.thresholds(counts, t=t, tail_share=share)
    first = "en" if "en" in counts else min(counts)
    if t:
        below = sum(count for count in counts[first] if count < t)
        share = below / max(sum(counts[first]), 1)
    for code, vector in counts.items():
        if t and code == first:
            assert found[code] == t
            continue
        total = sum(vector)
        sums = [sum(sorted(vector)[: i + 1]) for i in range(len(vector))]
        away = [abs(part / total - share) for part in sums] if total else [0]
        nearest = sorted(vector)[away.index(min(away))] if total else 1
        assert found[code] == max(1, nearest)


def test_what_has_no_t_is_not_balanced():
    keep = balance.keep_probabilities({"en": [6, 3], "de": [6]}, {"en": 2}, slack=1.5)
    assert {code: p.tolist() for code, p in keep.items()} == {"en": [0.5, 1], "de": [1]}


def test_every_text_is_chosen_equally_often():
    n = 30_000
    keys = np.arange(n, dtype=np.uint64)
    chosen = balance.choose_texts(keys, np.full(n, 3), seed=0)
    seen = np.bincount(chosen, minlength=3)
    assert np.abs(seen - n / 3).max() < 4 * np.sqrt(n * 2 / 9)


@settings(max_examples=100)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    seed=st.integers(0, 2**63),
    weigh=st.booleans(),
    data=st.data(),
)
def test_a_choice_is_one_of_the_images_texts_whichever_images_are_beside_it(
    counts, seed, weigh, data
):
    keys = np.arange(len(counts), dtype=np.uint64)
    lists = [
        data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)) for n in counts
    ]
    weights = np.array(sum(lists, []), np.int64) if weigh else None
    whole = balance.choose_texts(keys, np.array(counts), seed=seed, weights=weights)
    for i, own in enumerate(lists):
        possible = [n for n, weight in enumerate(own) if weight or not weigh]
        assert whole[i] in possible or (whole[i] == -1 and not possible)
        alone = balance.choose_texts(
            keys[i : i + 1],
            np.array([len(own)]),
            seed=seed,
            weights=np.array(own, np.int64) if weigh else None,
        )
        assert alone[0] == whole[i]


def test_an_images_key_is_the_start_of_its_id():
    ids = [records.image_id(f"http://a.example/{n}") for n in range(100)]
    found = balance.image_keys(pa.array(["0" * 24, *ids]).slice(1))
    assert found.tolist() == [int(one[:16], 16) for one in ids]
    assert balance.image_keys(pa.array([], pa.string())).tolist() == []
    with pytest.raises(ValueError, match="24 hex digits"):
        balance.image_keys(pa.array(["1234"]))


def test_balancing_the_survivors_of_a_thinned_pool_gives_about_t(pool):
    """Thin at slack * t, lose a part, recount, balance at t: nested, and about t."""
    keys, offsets, entry_ids = pool
    counts = np.bincount(entry_ids, minlength=2_000)
    t, slack, seed = 100, 2.0, 5
    thin = balance.keep_probability(counts, slack * t)
    fetched, thinned = keep(seed, *pool, thin)
    survives = fetched & (np.random.default_rng(4).random(keys.size) < 0.7)
    rows = np.repeat(np.arange(keys.size), np.diff(offsets))
    accepted = thinned & survives[rows]
    left = np.bincount(entry_ids[accepted], minlength=2_000)
    final = balance.final_probability(thin, left, t)
    assert (final <= thin).all()
    kept, draws = keep(seed, *pool, final)
    assert not (kept & ~fetched).any()
    draws = draws & survives[rows]
    head = np.flatnonzero(counts > slack * t)
    got = np.bincount(entry_ids[draws], minlength=2_000)[head]
    assert np.abs(got - t).max() < 4 * np.sqrt(t)
    assert balance.short_entries(thin, left, t).size == 0
    poor = balance.short_entries(thin, left // 4, t)
    assert set(poor) <= set(head)
    assert poor.size > head.size / 2


def test_wrong_arguments_are_refused():
    keys, offsets = np.array([1, 2], np.uint64), np.array([0, 1, 2])
    ids, p = np.array([0, 1], np.int32), np.ones(2)
    with pytest.raises(TypeError, match="keys must be uint64, got int64"):
        keep(0, keys.astype(np.int64), offsets, ids, p)
    with pytest.raises(ValueError, match="entry ids must be below the 1 entries"):
        keep(0, keys, offsets, ids, p[:1])
    with pytest.raises(ValueError, match="offsets must be 3 ascending numbers from 0"):
        keep(0, keys, offsets[:2], ids, p)
    with pytest.raises(ValueError, match="offsets must be 3 ascending numbers from 0"):
        keep(0, keys, np.array([0, 3, 2]), ids, p)
    with pytest.raises(ValueError, match="must be numbers from 0 to 1"):
        keep(0, keys, offsets, ids, np.array([1, np.nan]))
    with pytest.raises(ValueError, match="tail share must be within 0 to 1, got 6"):
        balance.threshold([1], 6)
    with pytest.raises(ValueError, match="counts must be one list of numbers from 0"):
        balance.keep_probability([[1]], 1)
