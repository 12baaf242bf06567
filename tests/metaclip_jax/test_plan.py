"""Compiles for TPUs that are not there."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from metaclip_jax import config as keys
from metaclip_jax import plan
from metaclip_jax.training import compiled, sharding
from tests import waiting

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("libtpu", reason="needs libtpu: pip install 'jax[tpu]'")


def run(config, topology, *extra):
    return subprocess.run(
        [
            *(sys.executable, "-m", "metaclip_jax.plan"),
            *(
                f"--config=configs/metaclip.py:{config}",
                f"--topology={topology}",
                *extra,
            ),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )


def read(output):
    """The words before the figures, and the figures, of each line."""
    return {line[:17].strip(): line[17:] for line in output.splitlines()}


@pytest.fixture(scope="module")
def small():
    """Narrow towers on two slices: compiling takes twenty seconds, wide ones more."""
    narrow = [
        f"--config.model.{tower}_{key}={value}"
        for tower in ("vision", "text")
        for key, value in (("width", 128), ("heads", 2), ("mlp_width", 256))
    ]
    batch = ("--config.global_batch=64", "--config.image_size=32")
    slices = ("--slices=2", "--config.mesh.fsdp=2")
    done = run("vit_b32_400m", "v5e:2x2", *slices, *batch, *narrow)
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


@pytest.fixture(scope="module")
def b32():
    """A part of the paper's batch on 16 small chips."""
    done = run("vit_b32_400m", "v5e:4x4", "--config.global_batch=1024")
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


@pytest.fixture(scope="module")
def l14():
    """The paper's recipe."""
    done = run("vit_l14_400m", "v5p:4x4x8")
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


@pytest.mark.slow
def test_vit_b32_fits_v5e(b32):
    used, limit = memory(b32)
    assert 2 < used < limit == 15.75


@pytest.mark.slow
def test_vit_l14_fits_v5p_at_the_papers_batch(l14):
    used, limit = memory(l14)
    assert 10 < used < 0.9 * limit
    assert limit == 95.74
    assert l14["global batch"].startswith("32,768 pairs, 256 a device")
    # 16.6 PFLOP on 128 chips of 459 TFLOP/s.
    assert l14["compute floor"].startswith("0.282 s per step")


@pytest.mark.parametrize(
    "plan_of",
    ["small", *(pytest.param(n, marks=pytest.mark.slow) for n in ("b32", "l14"))],
)
def test_a_plan_tells_memory_flops_and_the_floor(plan_of, request):
    lines = request.getfixturevalue(plan_of)
    used, limit = memory(lines)
    arguments, temporaries, peak = (
        gib(lines[name]) for name in ("arguments", "temporaries", "peak")
    )
    assert 0 < arguments < used and 0 < temporaries < used and 0 < peak <= used
    assert used <= arguments + temporaries + 0.02 or used == peak
    percent = int(lines["device memory"].rsplit("(")[-1].removesuffix("%)"))
    assert percent == pytest.approx(100 * used / limit, abs=0.51)  # both are rounded
    assert lines["model FLOPs"].split()[1:4] == ["T", "per", "step,"]


def memory(lines):
    words = lines["device memory"].split()
    return float(words[0]), float(words[3])


def gib(shown):
    return float(shown.split()[0])


def test_what_does_not_fit_says_by_how_much():
    done = run("vit_b32_400m", "v5e:2x2")
    assert done.returncode == 1
    shown = read(done.stdout)["device memory"]
    assert shown.startswith("DOES NOT FIT: ")
    wanted, there, too_much = (float(shown.split()[n]) for n in (3, 6, 9))
    assert there == 15.75
    assert too_much == pytest.approx(wanted - there, abs=0.011)
    # 151 million parameters and two moments of each, in f32, and 8,192 pairs.
    shown = read(done.stdout)
    assert gib(shown["arguments"]) == pytest.approx(1.7 + 1.15, abs=0.05)
    least, temporaries = shown["temporaries"].rsplit(" ", 2)[:2]
    assert least == "at least"
    arguments = gib(shown["arguments"])
    assert float(temporaries) == pytest.approx(wanted - arguments, abs=0.1)
    assert shown["peak"].startswith("unknown")


