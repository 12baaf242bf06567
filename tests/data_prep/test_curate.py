"""Curation as users run it: the command, on a small web behind a real server."""

import gzip
import signal
import socket
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from data_prep import schema
from data_prep.stages import sums
from metaclip_jax import files
from metaclip_jax.data import records
from tests import stopping, waiting

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("sample-web.example", "images.sample-web.example")


def command(module, *arguments, **flags):
    named = [f"--{name}={value}" for name, value in flags.items()]
    return [sys.executable, "-m", module, *named, *arguments]


def run(*arguments, succeeds=True, **flags):
    done = subprocess.run(
        command(*arguments, **flags), cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode == 0) == succeeds, done.stderr[-4000:]
    return done.stdout if succeeds else done.stderr


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A crawled small web with its metadata, and the server still running."""
    folder = tmp_path_factory.mktemp("web")
    run(
        "examples.quickstart.build",
        output=folder / "site",
        held_out=folder / "held_out",
        pictures=150,
    )
    server = subprocess.Popen(
        command(
            "examples.quickstart.serve",
            site=folder / "site",
            port_file=folder / "port",
        ),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    waiting.until((folder / "port").exists, server)
    address = f"127.0.0.1:{(folder / 'port').read_text().strip()}"
    host_map = ",".join(f"{host}={address}" for host in HOSTS)
    run(
        "examples.quickstart.crawl",
        start_url=f"http://{HOSTS[0]}/",
        host_map=host_map,
        output=folder / "crawl",
    )
    run(
        "data_prep.build_metadata",
        **{
            "config": ROOT / "configs/metadata.py:quickstart",
            "warc": folder / "crawl" / "*.warc.gz",
            "pageviews": folder / "site" / "pageviews.txt",
            "output": folder / "metadata",
        },
    )
    yield folder, host_map
    server.terminate()
    server.wait()


def curation(web, output, **overrides):
    folder, host_map = web
    flags = {
        "config": ROOT / "configs/curate.py:quickstart",
        "config.source.paths": folder / "crawl" / "*.warc.gz",
        "config.metadata": folder / "metadata",
        "config.download.host_map": host_map,
        "workdir": output / "curation",
        "output": output / "dataset",
    }
    return flags | overrides


def dataset_bytes(output):
    folder = output / "dataset"
    names = sorted(p.name for p in folder.iterdir() if "-of-" in p.name)
    names += ["counts.parquet", "data_card.json", "features.json", "dataset_info.json"]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def curated(web, tmp_path_factory):
    output = tmp_path_factory.mktemp("curated")
    run("data_prep.curate", **curation(web, output))
    return output


def test_every_text_is_accounted_for(curated):
    card = files.read_json(curated / "dataset" / "data_card.json")
    texts = [row for row in card["funnel"] if row["unit"] == "texts"]
    for row in texts:
        assert row["in"] == row["out"] + sum(row["drops"].values())
    for before, after in zip(texts, texts[1:], strict=False):
        assert before["out"] == after["in"]
    assert texts[-1]["out"] == card["texts"] == sum(card["languages"].values())


def test_tfds_and_our_reader_see_the_same_records(curated):
    dataset = records.open_dataset(curated / "dataset")
    n = sum(dataset.shard_lengths)
    assert n == dataset.data_card["records"] > 50
    raw = [records.decode(r) for r in records.read(dataset, range(n))]
    source = tfds.builder_from_directory(str(curated / "dataset")).as_data_source(
        "train"
    )
    assert len(source) == n
    for i in (0, n // 2, n - 1):
        assert source[i]["image_id"].decode() == raw[i].image_id
        assert [t.decode() for t in source[i]["texts"]] == list(raw[i].texts)


def test_records_lie_in_the_order_of_their_image_ids(curated):
    dataset = records.open_dataset(curated / "dataset")
    raw = records.read(dataset, range(sum(dataset.shard_lengths)))
    ids = [records.decode(r).image_id for r in raw]
    assert ids == sorted(set(ids))


def test_the_counts_agree_with_the_records(curated):
    counts = pq.read_table(curated / "dataset" / "counts.parquet").to_pydict()
    dataset = records.open_dataset(curated / "dataset")
    kept = [0] * len(counts["entry"])
    for raw in records.read(dataset, range(sum(dataset.shard_lengths))):
        for entry_id in records.decode(raw).entry_ids:
            kept[entry_id] += 1
    assert kept == counts["kept_count"]
    t = dataset.data_card["balanced"]["t"]["en"]
    draws, survivors = counts["accepted_draws"], counts["survivor_count"]
    for drawn, survived, pool in zip(
        draws, survivors, counts["pool_count"], strict=True
    ):
        assert drawn <= pool
        if pool <= t:
            assert drawn == survived  # the tail is kept whole


def test_other_partitions_and_worker_processes_keep_the_same_texts(
    web, curated, tmp_path
):
    """Only the file layout depends on partitions and workers, not the draws."""
    flags = curation(web, tmp_path, **{"config.partitions": 3})
    run("data_prep.curate", workers=2, **flags)

    def texts(folder):
        dataset = records.open_dataset(folder / "dataset")
        raw = records.read(dataset, range(sum(dataset.shard_lengths)))
        return [(r.image_id, r.texts, r.sha256) for r in map(records.decode, raw)]

    assert texts(tmp_path) == texts(curated)


# Fails once in each folder, after the file has got its name: the worst moment.
FAULTY = """
from absl import app
from data_prep import curate
from data_prep.stages import parts

