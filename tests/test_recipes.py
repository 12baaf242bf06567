"""Every variant of every recipe: the paper's figures, its command, values in range."""

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

from data_prep import config as curation_keys
from metaclip_jax import config as keys
from metaclip_jax import train
from metaclip_jax.cli import config_flag
from metaclip_jax.models import clip, presets

FOLDER = Path(__file__).resolve().parents[1] / "configs"
CHECKS = {
    "curate": curation_keys.check_curate,
    "metadata": curation_keys.check_metadata,
}


def module_of(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULES = {path.stem: module_of(path.stem) for path in sorted(FOLDER.glob("*.py"))}
VARIANTS = [
    (name, variant)
    for name, module in MODULES.items()
    for variant in getattr(module, "VARIANTS", [None])
]
TRAINED = [
    (name, variant) for name, variant in VARIANTS if name not in CHECKS and variant
]


def load(name, variant=None):
    return MODULES[name].get_config(*filter(None, [variant]))


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_the_values_of_every_variant_are_in_range(name, variant):
    config = load(name, variant)
    CHECKS.get(name, keys.check)(config)
    assert config.is_locked


@pytest.mark.parametrize(("name", "variant"), TRAINED)
def test_recipes_of_pods_read_blocks_in_windows_that_suit_their_batch(name, variant):
    config = load(name, variant)
    assert config.data.order == "blocks"
    window = config.data.block_records * config.data.window_blocks
    assert 4 * window <= config.global_batch


@pytest.mark.parametrize("name", MODULES)
def test_an_unknown_variant_names_those_that_there_are(name):
    if not hasattr(MODULES[name], "VARIANTS"):
        return
    with pytest.raises(ValueError, match=f"{list(MODULES[name].VARIANTS)[0]}.*got 'x'"):
        load(name, "x")
    first = MODULES[name].get_config.__defaults__[0]
    assert load(name) == load(name, first)


# Batch, steps, learning rate, beta2, decay, activation, vocabulary, as published for
# MetaCLIP's, MetaCLIP 2's, Altogether's and SigLIP's models.
FACTS = {
    "metaclip": (32_768, 390_624, 5e-4, 0.98, 0.2, "quick_gelu", "clip"),
    "metaclip2": (75_264, 391_136, 4e-4, 0.95, 0.1, "gelu", "xlm_v"),
    "altogether": (131_072, 390_624, 4e-4, 0.95, 0.1, "gelu", "clip"),
    "siglip": (32_768, 390_624, 5e-4, 0.95, 0.2, "gelu_tanh", "siglip"),
}
# What a variant has beside its recipe's.
OTHERWISE = {
    **{f"metaclip:vit_{size}": {"lr": 4e-4} for size in ("l14", "h14", "bigg14")},
    "metaclip2:vit_h14": {"activation": "quick_gelu"},
}
# Millions of parameters of the released models.
MILLIONS = {
    "metaclip": {
        "b32": 151.28,
        "b16": 149.62,
        "l14": 427.62,
        "h14": 986.11,
        "bigg14": 2539.57,
    },
    "metaclip2": {
        "s16": 389.51,
        "m16": 538.35,
        "b32": 587.61,
        "b16": 585.96,
        "l14": 1082.12,
        "h14": 1858.78,
    },
    "altogether": {"h14": 986.11},
    "siglip": {"b16": 203.16},  # google/siglip-base-patch16-224
}


@pytest.mark.parametrize(("name", "variant"), TRAINED)
def test_a_variant_is_what_the_paper_says(name, variant):
    config = load(name, variant)
    size = variant.split("_")[1]
    want = dict(
        zip(
            ("batch", "steps", "lr", "beta2", "decay", "activation", "vocabulary"),
            FACTS[name],
            strict=True,
        )
    )
    want |= OTHERWISE.get(f"{name}:vit_{size}", {})
    optimizer = config.optimizer
    assert {
        "batch": config.global_batch,
        "steps": config.total_steps,
        "lr": optimizer.peak_lr,
        "beta2": optimizer.beta2,
        "decay": optimizer.weight_decay,
        "activation": config.model.activation,
        "vocabulary": config.vocabulary,
    } == want
    assert (optimizer.beta1, optimizer.epsilon) == (0.9, 1e-6)
    assert optimizer.warmup_steps == 2_000
    # 32 times the pairs of an epoch, in whole batches.
    pairs = {32_768: 400, 75_264: 920, 131_072: 1_600}[config.global_batch] * 10**6
    assert config.total_steps == pairs // config.global_batch * 32
    ids = presets.VOCABULARIES[config.vocabulary]
    built = keys.architecture(
        config, vocab_size=ids.size, eos_id=ids.eos_id, pad_id=ids.pad_id
    )
    millions = clip.parameter_count(built)["total"] / 1e6
    assert millions == pytest.approx(MILLIONS[name][size], abs=0.0051)
    released = presets.architecture(MODULES[name].VARIANTS[variant]["preset"])
    free = {"dtype": released.dtype, "remat": released.remat}
    assert dataclasses.replace(built, **free) == released


@pytest.mark.parametrize(("name", "variant"), TRAINED)
def test_only_altogether_balances_in_the_loader(name, variant):
    default = keys.default()
    config = load(name, variant)
    data = config.data.to_dict()
    if name == "altogether":
        assert data["online_tail_share"] == 0.06
        assert data["synthetic_share"] == 0.15
        assert data["synthetic_sources"] == ("synthetic",)
        for key in ("online_tail_share", "synthetic_share", "synthetic_sources"):
            data[key] = default.data[key]
    assert data == default.data.to_dict() | {"order": "blocks"}
    assert data["crop_scale"] == (0.9, 1.0)
    for key in ("microbatches", "patch_dropout", "image_size", "dtype"):
        assert config[key] == default[key], key
    assert config.loss == ("sigmoid" if name == "siglip" else "softmax")


def test_curation_is_what_the_papers_say():
    t = {"400m": 20_000, "1b": 20_000, "2p5b": 170_000, "worldwide": 170_000}
    records = {"400m": 4e8, "1b": 1e9, "2p5b": 2.5e9, "worldwide": 5e9}
    for variant in t:
        config = load("curate", variant)
        assert config.balance.t == t[variant]
        assert records[variant] / config.partitions == 20_000
        second = variant == "worldwide"
        assert config.balance.rule == config.matching.mode == ("v2" if second else "v1")
    metadata = load("metadata", "en")
    # Table 1; what is left of 500,000 are the synsets of WordNet, all of them.
    entries = metadata.max_unigrams, metadata.max_bigrams, metadata.max_titles
    assert 500_000 - sum(entries) == 86_654 <= metadata.max_synsets
    assert (metadata.unigram_min_count, metadata.title_min_views) == (100, 70)


def docstring(name):
    return ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))