def test_slices_split_the_batch_and_nothing_else():
    two = plan.describe_slice("v5e:2x2", slices=2)
    assert two.chips == len(two.devices) == 8
    mesh = sharding.make_mesh(data=-1, fsdp=2, tensor=2, devices=two.devices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    for number, part in enumerate(mesh.devices):
        assert {device.slice_index for device in part.flat} == {number}
    with pytest.raises(ValueError, match="must be a multiple of the 2 slices"):
        sharding.make_mesh(data=1, fsdp=4, tensor=2, devices=two.devices)
    with pytest.raises(ValueError, match="mesh.slices=4 must be -1 or .*; set it to 2"):
        sharding.make_mesh(data=-1, fsdp=2, tensor=2, slices=4, devices=two.devices)


@pytest.fixture(
    params=[
        ("v5p:4x4x8", 1, 1, 1),
        ("v5p:4x4x8", 1, 1, 4),
        ("v5p:4x4x8", 1, 2, 1),
        ("v5p:4x4x8", 1, 1, 2),
        ("v5p:4x4x8", 1, 8, 2),
        ("v4:2x2x4", 1, 2, 2),
        ("v6e:4x4", 1, 2, 1),
        ("v5e:16x16", 1, 1, 1),
        ("v5e:16x16", 1, 8, 1),
        ("v5e:4x4", 2, 8, 1),
        ("v5e:16x16", 2, 8, 1),
        ("v5p:4x4x4", 2, 2, 2),
    ],
    ids=lambda param: "-".join(map(str, param)),
)
def described(request):
    """All devices of slices that are not there, and a mesh with such fsdp, tensor."""
    topology, slices, fsdp, tensor = request.param
    devices = plan.describe_slice(topology, slices=slices).devices
    mesh = sharding.make_mesh(data=-1, fsdp=fsdp, tensor=tensor, devices=devices)
    assert mesh.shape["fsdp"] == fsdp and mesh.shape["tensor"] == tensor
    assert mesh.shape["data"] * fsdp * tensor == len(devices)
    return devices, mesh


def test_each_host_reads_a_run_of_a_batch(described):
    """Though the mesh follows the wires, which go back and forth between hosts."""
    devices, mesh = described
    size = 2 * len(devices)
    runs = {
        host: sharding.process_run(mesh, size, process=host)
        for host in {device.process_index for device in devices}
    }
    for run in runs.values():
        assert (np.diff(run) == 1).all()
    counts = np.bincount(np.concatenate(list(runs.values())), minlength=size)
    assert counts.min() == counts.max()  # where `tensor` spans hosts, they share


def test_mesh_axes_may_take_a_part_of_a_torus(described):
    devices, mesh = described
    assert set(mesh.devices.flat) == set(devices)
    # Slices split `data` alone.
    of_slice = np.vectorize(lambda d: getattr(d, "slice_index", 0))(mesh.devices)
    assert (of_slice == of_slice[:, :1, :1]).all()


def tiny():
    """Narrow towers on two positions."""
    config = keys.default()
    config.vocabulary = "clip"
    config.global_batch = 64
    config.image_size = config.model.patch_size = 32
    for tower in ("vision", "text"):
        config.model[f"{tower}_width"] = 128
        config.model[f"{tower}_heads"] = 2
    return config


@pytest.mark.slow
def test_the_largest_batch_and_the_cheapest_mesh_that_fit(tmp_path, capsys):
    where, config, cache = plan.describe_slice("v5e:2x2"), tiny(), str(tmp_path)
    config.global_batch = 256  # with less, the optimizer takes more than activations
    first = plan.make_plan(config, where, cache=cache)
    second = plan.make_plan(config, where, cache=cache)
    assert first == second and first.step.cycles > 0 and first.step.collective_bytes
    assert "estimated time" in plan.report(config, first)

    tight = where._replace(device_bytes=first.step.needed_bytes - 1)
    found, made = plan.find_mesh(config, tight, cache=cache)
    assert (found.mesh.fsdp, found.mesh.tensor) == (2, 1) and made.fits

    tight = where._replace(device_bytes=first.step.needed_bytes)
    found, made = plan.find_batch(config, tight, cache=cache)
    assert found.global_batch == 256 and made == first._replace(where=tight)
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in shown] == [
        "mesh fsdp 1 x tensor 1: does not fit",
        "mesh fsdp 2 x tensor 1: fits",
        "batch 256: fits",
        "batch 512: does not fit",
    ]


def test_a_step_compiles_for_two_slices(small):
    mesh = "8 devices; mesh data 4 x fsdp 2 x tensor 1"
    assert small["v5e:2x2: 8 chips"].endswith(mesh)


def test_the_vocabulary_is_the_configs_and_unknown_ones_are_refused():
    where = plan.describe_slice("v5e:2x2")
    config = keys.default()
    config.vocabulary = "klingon"
    with pytest.raises(
        ValueError, match="must be one of clip, xlm_v, mt5, siglip, got 'klingon'"
    ):
        plan.make_plan(config, where, cache="")
    config.vocabulary = ""
    with pytest.raises(ValueError, match="wanted a tokenizer or a vocabulary"):
        plan.make_plan(config, where, cache="")


def test_an_unknown_slice_is_refused():
    with pytest.raises(ValueError, match="wanted a TPU topology such as v5e:4x4"):
        plan.describe_slice("v9:2x2")


def test_a_missing_libtpu_is_named_with_its_cure(monkeypatch):
    def refuse(**_):
        raise NotImplementedError("JAX TPU support not installed")

    monkeypatch.setattr(plan.topologies, "get_topology_desc", refuse)
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match="wanted libtpu, .* pip install .jax"):
        plan.describe_slice("v5e:4x4")


def test_other_errors_of_the_compiler_are_not_taken_for_lack_of_memory():
    assert compiled.too_much("INTERNAL: something else") is None
    assert jax.default_backend() == "cpu"
    assert os.environ["JAX_PLATFORMS"] == "cpu"
