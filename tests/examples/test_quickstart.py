"""The sample web, built small, served by its real server, crawled by its crawler."""

import asyncio
import gzip
import http.client
import json
import re
import signal
import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType
from PIL import Image
from selectolax.lexbor import LexborHTMLParser

from data_prep import schema
from data_prep.sources import html, warc
from examples.quickstart import (
    crawl,
    groups,
    held_out,
    mess,
    names,
    phrases,
    picks,
    pictures,
    tags,
    warc_file,
)
from examples.quickstart.warc_file import Answer
from metaclip_jax import files
from metaclip_jax.data import records
from tests import waiting

HOST, IMAGES = tags.HOST, tags.IMAGE_HOST
PICTURES = 120
TREE = 64 << 20


def command(module, **arguments):
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    return [sys.executable, "-m", f"examples.quickstart.{module}", *flags]


def run(module, **arguments):
    result = subprocess.run(
        command(module, **arguments),
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


def build(folder, **arguments):
    chosen = {"pictures": PICTURES, "processes": 1} | arguments
    return run("build", output=folder / "site", held_out=folder / "held_out", **chosen)


def wait_for(file, process=None):
    waiting.until(file.exists, process)
    return int(file.read_text())


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def port(web):
    file = web / "port"
    process = subprocess.Popen(command("serve", site=web / "site", port_file=file))
    yield wait_for(file, process)
    process.terminate()
    process.wait()


def crawl_into(folder, port):
    hosts = ",".join(f"{host}=127.0.0.1:{port}" for host in (HOST, IMAGES))
    start = f"http://{HOST}/"
    return run(
        "crawl", start_url=start, host_map=hosts, output=folder, pages_per_file=20
    )


@pytest.fixture(scope="module")
def crawled(web, port):
    crawl_into(web / "crawl", port)
    return web / "crawl"


def get(port, path, host=HOST):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=waiting.SECONDS)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def pages_of(site):
    """All pages with their address, as curation reads them."""
    folder = site / "www" / HOST
    special = json.loads((site / "site.json").read_text())["responses"]
    for file in sorted(folder.rglob("*.html")):
        path = file.relative_to(folder).as_posix()
        kind = special.get(f"{HOST}/{path}", {}).get("content_type")
        url = f"http://{HOST}/{path.removesuffix('index.html')}"
        yield warc.Page(url, file.read_bytes(), kind or "text/html; charset=utf-8")


def candidates_of(site):
    limits = {
        "max_texts_per_page": 10_000,
        "max_text_chars": 2_000,
        "max_url_chars": 2_048,
        "max_tree_bytes": TREE,
    }
    rows, drops = [], Counter()
    for page in pages_of(site):
        found, lost = html.parse_page(page, **limits)
        rows += schema.from_rows(found, schema.CANDIDATES).to_pylist()
        drops += lost
    return rows, drops


def text_of(page):
    return html.page_text(page, max_tree_bytes=TREE)


def held_out_of(folder):
    """All pictures, the held-out ones, and the drawings, as the build had them."""
    inputs = json.loads((folder / "site" / "manifest.json").read_text())["inputs"]
    seed = inputs["seed"]
    everything = names.choose(names.all_pictures(), inputs["pictures"], seed=seed)
    codes = [picture.code for picture in everything]
    drawings = pictures.render_all(codes, processes=1)
    held = held_out.hold_out(
        everything, drawings, count=inputs["held_out_count"], seed=seed
    )
    return everything, held, drawings


@pytest.fixture(scope="module")
def chosen_of_web(web):
    return held_out_of(web)


@pytest.fixture(scope="module")
def candidates(web):
    return candidates_of(web / "site")


# Names


