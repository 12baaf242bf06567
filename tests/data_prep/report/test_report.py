"""The report, made from small inputs in the real formats."""

import base64
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from data_prep.report import curation, examples, load
from data_prep.report import page as report_page
from data_prep.sinks import array_record
from metaclip_jax.data import records
from metaclip_jax.pages import page
from tests import browser, small_records

T = 40
ENTRIES = ["image", "icon", "cat", "red apple", "bicycle", "\u732b", "violin", "kite"]
POOL = [900, 420, 90, 44, 31, 12, 5, 1]
HOSTILE = [
    '<script>alert("1")</script> icon',
    "\"><img src=x onerror=alert(1)> & 'quoted' image",
    "\u202eevil\u2066 right-to-left override",
    "</style></title><style>*{display:none}</style>",
    "icon " + "w" * 5000,
    "z" + "\u0301" * 400 + "algo",
    "\u0645\u0631\u062d\u0628\u0627 cat \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "a\x00b\x1b[31m\u2028c\ufffe\U000e0041 image",
    "javascript:alert(1) <a href='http://evil.example'>icon</a>",
    "&lt;b&gt; &amp;amp; cat",
]


def jpeg(index: int, side: int = 96) -> bytes:
    """A disc on white, in a different colour for each."""
    picture = Image.new("RGB", (side, side), "white")
    colour = tuple(60 + (index * step) % 160 for step in (37, 71, 113))
    ImageDraw.Draw(picture).ellipse((8, 8, side - 8, side - 8), fill=colour)
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def record(index: int, texts: list[str], *, image: bytes = b"") -> records.Record:
    """A record whose texts match the entries that they contain."""
    return small_records.record(
        f"https://images.example/{index}.jpg",
        texts,
        image=image or jpeg(index),
        entry_ids=[
            [i for i, entry in enumerate(ENTRIES) if entry in text] for text in texts
        ],
        width=96,
        height=96,
    )


def data_card(texts: int, images: int) -> dict:
    stages = [
        ("read", "pages", 120, {"http_status": 3, "not_html": 2}),
        ("parse", "texts", 2400, {"empty_text": 400, "text_too_long": 5}),
        ("match", "texts", 1995, {"no_match": 700}),
        ("balance", "texts", 1295, {"not_drawn": 1295 - texts}),
    ]
    return {
        "name": "tiny_web",
        "version": "0.1.0",
        "records": images,
        "texts": texts,
        "balanced": {"rule": "v1", "t": {"en": T}, "seed": 0, "slack": 1.5},
        "metadata": {
            "en": {"entries": 20, "fingerprint": "ab" * 32, "sources": {"unigram": 20}}
        },
        "funnel": [
            {
                "stage": stage,
                "unit": unit,
                "in": received,
                "out": received - sum(drops.values()),
                "drops": drops,
            }
            for stage, unit, received, drops in stages
        ],
        "languages": {"en": texts - 4, "und": 4},
        "text_sources": {"alt": texts - 9, "title": 9},
    }


def counts_table(pool: list[int], entries: list[str], t: int) -> pa.Table:
    accepted = [min(n, t) for n in pool]
    return pa.table(
        {
            "metadata": ["en"] * len(pool),
            "entry_id": pa.array(range(len(pool)), pa.int32()),
            "entry": entries,
            "pool_count": pa.array(pool, pa.uint64()),
            "survivor_count": pa.array(pool, pa.uint64()),
            "kept_count": pa.array(
                [a + (n - a) // 8 for n, a in zip(pool, accepted, strict=True)],
                pa.uint64(),
            ),
            "accepted_draws": pa.array(accepted, pa.uint64()),
        }
    )


def with_hostile_entries() -> tuple[list[int], list[str]]:
    """The counts of ENTRIES, and below them hostile ones that no text contains."""
    more = [*HOSTILE, "</script>\u2028<script>alert(2)</script>"]
    return [*POOL, *(1 for _ in more)], [*ENTRIES, *more]


def write_dataset(
    folder: Path, *, shown: list[records.Record], card: dict, counts: pa.Table
) -> str:
    facts = array_record.write_shard(
        str(folder / records.shard_name("tiny_web", 0, 1)), shown
    )
    array_record.write_dataset(
        str(folder),
        name="tiny_web",
        shard_facts=[facts],
        data_card=card,
        counts=counts,
        inputs={"made": "for a test"},
    )
    return str(folder)


def score(value: float, chance: float) -> dict:
    return {
        "value": value,
        "low": max(0.0, value - 0.04),
        "high": min(1.0, value + 0.04),
        "chance": chance,
    }


def scores(value: float) -> dict:
    recalls = {
        f"R@{k}": score(min(1.0, value * (1 + k / 5)), k / 400) for k in (1, 5, 10)
    }
    return {
        "image_to_text": recalls,
        "text_to_image": recalls,
        "zero_shot": {"accuracy": score(min(1.0, 2 * value), 1 / 50), "classes": 50},
    }


def write_run(folder: Path, held_out: list[records.Record], *, steps: int = 60) -> str:
    """A run in two parts of metrics; the second repeats step 30 with other values."""
    (folder / "metrics").mkdir(parents=True)
    (folder / "evaluation").mkdir()
    (folder / "config.json").write_text(
        json.dumps({"global_batch": 256, "total_steps": steps})
    )

    def row(step: int, **other: float) -> str:
        share = step / steps
        values = {
            "step": step,
            "loss": math.log(256) * (1 - 0.8 * share) + 0.1 * math.sin(step),
            "learning_rate": 1e-3
            * min(step / 10, 0.5 + 0.5 * math.cos(math.pi * share)),
            "image_accuracy": 0.6 * share,
            "text_accuracy": 0.57 * share,
            "examples_per_second": 800.0 + step,
        }
        return json.dumps(values | other) + "\n"

    parts = folder / "metrics"
    (parts / "part-000000.jsonl").write_text(
        "".join(row(s) for s in range(1, 30)) + row(30, loss=99.0)
    )
    (parts / "part-000001.jsonl").write_text(
        "".join(row(s) for s in range(30, steps + 1))
    )
    evaluation = {
        "step": steps,
        "candidates": 400,
        "model": scores(0.28),
        "untrained": scores(0.003),
    }
    texts = [each.texts[0] for each in held_out]
    top5 = [
        {
            "image_id": each.image_id,
            "text": each.texts[0],
            "top5": [
                {
                    "text": texts[(i + shift) % len(texts)],
                    "score": 0.4 - 0.02 * place,
                    "right": shift == 0,
                }
                # A third right at first, a third right later, a third not at all.
                for place, shift in enumerate(
                    ([0, 1, 2, 3, 4], [1, 2, 0, 3, 4], [1, 2, 3, 4, 5])[i % 3]
                )
            ],
        }
        for i, each in enumerate(held_out)
    ]
    for step in (5, steps):
        written = folder / "evaluation" / f"{step}.json"
        written.write_text(json.dumps(evaluation | {"step": step}))
        written.with_name(f"{step}_top5.json").write_text(json.dumps(top5))
    return str(folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Dataset, held-out dataset and workdir, with hostile texts everywhere."""
    root = tmp_path_factory.mktemp("report")
    plain = [f"a {entry} on a table, image {i}" for i, entry in enumerate(ENTRIES)]
    shown = [record(i, [text]) for i, text in enumerate([*plain, *HOSTILE])]
    shown.append(record(99, ["two cat texts", "a bicycle"], image=b"no image at all"))
    texts = sum(len(each.texts) for each in shown)
    dataset = write_dataset(
        root / "dataset",
        shown=shown,
        card=data_card(texts, len(shown)),
        counts=counts_table(*with_hostile_entries(), T),
    )
    held_out = [record(1000 + i, [text]) for i, text in enumerate([*HOSTILE, *plain])]
    held_out_folder = write_dataset(
        root / "held_out",
        shown=held_out,
        card={"name": "held_out", "license": "Drawings: <b>somebody</b>, CC BY-SA"},
        counts=counts_table(POOL, ENTRIES, T),
    )
    return dataset, held_out_folder, write_run(root / "run", held_out)


@pytest.fixture(scope="module")
def report(inputs: tuple[str, str, str]) -> str:
    dataset, held_out, workdir = inputs
    return report_page.build(dataset, held_out=held_out, workdir=workdir).decode()


class Tags(HTMLParser):
    """Collects start tags with their attributes, scripts, and the text elsewhere."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        script = self.tags and self.tags[-1][0] == "script"
        (self.scripts if script and self.cdata_elem else self.words).append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_sections_come_in_the_order_of_the_work(report: str) -> None:
    places = [
        report.index(f'<section id="{name}">')
        for name in ("funnel", "balancing", "examples", "training", "evaluation")
    ]
    assert places == sorted(places)
    assert places[-1] < report.index('<section id="held-out">')


def test_headline_leads_from_texts_seen_to_recall(report: str) -> None:
    headline = Tags(report[report.index("<header>") : report.index("</header>")]).text
    seen, kept = headline.index("2,400"), headline.index("pairs kept")
    examples_seen, recall = headline.index("15,360"), headline.index("33.6%")
    assert seen < kept < examples_seen < recall
    assert "134\u00d7 chance" in headline
    assert "on 115 pages" in headline  # of 120 answers


def without_scripts(source: str) -> str:
    return re.sub(r"<script[^>]*>.*?</script>", "", source, flags=re.DOTALL)


def test_no_stranger_can_add_a_tag_or_a_request(report: str) -> None:
    found = Tags(report)
    allowed = {
        *("html", "head", "meta", "title", "style", "body", "main", "header"),
        *("section", "footer", "h1", "h2", "h3", "p", "div", "span", "b", "em", "bdi"),
        *("mark", "small", "code", "ol", "ul", "li", "figure", "figcaption", "img"),
        *("table", "colgroup", "col", "thead", "tbody", "tr", "th", "td", "i"),
        *("script", "noscript"),
    }
    assert {tag for tag, _ in found.tags} <= allowed
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/webp;base64,")
        if tag == "script":
            assert attributes in ({}, {"type": "application/json"})
    assert report.count("<style>") == report.count("</style>") == 1
    assert "url(" not in without_scripts(report) and "@import" not in report
    # What they wrote is still there to be read.
    assert '<script>alert("1")</script>' in found.text


def test_the_policy_names_the_scripts_of_the_page_and_allows_no_other(
    report: str,
) -> None:
    found = Tags(report)
    policy = next(a["content"] for t, a in found.tags if "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")
    kinds = [attributes for tag, attributes in found.tags if tag == "script"]
    pairs = zip(kinds, found.scripts, strict=True)
    run = [script for kind, script in pairs if not kind]
    hashes = [hashlib.sha256(script.encode()).digest() for script in run]
    named = [f"'sha256-{base64.b64encode(each).decode()}'" for each in hashes]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["script-src"].split() == named
    assert "eval" not in policy


def test_charts_carry_hostile_entries_as_data(report: str) -> None:
    found = Tags(report)
    kinds = [attributes for tag, attributes in found.tags if tag == "script"]
    pairs = zip(kinds, found.scripts, strict=True)
    charts = [json.loads(script) for kind, script in pairs if kind]
    assert len(charts) == 5
    data = charts[0]["data"]["values"]
    names = [row["note"] for row in data]
    assert names == [page.clean(name, 60) for name in with_hostile_entries()[1]]
    assert [row["y0"] for row in data[: len(POOL)]] == POOL


def test_the_page_shows_the_licence_of_the_pictures(report: str) -> None:
    foot = Tags(report[report.index("<footer>") :]).text
    assert "Held-out pictures: Drawings: <b>somebody</b>, CC BY-SA" in foot


def test_strangers_cannot_steer_direction_or_length(report: str) -> None:
    found = Tags(report)
    data = [script for script in found.scripts if script.startswith('{"')]
    assert len(data) == 5
    read = [json.dumps(json.loads(each), ensure_ascii=False) for each in data]
    for text in (without_scripts(report), *read):
        assert not set(text) & set(
            "\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069\x00"
        )
        assert "w" * 200 not in text
        assert "\u0301" * 4 not in text


def test_same_inputs_give_the_same_bytes(
    inputs: tuple[str, str, str], report: str
) -> None:
    dataset, held_out, workdir = inputs
    again = report_page.build(dataset, held_out=held_out, workdir=workdir)
    assert again == report.encode()


def test_funnel_names_each_reason_with_its_count(report: str) -> None:
    words = Tags(report).text
    for reason, lost in (("empty text", "400"), ("no match", "700")):
        assert re.search(rf"{reason} +\u2212{lost}", words)
    assert "each stage adds up" in words


def test_a_funnel_that_does_not_add_up_gives_a_warning(tmp_path: Path) -> None:
    row = {"stage": "match", "unit": "texts", "in": 100, "out": 60}
    stages = load.funnel({"funnel": [row | {"drops": {"no_match": 39}}]})
    assert curation.funnel(stages)["broken"] == ["match"]
    card = data_card(2, 1)
    card["funnel"][2]["drops"]["no_match"] = 699
    dataset = write_dataset(
        tmp_path,
        shown=[record(0, ["an icon", "a kite"])],
        card=card,
        counts=counts_table(POOL, ENTRIES, T),
    )
    words = Tags(report_page.build(dataset).decode()).text
    assert "Warning: received = passed on + lost fails at match" in words


def test_the_newest_evaluation_is_shown(report: str) -> None:
    words = Tags(report).text
    assert "The model at step 60" in words
    assert "fails" not in words


def test_right_texts_carry_a_word_and_a_mark(report: str) -> None:
    grid = report[report.index('id="held-out"') :]
    total = 18
    assert grid.count('class="card"') == total
    # Two of three have it among the five.
    assert grid.count("\u2713") == grid.count("(right)") == 12
    assert grid.count("Not among the first five.") == 6


def test_last_row_of_a_step_wins(inputs: tuple[str, str, str]) -> None:
    found = load.run(inputs[2])
    assert found is not None
    assert [row["step"] for row in found.rows] == list(range(1, 61))
    assert max(row["loss"] for row in found.rows) < 7


def test_report_before_training_is_about_curation_only(
    inputs: tuple[str, str, str], tmp_path: Path
) -> None:
    for workdir in (None, str(tmp_path / "nowhere")):
        words = Tags(report_page.build(inputs[0], workdir=workdir).decode()).text
        assert "This report is about curation only" in words
        assert "not trained yet" in words and "not evaluated yet" in words


def test_run_without_evaluation_shows_its_curves(
    inputs: tuple[str, str, str], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    write_run(workdir, [])
    for found in (workdir / "evaluation").iterdir():
        found.unlink()
    found = Tags(report_page.build(inputs[0], workdir=str(workdir)).decode())
    assert any("uniform guess, 5.55" in script for script in found.scripts)
    assert "has not been evaluated yet" in found.text


def test_unfinished_dataset_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data_card\.json.*data_prep\.curate"):
        report_page.build(str(tmp_path))


def test_damaged_metrics_are_an_error_that_names_the_line(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    (tmp_path / "metrics" / "part-000001.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(ValueError, match=r"part-000001\.jsonl:2: wanted a JSON"):
        load.run(str(tmp_path))


def test_unknown_evaluation_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    (tmp_path / "evaluation" / "60.json").write_text('{"step": 60}')
    with pytest.raises(ValueError, match=r"60\.json: wanted 'candidates'"):
        load.evaluation(str(tmp_path))


def test_head_and_tail_examples_contain_their_entry(
    inputs: tuple[str, str, str],
) -> None:
    (counts,) = load.entry_counts(inputs[0], {"en": T})
    head, tail = examples.head_and_tail(inputs[0], counts)
    assert [entry.entry for entry in head] == ["image", "icon", "cat", "red apple"]
    assert [entry.entry for entry in tail] == ["bicycle", "\u732b", "violin", "kite"]
    for entry in (*head, *tail):
        assert entry.pool == POOL[ENTRIES.index(entry.entry)]
        assert entry.examples
        assert all(entry.entry in example.text for example in entry.examples)


def test_dataset_that_is_not_balanced_says_so(tmp_path: Path) -> None:
    shown = [record(0, ["an icon", "a kite"])]
    card = data_card(2, 1) | {"balanced": None}
    dataset = write_dataset(
        tmp_path, shown=shown, card=card, counts=counts_table(POOL, ENTRIES, T)
    )
    words = Tags(report_page.build(dataset).decode()).text
    assert "not balanced" in words
    assert "accepted draws" not in words


@browser.wanted
def test_browser_shows_it_whole_at_desktop_and_phone_width(
    report: str, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    file.write_text(report)
    with browser.chromium(tmp_path / "profile") as port:
        for width in (1280, 390):
            seen, tab = browser.look_at(
                port, file, lambda tab: tab.evaluate(browser.MEASURE), width=width
            )
            assert seen["width"] == width
            assert seen["wide"] == []
            assert seen["images"] > 18 and seen["broken"] == 0
            assert seen["charts"] == seen["described"] == 5
            assert tab.requests() == [file.as_uri()]
            assert tab.complaints() == []


@browser.wanted
def test_charts_answer_to_the_pointer_and_keep_hostile_labels_as_text(
    report: str, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    file.write_text(report)
    tooltip = "#vg-tooltip-element.visible"

    async def act(tab: browser.Tab) -> list[Any]:
        await tab.evaluate(browser.MEASURE)
        seen = []
        for share in (0.3, 0.99):
            await tab.point(".chart .plot", share, 0.5)
            seen.append(
                await tab.evaluate(
                    f"""(async () => {{
                        while (!document.querySelector("{tooltip}"))
                            await new Promise(r => setTimeout(r, 20));
                        const box = document.querySelector("{tooltip}");
                        const tags = [...box.querySelectorAll("*")].map(e => e.tagName);
                        return [box.innerText, [...new Set(tags)].sort()];
                    }})()"""
                )
            )
        drawn = "document.querySelector('.chart svg').innerHTML"
        before = await tab.evaluate(drawn)
        await tab.point(".chart .plot", 0.5, 0.5, wheel=-240, keys=2)  # with Ctrl
        await tab.evaluate(
            f"""(async (before) => {{
                while ({drawn} === before) await new Promise(r => setTimeout(r, 20));
                return true;
            }})({json.dumps(before)})"""
        )
        return seen

    with browser.chromium(tmp_path / "profile") as port:
        (near, far), tab = browser.look_at(port, file, act, width=1280)
        assert "before" in near[0] and "entry" in near[0]
        assert page.clean(with_hostile_entries()[1][-1], 60) in far[0]
        for _, tags in (near, far):
            assert tags == ["TABLE", "TBODY", "TD", "TR"]
        assert tab.complaints() == []
