"""Curves out of the rows of a run's metrics."""

import numpy as np
import pytest

from metaclip_jax import metric_rows


def test_a_curve_of_few_means_keeps_its_end_and_skips_gaps():
    rows = [{"step": n, "loss": float(n)} for n in range(1, 1001)]
    rows[499]["loss"] = float("nan")
    rows[500]["loss"] = None
    del rows[501]["loss"]
    x, y = metric_rows.curves(rows, ["loss"], points=100)
    assert x.shape == (100,) and y.shape == (100, 1)
    assert x[-1] == 1000 and np.isfinite(y).all()
    assert y.mean() == pytest.approx(500, abs=2)


def test_means_of_two_curves_skip_the_gaps_of_each():
    rows = [{"step": n, "a": n} for n in range(1, 9)]
    rows[2]["a"] = float("nan")
    for row in rows[4:6]:
        row["b"] = 7
    x, y = metric_rows.curves(rows, ["a", "b"], points=4)
    np.testing.assert_array_equal(x, [2, 5, 7, 8])
    np.testing.assert_array_equal(y[:, 0], [1.5, 4.5, 6.5, 8])
    np.testing.assert_array_equal(y[:, 1], [np.nan, 7, 7, np.nan])


def test_a_metric_that_no_row_has_is_an_empty_curve():
    for rows in ([], [{"step": 1, "loss": float("inf")}]):
        x, y = metric_rows.curves(rows, ["loss"], points=9)
        assert x.shape == (0,) and y.shape == (0, 1)
