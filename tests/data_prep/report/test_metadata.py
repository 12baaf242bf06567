"""The page and the summary of metadata: all numbers, strangers' texts, many rows."""

import json
import re

import pytest

from data_prep.metadata import ranking
from data_prep.report import metadata as report
from tests import browser

HOSTILE = '</script><script>alert("1")</script>'
UNIGRAMS = [("القاهرة", 9000.0), ("東京", 800.0), ("हिन्दी", 7.0), ("St.", 6.0)]
TITLES = [(HOSTILE, 90.0), ("東京", 80.0), ("a  b", 70.0), ("\x07", 60.0), ("x", 50.0)]
READ = {"pages": 1234, "page: other_language": 5}


def described(code, *, caps=(9, 2)):
    unigrams = ranking.Source("unigram", UNIGRAMS, caps[0], 5.0, 4)
    titles = ranking.Source("title", TITLES, caps[1], 50.0)
    merged = ranking.merge(code, [unigrams, titles])
    made = merged.metadata
    facts = {"entries": len(made.entries), "fingerprint": made.fingerprint}
    return ranking.describe(merged) | facts


@pytest.fixture(scope="module")
def page() -> bytes:
    return report.as_page({"en": described("en")}, READ)


@pytest.fixture(scope="module")
def of_many() -> bytes:
    caps = {"b": (4, 2), "a": (3, 1), "zh_yue": (1, 2)}
    return report.as_page({c: described(c, caps=n) for c, n in caps.items()}, READ)


def test_texts_of_strangers_stay_text(page, of_many):
    for made, charts, scripts in ((page, 2, 2), (of_many, 4, 3)):
        made = made.decode()
        assert HOSTILE not in made and "&lt;script&gt;alert(" in made
        assert made.count("<script") == made.count("</script>") == charts + scripts


def test_equal_input_gives_equal_bytes_also_through_a_manifest(page):
    read_back = json.loads(json.dumps({"en": described("en")}, sort_keys=True))
    assert report.as_page(read_back, READ) == page


def test_the_page_shows_the_number_of_each_source(page):
    _, tables = page.decode().split('class="detail"')
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', tables, re.DOTALL)
    cells = [re.sub(r"<[^>]*>|\s", " ", row).split() for row in rows]
    # added, threshold, best, last, offered, already, never matching, cut
    assert cells[0] == "unigram 4 5 9k 6 4 0 0 0".split()
    assert cells[1] == "title 2 50 90 70 5 1 0 2".split()
    assert cells[2:4] == ["unigram 4 1".split(), "title 1 3".split()]


def test_why_an_entry_can_never_match_is_said_in_words_for_each_mode(page):
    made = page.decode()
    assert "texts get spaces around this mark" in made
    assert "a\u2423\u2423b" in made
    assert "mark_without_its_spaces" not in made


def test_the_summary_has_a_table_for_a_few_and_a_line_for_many():
    few = report.as_text({"en": described("en")}, READ)
    lines = [line.split() for line in few.splitlines()]
    head = "unigram 4, title 2); never match: 2 by v1, 2 by v2, 0 by fixed"
    assert few.splitlines()[0] == f"en: 6 entries ({head}"
    assert lines[2][:7] == ["unigram", "4", "4", "0", "0", "0", "5"]
    assert lines[3][:7] == ["title", "5", "2", "1", "0", "2", "50"]
    assert lines[-2:] == [["1,234", "pages"], ["-5", "page:", "other", "language"]]
    many = report.as_text({f"c{i}": described(f"c{i}") for i in range(9)}, {})
    assert [line.split(":")[0] for line in many.splitlines()] == [
        f"c{i}" for i in range(9)
    ]


ROWS = "[...document.querySelectorAll('.rows > details')]"
SHOWN = f"{ROWS}.filter(e => e.checkVisibility()).map(e => e.id)"
CELLS = """[...document.querySelectorAll(".header, summary")].map(
  row => [...row.children].filter(e => e.checkVisibility()).length)"""
SEARCH = """(() => {
  const search = document.querySelector(".search");
  search.value = "canton";
  return search.dispatchEvent(new Event("input"));
})()"""


def clicked(key):
    return f"document.querySelector('button[data-key={key}]').click(), {SHOWN}"


@browser.wanted
def test_a_browser_draws_sorts_and_searches_without_a_request(page, of_many, tmp_path):
    async def measure(tab):
        return await tab.evaluate(browser.MEASURE)

    async def act(tab):
        orders = [await tab.evaluate(SHOWN)]
        for key in ("entries", "entries", "name", "source1"):
            orders.append(await tab.evaluate(clicked(key)))
        cells = set(await tab.evaluate(CELLS))
        undrawn = await tab.evaluate("document.querySelectorAll('.plot svg').length")
        await tab.evaluate(f"{ROWS}.map(e => e.open = true)")
        seen = await tab.evaluate(browser.MEASURE)
        await tab.evaluate(SEARCH)
        found = await tab.evaluate(SHOWN)
        return orders, cells, undrawn, seen, found

    one, many = tmp_path / "one.html", tmp_path / "many.html"
    one.write_bytes(page)
    many.write_bytes(of_many)
    with browser.chromium(tmp_path / "profile") as port:
        for width in (1280, 390):
            seen, tab = browser.look_at(port, one, measure, width=width)
            assert seen["width"] == width and seen["wide"] == []
            assert seen["charts"] == seen["described"] == 2
            assert tab.requests() == [one.as_uri()] and tab.complaints() == []
            result, tab = browser.look_at(port, many, act, width=width)
            orders, cells, undrawn, seen, found = result
            assert orders[0] == orders[3] == ["a", "b", "zh_yue"]
            assert orders[1] == ["b", "a", "zh_yue"] and orders[2] == orders[1][::-1]
            assert orders[4][-1] == "a"  # the others have two titles
            # The header has an empty cell more, above the arrow of a row.
            assert cells == ({7, 6} if width > 860 else {4, 3})
            assert undrawn == 0 and found == ["zh_yue"]
            assert seen["width"] == width and seen["wide"] == []
            assert tab.requests() == [many.as_uri()] and tab.complaints() == []
