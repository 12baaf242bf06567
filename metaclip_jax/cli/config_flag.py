"""The flag --config=FILE.py:VARIANT, with --config.KEY=VALUE for single keys.

It is ml_collections' flag with one-line errors that suggest the most similar key,
variant or file.
"""

import glob
import inspect
import os
import re
import runpy
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from metaclip_jax.cli import errors, ranges


class _NumberOrNone(flags.ArgumentParser):
    """Parses a number, or None for keys without one; the key's range decides."""

    def __init__(self, number: flags.ArgumentParser) -> None:
        self.number = number
        self.syntactic_help = number.syntactic_help

    def parse(self, argument: str) -> float | int | None:
        return None if argument == "None" else self.number.parse(argument)

    def flag_type(self) -> str:
        return self.number.flag_type()


for _type, _parser in ((float, flags.FloatParser()), (int, flags.IntegerParser())):
    config_flags.register_flag_parser_for_type(_type, _NumberOrNone(_parser))

_HELP = "Recipe, as configs/FILE.py:VARIANT; docs/config.md lists its keys."


def define(
    table: ranges.Table,
    *,
    default: str | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> None:
    """Defines --config.

    Args:
      table: the range of each key, for messages.
      default: the recipe if none is given.
      flag_values: where the flag is defined.
    """
    try:  # this already parses the default
        config_flags.DEFINE_config_file("config", None, _HELP, flag_values=flag_values)
        flag_values["config"].parser = _Parser(table=table)
        flag_values.set_default("config", default)
    except (flags.Error, app.UsageError) as error:
        errors.fail(errors.of_command_line(error, flag_values))
    if default:
        flag_values["config"].default_as_str = "'all keys at their defaults'"


def load(path: str) -> ConfigDict:
    """Returns the locked config of a recipe, FILE.py or FILE.py:VARIANT.

    Raises:
      UsageError: there is no such file or variant, or the file is not a recipe.
    """
    file, colon, variant = path.partition(":")
    if not os.path.isfile(file):
        cure = f"give its path from {os.getcwd()}"
        if similar := _similar_file(file):
            cure = f"did you mean {similar}?"
        raise app.UsageError(
            f"--config: wanted a recipe, as configs/FILE.py:VARIANT, got {path!r}, a"
            f" file that does not exist; {cure}"
        )
    try:
        get_config = runpy.run_path(file, run_name="recipe").get("get_config")
        if get_config is None:
            raise app.UsageError("wanted get_config() in a recipe, got none; add it")
        if colon and not inspect.signature(get_config).parameters:
            raise app.UsageError(
                f"wanted no variant, because it has none, got {variant!r}; remove"
                f" ':{variant}'"
            )
        config = get_config(*([variant] if colon else []))
        if not isinstance(config, ConfigDict):
            raise app.UsageError(
                "wanted a ConfigDict from get_config(), got a"
                f" {type(config).__name__}; return one"
            )
        return config.lock()
    except Exception as error:
        if isinstance(error, ValueError | app.UsageError):
            if errors.is_raised_by_us(error):
                raise app.UsageError(f"--config={path}: {error}") from error
        # absl would report a TypeError or ValueError as a wrong value of the flag.
        raise RuntimeError(f"--config={path} failed") from error


def _similar_file(file: str) -> str:
    """Returns the recipe with the most similar path, in its folder or in configs/."""
    folders = (glob.escape(os.path.dirname(file)), "configs")
    there = sorted({p for f in folders for p in glob.glob(os.path.join(f, "*.py"))})
    words = {path.removesuffix(".py").replace("/", "."): path for path in there}
    return words.get(
        ranges.nearest(file.removesuffix(".py").replace("/", "."), words), ""
    )


def check_overrides(config: ConfigDict, argv: Sequence[str]) -> None:
    """Checks that the keys of all --config.KEY=VALUE exist.

    Raises:
      UsageError: one does not; the message suggests the most similar key.
    """
    keys = [key for key, _ in ranges.flat(config)]
    for word in argv:
        match = re.match(r"--?(?:no)?config\.([^=]*)", word)
        if match is None or match[1] in keys:
            continue
        members = [key for key in keys if key.startswith(f"{match[1]}.")]
        if members:
            raise app.UsageError(
                f"wanted a key, got --config.{match[1]}, which is a group; set one of"
                f" {', '.join(f'--config.{key}' for key in members)}"
            )
        cure = errors.did_you_mean(
            match[1], keys, otherwise="docs/config.md lists them", prefix="--config."
        )
        raise app.UsageError(f"wanted a key, got --config.{match[1]}; {cure}")


class _Parser(flags.ArgumentParser):
    """Loads a recipe; ml_collections then applies the --config.KEY=VALUE."""

    def __init__(self, *, table: ranges.Table) -> None:
        self.table = table

    def parse(self, argument: str) -> ConfigDict:
        config = load(argument)
        argv = flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False)
        check_overrides(config, argv)
        return config

    def flag_type(self) -> str:
        return "config object"
