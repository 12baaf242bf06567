"""Models in our own formats; tests/parity opens the others with their libraries."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from metaclip_jax import config as keys
from metaclip_jax import convert, files
from metaclip_jax.conversion import huggingface, table, weights
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.inference import loading
from metaclip_jax.models import clip
from metaclip_jax.training import program, sharding
from metaclip_jax.training.job import Job, initial_params
from tests import small_models, waiting


def make(folder, **values):
    path = folder / "own.json"
    path.write_text(train_tokenizer(["red cat", "blue dog"] * 3, 600).to_str())
    tokenizer = load_tokenizer(path, family="clip")
    architecture = small_models.architecture(
        tokenizer,
        image_size=32,
        vision_heads=4,
        vision_mlp_width=48,
        embed_dim=32,
        **values,
    )
    params = clip.init(architecture, jax.random.key(1))
    return loading.Loaded(
        name="small",
        architecture=architecture,
        params=jax.tree.map(np.asarray, params),
        tokenizer=tokenizer,
        preprocess=loading.Preprocess(32, squash=True),
        licence="cc-by-nc-4.0",
    )


def assert_equal(got, want):
    got, want = loading.flat_params(got), loading.flat_params(want)
    assert got.keys() == want.keys()
    for path, leaf in want.items():
        np.testing.assert_array_equal(got[path], leaf, err_msg=path)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_checkpoint_holds_all_of_a_model(family, tmp_path):
    siglip = {"text_pool": "last", "activation": "gelu_tanh", "logit_bias": True}
    loaded = make(tmp_path, family=family, **(siglip if family == "siglip" else {}))
    convert.convert(loaded, "checkpoint", str(tmp_path / "run"))
    again = loading.load(tmp_path / "run")
    assert_equal(again.params, loaded.params)
    for name in ("architecture", "preprocess", "licence"):
        assert getattr(again, name) == getattr(loaded, name), name
    texts = ["a red cat", "</s> & blue", "x" * 50]
    for got, want in zip(
        again.tokenizer(texts, 16), loaded.tokenizer(texts, 16), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="holds checkpoints already"):
        convert.convert(loaded, "checkpoint", str(tmp_path / "run"))


@pytest.mark.parametrize("to", ["huggingface", "open_clip"])
def test_a_model_replaces_nothing_but_a_model_of_its_format(to, tmp_path):
    loaded = make(tmp_path)
    for _ in range(2):
        convert.convert(loaded, to, str(tmp_path / to))
    convert.convert(loaded, "checkpoint", str(tmp_path / "run"))
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "manifest.json").write_text("{}")
    other = "open_clip" if to == "huggingface" else "huggingface"
    for folder in ("run", "dataset", to):
        held = {p: p.stat().st_mtime_ns for p in (tmp_path / folder).rglob("*")}
        with pytest.raises(ValueError, match="choose another --output"):
            convert.convert(
                loaded, other if folder == to else to, str(tmp_path / folder)
            )
        assert {p: p.stat().st_mtime_ns for p in (tmp_path / folder).rglob("*")} == held


def test_training_starts_from_any_model_of_its_architecture(tmp_path):
    loaded = make(tmp_path)
    convert.convert(loaded, "checkpoint", str(tmp_path / "run"))
    config = keys.of_architecture(loaded.architecture)
    with config.unlocked():
        config.init_from = str(tmp_path / "run")
    asked = program.Program(
        architecture=dataclasses.replace(loaded.architecture, dtype="bfloat16"),
        optimizer=None,
        schedule=None,
        mesh=sharding.make_mesh(data=2, fsdp=2, tensor=2),
    )
    job = Job(
        program=asked,
        data=None,
        tokenizer=loaded.tokenizer,
        preprocess=loading.default_preprocess(asked.architecture),
        inputs={},
    )
    params, preprocess = initial_params(job, config)
    assert preprocess == loaded.preprocess != job.preprocess
    assert_equal(params, loaded.params)
    kernel = params["image"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert len({shard.data.shape for shard in kernel.addressable_shards}) == 1
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    gelu = dataclasses.replace(loaded.architecture, activation="gelu")
    other = job._replace(program=asked._replace(architecture=gelu))
    with pytest.raises(ValueError, match="activation: wanted 'gelu', found 'quick"):
        initial_params(other, config)


def test_another_image_size_keeps_all_but_the_positions(tmp_path):
    loaded = make(tmp_path)
    convert.convert(loaded, "huggingface", str(tmp_path / "hf"))
    larger = loading.load(tmp_path / "hf", image_size=48, position_resize="metaclip")
    assert larger.preprocess == loading.Preprocess(48, squash=True)
    position = larger.params["image"].pop("position_embedding")
    before = loaded.params["image"].pop("position_embedding")
    assert position.shape == (37, 32) and before.shape == (17, 32)
    np.testing.assert_array_equal(position[0], before[0])  # the class token's
    np.testing.assert_allclose(  # corners lie on corners
        position[[1, 6, 31, 36]], before[[1, 4, 13, 16]], atol=1e-6
    )
    assert_equal(larger.params, loaded.params)
    with pytest.raises(ValueError, match="multiple of patch_size=8"):
        loading.load(tmp_path / "hf", image_size=50)
    with pytest.raises(ValueError, match="position_resize must be one of"):
        loading.load(tmp_path / "hf", image_size=48, position_resize="bilinear")


def test_large_models_are_written_in_parts_with_an_index(tmp_path):
    loaded = make(tmp_path)
    tensors = dict(
        table.to_theirs(
            loading.flat_params(loaded.params),
            huggingface.rules(loaded.architecture),
            loaded.architecture,
        )
    )
    most = 60_000
    weights.write_folder(tmp_path / "hf", iter(tensors.items()), max_file_bytes=most)
    index = files.read_json(tmp_path / "hf" / "model.safetensors.index.json")
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    names = sorted(set(index["weight_map"].values()))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors" and len(names) > 2
    largest = max(t.nbytes for t in tensors.values())
    for name in names:
        held = load_file(tmp_path / "hf" / name)
        assert sum(t.nbytes for t in held.values()) <= max(most, largest)
    read = weights.open_weights(tmp_path / "hf")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read.read(name), tensor)


# Anonymous memory: what the kernel cannot take back, unlike pages of mapped files.
_PEAK = """
import sys, threading, time
import jax, numpy as np
from metaclip_jax import convert
from metaclip_jax.inference import loading
from metaclip_jax.models import clip, presets

