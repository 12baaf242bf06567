"""A workdir belongs to one run, which may change some keys and say when it is done."""

import json

import pytest

from metaclip_jax import config as keys
from metaclip_jax import files
from metaclip_jax.cli import ranges
from metaclip_jax.training import run_config

INPUTS = {"dataset": "d" * 64, "tokenizer": "e" * 64}


def test_a_workdir_of_another_run_is_refused_naming_the_keys(tmp_path):
    config = {"seed": 0, "optimizer": {"peak_lr": 1e-3}, "crop_scale": (0.9, 1.0)}
    run_config.claim(str(tmp_path), config, write=True)
    run_config.claim(str(tmp_path), config, write=True)
    other = config | {"seed": 1, "optimizer": {"peak_lr": 2e-3}}
    with pytest.raises(
        ValueError,
        match="optimizer.peak_lr: wanted 0.002, found 0.001; seed: wanted 1, found 0",
    ):
        run_config.claim(str(tmp_path), other, write=True)


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("manifest.json", {"inputs": {}, "shards": []}),  # of a dataset
        (files.CLAIM, {"inputs": {}}),  # of one that is being written
        ("config.json", {"model_type": "clip", "dtype": "float32"}),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name, held):
    (tmp_path / name).write_text(json.dumps(held))
    for write in (False, True):
        with pytest.raises(ValueError, match=f"holds something else .{name}."):
            run_config.claim(str(tmp_path), {"seed": 0}, write=write)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert json.loads((tmp_path / name).read_text()) == held


def test_a_run_may_go_on_longer_on_another_mesh(tmp_path):
    config = {"total_steps": 10, "mesh": {"data": 1}, "seed": 0}
    run_config.claim(str(tmp_path), config, write=True)
    longer = {"total_steps": 20, "mesh": {"data": 2}, "seed": 0}
    run_config.claim(str(tmp_path), longer, write=True)
    assert '"total_steps": 20' in (tmp_path / "config.json").read_text()


def test_a_run_older_than_a_key_goes_on_if_the_key_has_its_default(tmp_path):
    config = keys.default().to_dict()
    older = config | {"data": {"order": "global"}}  # also without keys of tuples
    other = config | {"data": config["data"] | {"crop_scale": (0.5, 1.0)}}
    files.write_json(tmp_path / "config.json", older)
    with pytest.raises(ValueError, match=r"crop_scale: wanted \[0.5, 1.0\], found"):
        run_config.claim(str(tmp_path), other, write=True)
    run_config.claim(str(tmp_path), config, write=True)


def test_every_free_key_is_a_key_of_the_config():
    names = dict(ranges.flat(keys.default()))
    for free in run_config.FREE_KEYS:
        assert any(run_config._is_free(key) for key in names), free
        assert free in names or any(key.startswith(free) for key in names), free


def test_a_finished_run_says_so_until_it_goes_on(tmp_path):
    manifest = tmp_path / "manifest.json"
    run_config.write_finished(str(tmp_path), step=20, inputs=INPUTS)
    assert manifest.exists()
    run_config.clear_finished(str(tmp_path))
    run_config.clear_finished(str(tmp_path))
    assert not manifest.exists()
