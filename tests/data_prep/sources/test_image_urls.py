"""Addresses of images: what a browser would request for them, percent sign by sign."""

import ada_url
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.sources import image_urls

PAGE = "https://site.example/dir/page.html?q=1"


def find(address, base=PAGE):
    return image_urls.find({"src": address}, [], base, max_url_chars=200)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("/a.jpg?s=qZ%2BPP2g%3D&k=x%2Fy", "https://site.example/a.jpg?s=qZ%2BPP2g%3D&k=x%2Fy"),
        ("http%3A%2F%2Fb.jpg", "https://site.example/dir/http%3A%2F%2Fb.jpg"),
        ("/%7Euser/a%27b(1).jpg?%e9", "https://site.example/%7Euser/a%27b(1).jpg?%e9"),
        ("100%.jpg", "https://site.example/dir/100%.jpg"),
        ("a.jpg?", "https://site.example/dir/a.jpg?"),
        ("a b|c.jpg?d e", "https://site.example/dir/a%20b|c.jpg?d%20e"),
        ("猫.jpg?é", "https://site.example/dir/%E7%8C%AB.jpg?%C3%A9"),
        ("//BÜCHER.example:443/a", "https://xn--bcher-kva.example/a"),
        ("//2130706433/a", "https://127.0.0.1/a"),
        ("https:a.jpg", "https://site.example/dir/a.jpg"),
        ("http:///a/b.jpg", "http://a/b.jpg"),
        ("%2e%2E/a.jpg", "https://site.example/a.jpg"),
        ("HTTPS://other.EXAMPLE/A.jpg", "https://other.example/A.jpg"),
        ("https://other.example/a/../b.jpg", "https://other.example/b.jpg"),
    ],
)  # fmt: skip
def test_an_address_is_read_as_browsers_do(address, url):
    assert find(address) == (url, "")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://a b/c", "bad_url"),
        ("http://a:99999/c", "bad_url"),
        ("http://[::1/c", "bad_url"),
        ("http://1.2.3.4.5/c", "bad_url"),
        ("java\nscript:alert(1)", "image_url_not_http"),
        ("猫" * 30, "image_url_too_long"),  # nine characters each
    ],
)
def test_an_address_that_no_browser_requests_has_its_reason(address, reason):
    assert find(address) == ("", reason)


def test_an_absolute_address_needs_no_base():
    base = image_urls.base_of("no url at all", None)
    assert find("https://a.example/b c.jpg", base) == (
        "https://a.example/b%20c.jpg",
        "",
    )
    assert find("c.jpg", base) == ("", "bad_url")


PIECES = st.sampled_from(
    "http:// https:// // / a.b ex-ample.com www.a1.de 1.2 xn--a a--b -a .. . %2e %2E "
    "%41 %e9 % ? # @ : & = ; ' ( ) ~ * ! $ + , _ - | \\ ^ ` { } < > [ ] \" é 猫".split()
)


@given(st.lists(PIECES, max_size=12).map("".join))
@example("http://a.example/b/.c")
@example("http://a.example/../b.jpg")
@example("http://a.example/b?c=/../d")
def test_what_is_found_is_what_the_url_standard_says(address):
    url, reason = find(address)
    if url:
        # Nothing that the parser would change again, the short way for plain addresses
        # included: the downloader requests the URL of the record.
        assert url == ada_url.URL(address, PAGE).href.partition("#")[0]
        assert url == ada_url.URL(url).href
    else:
        assert reason in (
            "no_image_url",
            "bad_url",
            "image_url_not_http",
            "image_url_too_long",
        )


SEGMENTS = st.sampled_from(
    ["a", "B-1", "b.jpg", ".", "..", "", "é", "%2e", "x y", "?q=/../", "#f", ":", "c_"]
)
PATHS = st.lists(SEGMENTS, max_size=5).map("/".join)


@given(
    st.sampled_from(["", "/", "//", "../", "../../../", "./", "http://other.example/"]),
    PATHS,
    st.sampled_from(
        ["https://a.example/", "http://a.b.example/x/", "https://a.example:8/"]
    ),
    PATHS,
)
@example("../", "a/b.jpg", "https://a.example/", "x//y.html?z=/w")
def test_no_quick_way_gives_another_address_than_the_parser(start, path, site, place):
    base = image_urls.base_of(site + place, None)
    assert base == ada_url.URL(site + place).href
    url, reason = find(start + path, base)
    if url:
        joined = ada_url.URL((start + path).strip(), base).href
        assert url == joined.partition("#")[0]
    else:
        assert reason in ("no_image_url", "image_url_not_http", "bad_url")