def test_a_name_falls_into_subject_gender_role_and_tone():
    by_name = {picture.name: picture for picture in names.all_pictures()}
    firefighter = by_name["woman firefighter, medium-dark skin tone"]
    assert firefighter.subject == "woman firefighter"
    assert (firefighter.gender, firefighter.role) == ("woman", "firefighter")
    assert firefighter.tones == ("medium-dark",)
    assert firefighter.translations["de"] == "feuerwehrfrau mitteldunkle hautfarbe"
    assert by_name["firefighter, dark skin tone"].gender == "person"
    assert by_name["bald man, light skin tone"].role == "bald"
    assert by_name["man kneeling facing right"].role == "kneeling"
    assert by_name["old man"].gender == ""
    assert by_name["flag of Germany"].group == "flags"
    couple = "men holding hands, light and dark skin tones"
    assert by_name[couple].tones == ("light", "dark")


def test_names_are_unique_and_thousands():
    all_names = [picture.name for picture in names.all_pictures()]
    assert len(set(all_names)) == len(all_names) > 3_500


def test_groups_follow_from_words():
    for name, group in {
        "red apple": "food",
        "fox": "animals",
        "seven-thirty": "clocks",
        "electric guitar": "music",
        "unheard of": "things",
    }.items():
        assert groups.group_of(name, person=False) == group
    assert groups.group_of("cook", person=True) == "people"


def test_articles_before_nouns():
    by_name = {picture.name: picture for picture in names.all_pictures()}
    assert phrases.a(by_name["office worker"]) == "an office worker"
    assert phrases.a(by_name["flag of Peru"]) == "the flag of Peru"
    assert phrases.a(by_name["scissors"]) == "scissors"
    assert phrases.a(by_name["Santa Claus"]) == "Santa Claus"


# Choices and pictures


def test_choices_depend_on_seed_and_key_alone():
    assert picks.draw(0, "a", 1) == picks.draw(0, "a", 1)
    assert picks.draw(0, "a", 1) != picks.draw(1, "a", 1)
    assert picks.shuffled(0, [3, 1, 2], "k") == picks.shuffled(0, [1, 2, 3], "k")
    values = np.array([picks.draw(0, i) for i in range(10_000)])
    assert 0 <= values.min() and values.max() < 1
    assert abs(values.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 10_000)


def test_pictures_look_alike_with_their_mirror_image_only_if_asked():
    left = Image.new("RGB", (96, 96), (255, 255, 255))
    left.paste((0, 0, 0), (0, 0, 30, 96))
    right = left.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    other = Image.new("RGB", (96, 96), (200, 0, 0))
    thumbnails = np.stack([pictures.thumbnail(i) for i in (left, right, other, left)])
    assert list(pictures.look_alikes(thumbnails, mirrored=False)) == [(0, 3)]
    mirrored = list(pictures.look_alikes(thumbnails, mirrored=True))
    assert mirrored == [(0, 1), (0, 3), (1, 3)]
    assert pictures.components(4, mirrored) == [0, 0, 2, 0]


# Held out


def test_held_out_names_and_pictures_stand_nowhere_on_the_site(web, chosen_of_web):
    everything, held, drawings = chosen_of_web
    assert len(held.chosen) >= 10
    withheld = [p for p in everything if p.code in held.withheld]
    rows, _ = candidates_of(web / "site")
    texts = {row["text"] for row in rows}
    views = (web / "site" / "pageviews.txt").read_text().replace("_", " ")
    pages = map(text_of, pages_of(web / "site"))
    read = [line for page in pages for line in (page.title, *page.text.splitlines())]
    all_words = "\n".join(map(held_out.words, [*texts, *read, *views.splitlines()]))
    for picture in held.chosen:
        assert held_out.words(picture.name) not in all_words, picture.name
    lowered = {text.lower() for text in texts}
    for picture in withheld:
        assert picture.name.lower() not in lowered
        assert not texts & set(picture.translations.values())
    own = {d for p in withheld for d in (drawings[p.code].jpg, drawings[p.code].png)}
    served = {f.read_bytes() for f in (web / "site" / "www").rglob("*") if f.is_file()}
    assert not served & own
    stems = {f.stem for f in (web / "site" / "www").rglob("*.*")}
    assert not stems & {p.code.lower() for p in withheld}


