"""Large and small numbers are abbreviated."""

import pytest

from metaclip_jax.pages import numbers


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0, "0%"), (0.284, "28.4%"), (1, "100%"), (0.0025, "0.25%"), (0.00031, "0.031%")],
)
def test_percentages_are_short(value: float, wanted: str) -> None:
    assert numbers.percent(value) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(20000, "20k"), (999960, "1M"), (0.001, "1e-3"), (1.5e-5, "1.5e-5"), (0, "0")],
)
def test_axis_numbers_are_short(value: float, wanted: str) -> None:
    assert numbers.short(value) == wanted
