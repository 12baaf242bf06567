"""The look at a dataset: what it shows, and that strangers' texts stay text."""

import re
import subprocess
import sys

import numpy as np
import pytest

from metaclip_jax.data import inspect, pipeline, records, tokenizer

HOSTILE = '<script>alert("x")</script> & "quotes" </figure>'


@pytest.fixture(scope="module")
def report(tmp_path_factory, write_dataset):
    folder = tmp_path_factory.mktemp("inspect")
    dataset = write_dataset(
        folder / "dataset",
        record_count=30,
        texts={n: (HOSTILE, "another text") for n in range(0, 30, 2)},
        images={1: b"no image"},
    )
    path = folder / "tokenizer.json"
    path.write_text(tokenizer.train(["picture told as", HOSTILE], 600).to_str())
    stream = pipeline.batches(
        dataset,
        tokenizer_path=str(path),
        global_batch=16,
        image_size=32,
        context_length=20,
        seed=0,
        total_steps=1000,
    )
    opened, tokenize = records.open_dataset(dataset), tokenizer.load(path)
    examples = inspect.first_examples(stream, opened, tokenize, count=40)
    speed = inspect.measure_speed(stream, seconds=0.1)
    stream.close()
    lengths, texts_per_image = inspect.measure_texts(opened, tokenize)
    return inspect.Report(
        dataset=opened,
        examples=examples,
        lengths=lengths,
        texts_per_image=texts_per_image,
        context_length=20,
        images_per_second=speed,
        replaced=dict(stream.replaced),
    )


def test_the_examples_are_rows_of_the_pipeline(report):
    assert len(report.examples) == 40
    for example in report.examples:
        assert example.image.shape == (32, 32, 3)
        assert example.stored


def test_the_figures_are_those_of_the_dataset(report):
    assert len(report.texts_per_image) == 30
    assert len(report.lengths) == report.texts_per_image.sum()
    assert report.images_per_second > 0
    rows = dict(inspect.summary(report))
    assert rows["records"] == "30"
    assert rows["balanced"] == "no"
    share = np.mean(report.lengths > 18)
    assert rows["texts longer than 18 tokens"] == f"{share:.2%}"


def test_texts_of_strangers_stay_text(report):
    page = inspect.render(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<figure>") == page.count("</figure>") == 40


def test_the_sheet_opens_from_disk_without_requests(report):
    page = inspect.render(report)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 40
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "http" not in page


def test_the_command_prints_and_writes(tmp_path, write_dataset):
    dataset = write_dataset(tmp_path / "dataset", record_count=20)
    output = tmp_path / "sheet.html"
    flags = ["--image_size=32", "--batch=8", "--seconds=0.1", f"--output={output}"]
    command = [sys.executable, "-m", "metaclip_jax.data.inspect", dataset, *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"records +20", done.stdout)
    assert re.search(r"loader speed +[\d,]+ images/s", done.stdout)
    assert output.read_text().startswith("<!doctype html>")
