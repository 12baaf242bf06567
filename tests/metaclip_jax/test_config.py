import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from metaclip_jax import config as keys
from metaclip_jax import train
from metaclip_jax.cli import ranges
from metaclip_jax.models import attention, clip, layers, presets
from metaclip_jax.training import losses, program
from tests.out_of_range import bad_values, with_value

ROOT = Path(__file__).resolve().parents[2]
TOKENS = {"vocab_size": 49_408, "eos_id": 49_407, "pad_id": 0}


def test_a_mistyped_key_is_an_error_with_a_suggestion():
    config = keys.default()
    with pytest.raises(AttributeError, match='Did you mean "peak_lr"'):
        config.optimizer.peek_lr = 1.0
    with pytest.raises(AttributeError, match='Did you mean "total_steps"'):
        _ = config.total_step


def test_a_tokenizer_of_another_vocabulary_is_refused():
    presets.check_vocabulary("", size=777, tokenizer="own.json")
    presets.check_vocabulary("xlm_v", size=901_629, tokenizer="own.json")
    with pytest.raises(
        ValueError,
        match=r"'xlm_v' needs a tokenizer of 901,629 tokens, but 'own.json' has 49,408."
        " .*--config.vocabulary= to train another",
    ):
        presets.check_vocabulary("xlm_v", size=49_408, tokenizer="own.json")
    with pytest.raises(ValueError, match="must be one of clip, .*got 'klingon'"):
        presets.check_vocabulary("klingon", size=9, tokenizer="own.json")


def test_architecture_is_the_configs_values():
    config = keys.default()
    config.model.vision_mlp_width = 100
    architecture = keys.architecture(config, **TOKENS)
    assert architecture.vision_mlp_width == 100
    assert architecture.text_mlp_width == 4 * 512
    assert architecture.dtype == "bfloat16"


def test_every_key_has_a_row_and_every_row_a_key():
    assert set(keys.RANGES) == set(dict(ranges.flat(keys.default())))


@pytest.mark.parametrize("key", keys.RANGES)
def test_a_value_out_of_its_range_is_refused_by_the_name_of_its_key(key):
    for value in bad_values(keys.RANGES[key]):
        config = with_value(keys.default(), key, value)
        with pytest.raises(ValueError) as error:
            keys.check(config)
        text = str(error.value)
        assert text.startswith(f"config.{key}: wanted {keys.RANGES[key].wanted()}")
        assert ", got" in text
        assert "; the default is" in text and "\n" not in text


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("vocabulary", ("", *presets.VOCABULARIES)),
        ("dtype", clip.DTYPES),
        ("loss", losses.KINDS),
        ("loss_form", losses.FORMS),
        ("model.family", clip.FAMILIES),
        ("model.text_pool", clip.TEXT_POOLS),
        ("model.activation", tuple(layers.ACTIVATIONS)),
        ("model.attention", attention.IMPLEMENTATIONS),
        ("model.remat", tuple(layers.REMAT_POLICIES)),
    ],
)
def test_the_words_of_a_key_are_those_that_the_code_knows(key, choices):
    assert set(keys.RANGES[key].choices) == set(choices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 225}, "config.image_size=225: wanted a multiple of .* 224"),
        ({"image_size": 8}, "config.image_size=8: wanted a multiple of .* 32$"),
        ({"patch_dropout": 0.999}, "patch_dropout=0.999: .* of the 49 patches"),
        ({"model.vision_heads": 7}, "vision_width=768: wanted a multiple .*heads=7"),
        ({"model.text_heads": 7}, "text_width=512: wanted a multiple .*heads=7"),
        ({"model.text_pool": "last"}, "text_pool='last': wanted 'last' where .*'clip'"),
        (
            {"model.family": "siglip", "model.embed_dim": 768},
            "text_pool='eos': wanted 'last'",
        ),
        (
            {"model.family": "siglip", "model.text_pool": "last"},
            "embed_dim=512: wanted config.model.vision_width=768",
        ),
        ({"total_steps": 2_000}, "warmup_steps=2000: wanted fewer .*; try 200"),
        ({"eval_every_steps": 9}, "eval_every_steps=9: wanted images"),
        ({"evaluation.tasks": "cifar10"}, "data_dir='': wanted the folder of the"),
        ({"checkpoint.keep_best": "x"}, "keep_best='x': wanted scores"),
        (
            {
                "checkpoint.keep_best": "x",
                "evaluation.held_out": "DIR",
                "eval_every_steps": 3,
            },
            "checkpoint_every_steps=5000: wanted a multiple of .*_steps=3",
        ),
        ({"profile.first_step": 5}, "first_step=5: wanted 1 <= .* <= last_step=0"),
        ({"profile.last_step": 10**6}, "first_step=0: wanted 1 <= .*=1000000 <= total"),
        ({"data.crop_scale": (0.9, 0.5)}, "crop_scale=.0.9, 0.5.: wanted the least"),
        (
            {"data.text_source_weights": (("alt", 1), ("alt", 2))},
            "text_source_weights=.*: wanted each text source once",
        ),
        ({"data.synthetic_share": 0.5}, "give config.data.synthetic_sources"),
    ],
)
def test_values_that_do_not_go_together_are_refused(changes, message):
    config = keys.default()
    for key, value in changes.items():
        with_value(config, key, value)
    with pytest.raises(ValueError, match=message) as error:
        keys.check(config)
    assert len(str(error.value).splitlines()) == 1


