"""gs://, served by fake-gcs-server: a dataset gives the same batches, in few requests,
a run's metrics arrive, and a run that was killed goes on from its checkpoint.

The server speaks Cloud Storage's HTTP interface; gcsfs, array_record's own client and
Orbax's, tensorstore, use it as they use the real one.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metaclip_jax import metric_rows
from metaclip_jax.data import tokenizer
from tests import stopping, storage, waiting

ROOT = Path(__file__).resolve().parents[2]
RECORDS, SHARDS = 96, 3
STEPS, CHECKPOINT = 12, 4

READ = """
import hashlib, json, sys
import numpy as np
from metaclip_jax import files
from metaclip_jax.data import order, pipeline, workers
from metaclip_jax.data.options import DataOptions
from metaclip_jax.data.tokenizer import load as load_tokenizer

def digest(folder, **values):
    options = DataOptions(
        (folder,), global_batch=24, total_steps=8, image_size=16, context_length=8,
        **values,
    )
    stream = pipeline.batches(
        options, load_tokenizer(tokenizer, family="clip"),
        prefetcher=workers.Prefetcher(prefetch=0),
    )
    return [hashlib.sha256(b"".join(a.tobytes() for a in batch.values())).hexdigest()
            for batch in stream]

local, tokenizer, remote, mark = sys.argv[1:]
if not (files.path(remote) / files.MANIFEST).exists():
    for path in sorted(files.path(local).iterdir()):
        path.copy(files.path(remote) / path.name)
result = {}
for name, values in {
    "global": {}, "blocks": {"blocks": order.Blocks(8, 1)}
}.items():
    result[name] = [digest(local, **values)]
    files.path(f"{mark}/{name}-begins").exists()
    result[name].append(digest(remote, **values))
files.path(f"{mark}/ends").exists()
print(json.dumps(result))
"""


WRITE = """
from metaclip_jax import files, metric_rows
from metaclip_jax.training import metrics

workdir = "gs://bucket1/runs/some"
out = metrics.Writer(workdir, start_step=0, tensorboard=True)
stored = []
for step in (1, 2):
    out.write(step, {"loss": 2.5 / step})
    out.flush()
    (events,) = files.path(f"{workdir}/tensorboard").iterdir()
    stored.append(events.read_bytes())
out.close()
assert len(stored[0]) < len(stored[1]) and stored[1].startswith(stored[0])
assert b"loss" in stored[0]
assert events.read_bytes() == stored[1]
rows = metric_rows.read(workdir)
assert rows == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.25}], rows
"""


COPY = """
import sys
from metaclip_jax import files

local, remote = map(files.path, sys.argv[1:])
for path in sorted((local / "dataset").iterdir()):
    path.copy(remote / "dataset" / path.name)
(local / "tokenizer.json").copy(remote / "tokenizer.json")
"""

ROWS = """
import json, sys
from metaclip_jax import metric_rows
print(json.dumps(metric_rows.read(sys.argv[1])))
"""


def python(environment, code, *arguments):
    """Runs code in a process of its own; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def read(tmp_path_factory, write_dataset, cloud_storage):
    """What a process reads of a dataset here and there, and the requests it made."""
    folder = tmp_path_factory.mktemp("gcs")
    dataset = write_dataset(
        folder / "dataset", record_count=RECORDS, shard_count=SHARDS
    )
    raw = tokenizer.train([f"picture {n} told as {n % 3}" for n in range(9)], 600)
    (folder / "tokenizer.json").write_text(raw.to_str())
    remote = ("gs://bucket1/some/dataset", "gs://bucket1/mark")
    with cloud_storage() as server:
        done = python(
            server.environment, READ, dataset, folder / "tokenizer.json", *remote
        )
        return json.loads(done), server.requests()


def test_metrics_on_gs_are_parts_and_an_events_file_that_grows(cloud_storage):
    with cloud_storage() as server:
        python(server.environment, WRITE)


def test_a_dataset_on_gs_gives_the_same_batches(read):
    result, _ = read
    for local, remote in result.values():
        assert local == remote
        assert len(set(local)) == 8
    assert result["global"] != result["blocks"]


def test_blocks_take_a_request_each_where_single_records_take_one_each(read):
    _, requests = read
    marks = [
        next(i for i, line in enumerate(requests) if name in line)
        for name in ("global-begins", "blocks-begins", "mark/ends")
    ]
    counts = []
    for start, end in zip(marks, marks[1:], strict=False):
        bodies = [r for r in requests[start:end] if re.search("GET .*array_record", r)]
        counts.append(sum("alt=media" in line for line in bodies))
    by_record, by_block = counts
    epochs = 2
    assert by_record >= epochs * RECORDS
    # A batch is three blocks; and the files are opened, once to count their records.
    blocks = epochs * RECORDS // 8
    assert by_block <= blocks + 4 * SHARDS


