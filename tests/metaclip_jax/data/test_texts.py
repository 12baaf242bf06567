"""Which text of an image is shown: the law of the draw by source, image and epoch."""

import numpy as np
import pytest

from metaclip_jax.data import texts

SOURCES = ("alt", "title", "alt", "synthetic", "figcaption", "synthetic")
CHOICE = texts.Choice(
    text_source_weights=(("alt", 2.0), ("title", 0.5), ("figcaption", 0.0)),
    synthetic_sources=("synthetic",),
    synthetic_share=0.15,
)
ROUNDS = 20_000


def shares(choice, sources, **values):
    """How often each text is shown, over epochs of one image."""
    index = texts.shown(
        np.full(ROUNDS, 7, np.uint64),
        np.full(ROUNDS, len(sources)),
        epochs=np.arange(ROUNDS),
        seed=0,
        kinds=choice.kinds(sources * ROUNDS),
        **values,
    )
    assert index.min() >= 0
    return np.bincount(index, minlength=len(sources)) / ROUNDS


def within(found, wanted):
    wanted = np.array(wanted)
    return (np.abs(found - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / ROUNDS)).all()


def test_texts_are_shown_by_the_weight_of_their_source():
    found = shares(CHOICE, SOURCES, synthetic_share=0.15)
    original = 0.85 / 4.5
    wanted = [2 * original, original / 2, 2 * original, 0.075, 0, 0.075]
    assert within(found, wanted)


def test_an_image_with_one_kind_of_texts_shows_that_kind():
    assert within(shares(CHOICE, ("alt", "title"), synthetic_share=0.15), [0.8, 0.2])
    only = shares(CHOICE, ("synthetic", "synthetic"), synthetic_share=0.15)
    assert within(only, [0.5, 0.5])


def test_a_share_of_synthetic_texts_leaves_the_others_draws_alone():
    """So balancing, which looks at the original texts, keeps the same images."""
    values = {
        "image_keys": np.arange(1_000, dtype=np.uint64),
        "text_counts": np.full(1_000, len(SOURCES)),
        "epochs": 3,
        "seed": 5,
        "kinds": CHOICE.kinds(SOURCES * 1_000),
    }
    original, made = texts.draw(**values)
    shown = texts.shown(**values, synthetic_share=0.15)
    assert set(np.unique(original)) <= {0, 1, 2}
    assert set(np.unique(made)) == {3, 5}
    assert 100 < (shown != original).sum() < 200
    assert ((shown == original) | (shown == made)).all()


def test_a_draw_depends_on_image_epoch_and_seed_alone():
    """Not on the images beside it: a shard's draw is the one of any batch of it."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, 300)
    keys = rng.integers(0, 2**63, 300).astype(np.uint64)
    sources = rng.choice(["alt", "title", "synthetic", "x"], counts.sum()).tolist()
    kinds = CHOICE.kinds(sources)
    whole = texts.draw(keys, counts, epochs=2, seed=1, kinds=kinds)
    ends = np.cumsum(counts)
    for i in rng.integers(0, 300, 50):
        own = slice(ends[i] - counts[i], ends[i])
        alone = texts.draw(
            keys[i : i + 1],
            counts[i : i + 1],
            epochs=np.array([2]),
            seed=1,
            kinds=tuple(kind[own] for kind in kinds),
        )
        assert [a[0] for a in alone] == [w[i] for w in whole]
    assert (whole[0][counts == 0] == -1).all()


def test_texts_without_kinds_weigh_the_same():
    counts = np.arange(400) % 5
    keys = np.arange(400, dtype=np.uint64)
    total = counts.sum()
    for epochs in (3, np.arange(400)):
        plain = texts.draw(keys, counts, epochs=epochs, seed=1)
        kinds = (np.full(total, 7), np.zeros(total, bool))
        weighed = texts.draw(keys, counts, epochs=epochs, seed=1, kinds=kinds)
        np.testing.assert_array_equal(plain, weighed)


def test_images_without_a_text_of_weight_have_none():
    kinds = CHOICE.kinds(["figcaption", "alt", "figcaption"])
    found = texts.shown(
        np.arange(2, dtype=np.uint64), np.array([1, 2]), epochs=0, seed=0, kinds=kinds
    )
    assert found.tolist() == [-1, 0]


@pytest.mark.parametrize("weights", [(1e-9, 1e9), (3.0, 1.0), (0.1, 0.1)])
def test_weights_of_any_size_are_relative(weights):
    choice = texts.Choice((("alt", weights[0]), ("title", weights[1])))
    found = shares(choice, ("alt", "title"))
    wanted = np.array(weights) / sum(weights)
    assert np.abs(found - wanted).max() < 0.02


def test_values_that_make_no_law_are_refused():
    with pytest.raises(ValueError, match="once, with a weight of at least 0"):
        texts.Choice((("alt", -1.0),))
    with pytest.raises(ValueError, match="once, with a weight of at least 0"):
        texts.Choice((("alt", 1.0), ("alt", 2.0)))
    with pytest.raises(ValueError, match="within 0 to 1, got 1.5"):
        texts.Choice(synthetic_sources=("s",), synthetic_share=1.5)
    with pytest.raises(ValueError, match="needs data.synthetic_sources"):
        texts.Choice(synthetic_share=0.15)


def test_text_sources_that_no_dataset_has_are_refused():
    choice = texts.Choice((("alt", 1.0), ("titel", 2.0)))
    with pytest.raises(ValueError, match=r"weights: .* \(alt, title\), got titel;"):
        choice.check_sources([{"alt": 7}, {"title": 3, "alt": 1}])
    synthetic = texts.Choice(synthetic_sources=("made",), synthetic_share=0.5)
    with pytest.raises(ValueError, match="data.synthetic_sources: .*got made"):
        synthetic.check_sources([{"alt": 7}])
    nothing = texts.Choice((("alt", 0.0),))
    with pytest.raises(ValueError, match="wanted a weight above 0 for some"):
        nothing.check_sources([{"alt": 7}])
    nothing.check_sources([{"alt": 7}, {"title": 1}])
    for counts in ([{"alt": 7}, {"titel": 1}], [{"alt": 7}, {}]):
        choice.check_sources(counts)  # it occurs, or nothing is known
