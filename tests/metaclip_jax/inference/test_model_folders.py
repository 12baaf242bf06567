"""Folders of models with absurd, missing or damaged parts: one error that names it."""

import copy
import json
import random
import shutil

import jax
import ml_collections
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from metaclip_jax import convert, files
from metaclip_jax.conversion import huggingface, open_clip, table, weights
from metaclip_jax.data.tokenizer import load as load_tokenizer
from metaclip_jax.data.tokenizer import train as train_tokenizer
from metaclip_jax.inference import loading
from metaclip_jax.models import clip
from metaclip_jax.training import run_config
from tests import small_models

GONE = object()
ABSURD = (GONE, None, "x", 0, -1, 10**9, 1.5, True, [], {}, [1], float("nan"))
KINDS = ("clip", "metaclip_2", "siglip", "open_clip", "checkpoint")
CONFIGS = {"open_clip": "open_clip_config.json"}
READERS = {"open_clip": open_clip.read_architecture}


def make(root, kind):
    """A small model's folder in a format."""
    (root / "own.json").write_text(train_tokenizer(["red cat"] * 3, 600).to_str())
    family = "siglip" if kind == "siglip" else "clip"
    tokenizer = load_tokenizer(root / "own.json", family=family)
    # A worldwide model is recognised by the id that ends its texts.
    worldwide = kind == "metaclip_2"
    architecture = small_models.architecture(
        tokenizer,
        family=family,
        text_pool="last" if family == "siglip" else "eos",
        logit_bias=family == "siglip",
        activation="gelu_tanh" if family == "siglip" else "gelu",
        vision_width=16,
        vision_mlp_width=24,
        text_width=16,
        text_layers=3,
        text_mlp_width=32,
        context_length=8,
        eos_id=2 if worldwide else tokenizer.eos_id,
    )
    params = jax.device_get(clip.init(architecture, jax.random.key(0)))
    loaded = loading.Loaded(
        name="small",
        architecture=architecture,
        params=params,
        tokenizer=None if worldwide else tokenizer,
        preprocess=loading.default_preprocess(architecture),
    )
    to = kind if kind in ("open_clip", "checkpoint") else "huggingface"
    convert.convert(loaded, to, str(root / "model"))
    return root / "model"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def fields(value, path=()):
    """The paths of all fields of a JSON object, those of objects inside it too."""
    for name, inside in value.items():
        yield (*path, name)
        if isinstance(inside, dict):
            yield from fields(inside, (*path, name))


def changed(written, path, value):
    """A copy with another value of one field."""
    written = copy.deepcopy(written)
    inside = written
    for name in path[:-1]:
        inside = inside[name]
    if value is GONE:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return written


@pytest.mark.parametrize("kind", ["clip", "metaclip_2", "siglip", "open_clip"])
def test_every_absurd_value_of_a_config_is_refused_by_name(kind, folders, tmp_path):
    """Or it has no effect; or, where a default steps in, the weights do not fit it."""
    name = CONFIGS.get(kind, "config.json")
    read = READERS.get(kind, huggingface.read_architecture)
    written = files.read_json(folders[kind] / name)
    usual = read(written)
    others = {}
    refused = 0
    for path in fields(written):
        for value in ABSURD:
            try:
                got = read(changed(written, path, value), file="FILE")
            except ValueError as error:
                assert "FILE" in str(error), error
                assert path[-1] in str(error) or "model_cfg" in path, (path, error)
                refused += 1
            else:
                if got != usual:
                    others[path, repr(value)] = got, changed(written, path, value)
    assert refused > 7 * 15  # most values of each of the sizes
    shutil.copytree(folders[kind], tmp_path / "model")
    for (path, value), (_, config) in others.items():
        (tmp_path / "model" / name).write_text(json.dumps(config))
        try:
            loading.load(tmp_path / "model")
        except ValueError as error:
            assert str(tmp_path / "model") in str(error), (path, value, error)


def test_a_config_is_refused_before_weights_are_looked_at(folders, tmp_path):
    for kind in ("clip", "siglip", "open_clip"):
        folder = tmp_path / kind
        shutil.copytree(folders[kind], folder)
        (next(folder.glob("*.safetensors"))).unlink()
        name = CONFIGS.get(kind, "config.json")
        written = files.read_json(folder / name)
        path = ("model_cfg", "text_cfg", "layers")
        if kind != "open_clip":
            path = ("text_config", "num_hidden_layers")
        (folder / name).write_text(json.dumps(changed(written, path, 10**7)))
        wanted = rf"{name}.* wanted text_c\w+\.\w+ an integer .*, got 10000000"
        with pytest.raises(ValueError, match=wanted):
            loading.load(folder)


