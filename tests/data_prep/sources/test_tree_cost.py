"""No page takes the parser's memory or time, and the estimate that sees to it is true.

Hostile pages are made of pieces that the parser's algorithms stumble over. The estimate
has to be an upper bound for any sequence of them; what it lets through is read.
"""

import os
import random
import string
import subprocess
import sys

import pytest
from selectolax.lexbor import LexborDocumentOptions, LexborHTMLParser

from data_prep import config
from data_prep.sources import html, tree_cost
from data_prep.sources.warc import LostPage, Page

PAGES = config.curate().pages
LIMITS = {key: PAGES[key] for key in PAGES if key != "max_page_bytes"}
TAGS = """a applet b body br button caption center code col colgroup dd div dl dt em
    font foreignObject form frame frameset g h1 h2 head hr html i iframe image
    img input li marquee math menu mi nobr noembed object ol option optgroup p
    path plaintext pre rp rt ruby script section select span style svg table
    tbody td template textarea th title tr ul x-y xmp figure figcaption picture
    source annotation-xml desc""".split()
OTHERS = """text <!-- --> <!--x--> <![CDATA[ ]]> &amp; < </> <?x> <!--> <!doctype~html>
    <b~id=N> <i~id=N> <a~href=N> <svg~xml:lang=en> <use~xlink:href=x> </p></p>
    a~longer~text ~~~~~~~~~~ <!--~a~comment~of~several~words--> <img~src=a~alt=b>
    <p~N~N0~N1> </x~class=something> xlink:href=x> id=N>""".split()
VALUES = ["1", "'>'", "'</b>'", "N", '"', "a/"]


def sequence(choose, most=12):
    """Some tags, open or closed, with attributes or without, and what is no tag."""
    pieces = []
    for _ in range(choose.randrange(1, most)):
        kind = choose.random()
        tag = choose.choice(TAGS)
        if kind < 0.5:
            names = choose.choices(
                ["id", "class", "lang", "xml:lang", "xlink:href", "aN"],
                k=choose.choice([0, 0, 0, 1, 2, 5]),
            )
            values = "".join(f" {name}={choose.choice(VALUES)}" for name in names)
            pieces.append(f"<{tag}{values}{choose.choice(['', '', '/'])}>")
        elif kind < 0.85:
            pieces.append(f"</{tag}>")
        else:
            pieces.append(choose.choice(OTHERS).replace("~", " "))
    return "".join(pieces)


def repeated(part, times):
    """Every N is another number each time, so that equal tags differ."""
    return "".join(part.replace("N", str(i)) for i in range(times))


def small_page(seed):
    choose = random.Random(seed)
    return "".join(
        repeated(sequence(choose), choose.choice([1, 1, 2, 5, 20, 80]))
        for _ in range(choose.randrange(1, 7))
    ).encode()


