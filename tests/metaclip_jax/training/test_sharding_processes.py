"""Two processes whose devices are interleaved in the mesh, as on real slices."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import waiting

ROOT = Path(__file__).resolve().parents[3]
# Mesh, and its devices in order: 0 to 3 are those of process 0.
MESHES = {
    "data": ((8, 1, 1), (0, 4, 1, 5, 2, 6, 3, 7)),
    "fsdp": ((2, 4, 1), (0, 1, 4, 5, 6, 7, 2, 3)),
    # Tensor spans both processes: each needs all rows, or its own and shared ones.
    "tensor": ((4, 1, 2), (0, 4, 1, 5, 2, 6, 3, 7)),
    "some": ((2, 2, 2), (0, 4, 1, 2, 5, 6, 3, 7)),
}
ROWS = {
    "data": ([0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]),
    "fsdp": ([0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]),
    "tensor": (list(range(16)),) * 2,
    "some": (
        [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15],
        [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15],
    ),
}
# The results of each process for a batch, in the order of the rows above.
RUNS = {
    "data": (list(range(8)), list(range(8, 16))),
    "fsdp": (list(range(8)), list(range(8, 16))),
    "tensor": (list(range(16)),) * 2,
    "some": (
        [4, 5, 6, 7, 0, 1, 2, 3, 8, 9, 10, 11],
        [4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11],
    ),
}
# Under Slurm a process with HOST:PORT has all GPUs of its host, not only its first.
SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "elsewhere",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}

CODE = """
import json, os, signal, sys, time
import jax, numpy as np
from jax.experimental import multihost_utils
from metaclip_jax.training import checksums, runtime, sharding, train_state
from metaclip_jax.data import images
from metaclip_jax.evaluation import encoder, evaluator, held_out as held_outs
from metaclip_jax.models import clip

meshes, port, index, output, folder = sys.argv[1:]
runtime.start_jax(
    cpu_devices=4, compilation_cache="", coordinator=f"127.0.0.1:{port}",
    process_count=2, process_index=int(index),
)
assert jax.config.read("jax_cuda_visible_devices") == "all"
batch = np.arange(16 * 3).reshape(16, 3)
architecture = clip.Architecture(
    image_size=4, patch_size=4, vision_width=8, vision_layers=2, vision_heads=2,
    vision_mlp_width=8, text_width=8, text_layers=2, text_heads=2, text_mlp_width=8,
    context_length=4, vocab_size=60, embed_dim=8, eos_id=1, pad_id=0,
)

def tokenize(texts, length):  # "picture 7 told as 0"
    tokens = [[2 + int(text.split()[1]), 1, 0, 0] for text in texts]
    return np.array(tokens, np.int32), np.zeros(len(texts), bool)

result = {}
for name, (shape, order) in json.loads(meshes).items():
    devices = [jax.devices()[n] for n in order]
    sizes = dict(zip(sharding.AXES, shape, strict=True))
    mesh = sharding.make_mesh(**sizes, devices=devices)
    assert list(mesh.devices.flat) == devices
    rows = sharding.process_rows(mesh, 16)
    assembled = sharding.put_batch(mesh, {"x": batch[rows]})["x"]
    copy = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
    np.testing.assert_array_equal(jax.device_get(copy(assembled)), batch)
    # As training reads it: all rows are there, in the mesh's order.
    run = sharding.process_run(mesh, 16)
    mixed = jax.device_get(copy(sharding.put_batch(mesh, {"x": batch[run]})["x"]))
    np.testing.assert_array_equal(np.sort(mixed, axis=0), batch)
    owned = sharding.owned_rows(mesh, 16)
    result[name] = {
        "rows": rows.tolist(), "owned": run[owned].tolist(), "run": run.tolist()
    }

many = {f"{n:03}": batch.astype(np.int32) + n for n in range(200)}
spread = sharding.put_batch(mesh, {name: one[rows] for name, one in many.items()})
result["checksums"] = checksums.of_tree(spread), checksums.of_tree(many)

