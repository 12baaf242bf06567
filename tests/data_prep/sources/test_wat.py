"""WAT files: they give the pages' candidates, except what WAT files lack."""

import gzip
import html.parser
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from data_prep import config, schema
from data_prep.sources import kinds, wat
from tests.data_prep import tiny_web

WHOLE = "https://site.example/dir/page.html"
PAGES = {
    WHOLE: "<title>Cats</title><img src=a.jpg alt='a cat'><img src='b.jpg?x=1&amp;y=2' "
    "alt='a &quot;red&quot; dog' title='&lt;dog&gt; &amp; co'>",
    "https://site.example/base": "<base href='https://cdn.example/i/'>"
    "<meta http-equiv=Content-Language content=fr><img src='../c.jpg' alt='un chat'>",
    "https://site.example/lost": "<img src=a.jpg><img src=a.jpg alt=''>"
    "<img src='data:x' alt='no address'><img src='' alt=none>",
    "https://site.example/none": "<p>nothing</p>",
    "https://site.example/odd": "<img src='/x?a=1&copy=2&lt=3&reg;' alt='&copy 2024 "
    "&notit; &#x41;&#66 &amp;lt; &amp'>",
}


class _Links(html.parser.HTMLParser):
    """What webarchive-commons lists of a page: attributes as they are written."""

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.links, self.metas = [], []
        self.head = {}
        self._in_title = False

    def handle_starttag(self, tag, _):
        written = self.raw_attributes()
        if tag == "img" and "src" in written:
            kept = {k: written[k] for k in ("alt", "title") if k in written}
            self.links.append({"path": "IMG@/src", "url": written["src"], **kept})
        elif tag == "a" and "href" in written:
            self.links.append({"path": "A@/href", "url": written["href"]})
        elif tag == "meta":
            self.metas.append(written)
        elif tag == "base" and "href" in written:
            self.head["Base"] = written["href"]
        self._in_title = tag == "title"

    def handle_data(self, data):
        if self._in_title:
            self.head["Title"], self._in_title = data, False

    def raw_attributes(self):
        """The attributes of the start tag with their references unresolved."""
        text = self.get_starttag_text()
        found = html.parser.attrfind_tolerant.findall(
            text, html.parser.tagfind_tolerant.match(text, 1).end()
        )
        return {name.lower(): value.strip("'\"") for name, _, value in found}


def wat_of(pages, status="200"):
    """A WAT file of pages, as Common Crawl writes one for each WARC file."""
    out = [record("warcinfo", "x.warc.gz", {"Container": {"Filename": "x"}})]
    for url, body in pages.items():
        out.append(record("metadata", url, request()))
        out.append(record("metadata", url, response(body, status)))
    return b"".join(out)


def request():
    about = {"WARC-Header-Metadata": {"WARC-Type": "request"}}
    return {"Envelope": about | {"Payload-Metadata": {"HTTP-Request-Metadata": {}}}}


def response(body, status):
    links = _Links()
    links.feed(f"<html lang=en><body>{body}</body></html>")
    found = {"Head": links.head | {"Metas": links.metas}, "Links": links.links}
    of_http = {"Response-Message": {"Status": status}, "HTML-Metadata": found}
    payload = {"HTTP-Response-Metadata": of_http}
    return {"Container": {}, "Envelope": {"Payload-Metadata": payload}}


def record(kind, url, content):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + data + b"\r\n\r\n", mtime=0)


def read(path, kind):
    keys = config.curate()
    keys.source.kind = kind
    flow = []
    batches = list(kinds.read(str(path), kinds.spec_of(keys), flow))
    rows = [row for part in flow for row in part.to_pylist()]
    table = pa.Table.from_batches(batches, schema=schema.CANDIDATES)
    return table, {(r["stage"], r["unit"], r["reason"]): r["count"] for r in rows}


def test_they_have_the_candidates_of_the_pages_but_for_languages(tmp_path):
    tiny_web.write_warc(tmp_path / "a.warc.gz", PAGES)
    (tmp_path / "a.wat.gz").write_bytes(wat_of(PAGES))
    pages, of_pages = read(tmp_path / "a.warc.gz", "warc")
    links, of_links = read(tmp_path / "a.wat.gz", "wat")
    same = [n for n in schema.CANDIDATES.names if n not in ("language", "page_text")]
    assert links.select(same).to_pylist() == pages.select(same).to_pylist()
    assert links.num_rows == 5
    assert of_links == of_pages
    # <html lang> is not in a WAT file, a <meta> is.
    french = [
        url == "https://site.example/base" for url in links["page_url"].to_pylist()
    ]
    assert [code == "fr" for code in links["language"].to_pylist()] == french


def test_what_is_lost_is_counted(tmp_path):
    one = {WHOLE: PAGES[WHOLE]}
    not_html = {
        "Envelope": {
            "Payload-Metadata": {
                "HTTP-Response-Metadata": {"Response-Message": {"Status": "200"}}
            }
        }
    }
    deep = b'{"Envelope": {"Payload-Metadata": {"x": ' + b"[" * 100_000
    bad = [b"{", b'{"Envelope": []}', b"\xff", deep]
    members = [
        wat_of(one),
        wat_of(one, status="404"),
        record("metadata", WHOLE, not_html),
        record("metadata", "", response(PAGES[WHOLE], "200")),
        *(record("metadata", WHOLE, data) for data in bad),
        wat_of(one)[:-30],
    ]
    (tmp_path / "a.wat.gz").write_bytes(b"".join(members))
    found, flow = read(tmp_path / "a.wat.gz", "wat")
    assert found.num_rows == 3
    lost = {why: n for (_, unit, why), n in flow.items() if unit in ("pages", "files")}
    assert {why: n for why, n in lost.items() if why[0] not in "<>"} == {
        "http_status": 1, "not_html": 1, "no_url": 1, "bad_wat": 4, "truncated_warc": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("a &amp; b", "a & b"),
        ("&copy=2", "&copy=2"),  # an address with a parameter, as browsers read it
        ("&copy 2", "© 2"),
        ("&notit;", "&notit;"),
        ("&#65=&#x42;", "A=B"),
        ("&;&#;&#x;&", "&;&#;&#x;&"),
        ("&#1;&#xb&#x80;", "\x01\x0b€"),
        (None, None),
    ],
)
def test_references_are_resolved_as_in_attributes(written, value):
    assert wat.attribute(written) == value


WORDS = "&amp; &amp &lt; &copy &copy; &not &notin; &notit; &#65; &#x41 &# & ; = a 1 ."
REFERENCES = st.sampled_from(WORDS.split())


@given(st.lists(REFERENCES, max_size=8).map("".join))
def test_an_attribute_has_the_value_that_the_html_parser_gives(written):
    node = LexborHTMLParser(f'<img alt="{written}">').css_first("img")
    assert wat.attribute(written) == (node.attributes["alt"] or "")