def large_page(seed):
    """A page of up to 4 MB of a few sequences, each as often as there is room for."""
    choose = random.Random(seed)
    parts = [sequence(choose, most=5) for _ in range(choose.randrange(1, 4))]
    size = choose.choice([10_000, 100_000, 1_000_000, 4_000_000]) // len(parts)
    page = "".join(repeated(part, size // len(part)) for part in parts)
    return page[: PAGES.max_page_bytes].encode()


def measured(page):
    """Returns what the tree takes at least in bytes, and the sum of all depths."""
    root = LexborHTMLParser(page, options=LexborDocumentOptions.WO_EVENTS).root
    size = depths = 0
    node, depth, end = root, 1, root.mem_id
    while True:
        if node.is_element_node:
            size += 180 + 230 * len(node.attributes)
            depths += depth
        else:
            size += 110
        if node.first_child is not None:
            node, depth = node.first_child, depth + 1
            continue
        while node.next is None:
            node, depth = node.parent, depth - 1
            if node is None or node.mem_id == end:
                return size, depths
        node = node.next


@pytest.mark.parametrize("first", range(0, 800, 100))
def test_the_estimate_is_never_below_the_tree(first):
    compared = 0
    for seed in range(first, first + 100):
        page = small_page(seed)
        bound, steps, has_context = tree_cost.estimate(page)
        if bound > 64 << 20 or steps >= tree_cost.MAX_STEPS:
            continue  # not to be built without a guard
        size, depths = measured(page)
        assert size - 1_000 <= bound, seed  # <html>, <head> and <body> are not counted
        assert depths - 10 <= 3 * steps, seed
        if not has_context:
            tree = LexborHTMLParser(page)
            context = tree.css("base, figcaption, [lang], meta[http-equiv]")
            assert {node.tag for node in context} <= {"html"}, seed
        compared += 1
    assert compared > 90


WRITTEN = {
    "a table": "<tr>\n  <td class=x>cell</td>\n  <td>N</td>\n</tr>\n",
    "a table without end tags": "<tr>\n  <td class=x>cell\n  <td>N\n",
    "fonts that are not closed": "<tr><td><font size=2>cell</td><td><b>N</td></tr>",
    "blocks that are not closed": "<tr><td><div>cell</td><td><span>N</td></tr>",
    "tables in cells": "<tr><td><table><tr><td>nav</table><td><p>N<br>more</tr>",
    "a list": "<li class=N><a href=N>item</a></li>\n",
    "a list without end tags": "<li><a href=N>item N</a>\n",
    "lists without end tags": "<ul><li>item N<ul><li>item<li>item</ul></ul>",
    "paragraphs without end tags": "<p>A text of <b>some</b> words, N of them.\n",
    "terms": "<dt>term N<dd>what it means\n",
    "articles": "<h2 id=N><span>N</span></h2><p>Text<sup><a href=N>[N]</a></sup></p>",
    "posts": "<div class=post id=N><a href=N><img src=N alt=N></a><p>Text</p></div>\n",
    "options": "<option value=N>item N\n",
    "icons": "<a href=N><svg viewBox=N><path d=N /><g><use href=N></use></g></svg></a>",
    "formatting in the wrong order": "<p><b>some <i>words</b> and</i> others N</p>",
    "scripts": "<script>if (a<b) { c('<b>N') }</script><div id=N>text</div>\n",
}
AROUND = {
    "table": ("<table>", "</table>"),
    "table in a layout": ("<table><tr><td><font face=x><table>", "</table></table>"),
    "body": ("<!doctype html><html><body><div>", "</div></body></html>"),
}


@pytest.mark.parametrize(
    "part, has_context",
    [
        ("<html lang=en><p class=lang data-lang=x>lang=", False),
        ("<meta http-equiv=content-type content=x>", False),
        ('<meta http-equiv="X-UA-Compatible" content=x>', False),
        ("<META HTTP-EQUIV = 'Content-Language' content=x>", True),
        ("<meta http-equiv=content-language>", True),
        ('<div title="1"LANG>', True),
        ("<svg xml:lang=en>", True),
        ("<BASE>", True),
        ("<figcaption>", True),
    ],
)
def test_the_context_of_images_is_found(part, has_context):
    assert tree_cost.estimate(f"<img src=a>{part}".encode()).has_context == has_context


@pytest.mark.parametrize("name", WRITTEN)
def test_long_pages_as_people_write_them_are_read(name):
    part = WRITTEN[name]
    for before, after in AROUND.values():
        if part.startswith("<tr>") == (before == AROUND["body"][0]):
            continue
        page = before + repeated(part, 200_000 // len(part)) + after
        size, steps, _ = tree_cost.estimate(page.encode())
        assert size < PAGES.max_tree_bytes and steps < tree_cost.MAX_STEPS


# Each is n parts long; all of these once took gigabytes or minutes within 4 MB.
HOSTILE = {
    "formatting in each paragraph": lambda n: (
        "<p>" + repeated("<b id=N>", n // 2) + "</p>" + "<p>x</p>" * (n // 2)
    ),
    "formatting closed in the wrong order": lambda n: (
        repeated("<b id=N><div>", n) + "</b>" * n
    ),
    "formatting with one long attribute": lambda n: (
        f"<p><b id='{'x' * n}'></p>" + "<p>x" * n
    ),
    "formatting with many attributes": lambda n: repeated(
        f"<b {' '.join(string.ascii_letters)}=N>", n // 20
    ),
    "formatting before cells": lambda n: (
        "<table>" + repeated("<tr><b id=N><td></b>", n) + "</table>" + "<p>x</p>" * n
    ),
    "formatting behind <svg> with HTML": lambda n: (
        repeated("<b id=N><svg><desc></svg></b>", n) + "<p>x</p>" * n
    ),
    "formatting behind a script with a script": lambda n: (
        repeated("<b id=N>", n)
        + "<script><!--<script></script>"
        + "</b>" * n
        + "--></script>"
        + "<p>x</p>" * n
    ),
    "options": lambda n: "<select>" + "<option>x" * n,
    "options that are copied": lambda n: (
        "<select><button><selectedcontent></button>" + "<option><img alt=x>" * n
    ),
    "attributes of one tag": lambda n: f"<p {repeated('aN ', n)}>",
    "attributes of one tag again and again": lambda n: repeated("<body aN>", n),
    "attributes that are all different": lambda n: repeated("<p aN>", n),
    "elements that are all different": lambda n: repeated("<xN></xN>", n),
    "depth": lambda n: "<div>" * n,
    "depth of lists": lambda n: "<ul><li>" * n,
    "depth of tables": lambda n: "<table><tr><td>" * n,
    "depth of links": lambda n: "<a><div>" * n,
    "depth of self-closing elements": lambda n: "<svg><p>" + "<x/>" * n,
    "end tags that make elements": lambda n: "</p>" * n,
    "texts before a table": lambda n: "<table>" + "a<tr>" * n,
    "texts between ignored start tags": lambda n: "a word or more<td a=long>" * n,
    "texts between ignored end tags": lambda n: "a word or more</x a=long>" * n,
    "texts between tables and comments": lambda n: (
        "<table>" + "a word or more<!-- a long comment -->" * n
    ),
    "texts between cells": lambda n: (
        "<table>" + "a word or more<tr><td>a word or more</td></tr>" * n
    ),
    "texts behind a table that was left open": lambda n: (
        "<table><tr><td><div></td></tr></table>" + "a word or more<td a=long>" * n
    ),
    "spaces in a table": lambda n: "<table>" + f"{' ' * 20}<p a=long></p>" * n,
    "spaces before <body>": lambda n: "</head>" + f"{' ' * 20}<meta a=long>" * n,
    "spaces behind <body>": lambda n: "</body>" + f"{' ' * 20}<!-- long -->" * n,
    "spaces among frames": lambda n: "<frameset>" + f"{' ' * 20}<b a=long>" * n,
    "comments": lambda n: "<!>" * n,
    "comments in <svg>": lambda n: "<svg>" + "<![CDATA[" * n,
    "styles in <svg>": lambda n: "<svg>" + "<style>" * n,
    "templates": lambda n: "<template>" * n,
    "frames": lambda n: "<frameset>" * n,
    "images": lambda n: "<img>" * n,
    "images with texts": lambda n: repeated("<img alt=N src=N>", n),
    "images of one picture": lambda n: "<picture>" + "<img alt=x>" * n,
    "sources of one image": lambda n: "<picture>" + "<source srcset=a>" * n + "<img>",
    "figures in figures": lambda n: "<figure><img src=a><figcaption>x" * n,
    "captions": lambda n: "<figure><img src=a><figcaption>x</figcaption></figure>" * n,
    "languages": lambda n: "<div lang=en><img src=a alt=b>" * n,
    "addresses in one srcset": lambda n: f"<img alt=x srcset='{'a 1x,' * n}'>",
    "entities": lambda n: f"<img src=a alt='{'&lt;' * n}'>" + "&lt;" * n,
    "zeros": lambda n: "\0" * n + "<p a=" + "\0" * n,
}
LARGE_PAGES = 60
SIZES = (2_000, 40_000, 400_000)

# Runs in a process of its own: what a hostile page could do is to end it.
READ_ALL = """
import gc, resource, sys
sys.path.insert(0, sys.argv[1])
import test_tree_cost as tests

tests.read(b"<p>")
tests.read(tests.large_page(0))
within = tests.memory("VmRSS") + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (tests.memory("VmSize") + (400 << 20),) * 2)
for name, page in tests.hostile_pages():
    outcome = tests.read(page)
    assert outcome != "parser_error", name
    assert tests.memory("VmHWM") < within, (name, tests.memory("VmHWM"), within)
    print(outcome, name)
"""


def hostile_pages():
    for name, make in HOSTILE.items():
        for size in SIZES:
            page = make(size)[: PAGES.max_page_bytes].encode()
            yield f"{size} {name}", page
    for seed in range(LARGE_PAGES):
        yield f"seed {seed}", large_page(seed)


def read(content):
    """Reads a page in both ways; returns the reason why it was dropped, or "read"."""
    kind = "text/html; charset=utf-8"
    page = Page("https://a.example/", content, kind)
    # Of pages without images there is no tree.
    with_image = Page("https://a.example/", content + b"<img>", kind)
    parsed = html.parse_page(with_image, **LIMITS)
    text = html.page_text(page, max_tree_bytes=PAGES.max_tree_bytes)
    assert isinstance(parsed, LostPage) == isinstance(text, LostPage)
    return parsed.reason if isinstance(parsed, LostPage) else "read"


def memory(name):
    """Bytes by the kernel's account of this process: VmRSS, VmSize or VmHWM (the peak).

    The peak of getrusage would not do: it counts what the process was forked from, too.
    """
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith(f"{name}:")]
    return int(line.split()[1]) << 10


def test_no_page_takes_more_memory_than_it_may():
    folder = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    outcomes = [line.split()[0] for line in done.stdout.splitlines()]
    assert len(outcomes) == len(HOSTILE) * len(SIZES) + LARGE_PAGES
    assert set(outcomes) == {"read", "tree_too_large", "tree_too_slow"}