def test_all_that_is_wrong_is_said_at_once():
    config = with_value(keys.default(), "optimizer.beta1", 1.0)
    with_value(config, "image_size", 0)
    with pytest.raises(ValueError) as error:
        keys.check(config)
    assert str(error.value).splitlines() == [
        "2 errors in the config:",
        "  config.image_size: wanted an integer from 1 to 65535, got 0; the default is"
        " 224",
        "  config.optimizer.beta1: wanted a number from 0 to 0.999999, got 1.0; the"
        " default is 0.9",
    ]


def test_the_comma_of_a_single_item_is_called_to_mind():
    config = with_value(keys.default(), "data.mixture", ("/d/en", 1.0))
    with pytest.raises(ValueError, match=re.escape("(('/d/en', 1.0),), with a comma")):
        keys.check(config)


def test_keys_that_a_recipe_made_up_or_left_out_are_refused():
    config = keys.default()
    with config.unlocked():
        config.optimizer.learning_rate = 1e-3
        del config.optimizer.peak_lr
    with pytest.raises(ValueError) as error:
        keys.check(config)
    assert "got config.optimizer.learning_rate; did you" in str(error.value)
    assert "wanted the key config.optimizer.peak_lr, got none" in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--process_count=0"],
        ["--process_index=-1"],
        ["--process_index=1"],
        ["--process_count=2"],  # no coordinator: each would train alone
        ["--process_count=2", "--coordinator=auto"],
        ["--process_count=2", "--process_index=2", "--coordinator=127.0.0.1:9"],
    ],
    ids=" ".join,
)
def test_processes_that_would_wait_or_train_alone_are_refused(wrong, monkeypatch):
    monkeypatch.chdir(ROOT)
    parsed = flags.FlagValues()
    train.define_flags(parsed)
    with pytest.raises(flags.IllegalFlagValueError, match="process_|lower"):
        parsed(["train", "--config=configs/quickstart.py", "--workdir=DIR", *wrong])


def test_a_refused_command_leaves_nothing_and_starts_nothing(tmp_path):
    wrong = ["optimizer.peak_lr=nan", "data.crop_scale=0.5", "data.worker_count=-1"]
    command = [sys.executable, "-m", "metaclip_jax.train", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [*command, "--config=configs/quickstart.py", *(f"--config.{w}" for w in wrong)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    for key in ("optimizer.peak_lr", "data.crop_scale", "data.worker_count"):
        assert f"config.{key}: wanted" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("activation", "relu", "activation must be one of .*got 'relu'"),
        ("remat", "some", "remat must be one of"),
        ("patch_size", 30, "image_size=224 must be a multiple of patch_size=30"),
        ("text_heads", 7, "text_width=512 must be a multiple of text_heads=7"),
        ("vision_layers", 1, "vision_layers must be at least 2, got 1"),
    ],
)
def test_shapes_that_no_model_has_are_refused(key, value, message):
    config = keys.default()
    config.model[key] = value
    with pytest.raises(ValueError, match=message):
        keys.architecture(config, **TOKENS)


def test_cudnn_attention_is_refused_where_it_cannot_run():
    config = keys.default()
    config.model.attention = "cudnn"
    with pytest.raises(ValueError, match="needs NVIDIA GPUs .* got cpu and 'bfloat16'"):
        program.make(config, **TOKENS)
    program.check_attention("cudnn", dtype="bfloat16", platform="gpu")
    program.check_attention("xla", dtype="float32", platform="cpu")
    with pytest.raises(ValueError, match="got gpu and 'float32'"):
        program.check_attention("cudnn", dtype="float32", platform="gpu")


def test_an_unknown_loss_is_refused_before_anything_is_compiled():
    config = keys.default()
    config.loss_form = "rings"
    with pytest.raises(ValueError, match="loss_form must be one of .*got 'rings'"):
        program.make(config, **TOKENS)


def test_an_end_mark_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="eos_id=10 must be in .0, vocab_size=10"):
        keys.architecture(keys.default(), vocab_size=10, eos_id=10, pad_id=0)
