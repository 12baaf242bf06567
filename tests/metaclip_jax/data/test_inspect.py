"""The look at the data: what the trainer sees, and that strangers' texts stay text."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from metaclip_jax import config as keys
from metaclip_jax.data import inspect, pipeline, sheet, tokenizer
from metaclip_jax.data.options import DataOptions
from tests import browser

EXAMPLES = 96  # enough for every text source to show
HOSTILE = '<script>alert("x")</script> & "quotes" </figure>'


@pytest.fixture(scope="module")
def config(tmp_path_factory, write_dataset):
    """Two datasets in blocks, with weights by text source and synthetic texts."""
    folder = tmp_path_factory.mktemp("inspect")
    first = write_dataset(
        folder / "first",
        record_count=30,
        texts={n: (HOSTILE, "another text\x07") for n in range(0, 30, 2)},
        images={1: b"no image"},
    )
    second = write_dataset(
        folder / "second",
        record_count=20,
        text_sources=("alt", "title", "made"),
        name="second",
    )
    path = folder / "tokenizer.json"
    path.write_text(tokenizer.train(["picture told as", HOSTILE] * 2, 600).to_str())
    config = keys.default()
    config.tokenizer = str(path)
    config.global_batch, config.total_steps = 16, 1_000
    config.image_size = 32
    config.model.context_length = 20
    config.data.mixture = ((first, 3.0), (second, 1.0))
    config.data.order, config.data.block_records = "blocks", 4
    config.data.crop_scale = (0.4, 0.5)
    config.data.text_source_weights = (("title", 2.0),)
    config.data.synthetic_sources = ("made",)
    config.data.synthetic_share = 1.0
    config.data.max_replaced_share = 1.0
    return config


@pytest.fixture(scope="module")
def report(config):
    return inspect.look(config, examples=EXAMPLES, seconds=0.1)


def test_the_examples_are_the_rows_of_training(config, report):
    assert len(report.examples) == EXAMPLES
    tokenize = tokenizer.load(config.tokenizer, family="clip")
    rows = [
        (image, text)
        for batch, _ in zip(
            pipeline.batches(DataOptions.from_config(config), tokenize),
            range(6),
            strict=False,
        )
        for image, text in zip(batch["image"], batch["tokens"], strict=True)
    ]
    for example, (image, tokens) in zip(report.examples, rows, strict=False):
        np.testing.assert_array_equal(example.image, image)
        assert example.text == tokenize.decode(tokens.tolist())
        assert example.source in ("alt", "title", "made")
    assert {example.dataset for example in report.examples} == {"tiny", "second"}
    assert "made" in {example.source for example in report.examples}


def test_texts_that_look_the_same_once_cleaned_show_both_sources(
    config, tmp_path, write_dataset
):
    folder = write_dataset(
        tmp_path / "twice",
        record_count=8,
        texts={n: ("Told as a picture", "told as a picture") for n in range(8)},
        text_sources=("title", "alt"),
    )
    config = config.copy_and_resolve_references()
    config.dataset, config.data.mixture = folder, ()
    config.data.text_source_weights, config.data.synthetic_sources = (), ()
    config.data.synthetic_share = 0.0
    report = inspect.look(config, examples=8, seconds=0.1)
    assert dict(report.facts)["text sources shown"] == "alt or title 100%"


def test_the_figures_are_those_of_the_data(report):
    rows = report.facts
    assert [figure for what, figure in rows if what == "dataset"] == [
        "tiny, 0.75 of the examples",
        "second, 0.25 of the examples",
    ]
    assert [f for what, f in rows if what == "  records an epoch"] == ["30", "20"]
    facts = dict(rows)
    assert facts["order"] == "blocks of 4 in windows of 32"
    assert facts["augmentation"] == "crops of 0.4 to 0.5 of the area"
    assert facts["loader speed"].endswith("images/s")
    share = np.mean(report.lengths > 18)
    assert facts["texts longer than 18 tokens"] == f"{share:.2%}"


def test_without_a_begin_mark_there_is_room_for_one_token_more(config, tmp_path):
    """As with mT5's tokenizers, whose texts only end with a mark."""
    raw = tokenizer.train(["picture told as"] * 2, 600).to_str()
    path = tmp_path / "tokenizer.json"
    path.write_text(
        raw.replace(tokenizer.BOS, "unused")
        .replace(tokenizer.EOS, "</s>")
        .replace(tokenizer.PAD, "<pad>")
    )
    assert tokenizer.load(path, family="clip").bos_id is None
    other = config.copy_and_resolve_references()
    other.tokenizer = str(path)
    facts = dict(inspect.look(other, examples=1, seconds=0.01).facts)
    assert "texts longer than 19 tokens" in facts


@pytest.fixture(scope="module")
def page(report):
    return sheet.render_html(inspect.to_sheet(report))


def test_texts_of_strangers_stay_text(page):
    # The data of the lengths' chart and the two scripts that draw it.
    assert page.count("<script") == page.count("</script>") == 3
    assert "&lt;script&gt;" in page
    frame = page.split("<script>")[0]
    assert frame.count('<img alt="" src=') == EXAMPLES


def test_the_sheet_names_no_address(page):
    frame = page.split("<script>")[0]
    sources = re.findall(r'(?:src|href)="([^"]*)"', frame)
    assert len(sources) == EXAMPLES
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "http:" not in frame and "https:" not in frame


@browser.wanted
def test_the_sheet_opens_from_disk_without_requests(page, tmp_path):
    file = tmp_path / "sheet.html"
    file.write_text(page)
    with browser.chromium(tmp_path / "profile") as port:
        for width in (1280, 390):
            seen, tab = browser.look_at(
                port, file, lambda tab: tab.evaluate(browser.MEASURE), width=width
            )
            assert seen["width"] == width and seen["wide"] == []
            assert seen["images"] == EXAMPLES and seen["broken"] == 0
            assert seen["charts"] == 1
            assert tab.requests() == [file.as_uri()] and tab.complaints() == []


def test_the_picture_holds_every_example(report):
    shown = inspect.to_sheet(report)
    picture = np.asarray(Image.open(io.BytesIO(sheet.render_png(shown))))
    assert picture.ndim == 3
    count = 0
    for cell in shown.cells:
        opened = Image.open(io.BytesIO(cell.jpeg)).convert("RGB")
        drawn = np.asarray(ImageOps.contain(opened, (150, 150)))
        starts = np.argwhere((picture == drawn[0, 0]).all(axis=2))
        count += any(
            np.array_equal(picture[y : y + 150, x : x + 150], drawn) for y, x in starts
        )
    assert count == EXAMPLES


@pytest.mark.parametrize("kind", ["html", "png"])
def test_the_command_prints_and_writes(tmp_path, write_dataset, kind):
    dataset = write_dataset(tmp_path / "dataset", record_count=20)
    output = tmp_path / f"sheet.{kind}"
    flags = ["--config.image_size=32", "--batch=8", "--seconds=0.1", "--examples=9"]
    command = [sys.executable, "-m", "metaclip_jax.data.inspect", dataset, *flags]
    done = subprocess.run(
        [*command, f"--output={output}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"records +20 in 2 files", done.stdout)
    assert re.search(r"loader speed +[\d,]+ images/s", done.stdout)
    begin = output.read_bytes()[:15]
    assert begin.startswith({"html": b"<!doctype html>", "png": b"\x89PNG"}[kind])