def command_of(name):
    """The words of the block that is indented in the docstring."""
    lines = [line for line in docstring(name).splitlines() if line.startswith("    ")]
    return shlex.split("\n".join(lines).replace("\\\n", " "))


@pytest.mark.parametrize("name", MODULES)
def test_the_command_of_a_recipe_names_a_variant_and_parses(name, monkeypatch):
    words = command_of(name)
    programs = {"curate": "data_prep.curate", "metadata": "data_prep.build_metadata"}
    assert words[:3] == ["python", "-m", programs.get(name, "metaclip_jax.train")]
    monkeypatch.chdir(FOLDER.parent)
    monkeypatch.setattr(sys, "argv", words[2:])  # where ml_collections finds overrides
    parsed = flags.FlagValues()
    if name in programs:
        config_flag.define({}, flag_values=parsed)
        paths = "workdir", "output", "warc", "wikipedia", "wordnet", "pageviews"
        for path in paths:
            flags.DEFINE_string(path, None, "", flag_values=parsed)
    else:
        train.define_flags(parsed)
    assert parsed(words[2:]) == words[2:3]  # nothing is left over
    file, _, variant = words[3].removeprefix("--config=configs/").partition(".py")
    assert file == name
    assert bool(variant) == hasattr(MODULES[name], "VARIANTS")
    wanted = load(name, variant.removeprefix(":"))
    assert type(parsed.config) is type(wanted)
    assert parsed.config.keys() == wanted.keys()
    CHECKS.get(name, keys.check)(parsed.config)


@pytest.mark.parametrize("name", [name for name in FACTS])
def test_a_recipe_tells_hardware_time_and_accuracy_of_each_variant(name):
    rows = re.findall(r"^\| (vit_\w+) \|(.+)\|$", docstring(name), re.MULTILINE)
    assert [variant for variant, _ in rows] == list(MODULES[name].VARIANTS)
    for variant, row in rows:
        hardware, time, accuracy = (cell.strip() for cell in row.split("|"))
        for cell in (hardware, time):
            assert cell == "not given" or re.fullmatch(r"(\d+|one|two) \w+", cell)
        assert accuracy == ACCURACY[name].get(variant, "not given")


ACCURACY = {
    "metaclip": {
        "vit_b32_400m": "65.5%",
        "vit_b16_400m": "70.8%",
        "vit_l14_400m": "76.2%",
        "vit_b32_1b": "67.3%",
        "vit_b16_1b": "72.4%",
        "vit_l14_1b": "79.0%",
        "vit_b32_2p5b": "67.6%",
        "vit_b16_2p5b": "72.1%",
        "vit_l14_2p5b": "79.2%",
        "vit_h14_2p5b": "80.5%",
        "vit_bigg14_2p5b": "82.1%",
    },
    "metaclip2": {"vit_l14": "78.8%", "vit_h14": "81.3%"},
    "altogether": {"vit_h14": "82.0%"},
    "siglip": {"vit_b16": "73.4%"},
}


def test_the_quick_start_splits_its_batch_over_two_devices():
    config = load("quickstart")
    assert config.cpu_devices == config.mesh.data == 2
    assert config.global_batch % 2 == 0


@pytest.mark.parametrize("name", MODULES)
def test_recipes_load_from_anywhere_without_jax(name):
    code = (
        f"import runpy, sys\nsys.path.append({str(FOLDER.parent)!r})\n"
        f"runpy.run_path({str(FOLDER / name) + '.py'!r})['get_config']()\n"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