def anonymous():
    with open("/proc/self/status") as status:
        row = next(line for line in status if line.startswith("RssAnon"))
    return int(row.split()[1]) * 1024

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

architecture = presets.architecture("vit_b32")
shapes = jax.eval_shape(lambda: clip.init(architecture, jax.random.key(0)))
peak = start = anonymous()
threading.Thread(target=watch, daemon=True).start()
if sys.argv[1] == "write":
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    preprocess = loading.Preprocess(224, squash=False)
    loaded = loading.Loaded("b32", architecture, params, None, preprocess)
else:
    loaded = loading.load(sys.argv[2])
convert.convert(loaded, sys.argv[3], sys.argv[4])
size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
print((peak - start) / size)
"""


@pytest.mark.slow
def test_a_model_goes_through_in_little_more_than_one_copy(tmp_path):
    """605 MB of parameters, in parts of 50 MB instead of the 2 GiB of large models."""
    script = _PEAK.replace(
        "architecture =",
        "from metaclip_jax.conversion import weights\n"
        "weights.write_folder.__kwdefaults__['max_file_bytes'] = 50_000_000\n"
        "architecture =",
        1,
    )
    for step in (
        ("write", "", "huggingface", str(tmp_path / "hf")),
        ("read", str(tmp_path / "hf"), "open_clip", str(tmp_path / "open_clip")),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *step],
            capture_output=True,
            text=True,
            timeout=waiting.SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert 1 <= float(done.stdout) < 1.5, step
