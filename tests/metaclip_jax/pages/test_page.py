"""The frame of pages: strangers' texts stay text, and only own scripts run."""

import pytest

from metaclip_jax.pages import page


def test_a_strangers_text_is_escaped_and_isolated() -> None:
    assert page.stranger('<b> & "q"', 160) == (
        '<bdi dir="auto">&lt;b&gt; &amp; &#34;q&#34;</bdi>'
    )
    # The words of the page go around it in their own direction.
    for text in (
        "\u6771\u4eac",
        "\u0635\u0648\u0631\u0629",
        "\u092c\u093f\u0932\u094d\u0932\u0940",
    ):
        assert page.stranger(text) == f'<bdi dir="auto">{text}</bdi>'


def test_clean_text_is_one_bounded_line() -> None:
    assert page.clean("a\n\t b\x00c") == "a b c"
    assert page.clean("\ud800x") == "\ufffdx"
    assert page.clean("x" * 500, limit=10) == "x" * 9 + "\u2026"
    # Joiners of emoji and Indic scripts stay.
    assert page.clean("\U0001f469\u200d\U0001f680") == "\U0001f469\u200d\U0001f680"


@pytest.mark.parametrize("has_charts", [False, True])
def test_a_page_without_charts_brings_no_script(has_charts: bool) -> None:
    made = page.render(
        "metaclip_jax.pages",
        "base.html",
        title="</title><script>",
        has_charts=has_charts,
        values={},
    ).decode()
    assert made.count("<script") == made.count("</script>") == 2 * has_charts
    assert ("script-src" in made) == has_charts
    assert "<title>&lt;/title&gt;&lt;script&gt;</title>" in made