write, failed = parts.write, set()

def write_and_fail_once(folder, *arguments):
    write(folder, *arguments)
    if folder not in failed:
        failed.add(folder)
        raise OSError("injected after the write")

parts.write = write_and_fail_once
curate.define_flags()
app.run(curate.main)
"""


def test_retried_bundles_change_no_byte_and_no_count(web, curated, tmp_path):
    named = [f"--{name}={value}" for name, value in curation(web, tmp_path).items()]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            FAULTY,
            *named,
            "--",
            "--runner=BundleBasedDirectRunner",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for folder in ("matches", "downloads", "images", "balance"):
        assert (tmp_path / "curation" / folder).is_dir()
    assert done.stderr.count("OSError: injected after the write [while running") >= 4
    assert dataset_bytes(tmp_path) == dataset_bytes(curated)


@pytest.mark.slow
def test_a_portable_job_service_writes_the_same_bytes(web, curated, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module = "apache_beam.runners.portability.local_job_service_main"
    service = subprocess.Popen(
        [sys.executable, "-m", module, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        waiting.until(lambda: is_open(port), service)
        options = [f"--job_endpoint=localhost:{port}", "--environment_type=LOOPBACK"]
        flags = curation(web, tmp_path)
        run("data_prep.curate", "--", "--runner=PortableRunner", *options, **flags)
    finally:
        service.terminate()
        service.wait()
    assert dataset_bytes(tmp_path) == dataset_bytes(curated)


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_v2_keeps_one_text_of_an_image(web, tmp_path):
    run("data_prep.curate", **curation(web, tmp_path, **{"config.balance.rule": "v2"}))
    dataset = records.open_dataset(tmp_path / "dataset")
    raw = records.read(dataset, range(sum(dataset.shard_lengths)))
    assert len(raw) > 50
    assert {len(records.decode(r).texts) for r in raw} == {1}
    assert dataset.data_card["balanced"]["rule"] == "v2"
    (thin,) = [r for r in dataset.data_card["funnel"] if r["stage"] == "thin"]
    assert thin["drops"]["not_chosen"] > 0


def test_t_is_chosen_after_an_explanation_and_online_keeps_all(web, tmp_path):
    """Match, explain, continue, with the rule that leaves balancing to the trainer."""
    folder, _ = web
    flags = curation(web, tmp_path, **{"config.balance.rule": "online"})
    run("data_prep.curate", "--stop_after=match", **flags)
    assert not (tmp_path / "curation" / "downloads").exists()
    explain = {
        "counts": tmp_path / "curation" / "matches",
        "metadata": folder / "metadata",
        "plot": tmp_path / "explain.html",
    }
    shown = run("data_prep.explain", t=3, **explain)
    assert "<- your t" in shown and "most frequent entries of en" in shown
    assert "<svg" in (tmp_path / "explain.html").read_text()
    other = run("data_prep.explain", tail_share=0.5, **explain)
    assert other != shown

    run("data_prep.curate", **flags | {"config.balance.t": 7})
    dataset = records.open_dataset(tmp_path / "dataset")
    assert dataset.data_card["balanced"] is None
    flow = {row["stage"]: row for row in dataset.data_card["funnel"]}
    for stage in ("thin", "balance"):
        assert flow[stage]["in"] == flow[stage]["out"] > 0
    counts = pq.read_table(tmp_path / "dataset" / "counts.parquet").to_pydict()
    assert counts["kept_count"] == counts["survivor_count"]


def test_other_values_in_an_unfinished_folder_are_refused(web, tmp_path):
    flags = curation(web, tmp_path)
    run("data_prep.curate", "--stop_after=download", **flags)
    changed = flags | {"config.balance.t": 3}
    error = run("data_prep.curate", succeeds=False, **changed)
    assert "config.balance.t: wanted 3, found 10" in error


def test_data_cards_of_two_datasets_add_up(web, curated, tmp_path):
    datasets = f"{curated / 'dataset'},{curated / 'dataset'}"
    run("data_prep.data_card", datasets=datasets, output=tmp_path)
    one = files.read_json(curated / "dataset" / "data_card.json")
    two = files.read_json(tmp_path / "data_card.json")
    assert two["records"] == 2 * one["records"]
    assert two["languages"] == {k: 2 * n for k, n in one["languages"].items()}
    for merged, single in zip(two["funnel"], one["funnel"], strict=True):
        assert merged["in"] == 2 * single["in"]
        assert merged["drops"] == {k: 2 * n for k, n in single["drops"].items()}
    before = pq.read_table(curated / "dataset" / "counts.parquet")
    after = pq.read_table(tmp_path / "counts.parquet")
    assert after["entry"] == before["entry"]
    doubled = (2 * before["kept_count"].to_numpy()).tolist()
    assert after["kept_count"].to_pylist() == doubled


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(web, curated, tmp_path):
    flags = curation(web, tmp_path)
    killed = stopping.command(
        *("data_prep.curate", *(f"--{name}={value}" for name, value in flags.items())),
        function="metaclip_jax.files.publish",
        argument=r"/downloads/part-.*\.parquet$",
    )
    assert subprocess.run(killed, cwd=ROOT).returncode == -signal.SIGKILL
    assert not (tmp_path / "dataset" / "manifest.json").exists()
    with pytest.raises(FileNotFoundError):
        records.open_dataset(tmp_path / "dataset")
    run("data_prep.curate", **flags)
    assert dataset_bytes(tmp_path) == dataset_bytes(curated)


def test_a_truncated_and_a_false_file_lose_only_their_own_pages(web, tmp_path):
    folder, _ = web
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    for path in sorted((folder / "crawl").glob("*.warc.gz")):
        (crawl / path.name).write_bytes(path.read_bytes())
    first = min(crawl.iterdir())
    first.write_bytes(first.read_bytes()[:-1000])
    (crawl / "false.warc.gz").write_bytes(b"this is no gzip file")
    with gzip.open(crawl / "empty.warc.gz", "wb"):
        pass
    flags = curation(web, tmp_path, **{"config.source.paths": crawl / "*.warc.gz"})
    run("data_prep.curate", **flags)
    card = files.read_json(tmp_path / "dataset" / "data_card.json")
    (read,) = [row for row in card["funnel"] if row["unit"] == "files"]
    assert read["drops"]["truncated_warc"] == 1
    assert read["drops"]["not_warc"] == 1
    assert card["records"] > 0


def test_a_folder_of_another_run_is_refused(web, curated):
    flags = curation(web, curated, **{"config.seed": 1})
    error = run("data_prep.curate", succeeds=False, **flags)
    assert "config.seed: wanted 1" in error


def test_a_mistyped_key_is_an_error_with_the_right_one(web, tmp_path):
    flags = curation(web, tmp_path, **{"config.balance.tail_shaer": 0.1})
    error = run("data_prep.curate", succeeds=False, **flags)
    assert "tail_share" in error


def test_dask_is_refused_with_the_reason(web, tmp_path):
    error = run(
        "data_prep.curate",
        "--",
        "--runner=DaskRunner",
        succeeds=False,
        **curation(web, tmp_path),
    )
    assert "entry counts would be wrong" in error


def test_elements_that_beam_would_pickle_are_refused():
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([1])
        with pytest.raises(TypeError, match="wanted RecordBatches"):
            sums.write_sum(rows, schema.FLOW, "unused", "flow.parquet")
        empty = schema.one_batch(schema.FLOW.empty_table())
        ok = pipeline | "ok" >> beam.Create([empty]).with_output_types(pa.RecordBatch)
        assert ok.element_type is pa.RecordBatch
