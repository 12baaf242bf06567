"""Balancing keeps the tail, cuts the head to t, and depends on nothing but its keys."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import balance


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


def images_of(text_keys, rng):
    """Groups the texts into images of none to four texts."""
    sizes = rng.integers(0, 5, text_keys.size // 2)
    text_offsets = np.concatenate([[0], np.cumsum(sizes)])
    text_offsets = np.minimum(text_offsets, text_keys.size)
    text_offsets[-1] = text_keys.size
    image_keys = rng.integers(0, 2**64, sizes.size, dtype=np.uint64)
    return image_keys, text_offsets


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
    kept = balance.text_probability(offsets, entry_ids, p)
    assert kept == pytest.approx([0.65, 0, 0.3])


def test_tail_share_and_threshold_of_the_vectors():
    assert balance.tail_share([1, 2, 7, 10], 5) == 0.15
    assert balance.threshold([1, 3, 6, 10], 0.15) == 3
    assert balance.tail_share([1, 3, 6, 10], 3) == 0.05  # not an exact inverse
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
    assert balance.tail_share(counts, 5) == 0
    assert balance.keep_probability(counts, 5).tolist() == [1] * len(counts)
    nothing = np.empty(0, np.int32)
    kept = balance.keep_texts(
        0, np.array([1], np.uint64), np.array([0, 0]), nothing, np.ones(len(counts))
    )
    assert kept.tolist() == [False]


@pytest.mark.parametrize("t", [0, 0.5, -1, float("nan")])
def test_t_below_one_is_refused(t):
    with pytest.raises(ValueError, match="t must be at least 1, got"):
        balance.keep_probability([1, 2], t)
    with pytest.raises(ValueError, match="t must be at least 1, got"):
        balance.tail_share([1, 2], t)


def test_draws_are_uniform_and_of_53_bits(pool):
    u = balance.draws(3, *pool)
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
    by_key = balance.draws(0, keys, one_each, zeros)
    by_id = balance.draws(0, keys[:1], np.array([0, n]), np.arange(n, dtype=np.int32))
    by_seed = balance.draws(1, keys, one_each, zeros)
    pairs = [(by_key[1:], by_key[:-1]), (by_id[1:], by_id[:-1]), (by_key, by_seed)]
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(n)


def test_draws_never_change():
    """These values are a contract: a data set can be made again years later."""
    keys = np.array([0, 2**64 - 1], np.uint64)
    u = balance.draws(17, keys, np.array([0, 2, 3]), np.array([0, 499_999, 5]))
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
    accepted = balance.accepted_draws(5, *pool, p)
    draws = np.bincount(entry_ids[accepted], minlength=2_000)
    tail, head = counts <= t, counts > t
    assert tail.sum() > 100
    assert head.sum() > 100
    assert (draws[tail] == counts[tail]).all()
    sigma = np.sqrt(counts * p * (1 - p))[head]
    assert (np.abs(draws[head] - t) < 4 * sigma + 1e-9).mean() > 0.999
    assert np.abs(draws[head] - t).sum() > 0
    kept = balance.keep_texts(5, *pool, p)
    tail_texts = np.unique(
        np.repeat(np.arange(kept.size), np.diff(offsets))[tail[entry_ids]]
    )
    assert kept[tail_texts].all()


def test_the_kept_number_is_as_predicted(pool):
    p = balance.keep_probability(np.bincount(pool[2], minlength=2_000), 50)
    q = balance.text_probability(*pool[1:], p)
    kept = balance.keep_texts(11, *pool, p)
    assert abs(kept.sum() - q.sum()) < 3 * np.sqrt((q * (1 - q)).sum())
    assert not kept[np.diff(pool[1]) == 0].any()
    again = balance.keep_texts(12, *pool, p)
    assert 0 < (kept != again).sum()


def test_a_smaller_t_keeps_a_subset(pool):
    counts = np.bincount(pool[2], minlength=2_000)
    previous = np.diff(pool[1]) > 0
    for t in (400, 100.5, 100, 20, 1):
        kept = balance.keep_texts(5, *pool, balance.keep_probability(counts, t))
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
    whole = balance.keep_texts(5, keys, offsets, entry_ids, p)
    order = np.random.default_rng(1).permutation(5000)
    shuffled = balance.keep_texts(5, *reordered(order, keys, offsets, entry_ids), p)
    assert (shuffled == whole[order]).all()
    for workers in (2, 7, 5000):
        cuts = np.linspace(0, 5000, workers + 1).astype(int)
        parts = [
            balance.keep_texts(
                5,
                keys[a:b],
                offsets[a : b + 1] - offsets[a],
                entry_ids[offsets[a] : offsets[b]],
                p,
            )
            for a, b in zip(cuts[:-1], cuts[1:], strict=True)
        ]
        assert (np.concatenate(parts) == whole).all()


def test_blocks_do_not_show(pool, monkeypatch):
    whole = balance.draws(5, *pool)
    monkeypatch.setattr(balance, "_BLOCK", 3)
    small = (pool[0][:500], pool[1][:501], pool[2][: pool[1][500]])
    assert (balance.draws(5, *small) == whole[: small[2].size]).all()


@settings(max_examples=100, deadline=None)
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
    kept = balance.keep_texts(seed, keys, offsets, entry_ids, np.array(p))
    for (key, ids), is_kept in zip(texts, kept, strict=True):
        alone = [
            balance.draws(
                seed, np.array([key], np.uint64), np.array([0, 1]), np.array([i])
            )[0]
            for i in ids
        ]
        assert is_kept == any(u < p[i] for u, i in zip(alone, ids, strict=True))


def test_v2_keeps_one_text_of_an_image_or_none(pool):
    image_keys, text_offsets = images_of(pool[0], np.random.default_rng(2))
    p = balance.keep_probability(np.bincount(pool[2], minlength=2_000), 50)
    chosen = balance.keep_images(5, image_keys, text_offsets, *pool, p)
    sizes = np.diff(text_offsets)
    assert chosen.dtype == np.int32
    assert (chosen < sizes).all()
    assert (chosen[sizes == 0] == -1).all()
    kept_texts = balance.keep_texts(5, *pool, p)
    some = chosen >= 0
    assert kept_texts[text_offsets[:-1][some] + chosen[some]].all()
    # Any text is as likely as another, and then it is kept by 1 - Π(1 - p).
    q = balance.text_probability(*pool[1:], p)
    share = np.repeat(1 / np.maximum(sizes, 1), sizes)
    per_image = np.add.reduceat(
        np.append(q * share, 0), np.minimum(text_offsets[:-1], q.size)
    ) * (sizes > 0)
    sigma = np.sqrt((per_image * (1 - per_image)).sum())
    assert abs(some.sum() - per_image.sum()) < 3 * sigma


def test_v2_chooses_every_text_equally_often():
    n = 30_000
    keys = np.random.default_rng(3).integers(0, 2**64, 3 * n, dtype=np.uint64)
    chosen = balance.keep_images(
        0,
        np.arange(n, dtype=np.uint64),
        np.arange(0, 3 * n + 1, 3),
        keys,
        np.arange(3 * n + 1),
        np.zeros(3 * n, np.int32),
        np.ones(1),
    )
    seen = np.bincount(chosen, minlength=3)
    assert np.abs(seen - n / 3).max() < 4 * np.sqrt(n * 2 / 9)


def test_v2_is_nested_and_does_not_depend_on_the_order_of_the_texts(pool):
    image_keys, text_offsets = images_of(pool[0], np.random.default_rng(2))
    counts = np.bincount(pool[2], minlength=2_000)
    larger, smaller = (
        balance.keep_images(
            5, image_keys, text_offsets, *pool, balance.keep_probability(counts, t)
        )
        for t in (200, 50)
    )
    assert (smaller[smaller >= 0] == larger[smaller >= 0]).all()
    assert (smaller >= 0).sum() < (larger >= 0).sum()
    m, end = 500, text_offsets[500]
    order = np.concatenate(
        [
            np.arange(a, b)[::-1]
            for a, b in zip(text_offsets[:m], text_offsets[1 : m + 1], strict=True)
        ]
    )
    first = (pool[0][:end], pool[1][: end + 1], pool[2][: pool[1][end]])
    turned = balance.keep_images(
        5,
        image_keys[:m],
        text_offsets[: m + 1],
        *reordered(order, *first),
        balance.keep_probability(counts, 50),
    )
    mirrored = np.where(turned < 0, -1, np.diff(text_offsets[: m + 1]) - 1 - turned)
    assert (mirrored == smaller[:m]).all()


def test_balancing_the_survivors_of_a_thinned_pool_gives_about_t(pool):
    """Thin at slack * t, lose a part, recount, balance at t: nested, and about t."""
    keys, offsets, entry_ids = pool
    counts = np.bincount(entry_ids, minlength=2_000)
    t, slack, seed = 100, 2.0, 5
    thin = balance.keep_probability(counts, slack * t)
    fetched = balance.keep_texts(seed, *pool, thin)
    survives = fetched & (np.random.default_rng(4).random(keys.size) < 0.7)
    rows = np.repeat(np.arange(keys.size), np.diff(offsets))
    accepted = balance.accepted_draws(seed, *pool, thin) & survives[rows]
    left = np.bincount(entry_ids[accepted], minlength=2_000)
    final = balance.final_probability(thin, left, t)
    assert (final <= thin).all()
    kept = balance.keep_texts(seed, *pool, final) & survives
    assert not (kept & ~fetched).any()
    draws = balance.accepted_draws(seed, *pool, final) & survives[rows]
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
        balance.keep_texts(0, keys.astype(np.int64), offsets, ids, p)
    with pytest.raises(ValueError, match="entry ids must be below the 1 entries"):
        balance.keep_texts(0, keys, offsets, ids, p[:1])
    with pytest.raises(ValueError, match="offsets must be 3 ascending numbers from 0"):
        balance.keep_texts(0, keys, offsets[:2], ids, p)
    with pytest.raises(ValueError, match="offsets must be 3 ascending numbers from 0"):
        balance.keep_texts(0, keys, np.array([0, 3, 2]), ids, p)
    with pytest.raises(ValueError, match="must be numbers from 0 to 1"):
        balance.keep_texts(0, keys, offsets, ids, np.array([1, np.nan]))
    with pytest.raises(ValueError, match="tail share must be within 0 to 1, got 6"):
        balance.threshold([1], 6)
    with pytest.raises(ValueError, match="counts must be one list of numbers from 0"):
        balance.keep_probability([[1]], 1)
