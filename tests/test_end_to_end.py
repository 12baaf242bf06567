"""The quick start on a small web: the same commands, fewer pictures and steps."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metaclip_jax import files, metric_rows
from metaclip_jax.data import records
from tests import waiting

ROOT = Path(__file__).resolve().parents[1]


def deterministic(workdir):
    """What two runs must agree on: dataset bytes, losses, evaluation."""
    shards = sorted((workdir / "dataset").glob("*.array_record-*"))
    metrics = {}
    for part in sorted((workdir / "run" / "metrics").glob("part-*.jsonl")):
        for line in part.read_text().splitlines():
            row = json.loads(line)
            metrics[row["step"]] = row["loss"]
    evaluations = sorted((workdir / "run" / "evaluation").glob("*.json"))
    return (
        [p.read_bytes() for p in shards],
        metrics,
        [p.read_text() for p in evaluations],
    )


def test_every_stage_is_shown_as_a_command(finished):
    _, output = finished
    for module in (
        "examples.quickstart.build",
        "examples.quickstart.serve",
        "examples.quickstart.crawl",
        "data_prep.build_metadata",
        "data_prep.curate",
        "metaclip_jax.data.tokenizer",
        "metaclip_jax.train",
        "metaclip_jax.evaluate",
        "data_prep.report",
    ):
        assert f"python -m {module} --" in output


def test_the_shown_commands_ask_the_server_that_the_shown_command_starts(finished):
    _, output = finished
    port = re.search(r"quickstart\.serve .*--port=(\d+)", output)[1]
    asked = re.findall(r"host_map=\S+=127\.0\.0\.1:(\d+)", output)
    assert asked == [port] * 2


def test_no_lock_is_left_anywhere(finished):
    workdir, _ = finished
    assert not list(workdir.rglob(".lock"))


def test_libraries_do_not_talk_between_the_stages(finished):
    _, output = finished
    notes = re.findall(r"^[IWE]\d{4} .*?\d+ ([a-z_]+\.py):\d+\]", output, re.MULTILINE)
    folders = [ROOT / name for name in ("metaclip_jax", "data_prep", "examples")]
    ours = {path.name for folder in folders for path in folder.rglob("*.py")}
    assert notes and set(notes) <= ours
    assert "WARNING:root" not in output


def test_the_funnel_accounts_for_every_text(finished):
    workdir, _ = finished
    card = files.read_json(workdir / "dataset" / "data_card.json")
    texts = [row for row in card["funnel"] if row["unit"] == "texts"]
    assert [row["stage"] for row in texts] == [
        "parse",
        "match",
        "dedup",
        "thin",
        "download",
        "screen",
        "image_dedup",
        "balance",
    ]
    for before, after in zip(texts, texts[1:], strict=False):
        assert before["out"] == after["in"]
    for row in texts:
        assert row["in"] == row["out"] + sum(row["drops"].values())
    lost = {reason for row in texts for reason in row["drops"]}
    # The sample web has each of these on purpose.
    assert lost >= {"empty_text", "no_match", "http_404", "too_small", "balanced_away"}
    assert texts[-1]["out"] == card["texts"]


def test_no_held_out_text_or_picture_is_in_the_dataset(finished):
    workdir, _ = finished
    seen, held = (
        [
            records.decode(raw)
            for raw in records.read(dataset, range(sum(dataset.shard_lengths)))
        ]
        for dataset in map(
            records.open_dataset, (workdir / "dataset", workdir / "held_out")
        )
    )
    held_texts = {text.lower() for r in held for text in r.texts}
    seen_texts = {text.lower() for r in seen for text in r.texts}
    assert not {t for t in seen_texts if any(h == t for h in held_texts)}
    assert not {r.sha256 for r in seen} & {r.sha256 for r in held}


@pytest.fixture(scope="module")
def beside(finished, tmp_path_factory):
    """A folder to run documented commands in, with a quick start's run."""
    folder = tmp_path_factory.mktemp("beside")
    (folder / "quickstart_run").symlink_to(finished[0])
    # What a command sees in the project's root, and an installed package does not have.
    for name in ("configs", "docs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_commands(document, folder, *, about, **environment):
    """Runs the commands of the document's block that names `about`, unchanged."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text(), re.S)
    (commands,) = [block for block in blocks if about in block]
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_commands_of_the_readme_run_as_they_stand(beside):
    run_commands("README.md", beside, about="data_prep.curate")
    assert (beside / "my_run" / "report.html").exists()
    assert (beside / "my_run" / "run" / "evaluation" / "20.json").exists()


def test_the_commands_about_training_run_as_they_stand(beside):
    run_commands("docs/training.md", beside, about="metaclip_jax.train")
    mesh, two = (metric_rows.read(beside / "my_run" / run) for run in ("mesh", "two"))
    assert [row["step"] for row in mesh] == [4, 6]
    assert mesh[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-5)
    assert list(beside.glob("my_run/mesh/profile/**/*.xplane.pb"))
    assert (beside / "my_run" / "two" / "manifest.json").exists()


def test_the_commands_about_data_run_as_they_stand(beside):
    run_commands("docs/data.md", beside, about="metaclip_jax.data.inspect")
    sheet = (beside / "my_run" / "sheet.png").read_bytes()
    assert sheet.startswith(b"\x89PNG")
    assert (beside / "my_run" / "blocks" / "manifest.json").exists()


def test_the_commands_about_data_of_your_own_run_as_they_stand(beside):
    document = "docs/curate_your_own.md"
    run_commands(document, beside, about="matching.mode=none")
    run_commands(document, beside, about="data_prep.export --format=parquet")
    whole, (tars, folder, table) = (
        records.open_dataset(beside / "quickstart_run" / "dataset"),
        (
            records.open_dataset(beside / "my_run" / f"from_{name}" / "dataset")
            for name in ("tars", "folder", "table")
        ),
    )
    assert len(table) == len(tars) == len(whole) > len(folder) > 0
    assert table.data_card["balanced"]["rule"] == "v1"
    assert (beside / "my_run" / "from_folder" / "report.html").exists()


@pytest.mark.slow
def test_the_commands_about_the_cloud_run_as_they_stand(
    beside, site_address, cloud_storage, tmp_path
):
    """On what the quick start crawled, in a bucket, with the quick start's recipes."""
    run, buckets = beside / "quickstart_run", tmp_path / "buckets"
    host = "sample-web.example"
    values = {
        "BUCKET": "bucket1",
        "PAGES": "gs://bucket1/crawl/*.warc.gz",
        "METADATA": "quickstart",
        "METADATA_FLAGS": "--warc='gs://bucket1/crawl/*.warc.gz'"
        " --pageviews=gs://bucket1/pageviews.txt",
        "CURATE": "quickstart",
        "CURATE_FLAGS": "--config.download.host_map="
        f"{host}={site_address},images.{host}={site_address}",
    }
    document = (ROOT / "docs" / "cloud.md").read_text()
    assert all(f" {name}=" in document for name in values)
    with cloud_storage(buckets) as storage:
        bucket = buckets / "bucket1"
        values |= dict(storage.environment.items() - os.environ.items())
        given = [run / "crawl", run / "held_out", run / "site" / "pageviews.txt"]
        storage.upload(*given)
        for block in re.findall(r"```bash\n(.*?)```", document, re.S):
            run_commands("docs/cloud.md", beside, about=block, **values)
    made, wanted = (
        [path.read_bytes() for path in sorted(folder.glob("*.array_record*"))]
        for folder in (bucket / "dataset", run / "dataset")
    )
    assert made == wanted != []
    assert (bucket / "models" / "small" / "model.safetensors").exists()


def test_a_second_run_makes_nothing_again(quickstart, finished):
    workdir, _ = finished

    def written():
        return {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}

    before = written()
    output = quickstart(workdir)
    assert output.count("finished earlier") == 8
    changed = {p.name for p, when in written().items() if before.get(p) != when}
    assert changed == set()


@pytest.mark.slow
def test_two_fresh_runs_agree_to_the_byte(quickstart, finished, tmp_path):
    workdir, _ = finished
    quickstart(tmp_path / "again")
    assert deterministic(tmp_path / "again") == deterministic(workdir)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    command = [sys.executable, "-m", "examples.quickstart.run", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [*command, "--fresh"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "wanted an empty or new folder" in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.slow
def test_ten_kills_leave_the_same_dataset_and_metrics(quickstart, finished, tmp_path):
    """SIGKILL of the whole process group at ten random moments."""
    workdir, _ = finished
    again = tmp_path / "killed"
    command = [sys.executable, "-m", "examples.quickstart.run", f"--workdir={again}"]
    seed = time.time_ns()
    moments = random.Random(seed)
    kills = 0
    for _ in range(10):
        process = subprocess.Popen(
            [*command, "--pictures=400", "--steps=6"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(moments.uniform(1, 15))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    quickstart(again)
    print(f"{kills} kills, moments from seed {seed}")
    assert kills >= 8  # a run gets through in some ninety seconds
    assert deterministic(again) == deterministic(workdir), f"seed {seed}"