def test_every_absurd_value_of_a_run_s_config_is_refused_by_name(folders, tmp_path):
    written = files.read_json(folders["checkpoint"] / "config.json")
    refused = 0
    for path in fields(written):
        for value in ABSURD:
            config = changed(written, path, value)
            (tmp_path / "config.json").write_text(json.dumps(config))
            try:
                assert isinstance(
                    run_config.read(str(tmp_path)), ml_collections.ConfigDict
                )
            except ValueError as error:
                assert f"{tmp_path}/config.json" in str(error), error
                assert path[-1] in str(error), (path, value, error)
                refused += 1
    assert refused > 500


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '"x"', "null", "\xff"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("clip", "config.json"),
        ("clip", "preprocessor_config.json"),
        ("clip", "processor_config.json"),
        ("clip", "tokenizer.json"),
        ("open_clip", "open_clip_config.json"),
        ("checkpoint", "config.json"),
        ("checkpoint", "tokenizer.json"),
    ],
)
def test_a_file_that_holds_something_else_is_named(kind, name, text, folders, tmp_path):
    shutil.copytree(folders[kind], tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=name):
        loading.load(tmp_path / "model")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip"])
def test_weights_that_are_not_finite_are_named(kind, bad, folders, tmp_path):
    shutil.copytree(folders[kind], tmp_path / "model")
    (file,) = (tmp_path / "model").glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name] = np.array(tensors[name])
    tensors[name].flat[-1] = bad
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"{file.name}: {name} holds NaN or inf"):
        loading.load(tmp_path / "model")


def test_a_run_that_has_diverged_is_named(folders, tmp_path):
    loaded = loading.load(folders["checkpoint"])
    loaded.params["image"]["ln_post"]["bias"] = np.full(16, np.nan, np.float32)
    convert.convert(loaded, "checkpoint", str(tmp_path / "run"))
    with pytest.raises(ValueError, match="run, step 0: image/ln_post/bias holds NaN"):
        loading.load(tmp_path / "run")


def read_all(path, architecture, shapes):
    source = weights.open_weights(path)
    for _ in table.to_ours(
        source,
        huggingface.rules(architecture),
        architecture,
        ignored=huggingface.is_ignored,
        shapes=shapes,
    ):
        pass


@pytest.fixture(scope="module")
def stored(folders):
    """A weight file's bytes, the architecture, and the shapes of our leaves."""
    loaded = loading.load(folders["clip"])
    a = loaded.architecture
    shapes = {p: x.shape for p, x in loading.flat_params(loaded.params).items()}
    shapes["text/token_embedding"] = a.vocab_size, a.text_width
    return (folders["clip"] / "model.safetensors").read_bytes(), a, shapes


def test_damaged_weights_are_named_or_give_other_numbers(stored, tmp_path):
    data, *rest = stored
    path = tmp_path / "model.safetensors"
    draw = random.Random(0)
    head = 8 + int.from_bytes(data[:8], "little")
    named = 0
    for number in range(400):
        damaged = bytearray(data)
        if number % 4 == 0:
            del damaged[draw.randrange(len(data)) :]
        elif number % 4 == 1:
            place = draw.randrange(head)
            damaged[place : place + draw.randrange(40)] = b""
        else:
            damaged[draw.randrange(head)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            read_all(path, *rest)
        except ValueError as error:
            assert str(path) in str(error), error
            named += 1
    assert named > 250


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, bool, np.int64])
def test_quantised_weights_are_refused(dtype, stored, tmp_path):
    data, *rest = stored
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    tensors = load_file(path)
    tensors["visual_projection.weight"] = np.ones((16, 16), dtype)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"wanted visual_projection\.weight in F64 or"):
        read_all(path, *rest)


def test_another_shape_is_found_before_anything_is_read(stored, tmp_path):
    data, *rest = stored
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    tensors = load_file(path)
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    for shape in ((16, 32), (32 * 16,), (32, 17), (1,)):
        changed = np.full(shape, np.nan, np.float32)
        save_file(tensors | {name: changed}, path)
        shown = rf"got \[{', '.join(map(str, shape))}\]"
        with pytest.raises(ValueError, match=rf"{name} to give .*\[16, 32\].*{shown}"):
            read_all(path, *rest)


@pytest.mark.parametrize(
    "index",
    [
        [],
        {},
        {"weight_map": []},
        {"weight_map": {"logit_scale": 3}},
        {"weight_map": {"logit_scale": "other.safetensors"}},
        {"weight_map": {"nothing": "model.safetensors"}},
    ],
)
def test_an_index_that_names_what_is_not_there_is_refused(index, stored, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(stored[0])
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises((ValueError, FileNotFoundError), match=path.name):
        weights.open_weights(path)


def test_damaged_tokenizers_are_named_or_encode(folders, tmp_path):
    """Every id of any text has a row in the model's table."""
    written = files.read_json(folders["clip"] / "tokenizer.json")
    draw = random.Random(0)
    places = []
    for name, inside in written.items():
        places.append((name,))
        if isinstance(inside, dict):
            places += [(name, key) for key in inside]
    places += [("model", "vocab", piece) for piece in sorted(written["model"]["vocab"])]
    places += [("added_tokens", n, key) for n in (0, 1) for key in ("id", "content")]
    path = tmp_path / "tokenizer.json"
    named = 0
    for place in draw.sample(places, 150):
        value = draw.choice(ABSURD)
        path.write_text(json.dumps(changed(written, place, value)))
        try:
            tokenizer = load_tokenizer(path, family="clip")
            ids, _ = tokenizer(["a red cat \U0001f600 é", "", "<|pad|>"], 8)
            assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size < 2_000
        except ValueError as error:
            assert str(path) in str(error), (place, value)
            named += 1
    assert named > 75
