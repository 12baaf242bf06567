"""The loader in training: when it starts, and what waits on the devices."""

import os
import subprocess
import sys

import numpy as np
import pytest

from metaclip_jax.data import pipeline, tokenizer
from metaclip_jax.data.options import DataOptions
from metaclip_jax.training import feed, runtime, sharding

STEPS, BATCH = 5, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_dataset):
    folder = tmp_path_factory.mktemp("feed")
    write_dataset(folder / "dataset", record_count=20, images={3: b"no image"})
    raw = tokenizer.train([f"picture {n} told as {n % 3}" for n in range(9)], 600)
    (folder / "tokenizer.json").write_text(raw.to_str())
    return folder


def open_batches(folder):
    options = DataOptions(
        folders=(f"{folder}/dataset",),
        global_batch=BATCH,
        total_steps=STEPS,
        image_size=16,
        context_length=12,
        read_threads=1,
    )
    tokenize = tokenizer.load(f"{folder}/tokenizer.json", family="clip")
    return pipeline.batches(options, tokenize)


@pytest.mark.parametrize("ahead", [0, 1, 2, 4, 9])
def test_batches_come_in_order_and_so_many_are_under_way(folder, ahead):
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    stream = open_batches(folder)
    on_devices = feed.feed_devices(mesh, stream, ahead=ahead)
    found = [next(on_devices)]
    assert stream.examples == BATCH * min(1 + ahead, STEPS)
    found += on_devices
    stream.close()
    wanted = open_batches(folder)
    for got, want in zip(found, wanted, strict=True):
        for key in ("image", "tokens"):
            np.testing.assert_array_equal(got.arrays[key], want[key])
            assert got.arrays[key].sharding.mesh == mesh
        np.testing.assert_array_equal(got.image_ids, want["image_id"])
        assert got.losses == wanted.losses
    wanted.close()


def test_the_loader_needs_no_jax(folder):
    """Where JAX cannot start at all, batches are made all the same."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from test_feed import open_batches
stream = open_batches(sys.argv[2])
print(next(stream)["image"].shape)
stream.close()
import jax
try:
    jax.devices()
except RuntimeError:
    print("no devices")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__), str(folder)],
        env={**os.environ, "JAX_PLATFORMS": "none", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"({BATCH}, 16, 16, 3)\nno devices\n", done.stderr


def test_one_process_gathers_its_own():
    assert runtime.gather({"a": 1}) == [{"a": 1}]