def test_no_held_out_picture_looks_like_one_on_the_site_or_another(chosen_of_web):
    everything, held, rendered = chosen_of_web
    thumbnails = np.stack([rendered[p.code].thumbnail for p in everything])
    shown = {picture.code for picture in held.chosen}
    for i, j in pictures.look_alikes(thumbnails, mirrored=True):
        a, b = everything[i].code, everything[j].code
        assert (a in held.withheld) == (b in held.withheld)
        assert not {a, b} <= shown


def test_each_part_of_a_held_out_composition_stays_with_other_partners(chosen_of_web):
    everything, held, _ = chosen_of_web
    left = [p for p in everything if p.code not in held.withheld]
    tones = Counter((p.role, p.gender) for p in left if len(p.tones) == 1)
    partners = Counter((p.role, p.tones) for p in left)
    for picture in held.chosen:
        assert tones[picture.role, picture.gender] >= 3
        if picture.gender:
            assert partners[picture.role, picture.tones] >= 1


def test_the_held_out_dataset_holds_one_unique_name_a_picture(web, chosen_of_web):
    dataset = records.open_dataset(str(web / "held_out"))
    count = sum(dataset.shard_lengths)
    read = [records.decode(d) for d in records.read(dataset, np.arange(count))]
    _, held, _ = chosen_of_web
    assert [r.texts for r in read] == [(p.name,) for p in held.chosen]
    assert len({r.texts for r in read}) == len({r.sha256 for r in read}) == count
    for task, least in (("zero_shot", 4), ("skin_tone", 5)):
        task = json.loads((web / "held_out" / f"{task}.json").read_text())
        assert set(task["labels"]) == {r.image_id for r in read}
        assert len(task["class_names"]) >= least
        assert set(task["labels"].values()) <= set(range(len(task["class_names"])))
        assert all("{}" in template for template in task["templates"])


# Building


def test_a_killed_build_is_repaired_and_the_same_seed_gives_the_same_bytes(
    web, tmp_path
):
    stale = tmp_path / "site" / "www" / HOST / "stale.html"
    stale.parent.mkdir(parents=True)
    stale.write_text("of a killed build with other flags")
    build(tmp_path, processes=2)
    assert not stale.exists()
    for part in ("site", "held_out"):
        first = (web / part / "manifest.json").read_bytes()  # with sha256 of all files
        assert (tmp_path / part / "manifest.json").read_bytes() == first


