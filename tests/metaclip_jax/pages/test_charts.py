"""Charts hold their data, whatever it is, and compile to Vega."""

import json
import math

import numpy as np
import pytest
import vl_convert

from metaclip_jax.pages import charts


def drawn(spec: dict) -> str:
    """The chart as SVG, drawn by the library; a fault of the specification raises."""
    return vl_convert.vegalite_to_svg(json.dumps(spec | {"width": 400}))


@pytest.mark.parametrize("log", [False, True])
def test_charts_take_gaps_zeros_and_single_points(log: bool) -> None:
    for values in ([], [5.0], [0.0, 0.0], [math.nan, 2, math.inf, 4], [7, 7, 7]):
        series = charts.Series("s", np.array(values), "ink")
        axis = charts.Axis("v", log=log)
        spec = charts.line_chart(
            np.arange(len(values)), [series], x_axis=axis, y_axis=axis, describe="d"
        )
        json.dumps(spec, allow_nan=False)
        shown = drawn(spec)
        assert "NaN" not in shown and "Infinity" not in shown


def test_a_value_that_the_axis_cannot_show_is_a_gap() -> None:
    y = np.array([3.0, math.nan, 0.0, 5.0])
    for log, wanted in ((False, [3, None, 0, 5]), (True, [3, None, None, 5])):
        spec = charts.line_chart(
            np.arange(1, 5),
            [charts.Series("s", y, "ink")],
            x_axis=charts.Axis("x"),
            y_axis=charts.Axis("y", log=log),
            describe="d",
        )
        assert [row["y0"] for row in spec["data"]["values"]] == wanted


def test_names_rules_and_colours_of_the_page_are_drawn() -> None:
    x = np.arange(1, 50)
    spec = charts.line_chart(
        x,
        [charts.Series('be"fore', x, "ink"), charts.Series("after", 2 * x, "accent")],
        x_axis=charts.Axis("step", format=charts.COUNT),
        y_axis=charts.Axis("loss", low=0),
        rules=[charts.Rule("y", 70, "t = 70"), charts.Rule("x", 9, "<b>")],
        describe="What is seen.",
    )
    shown = drawn(spec)
    for word in ('be"fore', "after", "t = 70", "&lt;b&gt;", "step", "loss"):
        assert word in shown
    for colour in ("ink", "accent", "muted", "line"):
        assert f'"var(--{colour})"' in shown
    assert spec["description"] == "What is seen."


def test_the_bars_of_a_histogram_have_their_heights() -> None:
    counts, edges = np.histogram(np.array([0, 1, 1, 5]), bins=3, range=(0, 6))
    spec = charts.histogram(counts, edges, label="tokens", describe="d")
    assert [row["count"] for row in spec["data"]["values"]] == [3, 0, 1]
    assert drawn(spec).count("<path aria-label") == 3


def test_ranks_are_distinct_ascending_and_reach_both_ends() -> None:
    for count in (1, 2, 100, 5_000_000):
        ranks = charts.log_ranks(count)
        assert ranks[0] == 1 and ranks[-1] == count
        assert (np.diff(ranks) > 0).all()
    assert not charts.log_ranks(0).size
