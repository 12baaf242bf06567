"""The parts of the report that need no files: curves, shares, marks, thumbnails."""

import base64
import io

import numpy as np
from PIL import Image

from data_prep.report import curation, examples
from data_prep.report.page import marked


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


def test_a_marked_entry_is_a_whole_word() -> None:
    assert "<mark>Cat</mark>" in marked("a Cat & dog", "cat", 99)
    assert "<mark>" not in marked("concatenate", "cat", 99)
    assert "<mark>&lt;b&gt;</mark>" in marked("x <b> y", "<b>", 99)
    for entry, text in (
        ("東京", "大東京駅"),
        ("แมว", "รูปแมวดำ"),
        ("さくら", "さくら咲く"),
        ("မြန်မာ", "မြန်မာနိုင်ငံ"),
        ("iPhone手机", "新iPhone手机壳"),
        ("C++", "C++11"),
    ):
        assert f"<mark>{entry}</mark>" in marked(text, entry, 99), entry
    assert "<mark>" not in marked("concatenate, cats, bobcat", "cat", 99)
    assert "bobcat, <mark>cat</mark>" in marked("bobcat, cat", "cat", 99)