def test_a_finished_site_is_left_alone_and_other_flags_are_refused(web):
    before = (web / "site" / "manifest.json").stat().st_mtime_ns
    assert "are finished" in build(web)
    assert (web / "site" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(AssertionError, match="finished output of another run"):
        build(web, seed=7)


# The content of the pages


def test_the_site_has_the_mess_of_the_web(web):
    markup_text = b"\n".join(page.html for page in pages_of(web / "site"))
    for pattern in (
        rb'src="\.\./', rb'src="/', rb'src="//images\.', rb'src="http://images\.',
        rb"<base href=", rb"srcset=", rb"<source ", rb"data-src=", rb'src="data:image',
        rb"data-image-title=", rb"title=", rb"<figcaption>", rb'alt=""', rb'alt="icon',
        rb'alt="image"', rb"t\.gif\?page=", rb"&#\d+;", rb"&amp;", rb"<IMG ",
        rb"charset=koi8-r|charset=shift_jis", rb'<html>', rb'<html lang="en"',
        rb'<html lang="(ar|es|id)"', rb'<main lang="',
        *(f"/{kind.replace('_', '-')}/".encode() for kind in mess.KINDS),
    ):  # fmt: skip
        assert re.search(pattern, markup_text), pattern
    special = json.loads((web / "site" / "site.json").read_text())["responses"]
    assert {301, 302, 410, 503} <= {answer.get("status") for answer in special.values()}


def test_every_shown_picture_has_several_english_texts(candidates, chosen_of_web):
    everything, held, _ = chosen_of_web
    rows, drops = candidates
    said = [held_out.words(row["text"]) for row in rows]
    texts_of = {
        p.code: sum(held_out.words(p.subject) in text for text in said)
        for p in everything
        if p.code not in held.withheld
    }
    assert min(texts_of.values()) >= 2
    assert len(rows) / len(texts_of) > 4
    assert drops["empty_text"] and drops["text_too_long"]


def test_words_of_names_stand_in_the_text_of_pages(web, chosen_of_web):
    everything, held, _ = chosen_of_web
    words = Counter()
    for page in pages_of(web / "site"):
        words.update(re.findall(r"[\w’-]+", text_of(page).text.lower()))
    for picture in everything:
        if picture.code not in held.withheld:
            for word in re.findall(r"[\w’-]+", picture.name.lower()):
                assert words[word] >= 2, (picture.name, word)


def test_legacy_charsets_are_read_back(web):
    sayings = {page.url: text_of(page).text for page in pages_of(web / "site")}
    assert "Здесь вы видите" in sayings[f"http://{HOST}/ru/1.html"]
    assert "ここでは小さな絵" in sayings[f"http://{HOST}/ja/1.html"]
    assert "Vous trouverez ici" in sayings[f"http://{HOST}/fr/1.html"]


def test_pageviews_are_in_wikimedias_format_and_fall_off(web):
    lines = (web / "site" / "pageviews.txt").read_text().splitlines()
    fields = [line.split(" ") for line in lines]
    assert all(len(row) == 4 and row[2].isdigit() for row in fields)
    english = sorted((int(row[2]) for row in fields if row[0] == "en"), reverse=True)
    assert english[0] >= 2 * english[1] - 1 > 2 * english[8]


# The server


def test_the_server_tells_hosts_apart_and_sends_the_special_answers(port, web):
    assert get(port, "/")[0] == 200
    assert get(port, "/", host="elsewhere.example")[0] == 404
    assert get(port, "/t.gif?page=x", host=IMAGES)[1]["Content-Type"] == "image/gif"
    assert get(port, "/t.gif")[0] == 404
    special = json.loads((web / "site" / "site.json").read_text())["responses"]
    for place, answer in special.items():
        host, slash, path = place.partition("/")
        status, headers, _ = get(port, slash + path.replace(" ", "%20"), host=host)
        assert status == answer.get("status", 200)
        for name in ("location", "content_type"):
            if name in answer:
                assert headers[name.replace("_", "-").title()] == answer[name]


def test_no_request_leaves_the_site(port):
    for path in (
        "/../../site.json", "/..%2f..%2fsite.json", "//etc/passwd", "/%00", "/pictures",
        "/pictures/../../../../../../etc/passwd", "/.lock", f"/../{IMAGES}/t.gif",
    ):  # fmt: skip
        assert get(port, path)[0] in {400, 404}, path


def test_a_used_port_is_refused_in_one_line(web, port):
    used = command("serve", site=web / "site", port=port)
    done = subprocess.run(used, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"Error: wanted to open --port={port} of 127.0.0.1, got 'Address already in use"
    )
    assert "Traceback" not in done.stderr


def test_the_server_ends_when_its_parent_is_killed(web, tmp_path):
    file = tmp_path / "port"
    arguments = command("serve", site=web / "site", port_file=file)
    code = (
        "import signal, subprocess, sys\n"
        f"p = subprocess.Popen({arguments!r})\n"
        "print(p.pid, flush=True)\nsignal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as one:
        server = int(one.stdout.readline())
        wait_for(file)
        one.send_signal(signal.SIGKILL)
    waiting.until(lambda: not waiting.is_running(server))


# The crawl


def records_of(folder):
    for file in sorted(folder.glob("*.warc.gz")):
        with file.open("rb") as stream:
            for record in ArchiveIterator(stream, record_types=WarcRecordType.response):
                assert record.verify_payload_digest()
                yield record.headers["WARC-Target-URI"], record.http_headers.status_code


def test_the_crawl_reaches_every_page_but_what_robots_forbid(web, crawled):
    found = Counter(dict(records_of(crawled)))
    pages = {page.url for page in pages_of(web / "site")}
    private = {url for url in pages if "/private/" in url}
    assert private
    assert {url for url, status in found.items() if status == 200} >= pages - private
    assert not private & set(found)
    assert {301, 404} <= set(found.values())
    manifest = files.read_json(crawled / "manifest.json")
    assert manifest["answers"] == len(found)
    assert len(manifest["files"]) == -(-len(found) // 20) >= 2


def test_crawls_repeat_byte_for_byte_and_a_finished_one_is_left_alone(
    web, crawled, port, tmp_path
):
    stale = tmp_path / "crawl-00099.warc.gz"
    stale.write_bytes(gzip.compress(b"of a killed crawl"))
    crawl_into(tmp_path, port)
    assert not stale.exists()
    for file in crawled.glob("crawl-*"):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    # The port may be another one by then.
    assert "is finished" in crawl_into(tmp_path, 1)


def test_without_a_server_the_crawl_fails_and_says_so(tmp_path):
    with pytest.raises(AssertionError, match="check that the server runs"):
        crawl_into(tmp_path, 1)
    assert not (tmp_path / "manifest.json").exists()


def test_the_order_is_that_of_the_links_whichever_answer_comes_first():
    links_of = {"": "abc", "a": "de", "b": "f", "c": "", "d": "", "e": "a", "f": ""}

    async def crawl_with(delays):
        async def fetch(url):
            name = url.rpartition("/")[2]
            await asyncio.sleep(delays.get(name, 0))
            body = "".join(f"<a href={link}>" for link in links_of[name]).encode()
            return Answer(url, 200, (("Content-Type", "text/html"),), body)

        answers = crawl.breadth_first(
            fetch,
            "http://x.example/",
            allowed=lambda url: not url.endswith("f"),
            concurrency=3,
            delay_seconds=0,
            max_pages=5,
        )
        return "".join([answer.url[-1] async for answer in answers])

    for delays in ({}, {"a": 0.02}, {"b": 0.03, "a": 0.01}):
        assert asyncio.run(crawl_with(delays)) == "/abcd"


def test_links_stay_on_the_host_and_lose_their_fragment():
    body = (
        b'<base href="/sub/"><a href="a.html#x">1</a><a href=" a.html ">2</a>'
        b'<a href="http://other.example/">3</a><a href="mailto:x@x.example">4</a>'
        b'<a href="http://[">5</a><a href="//x.example/b">6</a><a>7</a>'
    )
    page = Answer("http://x.example/p", 200, (("Content-Type", "text/html"),), body)
    wanted = ["http://x.example/sub/a.html", "http://x.example/b"]
    assert crawl.links(page) == wanted
    moved = Answer("http://x.example/p", 301, (("Location", "/q"),))
    assert crawl.links(moved) == ["http://x.example/q"]


def test_warc_records_hold_status_headers_and_body(tmp_path):
    headers = (
        ("Content-Type", "text/html"),
        ("Transfer-Encoding", "chunked"),
        ("Date", "Sat, 01 Mar 2025 12:00:00 GMT"),
        ("X-Bytes", b"\xff \xc3\xbc".decode("utf-8", "surrogateescape")),
    )
    answer = Answer("http://x.example/\u00fc", 404, headers, b"<p>no\r\n")
    file = tmp_path / "x.warc.gz"
    warc_file.write(file, [answer, answer], software="test")
    with file.open("rb") as stream:
        info, first, second = [
            (r.headers.to_dict(), r.http_headers, r.reader.read())
            for r in ArchiveIterator(stream, verify_digests=True)
        ]
    assert info[0]["WARC-Type"] == "warcinfo"
    assert first[0] == second[0]
    assert first[0]["WARC-Date"] == "2025-03-01T12:00:00Z"
    assert re.fullmatch(r"<urn:uuid:[0-9a-f-]{36}>", first[0]["WARC-Record-ID"])
    assert first[1].status_code == 404
    assert first[1].get("Transfer-Encoding") is None
    assert first[1].get_bytes(b"X-Bytes") == b"\xff \xc3\xbc"
    assert first[2] == b"<p>no\r\n"


def test_each_warc_record_is_a_gzip_member_that_our_own_reader_reads(tmp_path):
    headers = (("Content-Type", "text/html"),)
    answers = [Answer(f"http://x.example/{i}", 200, headers, b"x" * i) for i in (1, 2)]
    file = tmp_path / "x.warc.gz"
    warc_file.write(file, answers, software="test")
    rest, members = file.read_bytes(), []
    while rest:
        member = zlib.decompressobj(wbits=31)
        members.append(member.decompress(rest))
        rest = member.unused_data
    assert [one.startswith(b"WARC/1.1\r\n") for one in members] == [True] * 3
    assert list(warc.read_pages(file, max_page_bytes=100)) == [
        warc.Page(answer.url, answer.body, "text/html") for answer in answers
    ]


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ("Disallow: /", ""),
        ("Disallow: /private/\nAllow: /private/ok$", "/b?x=1 /private/ok /c"),
        ("Disallow: /*?x=", "/private/a /private/ok /c"),
    ],
)
def test_robots_rules_are_read_with_their_wildcards(rules, allowed):
    paths = ("/private/a", "/b?x=1", "/private/ok", "/c")

    body = f"User-agent: *\n{rules}\nCrawl-delay: 0.5\n".encode()

    async def fetch(url):
        return Answer(url, 200, (), body)

    found = asyncio.run(crawl.read_robots(fetch, "http://x.example/a/b"))
    assert found.crawl_delay("us") == 0.5
    left = [p for p in paths if found.can_fetch(f"http://x.example{p}", "us")]
    assert left == [p for p in paths if p in allowed.split()]


@pytest.mark.parametrize(
    ("status", "redirects", "allowed"),
    [
        *((status, 0, True) for status in (400, 401, 403, 404, 410, 429, 451)),
        (200, 5, False),  # followed to a file that forbids all
        (404, 5, True),
        (200, 6, True),  # more than are followed: unavailable
        *((status, 0, None) for status in (0, 500, 502, 503, 504, 599)),
        (503, 1, None),
    ],
)
def test_an_unavailable_robots_txt_allows_all_an_unreachable_one_nothing(
    status, redirects, allowed
):
    """As RFC 9309 says; None = the crawl ends with an error."""

    async def fetch(url):
        hops = int(url.partition("?")[2] or 0)
        if hops < redirects:
            return Answer(url, 301, (("Location", f"/robots.txt?{hops + 1}"),))
        return Answer(url, status, (), b"User-agent: *\nDisallow: /\n")

    reading = crawl.read_robots(fetch, "http://x.example/a/b")
    if allowed is None:
        with pytest.raises(RuntimeError, match="nothing may be crawled"):
            asyncio.run(reading)
    else:
        found = asyncio.run(reading)
        assert found.can_fetch("http://x.example/a/b", "us") == allowed


def test_markup_survives_a_parser():
    shown = tags.PageImage(
        "http://images.sample-web.example/i/a.jpg", alt='a "b" <c> & d', caption="<i>"
    )
    tree = LexborHTMLParser(tags.image(shown, page_path="/p/q.html", seed=0))
    assert tree.css_first("img").attributes["alt"] == 'a "b" <c> & d'
    assert tree.css_first("figcaption").text() == "<i>"
    assert tags.named_entities("é ☃ <b>") == "&eacute; &#9731; <b>"


@pytest.mark.slow
def test_the_whole_site_holds_out_at_least_300_compositions(tmp_path):
    build(tmp_path, pictures=0, processes=2)
    held = held_out_of(tmp_path)
    test_held_out_names_and_pictures_stand_nowhere_on_the_site(tmp_path, held)
    test_each_part_of_a_held_out_composition_stays_with_other_partners(held)
    task = json.loads((tmp_path / "held_out" / "zero_shot.json").read_text())
    assert len(task["labels"]) >= 300
    assert len(task["class_names"]) >= 20
