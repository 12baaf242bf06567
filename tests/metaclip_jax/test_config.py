import ast
import dataclasses
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from metaclip_jax import config as keys
from metaclip_jax import losses, program, ranges, train
from metaclip_jax.models import attention, clip, layers, presets
from tests.out_of_range import bad_values, with_value

RECIPES = Path(__file__).resolve().parents[2] / "configs"
# The quick start is no paper's; the other recipes are of data_prep's programs.
TRAINED = sorted(
    path.stem
    for path in RECIPES.glob("*.py")
    if "metaclip_jax.train" in path.read_text()
)
NOT_GIVEN = "not given in the paper"
TOKENS = {"vocab_size": 49_408, "eos_id": 49_407, "pad_id": 0}


def load(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def test_a_mistyped_key_is_an_error_with_a_suggestion():
    config = keys.default()
    with pytest.raises(AttributeError, match='Did you mean "peak_lr"'):
        config.optimizer.peek_lr = 1.0
    with pytest.raises(AttributeError, match='Did you mean "total_steps"'):
        _ = config.total_step


def test_the_papers_recipes_to_the_letter():
    for name in ("vit_b32_400m", "vit_b16_400m", "vit_l14_400m"):
        config = load(name)
        assert config.global_batch * config.total_steps == 12_799_967_232
        assert config.global_batch == 32_768
        assert config.optimizer.to_dict() == {
            "peak_lr": 4e-4 if "l14" in name else 5e-4,
            "warmup_steps": 2_000,
            "beta1": 0.9,
            "beta2": 0.98,
            "epsilon": 1e-6,
            "weight_decay": 0.2,
            "first_moment_dtype": "float32",
        }
        assert config.data.crop_scale == (0.9, 1.0)
        assert config.model.activation == "quick_gelu"


@pytest.mark.parametrize(
    "name", sorted(p.stem for p in RECIPES.glob("vit_*.py")), ids=str
)
def test_recipes_build_the_released_architectures(name):
    towers = name.split("_")[1]
    end = {"worldwide": "_worldwide", "altogether": "_altogether"}
    preset = presets.architecture(f"vit_{towers}{end.get(name.split('_')[2], '')}")
    config = load(name)
    built = keys.architecture(
        config,
        vocab_size=preset.vocab_size,
        eos_id=preset.eos_id,
        pad_id=preset.pad_id,
    )
    for field in dataclasses.fields(preset):
        if field.name not in ("dtype", "remat"):
            got, want = getattr(built, field.name), getattr(preset, field.name)
            assert got == want, field.name
    # Of MetaCLIP's published configurations: batch, steps, lr, betas, decay.
    optimizer = config.optimizer
    facts = (
        config.global_batch,
        config.total_steps,
        optimizer.peak_lr,
        optimizer.beta2,
        optimizer.weight_decay,
    )
    if "worldwide" in name:
        assert facts == (75_264, 391_136, 4e-4, 0.95, 0.1)
    elif "altogether" in name:
        assert facts == (131_072, 390_624, 4e-4, 0.95, 0.1)
    else:
        lr = 5e-4 if towers in ("b32", "b16") else 4e-4
        assert facts == (32_768, 390_624, lr, 0.98, 0.2)
    assert (optimizer.beta1, optimizer.epsilon) == (0.9, 1e-6)
    assert optimizer.warmup_steps == 2_000
    # 32 times the pairs of an epoch, in whole batches.
    pairs = {32_768: 400, 75_264: 920, 131_072: 1_600}[config.global_batch] * 10**6
    assert config.total_steps == pairs // config.global_batch * 32
    # Only MetaCLIP 1.2 balances in the loader and mixes synthetic texts in.
    data = config.data.to_dict()
    assert data.pop("crop_scale") == (0.9, 1.0)
    if "altogether" in name:
        assert data.pop("online_tail_share") == 0.06
        assert data.pop("synthetic_share") == 0.15
        assert data.pop("synthetic_sources") == ("synthetic",)
    default = keys.default()
    assert data.items() <= default.data.to_dict().items()
    for key in ("loss", "microbatches", "patch_dropout", "image_size", "dtype"):
        assert config[key] == default[key], key


def test_the_siglip_recipe_builds_the_released_base_model():
    config = load("siglip_b16")
    built = keys.architecture(config, vocab_size=32_000, eos_id=1, pad_id=1)
    assert built.logit_bias
    # google/siglip-base-patch16-224 on the hub.
    assert clip.parameter_count(built)["total"] == 203_155_970
    plain = load("vit_b16_400m")
    assert config.global_batch * config.total_steps == 12_799_967_232
    assert config.optimizer.beta2 == 0.95
    with config.optimizer.unlocked():
        config.optimizer.beta2 = plain.optimizer.beta2
    assert config.optimizer == plain.optimizer


def test_recipes_of_papers_name_their_vocabulary():
    for path in RECIPES.glob("vit_*.py"):
        wanted = "xlm_v" if "worldwide" in path.stem else "clip"
        assert load(path.stem).vocabulary == wanted
    assert load("siglip_b16").vocabulary == "siglip"
    assert load("quickstart").vocabulary == ""


# ml_collections loads a recipe in a way that Python 3.12 will not know.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("name", TRAINED, ids=str)
def test_the_command_of_a_recipe_names_it_and_parses(name, monkeypatch):
    words = shlex.split(command_of(docstring(name)))
    assert words[:3] == ["python", "-m", "metaclip_jax.train"]
    monkeypatch.chdir(RECIPES.parent)
    monkeypatch.setattr(sys, "argv", words[2:])  # where ml_collections finds overrides
    parsed = flags.FlagValues()
    train.define_flags(parsed)
    assert parsed(words[2:]) == words[2:3]  # nothing is left over
    parsed.validate_all_flags()
    assert words[3] == f"--config=configs/{name}.py"
    assert parsed.workdir == "DIR"
    assert parsed.config.global_batch == load(name).global_batch
    if name != "quickstart":
        assert (parsed.config.dataset, parsed.config.tokenizer) == ("DIR", "FILE")


def test_recipes_of_papers_tell_what_the_paper_tells():
    """Hardware, time and accuracy; test_recipes_... compares the rest."""
    told = {name: facts_of(docstring(name)) for name in TRAINED if name != "quickstart"}
    for name, facts in told.items():
        assert list(facts) == ["data", "hardware", "time", "zero-shot ImageNet"], name
        for key in ("hardware", "time"):
            unknown = facts[key] == NOT_GIVEN
            assert unknown or re.match(r"(\d+|one|two) \w+", facts[key]), (name, key)
    accuracy = {name: facts["zero-shot ImageNet"] for name, facts in told.items()}
    assert accuracy == {
        "siglip_b16": "73.4%",
        "vit_b32_400m": "65.5%",
        "vit_b16_400m": "70.8%",
        "vit_l14_400m": "76.2%",
        "vit_b32_1b": "67.3%",
        "vit_b32_2p5b": "67.6%",
        "vit_b16_2p5b": "72.1%",
        "vit_l14_2p5b": "79.2%",
        "vit_h14_2p5b": "80.5%",
        "vit_bigg14_2p5b": "82.1%",
        "vit_h14_altogether": "82.0%",
        "vit_l14_worldwide": "78.8%",
        "vit_h14_worldwide": "81.3%",
        **{
            f"vit_{towers}_worldwide": NOT_GIVEN
            for towers in ("s16", "m16", "b32", "b16")
        },
    }


def docstring(name):
    return ast.get_docstring(ast.parse((RECIPES / f"{name}.py").read_text()))


def command_of(text):
    """The block that is indented, its lines joined."""
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return "\n".join(lines).replace("\\\n", " ")


def facts_of(text):
    """The lines "- name: what"."""
    return dict(re.findall(r"^- ([\w -]+): (.+)$", text, re.MULTILINE))


def test_a_tokenizer_of_another_vocabulary_is_refused():
    presets.check_vocabulary("", size=777, tokenizer="own.json")
    presets.check_vocabulary("xlm_v", size=901_629, tokenizer="own.json")
    with pytest.raises(
        ValueError,
        match=r"'xlm_v' wants a tokenizer of 901,629 tokens, but 'own.json' has 49,408."
        " .*--config.vocabulary= takes any",
    ):
        presets.check_vocabulary("xlm_v", size=49_408, tokenizer="own.json")
    with pytest.raises(ValueError, match="must be one of clip, .*got 'klingon'"):
        presets.check_vocabulary("klingon", size=9, tokenizer="own.json")


def test_the_quick_start_splits_its_batch_over_two_devices():
    config = load("quickstart")
    assert config.cpu_devices == config.mesh.data == 2
    assert config.global_batch % 2 == 0
    assert config.is_locked


def test_recipes_load_from_anywhere_without_jax():
    code = (
        "import runpy, sys\n"
        f"get = runpy.run_path({str(RECIPES / 'quickstart.py')!r})['get_config']\n"
        "assert get().total_steps > 0\n"
        "print('jax' in sys.modules)"
    )
    root = str(RECIPES.parent)
    out = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({root!r})\n{code}"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "False"


def test_architecture_is_the_configs_values():
    config = keys.default()
    config.model.vision_mlp_width = 100
    architecture = keys.architecture(config, **TOKENS)
    assert architecture.vision_mlp_width == 100
    assert architecture.text_mlp_width == 4 * 512
    assert architecture.dtype == "bfloat16"


def test_every_key_has_a_row_and_every_row_a_key():
    assert set(keys.RANGES) == set(dict(ranges.flat(keys.default())))


@pytest.mark.parametrize("name", ["default", *TRAINED])
def test_the_values_of_every_recipe_are_in_range(name):
    keys.check(keys.default() if name == "default" else load(name))


@pytest.mark.parametrize("key", keys.RANGES)
def test_a_value_out_of_its_range_is_refused_by_the_name_of_its_key(key):
    for value in bad_values(keys.RANGES[key]):
        config = with_value(keys.default(), key, value)
        with pytest.raises(ValueError) as error:
            keys.check(config)
        text = str(error.value)
        assert text.startswith(f"config.{key}: wanted {keys.RANGES[key].wanted()}, got")
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
        ("model.attention", tuple(attention.IMPLEMENTATIONS)),
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
        ({"model.text_pool": "last"}, "text_pool='last': wanted .* got family 'clip'"),
        (
            {"model.family": "siglip", "model.embed_dim": 768},
            "text_pool='eos': wanted 'last'",
        ),
        (
            {"model.family": "siglip", "model.text_pool": "last"},
            "embed_dim=512: wanted config.model.vision_width=768",
        ),
        ({"total_steps": 2_000}, "warmup_steps=2000: wanted fewer .*; try 200"),
        ({"eval_every_steps": 9}, "eval_every_steps=9: wanted a dataset"),
        ({"checkpoint.keep_best": "x"}, "keep_best='x': wanted scores"),
        (
            {
                "checkpoint.keep_best": "x",
                "evaluation.held_out": "DIR",
                "eval_every_steps": 3,
            },
            "checkpoint_every_steps=5000: .* multiple of config.eval_every_steps=3",
        ),
        ({"profile.first_step": 5}, "wanted 1 <= first_step .*got 5 and 0"),
        ({"profile.last_step": 10**6}, "wanted 1 <= first_step .*got 0 and 1000000"),
        ({"data.crop_scale": (0.9, 0.5)}, "crop_scale=.0.9, 0.5.: wanted the least"),
        (
            {"data.text_source_weights": (("alt", 1), ("alt", 2))},
            "text_source_weights: wanted each text source once",
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
        "2 faults of the config:",
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
    assert "config.optimizer.learning_rate: there is no such key" in str(error.value)
    assert "config.optimizer.peak_lr: the key is missing" in str(error.value)


def test_the_table_prints_itself():
    lines = ranges.render(keys.RANGES, keys.default()).splitlines()
    assert len(lines) == len(keys.RANGES)
    found = [line.split() for line in lines]
    assert "mesh.data -1 an integer of at least 1, or -1".split() in found


def test_a_refused_command_leaves_nothing_and_starts_nothing(tmp_path):
    wrong = ["optimizer.peak_lr=nan", "data.crop_scale=0.5", "data.worker_count=-1"]
    command = [sys.executable, "-m", "metaclip_jax.train", f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        [*command, "--config=configs/quickstart.py", *(f"--config.{w}" for w in wrong)],
        cwd=RECIPES.parent,
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
    with pytest.raises(ValueError, match="wants NVIDIA GPUs .* got cpu and 'bfloat16'"):
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
    with pytest.raises(ValueError, match="eos_id=10 must be below vocab_size=10"):
        keys.architecture(keys.default(), vocab_size=10, eos_id=10, pad_id=0)
