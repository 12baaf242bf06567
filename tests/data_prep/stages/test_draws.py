"""Stages draw by a file of keep probabilities, and are sent without them."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from data_prep.stages import steps
from data_prep.stages.draws import Draws


@pytest.mark.parametrize("codes", [("en",), ("de", "en", "none", "zh")])
def test_draws_by_a_file_are_those_by_the_vectors(tmp_path, codes):
    rng = np.random.default_rng(0)
    sizes = {code: 0 if code == "none" else 1_000 for code in codes}
    keep = {code: rng.random(n) for code, n in sizes.items()}
    used = rng.choice([code for code in codes if sizes[code]], 2_000)
    matches = pa.table(
        {
            "metadata": used,
            "entry_ids": [rng.choice(1_000, n) for n in rng.integers(1, 5, 2_000)],
            "text_key": rng.integers(2**64, size=2_000, dtype=np.uint64),
            "drawn": rng.random(2_000) < 0.9,
        }
    )
    sent = pickle.dumps(Draws.save(tmp_path, keep, seed=3))
    kept, accepted = pickle.loads(sent)(matches)
    wanted, counts = steps.draw(matches, seed=3, keep_probability=keep)
    assert np.array_equal(kept, wanted) and 0 < kept.sum() < 2_000
    assert accepted == counts
    assert len(sent) < 1_000
    Draws.save(tmp_path, {code: p / 2 for code, p in keep.items()}, seed=3)
    assert len(list(tmp_path.iterdir())) == 2  # what workers have mapped stays
