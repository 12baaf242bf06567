"""A disk that is full ends a command with one line: the file, the folder, the cure.

Processes of these tests may only write short files: to the programs that is a disk
without room, in every folder.
"""

import json
import re
import subprocess
import sys

import pytest

from metaclip_jax import files

ROOM = 10_000  # bytes of one file

# Each writes one file beyond that, called `big` or below it, into `folder`.
WRITERS = {
    "bytes": "files.write_bytes(f'{folder}/big', noise)",
    "JSON": "files.write_json(f'{folder}/big', noise.hex())",
    "Parquet": "parts.write(folder, 'big', pa.table({'x': numbers}), FLOW)",
    "blobs": """
with parts.blob_writer(folder, 'big') as write_blob:
    for _ in range(40):
        write_blob(noise)
""",
    "file shard": """
sink.write_shard(
    f'{folder}/{records.shard_name("big", 0, 1)}', map(record, range(40))
)
""",
    "matcher": "Matcher([f'entry {n}' for n in range(2_000)]).save(f'{folder}/big')",
    "metadata": """
store.write(f'{folder}/big', metadata)
""",
    "embeddings": """
embeddings.write_part(f'{folder}/big', pa.table({'x': numbers}), inputs={})
""",
    "weights": """
weights.write_folder(f'{folder}/big', iter([('x', numbers)]))
""",
    "metrics": """
writer = metrics.Writer(f'{folder}/big', start_step=0, tensorboard=False)
for step in range(2_000):
    writer.write(step, {'loss': 1.0})
writer.flush()
""",
    "TensorBoard": """
with files.naming_full_disk(f'{folder}/big'):
    writer = metrics.Writer(f'{folder}/big', start_step=0, tensorboard=True)
    for step in range(2_000):
        writer.write(step, {'loss': 1.0})
""",
    "checkpoint": """
runtime.set_up_logging()
state = {f'x{n}': jnp.asarray(numbers) for n in range(20)}
with files.naming_full_disk(f'{folder}/big'):
    with checkpoint.open_manager(f'{folder}/big', keep_last=1) as manager:
        checkpoint.save(manager, 1, state, meta={})
""",
}

BEGIN = """
import json, resource, sys, traceback

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from absl import logging

from data_prep import drops
from data_prep.stages import parts
from data_prep.matching import Matcher
from data_prep.metadata import store
from data_prep.sinks import array_record as sink
from metaclip_jax.training import checkpoint, metrics, runtime
from metaclip_jax import files
from metaclip_jax.conversion import weights
from metaclip_jax.data import embeddings, records

folder, room, *writers = sys.argv[1:]
numbers = np.random.default_rng(0).random(30_000).astype(np.float32)
noise = numbers[:5_000].tobytes()
entries = tuple(noise[n : n + 8].hex() for n in range(0, len(noise), 8))
metadata = store.Metadata(
    "en", entries, sources=("title",) * len(entries), scores=(0.0,) * len(entries)
)
FLOW = drops.flow("dedup", entered=0, left=0, drops={})

def record(number):
    url = f"http://images.example/{number}.jpg"
    return records.Record(
        image=noise, image_id=records.image_id(url), image_url=url, page_url="",
        sha256="", width=1, height=1, texts=(), text_sources=(), languages=(),
        metadata=(), entry_ids=np.zeros(0, np.int32), entry_offsets=np.zeros(1, int),
    )

logging.use_absl_handler()  # as commands do
Matcher(["entry"])  # numba writes its cache of compiled code, which the limit forbids
resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
found = []
for number, code in enumerate(writers):
    folder = f"{sys.argv[1]}/{number}"
    try:
        exec(code)
        found.append(["nothing", ""])
    except Exception as error:
        found.append([type(error).__name__, str(error)])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    """What each writer raised, and all that the process said besides."""
    folder = tmp_path_factory.mktemp("full")
    done = subprocess.run(
        [sys.executable, "-c", BEGIN, str(folder), str(ROOM), *WRITERS.values()],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return folder, dict(zip(WRITERS, found, strict=True)), done.stderr


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_names_the_file_the_folder_and_the_cure(met, writer):
    folder, found, _ = met
    place = f"{folder}/{list(WRITERS).index(writer)}"
    kind, message = found[writer]
    assert kind == "DiskFullError"
    shape = (
        r"wanted room for (\S+), got 'File too large' with [\d,.]+ MB free in (\S+); "
        "free some space and run the same command again, which continues after the "
        "last whole file"
    )
    (file, where) = re.fullmatch(shape, message).groups()
    assert file.startswith(f"{place}/big")
    assert file.startswith(where)


def test_what_was_not_written_whole_leaves_nothing(met):
    folder, _, _ = met
    left = [path.name for path in folder.rglob("*") if path.is_file()]
    assert not [name for name in left if name.startswith(files.TEMPORARY_PREFIX)]


def test_libraries_add_nothing(met):
    *_, said = met
    assert "Traceback" not in said
