"""--config and --config.KEY: every mistyped key, variant and value, by its name."""

import sys
from pathlib import Path

import pytest
from absl import app, flags
from ml_collections import ConfigDict

from data_prep import config as curation_keys
from metaclip_jax import config as keys
from metaclip_jax.cli import config_flag, errors, ranges

ROOT = Path(__file__).resolve().parents[3]
TABLES = {
    "configs/quickstart.py": keys.RANGES,
    "configs/curate.py": curation_keys.CURATE_RANGES,
    "configs/metadata.py": curation_keys.METADATA_RANGES,
}
KEYS = [(recipe, key) for recipe, table in TABLES.items() for key in table]


def parse(monkeypatch, recipe, *words):
    """Returns (config, ""), or (None, the line that says what is wrong)."""
    monkeypatch.chdir(ROOT)
    argv = ["program", f"--config={recipe}", *words]
    monkeypatch.setattr(sys, "argv", argv)  # where ml_collections finds overrides
    values = flags.FlagValues()
    table = TABLES.get(recipe.partition(":")[0], keys.RANGES)
    config_flag.define(table, flag_values=values)
    try:
        values(argv)
    except (flags.Error, app.UsageError) as error:
        return None, errors.of_command_line(error, values)
    return values.config, ""


@pytest.mark.parametrize(("recipe", "key"), KEYS)
def test_a_key_with_a_letter_too_few_or_too_many_is_suggested(recipe, key):
    config = config_flag.load(str(ROOT / recipe))
    names = {f"--config.{one}" for one in TABLES[recipe]}
    for wrong in (key[:-1], f"{key}s", key[:-2] + key[-1] * 2):
        if f"--config.{wrong}" in names:
            continue
        with pytest.raises(app.UsageError) as error:
            config_flag.check_overrides(config, [f"--config.{wrong}=1"])
        suggested = str(error.value).partition("did you mean ")[2].rstrip("?")
        assert suggested in names
        # Some keys differ in a letter or two: min_side and max_side.
        assert suggested == f"--config.{key}" or len(wrong) < len(key)
    config_flag.check_overrides(config, [f"--config.{key}=1", f"--noconfig.{key}"])


@pytest.mark.parametrize(("recipe", "key"), KEYS)
def test_a_value_of_the_wrong_type_is_refused_by_its_range(recipe, key, monkeypatch):
    row = TABLES[recipe][key]
    if row.type in (str, tuple):  # read from any text, and checked when it is read
        return
    config, said = parse(monkeypatch, recipe, f"--config.{key}=abc")
    assert config is None
    assert said.startswith(f"--config.{key}: wanted {row.wanted()}, got 'abc'; ")
    assert "the default is" in said


NUMBERS = [(r, k) for r, k in KEYS if TABLES[r][k].type in (int, float)]


@pytest.mark.parametrize(("recipe", "key"), NUMBERS)
def test_a_key_without_a_number_is_none_where_its_range_says_so(
    recipe, key, monkeypatch
):
    config, said = parse(monkeypatch, recipe, f"--config.{key}=None")
    assert not said
    value = dict(ranges.flat(config))[key]
    assert value is None
    assert TABLES[recipe][key].holds(value) == ("None" in TABLES[recipe][key].wanted())


def test_the_last_word_of_a_key_alone_finds_it(monkeypatch):
    _, said = parse(monkeypatch, "configs/quickstart.py", "--config.peak_lr=1")
    assert "did you mean --config.optimizer.peak_lr?" in said
    _, said = parse(monkeypatch, "configs/quickstart.py", "--config.zzzzzzzzzz=1")
    assert "docs/config.md lists them" in said


@pytest.mark.parametrize(
    ("file", "meant"),
    [
        ("metaclip.py", "configs/metaclip.py"),
        ("configs/metaclip", "configs/metaclip.py"),
        ("configs/curat.py", "configs/curate.py"),
        ("conf/siglip.py", "configs/siglip.py"),
        ("qqqqqqqqqqqq.py", ""),
    ],
)
def test_a_missing_recipe_is_answered_with_the_nearest(file, meant, monkeypatch):
    _, said = parse(monkeypatch, file)
    assert (f"did you mean {meant}?" if meant else "give its path from") in said


def test_a_tuple_is_shown_as_the_config_has_it(monkeypatch):
    _, said = parse(
        monkeypatch, "configs/quickstart.py", "--config.data.mixture=(('a', 4.0"
    )
    assert said.endswith("got \"(('a', 4.0\"; the default is ()")


def test_a_right_command_line_gives_the_config_it_says(monkeypatch):
    flags = ["--config.balance.t=7", "--config.source.paths=x"]
    config, _ = parse(monkeypatch, "configs/curate.py:1b", *flags)
    assert config.is_locked and type(config) is ConfigDict
    assert (config.balance.t, config.source.paths) == (7, "x")
    assert config.partitions == 50_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "wanted get_config() in a recipe, got none"),
        (
            "def get_config(): return 1",
            "wanted a ConfigDict from get_config(), got a int",
        ),
        ("def get_config():\n    raise ValueError('say 1')", "say 1"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, monkeypatch, text, said):
    (tmp_path / "own.py").write_text(text)
    config, found = parse(monkeypatch, f"{tmp_path}/own.py")
    assert config is None
    assert found.startswith(f"--config={tmp_path}/own.py: {said}")


@pytest.mark.parametrize(
    "text", ["1 +", "import nowhere", "def get_config(): return int('x')", "len(1)"]
)
def test_an_unexpected_error_in_a_recipe_keeps_its_traceback(
    tmp_path, monkeypatch, text
):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(RuntimeError, match="own.py failed") as error:
        parse(monkeypatch, f"{tmp_path}/own.py")
    assert error.value.__cause__ is not None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optimizer.peek_lr": 1.0}, "got config.optimizer.peek_lr; did you mean"),
        ({"total_steps": "many"}, "config.total_steps: .*int"),
        ({"qqqqqqqq": 1}, "got config.qqqqqqqq; docs/config.md lists them"),
    ],
)
def test_a_wrong_key_or_type_in_a_variant_is_named(values, said):
    with pytest.raises(ValueError, match=said):
        keys.recipe({"own": {"preset": "vit_b32", **values}}, "own")
    assert ranges.nearest("own", []) == ""