params = train_state.create_params(architecture=architecture, mesh=mesh, seed=0)
model = encoder.make_encoder(
    architecture=architecture, tokenizer=tokenize, preprocess=images.Preprocess(4),
    mesh=mesh, batch=16, params=params,
)
held_out = held_outs.load_held_out(folder)
asked = []
def read(rows):
    asked.extend(rows.tolist())
    return held_out.read(rows)
found = evaluator.embed(model, held_out._replace(read=read))
result["made"] = asked
here = jax.device_get(jax.tree.map(copy, params))
texts, _ = tokenize(held_out.texts, 4)
pixels = np.stack([
    images.decode_eval(data, images.Preprocess(4))
    for data in held_out.read(np.arange(len(held_out.names)))
])
for name, wanted in (
    ("text", clip.encode_text(architecture, here, texts)),
    ("image", clip.encode_image(architecture, here, pixels)),
):
    worst = float(np.abs(getattr(found, name) - wanted).max())
    result[f"of {name}"] = worst, float(np.ptp(wanted, axis=0).min())
with runtime.stop_on_sigterm() as stop_wanted:
    step = 1
    while not stop_wanted(step):
        if index == "1" and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step += 1
        time.sleep(0.05)
result["stopped after"] = step

with open(output, "w") as file:
    json.dump(result, file)
with runtime.fail_with_peers():
    if index == "1":
        raise ValueError("alone")
    multihost_utils.sync_global_devices("the other, in vain")
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory, write_dataset):
    """Of each process: what it wrote down, its exit status, and what it printed.

    When all is written down, the second fails, and the first waits for it.
    """
    folder = tmp_path_factory.mktemp("processes")
    held_out = write_dataset(folder / "held_out", record_count=40)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    outputs = [folder / f"{index}.json" for index in range(2)]
    arguments = [sys.executable, "-c", CODE, json.dumps(MESHES), port]
    started = [
        subprocess.Popen(
            [*arguments, str(index), output, held_out],
            cwd=ROOT,
            env={**os.environ, **SLURM},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index, output in enumerate(outputs)
    ]
    said = [process.communicate(timeout=waiting.SECONDS)[0] for process in started]
    assert all(output.exists() for output in outputs), said
    found = [json.loads(output.read_text()) for output in outputs]
    return found, [process.returncode for process in started], said


@pytest.fixture(scope="module")
def found(ended):
    """What each process wrote down."""
    return ended[0]


def test_a_signal_to_one_process_stops_all_after_one_step(found):
    steps = {one["stopped after"] for one in found}
    assert len(steps) == 1 and steps.pop() > 3


def test_a_process_that_fails_alone_ends_all(ended):
    _, statuses, said = ended
    assert all(statuses), said
    assert "ValueError: alone" in said[1] and "process 1 fails; exiting" in said[1]


@pytest.mark.parametrize("name", MESHES)
def test_a_batch_keeps_its_order_however_devices_lie(found, name):
    assert tuple(one[name]["rows"] for one in found) == ROWS[name]


@pytest.mark.parametrize("name", MESHES)
def test_a_process_reads_a_run_of_a_batch_however_devices_lie(found, name):
    assert tuple(one[name]["run"] for one in found) == RUNS[name]


@pytest.mark.parametrize("name", MESHES)
def test_one_process_tells_about_each_row(found, name):
    assert sorted(row for one in found for row in one[name]["owned"]) == list(range(16))


def test_a_state_of_many_arrays_has_its_checksums(found):
    """More than JAX lets devices compute at a time."""
    for one in found:
        spread, whole = one["checksums"]
        assert spread == whole
        assert len(set(spread.values())) == 200


@pytest.mark.parametrize(("what", "least"), [("text", 0.1), ("image", 0.01)])
def test_evaluation_gives_each_its_own_embedding(found, what, least):
    for one in found:
        worst, spread = one[f"of {what}"]
        assert worst < 1e-5 < least < spread


def test_evaluation_makes_in_each_what_its_devices_hold(found):
    made = [one["made"] for one in found]
    assert set(made[0]) | set(made[1]) == set(range(40))
    # Of each 16 rows a process holds 12, and the last row fills the last portion up.
    assert [len(rows) for rows in made] == [32, 29]
