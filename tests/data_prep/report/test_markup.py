"""The parts of the report that need no files: charts, numbers, markup, thumbnails."""

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from data_prep.report import charts, curation, examples, numbers, training
from data_prep.report.markup import Markup, clean, element, stranger


def test_thumbnails_are_encoded_anew_and_bounded() -> None:
    written = io.BytesIO()
    Image.new("RGB", (300, 300), "teal").save(written, "JPEG")
    secret = written.getvalue() + b"<script>trailing</script>"
    kind, _, data = examples.thumbnail(secret, side=64).partition(",")
    assert kind == "data:image/webp;base64"
    decoded = base64.b64decode(data)
    assert b"script" not in decoded
    assert Image.open(io.BytesIO(decoded)).size == (64, 64)
    assert examples.thumbnail(b"GIF89a and nothing", side=64) == ""


def test_cumulative_share_counts_strictly_below() -> None:
    pool = np.array([100, 10, 10, 1])
    share = curation.cumulative_share(pool, pool, np.array([1, 2, 10, 11, 101]))
    np.testing.assert_allclose(share, np.array([0, 1, 1, 21, 121]) / 121)


def test_averaged_curve_keeps_its_end_and_skips_gaps() -> None:
    steps = np.arange(1, 1001)
    values = np.where(steps == 500, np.nan, steps.astype(float))
    x, y = training.averaged(steps, values, points=100)
    assert len(x) == len(y) == 100
    assert x[-1] == 1000 and np.isfinite(y).all()


@pytest.mark.parametrize(
    ("low", "high", "log", "wanted"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 7.3, False, [0, 2, 4, 6]),
        (1, 5000, True, [1, 10, 100, 1000]),
        (3, 60, True, [5, 10, 20, 50]),
    ],
)
def test_ticks_are_round_and_inside(
    low: float, high: float, log: bool, wanted: list[float]
) -> None:
    assert charts.ticks(low, high, log=log) == pytest.approx(wanted)


@pytest.mark.parametrize("log", [False, True])
def test_charts_take_gaps_zeros_and_single_points(log: bool) -> None:
    for values in ([], [5.0], [0.0, 0.0], [math.nan, 2, math.inf, 4], [7, 7, 7]):
        series = charts.Series("s", np.arange(len(values)), np.array(values), "ink")
        axis = charts.Axis("v", log=log)
        drawn = charts.line_chart([series], width=300, height=200, x=axis, y=axis)
        assert "nan" not in drawn and "inf" not in drawn


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


def test_only_markup_is_not_escaped() -> None:
    made = element("p", "<b>", Markup("<i></i>"), title='"&"', stroke_width=2)
    assert made == (
        '<p title="&quot;&amp;&quot;" stroke-width="2">&lt;b&gt;<i></i></p>'
    )


def test_clean_text_is_one_bounded_line() -> None:
    assert clean("a\n\t b\x00c") == "a b c"
    assert clean("\ud800x") == "\ufffdx"
    assert clean("x" * 500, limit=10) == "x" * 9 + "\u2026"
    # Joiners of emoji and Indic scripts stay.
    assert clean("\U0001f469\u200d\U0001f680") == "\U0001f469\u200d\U0001f680"


def test_a_marked_entry_is_a_whole_word() -> None:
    assert "<mark>Cat</mark>" in stranger("a Cat & dog", mark="cat")
    assert "<mark>" not in stranger("concatenate", mark="cat")
    assert "<mark>&lt;b&gt;</mark>" in stranger("x <b> y", mark="<b>")
    for entry, text in (
        ("東京", "大東京駅"),
        ("แมว", "รูปแมวดำ"),
        ("さくら", "さくら咲く"),
        ("မြန်မာ", "မြန်မာနိုင်ငံ"),
        ("iPhone手机", "新iPhone手机壳"),
        ("C++", "C++11"),
    ):
        assert f"<mark>{entry}</mark>" in stranger(text, mark=entry), entry
    assert "<mark>" not in stranger("concatenate, cats, bobcat", mark="cat")
    assert "bobcat, <mark>cat</mark>" in stranger("bobcat, cat", mark="cat")
