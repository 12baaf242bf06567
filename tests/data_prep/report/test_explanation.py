"""The page of explain: strangers' entries and codes stay text, its charts are drawn."""

import json
import re

import numpy as np
import pytest

from data_prep.report import explanation
from data_prep.report.dataset_size import Estimate, Size
from tests import browser

HOSTILE = '</script></td><script>alert("1")</script>'


@pytest.fixture(scope="module")
def made() -> str:
    size = Size(Estimate(90, 80, 100), Estimate(40, 30, 50), 200.0, 70.0)
    row = explanation.EntryRow(
        code=HOSTILE,
        t=10,
        never=1,
        never_examples=((HOSTILE, "mark_without_its_spaces"),),
        unmatched=1,
        tail=2,
        head=1,
        tail_matches=12.0,
        head_matches=90.0,
        top=((HOSTILE, 90.0), ("cat", 9.0), ("\u0642\u0637\u0629", 3.0)),
    )
    found = explanation.Explanation(
        rule="v1",
        total=size,
        by_code={HOSTILE: size},
        entries=[row],
        curve=[explanation.Point(t, t / 90, size) for t in (1, 10, 90)],
        sampled_images=70,
    )
    counts = {HOSTILE: np.array([3.0, 0, 90, 9, 0])}
    return explanation.as_page(found, counts=counts).decode()


def test_texts_of_strangers_stay_text(made: str) -> None:
    frame = made.split("<script>")[0]  # without the two scripts that draw
    assert HOSTILE[:40] not in frame and frame.count("&lt;script&gt;alert(") >= 3
    # Two charts' data and the two scripts that draw them.
    assert made.count("<script") == made.count("</script>") == 4


def test_the_tables_have_the_numbers_and_mark_the_threshold(made: str) -> None:
    frame = made.split("<script>")[0]
    rows = re.findall(r"<tr[^>]*>.*?</tr>", frame, re.DOTALL)
    cells = [re.sub(r"<[^>]*>|\s", " ", row).split() for row in rows]
    assert cells[1][-9:] == "10 90 200 45.0% 1 2 1 1 11.8%".split()
    assert cells[4] == "10 11.1% 90 45.0% 40 57.1%".split()
    assert [row for row in rows if "chosen" in row] == [rows[4]]
    assert cells[-2:] == [
        "cat 9 8.8% 100%".split(),
        "\u0642\u0637\u0629 3 2.9% 100%".split(),
    ]


def test_why_an_entry_can_never_match_is_said_in_words(made: str) -> None:
    assert "texts get spaces around this mark" in made
    assert "mark_without_its_spaces" not in made


def test_the_counts_are_shown_from_the_largest_down(made: str) -> None:
    data = re.findall(r'<script type="application/json">(.*?)</script>', made)
    rows = json.loads(data[1])["data"]["values"]
    assert [row["y0"] for row in rows] == [90, 9, 3, None, None]
    assert [row["y1"] for row in rows] == [10, 9, 3, None, None]


@browser.wanted
def test_browser_draws_it_without_a_request(made: str, tmp_path) -> None:
    file = tmp_path / "explain.html"
    file.write_text(made)
    with browser.chromium(tmp_path / "profile") as port:
        for width in (1280, 390):
            seen, tab = browser.look_at(
                port, file, lambda tab: tab.evaluate(browser.MEASURE), width=width
            )
            assert seen["width"] == width and seen["wide"] == []
            assert seen["charts"] == seen["described"] == 2
            assert tab.requests() == [file.as_uri()]
            assert tab.complaints() == []