PASS = """
import sys
import numpy as np
from metaclip_jax.data import blocks, order, records

dataset = records.open_dataset("gs://bucket1/dataset")
batch, shape = int(sys.argv[1]), order.Blocks(256, int(sys.argv[1]) // 1024)
source = order.WholeDataset(len(dataset), seed=0, blocks=shape)
reader, read = blocks.BlockReader(dataset), 0
for step in range(len(dataset) // batch):
    positions = np.arange(step * batch, (step + 1) * batch)
    near = blocks.neighbours(
        positions, members=0 * positions, own=positions, sources=[source]
    )
    read += sum(map(bool, reader.read(source.index(near)[1])))
print(read)
"""


def test_blocks_take_a_request_for_fifty_examples_or_more(
    tmp_path, write_dataset, cloud_storage
):
    """With all other requests, those that open the dataset and its files.

    Of images as large as real ones: small ones share what is read at least.
    """
    image = np.random.default_rng(0).bytes(50_000)
    images = dict.fromkeys(range(2_048), image)
    write_dataset(tmp_path / "dataset", record_count=2_048, images=images)
    with cloud_storage() as server:
        server.upload(tmp_path / "dataset")
        before = len(server.requests())
        examples = int(python(server.environment, PASS, 1_024))
        count = sum("GET" in line for line in server.requests()[before:])
    assert examples == 2_048
    assert 8 < count <= examples / 50


def start(environment, workdir, *, folder, stops=None):
    """Starts a short training of the quick start's model."""
    values = {
        "dataset": f"{folder}/dataset",
        "tokenizer": f"{folder}/tokenizer.json",
        "total_steps": STEPS,
        "checkpoint_every_steps": CHECKPOINT,
        "log_every_steps": 1,
        "global_batch": 16,
        "optimizer.warmup_steps": 2,
    }
    flags = [f"--workdir={workdir}", f"--config={ROOT}/configs/quickstart.py"]
    flags += [f"--config.{key}={value}" for key, value in values.items()]
    command = [sys.executable, "-m", "metaclip_jax.train", *flags]
    if stops:
        command = stopping.command("metaclip_jax.train", *flags, **stops)
    return subprocess.Popen(
        command,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_dataset):
    """A folder with what a run is trained on."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "dataset", record_count=RECORDS, shard_count=SHARDS)
    raw = tokenizer.train([f"picture {n} told as {n % 3}" for n in range(9)], 600)
    (folder / "tokenizer.json").write_text(raw.to_str())
    return folder


@pytest.fixture(scope="module")
def losses(data, tmp_path_factory):
    """Of the undisturbed run on the local disk."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    finish(start(os.environ, workdir, folder=data))
    return [row["loss"] for row in metric_rows.read(str(workdir))]


def finish(run):
    """Waits for a run that ends well; returns what it printed."""
    output, _ = run.communicate(timeout=waiting.SECONDS)
    assert run.returncode == 0, output
    return output


def test_a_run_on_gs_that_is_killed_goes_on_as_if_it_had_not(
    data, losses, cloud_storage
):
    """Its dataset, tokenizer, checkpoints and rows are all there."""
    with cloud_storage() as server:
        environment = server.environment
        remote = {"workdir": "gs://bucket1/run", "folder": "gs://bucket1/data"}
        python(environment, COPY, data, remote["folder"])
        # By then the checkpoint before is whole, as Orbax writes one at a time.
        save = {"function": "metaclip_jax.training.checkpoint.save"}
        stops = save | {"argument": f"^{2 * CHECKPOINT}$"}
        killed = start(environment, **remote, stops=stops)
        output, _ = killed.communicate(timeout=waiting.SECONDS)
        assert killed.returncode == -signal.SIGKILL, output
        output = finish(start(environment, **remote))
        (step,) = map(int, re.findall(r"goes on from step (\d+)", output))
        assert f" {(STEPS - step) * 16} requests in these steps" in output
        found = json.loads(python(environment, ROWS, remote["workdir"]))
    assert [row["loss"] for row in found] == losses
    assert len(found) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_requests_that_fail_change_no_loss(data, losses, cloud_storage, share):
    remote = {"workdir": "gs://bucket1/run", "folder": "gs://bucket1/data"}
    with (
        cloud_storage() as server,
        storage.proxy(server.url, share=share) as proxy,
    ):
        python(server.environment, COPY, data, remote["folder"])
        finish(start(proxy.environment, **remote))
        found = json.loads(python(server.environment, ROWS, remote["workdir"]))
    assert proxy.faults().total() > share / 2 * len(proxy.asked)
    assert [row["loss"] for row in found] == losses
